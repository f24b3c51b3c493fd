"""What a load and an unload cost, by format and size, with the files in the page cache.

`load` is the adapter's own, from the prepared form, as the pod does it on each load; the warm-up that follows is shown
beside it. The baseline is what the framework's documentation tells a user to call, on the user's own file, measured in
turn with ours so that a busy machine is busy for both, and on a thread of its own, because what an adapter tells
OpenMP holds for the thread that it loads on. A model is loaded twice before the clock starts: these are the times of a
model that comes back after an eviction, whose content the adapter has checked before.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.figures import Reporter, spread_of
from tests.bench.models import BenchModel, read_models

BARS_MS = {"onnx-tiny": 1.0, "onnx-25mb": 5.0, "xgboost-100x6": 5.0}
_BUDGET_S = 2.5
"""Per model, ours and the baseline's together."""
_RUNS_LEAST, _RUNS_MOST = 5, 200


def run(bench: Reporter) -> None:
    """Every model but those in processes of their own, whose start is not a framework's."""
    models = [model for model in read_models(bench.cache_dir).values() if model.format != "python"]
    with ThreadPoolExecutor(1) as elsewhere:
        for number, model in enumerate(models):
            bench.progress(number, len(models), model.name)
            _measure(bench, model, elsewhere)
    bench.progress(len(models), len(models))


def _measure(bench: Reporter, model: BenchModel, elsewhere: Executor) -> None:
    default = _DEFAULT_LOADS[model.format]
    for _ in range(2):  # the framework's own baggage, and the page cache
        loaded = model.load()
        loaded.warm_up()
        loaded.unload()
        elsewhere.submit(default, model.artifact).result()
    load_ms: list[float] = []
    warm_ms: list[float] = []
    unload_ms: list[float] = []
    default_ms: list[float] = []
    until_s = time.perf_counter() + _BUDGET_S / bench.choose(1, 8)
    while len(load_ms) < _RUNS_LEAST or (time.perf_counter() < until_s and len(load_ms) < _RUNS_MOST):
        gc.collect()
        began = time.perf_counter()
        loaded = model.load()
        load_ms.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        loaded.warm_up()
        warm_ms.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        loaded.unload()
        del loaded
        unload_ms.append((time.perf_counter() - began) * 1e3)
        default_ms.append(elsewhere.submit(_timed_ms, default, model.artifact).result())
    unload, warm = spread_of(unload_ms), spread_of(warm_ms)
    bench.samples(
        f"{model.name} ({model.file_bytes / 1e6:.2f} MB)",
        load_ms,
        "ms",
        bar=BARS_MS.get(model.name),
        baseline=spread_of(default_ms).p50,
        baseline_name="the framework's default load",
        note=f"warm-up {warm.p50:.2f}, unload {unload.p50:.2f} (p99 {unload.p99:.2f})",
    )


def _timed_ms(load: Callable[[Path], Any], artifact: Path) -> float:
    began = time.perf_counter()
    load(artifact)
    return (time.perf_counter() - began) * 1e3


def _load_onnx(artifact: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(artifact), providers=["CPUExecutionProvider"])


def _load_xgboost(artifact: Path) -> Any:
    import xgboost

    return xgboost.Booster(model_file=str(artifact))


def _load_lightgbm(artifact: Path) -> Any:
    import lightgbm

    return lightgbm.Booster(model_file=str(artifact))


def _load_skops(artifact: Path) -> Any:
    import skops.io

    # The bench's own file, made in its set-up.
    return skops.io.load(artifact, trusted=skops.io.get_untrusted_types(file=artifact))


def _load_joblib(artifact: Path) -> Any:
    import joblib

    return joblib.load(artifact)


def _load_torch(artifact: Path) -> Any:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(artifact).module()


_DEFAULT_LOADS: dict[str, Callable[[Path], Any]] = {
    "onnx": _load_onnx,
    "xgboost": _load_xgboost,
    "lightgbm": _load_lightgbm,
    "sklearn": _load_skops,
    "pickle": _load_joblib,
    "torch": _load_torch,
}
