"""What a request for a cold model costs, from the call to the first right answer, and where the time goes.

A real pod over gRPC, one request at a time, in three states:

* **evicted, page cache warm**: the copy has left memory (its time to live ran out), its files are on the pod's disk;
* **evicted, page cache dropped**: the same, and the kernel has been told to forget the pages of all those files;
* **object store**: the pod's disk has nothing of it; the store answers after 50 ms over a link of 100 MB/s.

Stages come from the pod's own metric `hexcomb_load_seconds`; what they do not cover (the run, the wire, the turns of
loop and threads) is shown as `rest`. Beside each figure stands the slowest stage's limit, measured in the same run on
this machine: reading the bytes (through a mapping when they are cached, from the disk when not), the link, or what the
framework needs when it is called directly (prepare, load, one run). What no answer from the pod's disk can do without
is shown as well: a load and the first run, with its page faults, called directly one after the other.

From an object store, ONNX and XGBoost models answer before they are prepared. Each such copy is kept until it has
become its prepared form, so that the next fetch does not run beside that. Each fetch brings other bytes where a pod
remembers what it has checked, for the first arrival of a model is what is meant.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mesh.client.client import Client
from mesh.demo.server import DemoServer, start_server
from runtime_adapters.registry import adapter_for
from tests.bench.figures import Reporter
from tests.bench.models import BenchModel, bytes_under, options_of, read_models, sample_inputs, with_a_note
from tests.bench.pods import wait_prepared
from tests.bench.slow_store import SlowStore, slow_store

STORE_DELAY_S, STORE_BYTES_PER_S = 0.05, 100e6
RATIO_BAR = 1.5
"""Of the slowest stage's limit."""
RATIO_MIN_BYTES = 5_000_000
"""Below, an answer takes two or three milliseconds, all of them the request's own: the ratio is shown without a bar."""
ANSWER_BARS_MS = {"onnx-25mb": 10.0, "onnx-100mb": 40.0}
"""Evicted, page cache warm."""
_MODELS = (
    "onnx-0.1mb", "onnx-6mb", "onnx-25mb", "onnx-100mb", "xgboost-100x6", "xgboost-12mb", "lightgbm-100x63",
    "lightgbm-15mb", "sklearn-pipeline", "sklearn-mlp-20mb", "torch-small", "torch-25mb",
)  # fmt: skip
_LATER = "prepare_later"
_TTL_S = 0.01
_LONG_S = 60.0
_STAGE = re.compile(r'^hexcomb_load_seconds_sum\{format="[^"]*",stage="([^"]*)"\} (\S+)$', re.MULTILINE)


@dataclass
class _Taken:
    """Times of one state, in seconds."""

    answers_s: list[float] = field(default_factory=list)
    stages_s: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Limits:
    """What the stages of one model take at least, measured directly. Seconds."""

    prepare_s: float
    load_s: float
    run_s: float
    load_and_first_run_s: float
    mapped_read_s: float
    disk_read_s: float


def run(bench: Reporter) -> None:
    """Every model in the three states."""
    models = read_models(bench.cache_dir)
    chosen = [models[name] for name in _MODELS if name in models]
    with slow_store(STORE_DELAY_S, STORE_BYTES_PER_S) as store:
        for number, model in enumerate(chosen):
            bench.progress(number, len(chosen), model.name)
            _measure(bench, model, store)
    bench.progress(len(chosen), len(chosen))


