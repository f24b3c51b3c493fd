"""Have recipes trained in worker processes, and remember what was trained.

The cache is keyed by everything that decides a model: the code of this package that trains, the versions of the
frameworks, and the recipe. A second run with the same key finds each model's directory and trains nothing. Workers
are fed one recipe at a time, so that a slow export on one does not leave the other idle.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mesh.demo import datasets, recipes, training
from mesh.demo.recipes import Recipe
from mesh.demo.training import TrainedModel
from mesh.demo.training_worker import ONE_THREAD_EACH, recipe_to_line

_PACKAGES = (
    "joblib", "lightgbm", "numpy", "onnx", "onnxruntime", "scikit-learn", "skl2onnx", "skops", "torch",
    "xgboost", "xgboost-cpu",
)  # fmt: skip
_TRAINED = "trained.json"
_WORKERS_MAX = 4
_STDERR_SHOWN_CHARACTERS = 2000


class TrainingFailed(Exception):
    """A model could not be trained; the message says which and why."""


def default_cache_dir() -> Path:
    """Where trained models are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "hexcomb" / "demo"


def cache_key() -> str:
    """Changes when the code or a framework that makes the models does."""
    digest = hashlib.sha256()
    for module in (datasets, recipes, training):
        digest.update(Path(str(module.__file__)).read_bytes())
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{package}={importlib.metadata.version(package)};".encode())
    return digest.hexdigest()[:16]


def train_all(planned: Sequence[Recipe], cache: Path, done: Callable[[int], None]) -> list[TrainedModel]:
    """Train what is not in the cache. `done(n)` is called as n more models are ready. Raises TrainingFailed."""
    cache.mkdir(parents=True, exist_ok=True)
    ready: dict[str, TrainedModel] = {}
    missing: list[Recipe] = []
    for recipe in planned:
        known = _recall(recipe, cache)
        if known is None:
            missing.append(recipe)
        else:
            ready[recipe.name] = known
    done(len(ready))
    if missing:
        for trained in _train_missing(missing, cache, done):
            ready[trained.name] = trained
    return [ready[recipe.name] for recipe in planned]


def _recall(recipe: Recipe, cache: Path) -> TrainedModel | None:
    try:
        noted = json.loads((cache / recipe.name / _TRAINED).read_text())
        if noted["recipe"] != recipe_to_line(recipe):
            return None
        # The cache may have been moved since: the directory is where it was found.
        trained = TrainedModel.from_json({**noted["model"], "directory": str(cache / recipe.name)})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return trained if trained.artifact.exists() and trained.cases.exists() else None


def _remember(recipe: Recipe, trained: TrainedModel) -> None:
    noted = {"recipe": recipe_to_line(recipe), "model": trained.to_json()}
    written = Path(trained.directory) / f"{_TRAINED}.part"
    written.write_text(json.dumps(noted))
    written.rename(Path(trained.directory) / _TRAINED)


def _train_missing(missing: list[Recipe], cache: Path, done: Callable[[int], None]) -> list[TrainedModel]:
    waiting: queue.SimpleQueue[Recipe] = queue.SimpleQueue()
    for recipe in missing:
        waiting.put(recipe)
    outcomes: queue.SimpleQueue[TrainedModel | TrainingFailed] = queue.SimpleQueue()
    workers_count = max(1, min(len(missing), os.cpu_count() or 1, _WORKERS_MAX))
    environment = {**os.environ, **dict.fromkeys(ONE_THREAD_EACH, "1")}
    with contextlib.ExitStack() as stack:
        for _ in range(workers_count):
            stderr = stack.enter_context(tempfile.TemporaryFile("w+"))
            worker = subprocess.Popen(
                [sys.executable, "-m", "mesh.demo.training_worker", str(cache)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends its workers
            )
            stack.callback(_end, worker)
            feed = threading.Thread(target=_feed, args=(worker, waiting, outcomes, cache, stderr), daemon=True)
            feed.start()
        trained: list[TrainedModel] = []
        while len(trained) < len(missing):
            outcome = outcomes.get()
            if isinstance(outcome, TrainingFailed):
                raise outcome
            trained.append(outcome)
            done(1)
        return trained


def _feed(
    worker: subprocess.Popen[str],
    waiting: queue.SimpleQueue[Recipe],
    outcomes: queue.SimpleQueue[TrainedModel | TrainingFailed],
    cache: Path,
    stderr: tempfile._TemporaryFileWrapper[str],
) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            recipe = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            worker.stdin.write(recipe_to_line(recipe))
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            with contextlib.suppress(OSError, ValueError):
                stderr.seek(0)
            said = "" if stderr.closed else stderr.read()[-_STDERR_SHOWN_CHARACTERS:].strip()
            outcomes.put(
                TrainingFailed(f"the training process ended while it made {recipe.name}: {said or 'no output'}")
            )
            return
        outcome = json.loads(answer)
        if "failed" in outcome:
            outcomes.put(TrainingFailed(f"training failed: {outcome['failed']}"))
            return
        trained = TrainedModel.from_json(outcome["trained"])
        _remember(recipe, trained)
        outcomes.put(trained)


def _end(worker: subprocess.Popen[str]) -> None:
    if worker.poll() is None:
        worker.terminate()
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