def _measure(bench: Reporter, model: BenchModel, store: SlowStore) -> None:
    loaded = model.load()
    inputs = sample_inputs(loaded.metadata)
    expected = loaded.infer(inputs)
    loaded.unload()
    limits = _limits(bench, model, inputs)
    with _pod(bench, model, store) as (server, client, data_dir):
        asking = _Asking(server, client, inputs, expected)
        client.register("first", uri=model.artifact.as_uri(), format=model.format)
        asking.ask("first")  # the framework's own baggage
        wait_prepared(client, "first")
        asking.remove("first")
        client.register(model.name, uri=model.artifact.as_uri(), format=model.format, ttl_s=_TTL_S)
        asking.ask(model.name)
        asking.wait_gone(model.name)
        warm = asking.cold_answers(model.name, bench.choose(30, 4), lambda: None)
        dropped = asking.cold_answers(model.name, bench.choose(10, 2), lambda: drop_page_cache(data_dir))
        client.unregister(model.name)
        content = model.artifact.read_bytes()
        fetched, prepared_after_s = _Taken(), []
        for number in range(1 + bench.choose(8, 1)):
            name = f"{model.name}-{number}"
            uri = store.put(name + model.artifact.suffix, with_a_note(content, model.format, number))
            _empty_disk(client, data_dir, model, number)
            client.register(name, uri=uri, format=model.format)
            # The first one is the object store's client's, which a pod starts once.
            asking.cold_answer(name, into=fetched if number else _Taken())
            prepared_after_s.append(wait_prepared(client, name))
            asking.remove(name)
    load_run_s = {"load": limits.load_s, "run": limits.run_s}
    _report(
        bench, model, "evicted, cache warm", warm, {**load_run_s, "read": limits.mapped_read_s},
        bar=ANSWER_BARS_MS.get(model.name),
    )  # fmt: skip
    bench.figure(
        f"{model.name} ({model.file_bytes / 1e6:.1f} MB), load and first run, called directly",
        1e3 * limits.load_and_first_run_s,
        "ms",
        note="what no answer from the disk can do without",
    )
    _report(bench, model, "evicted, cache dropped", dropped, {**load_run_s, "read": limits.disk_read_s})
    stages_s = {**load_run_s, "link": store.limit_s(model.file_bytes)}
    if not any(prepared_after_s):
        stages_s["prepare"] = limits.prepare_s
    _report(bench, model, "object store", fetched, stages_s)
    if any(prepared_after_s):
        bench.samples(
            f"{model.name}, object store: in its prepared form after the answer",
            [1e3 * seconds for seconds in prepared_after_s],
            "ms",
        )


def _report(
    bench: Reporter, model: BenchModel, state: str, taken: _Taken, limits_s: dict[str, float], bar: float | None = None
) -> None:
    name = f"{model.name} ({model.file_bytes / 1e6:.1f} MB), {state}"
    stages_ms = {stage: 1e3 * statistics.median(times) for stage, times in taken.stages_s.items()}
    answer_ms = 1e3 * statistics.median(taken.answers_s)
    stages_ms["rest"] = answer_ms - sum(took for stage, took in stages_ms.items() if stage != _LATER)
    parts = ", ".join(f"{stage} {milliseconds:.1f}" for stage, milliseconds in stages_ms.items())
    slowest = max(limits_s, key=lambda stage: limits_s[stage])
    limit_ms = 1e3 * limits_s[slowest]
    bench.samples(
        name,
        [1e3 * seconds for seconds in taken.answers_s],
        "ms",
        bar=bar,
        baseline=limit_ms,
        baseline_name=f"limit of the slowest stage, {slowest}",
        note=parts,
    )
    has_bar = state == "object store" or model.file_bytes >= RATIO_MIN_BYTES
    bench.figure(f"{name}: against that limit", answer_ms / limit_ms, "times", bar=RATIO_BAR if has_bar else None)


class _Asking:
    """Asks a pod, checks the answer, and reads what the pod says of its stages."""

    def __init__(self, server: DemoServer, client: Client, inputs: Any, expected: Any) -> None:
        self._server = server
        self._client = client
        self._inputs = inputs
        self._expected = expected

    def ask(self, name: str) -> float:
        """Seconds to the right answer. Raises AssertionError on a wrong one."""
        began = time.perf_counter()
        answer = self._client.infer(name, self._inputs)
        took_s = time.perf_counter() - began
        for output, array in self._expected.items():
            np.testing.assert_allclose(answer.outputs[output], array, rtol=1e-3, atol=1e-4)
        return took_s

    def wait_gone(self, name: str) -> None:
        """Until the copy has left memory."""
        until_s = time.monotonic() + _LONG_S
        while self._client.describe(name).copies:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{name} did not leave")
            time.sleep(0.005)

    def remove(self, name: str) -> None:
        """Until its files are held by nobody."""
        self._client.unregister(name)
        until_s = time.monotonic() + _LONG_S
        while self._client.pod_status()[0].models_resident:
            if time.monotonic() > until_s:
                raise TimeoutError(f"{name} did not leave")
            time.sleep(0.005)

    def cold_answers(self, name: str, count: int, before: Callable[[], None]) -> _Taken:
        """Ask so often, each time after the copy has left and `before` was called."""
        taken = _Taken()
        for _ in range(count):
            before()
            self.cold_answer(name, taken)
            self.wait_gone(name)
        return taken

    def cold_answer(self, name: str, into: _Taken) -> None:
        """Ask once, with the copy away."""
        before = self._stages()
        into.answers_s.append(self.ask(name))
        for stage, total_s in self._stages().items():
            if (took_s := total_s - before.get(stage, 0.0)) > 0:
                into.stages_s.setdefault(stage, []).append(took_s)

    def _stages(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://{self._server.http_endpoint}/metrics", timeout=_LONG_S) as answer:
            text = answer.read().decode()
        totals: dict[str, float] = {}
        for stage, seconds in _STAGE.findall(text):  # a line for each format
            totals[stage] = totals.get(stage, 0.0) + float(seconds)
        return totals


@contextlib.contextmanager
def _pod(bench: Reporter, model: BenchModel, store: SlowStore) -> Iterator[tuple[DemoServer, Client, Path]]:
    """A pod whose disk has room for one model of this size on its way in."""
    with tempfile.TemporaryDirectory(prefix="pod-", dir=bench.cache_dir) as directory:
        data_dir = Path(directory)
        server = start_server(
            data_dir,
            capacity_bytes=4 << 30,
            trusted_prefix=bench.cache_dir.resolve(),
            settings=(
                "--log-level", "error", "--disk-capacity", str(_disk_capacity_bytes(model)), "--no-promotion",
                "--trusted-prefixes", f"{bench.cache_dir.resolve().as_uri()}/,{store.base}/",
            ),
        )  # fmt: skip
        try:
            with Client(server.grpc_endpoint, timeout_s=_LONG_S) as client:
                yield server, client, data_dir
        finally:
            server.stop()


def _disk_capacity_bytes(model: BenchModel) -> int:
    return int(4.5 * model.file_bytes) + (8 << 20)


def _empty_disk(client: Client, data_dir: Path, model: BenchModel, number: int) -> None:
    """Fetch something as large as the disk tier, which is no model, so that everything else leaves it."""
    name = f"filler-{number}"
    filler = data_dir.parent / f"{data_dir.name}-{name}.onnx"
    with filler.open("wb") as file:
        file.truncate(_disk_capacity_bytes(model) - (256 << 10))
        file.write(os.urandom(64))
    client.register(name, uri=filler.as_uri(), format="onnx")
    with contextlib.suppress(Exception):
        client.infer(name, {"x": np.zeros((1, 1), np.float32)})
    client.unregister(name)
    filler.unlink()


def _limits(bench: Reporter, model: BenchModel, inputs: Any) -> _Limits:
    adapter = adapter_for(model.format)
    prepare_s = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(dir=bench.cache_dir) as directory:
            prepare = partial(adapter.prepare, model.artifact, Path(directory), options_of(model.name))
            prepare_s.append(_timed(prepare))
    load_s, run_s, load_and_first_run_s = [], [], []
    for _ in range(5):
        began = time.perf_counter()
        loaded = model.load()
        load_s.append(time.perf_counter() - began)
        loaded.infer(inputs)
        load_and_first_run_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        loaded.infer(inputs)
        run_s.append(time.perf_counter() - began)
        loaded.unload()
    home = bench.cache_dir / "read"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(model.prepared, home) if model.prepared.is_dir() else _copy_into(model.prepared, home)
    read_s = statistics.median(_timed(lambda: _read_mapped(home)) for _ in range(5))
    disk_s = []
    for _ in range(3):
        drop_page_cache(home)
        disk_s.append(_timed(lambda: _read_all(home)))
    shutil.rmtree(home)
    both_s = statistics.median(load_and_first_run_s)
    return _Limits(min(prepare_s), min(load_s), min(run_s), both_s, read_s, min(disk_s))


def _copy_into(file: Path, directory: Path) -> None:
    directory.mkdir()
    shutil.copy(file, directory)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def drop_page_cache(directory: Path) -> None:
    """Make the kernel forget the pages of all files below; what is dirty is written first."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_mapped(directory: Path) -> None:
    for path in _large_files(directory):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            view[: len(view) // 4096 * 4096].reshape(-1, 4096).max(axis=1)
            del view


def _read_all(directory: Path) -> None:
    for path in _large_files(directory):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def _large_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and bytes_under(path)]
