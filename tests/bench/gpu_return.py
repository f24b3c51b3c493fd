"""Evicted and asked for again, on a GPU: from the parked form in RAM to the first answer, against what the bus can do.

The bar is the bus's own speed: the weights' bytes, over the time from `unpark` to the first answer, against the best
copy of page-locked memory to the device in the same run. Predicted (there was no GPU to see it): exported programs,
which come back in one copy, 80 to 90 % from 100 MB on and less for smaller ones, since a copy of 25 MB takes a
millisecond; ONNX, whose session is made anew and copies from memory that is not locked, 20 to 40 %; XGBoost, whose
trees are small, no share worth naming.

Without a GPU it says so, and measures nothing.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from runtime_adapters.base import Device, LoadedModel, LoadOptions, Parkable
from runtime_adapters.devices import cuda_devices
from runtime_adapters.errors import AdapterError
from runtime_adapters.registry import adapter_for
from tests.bench.figures import Reporter
from tests.bench.models import BenchModel, read_models, sample_inputs

BAR = 0.8
"""Of the measured bandwidth."""
_MODELS = ("onnx-25mb", "onnx-100mb", "torch-25mb", "xgboost-12mb")
_COPY_BYTES = 256 << 20
_COPIES = 10


def run(bench: Reporter) -> None:
    """Each model in turn."""
    found = cuda_devices()
    if not found.devices:
        bench.skip("evicted -> answering again from the host tier", f"no GPU here: {found.why_none}")
        return
    device = found.devices[0].device
    bytes_per_s = copy_bytes_per_s(device)
    bench.figure("page-locked RAM to GPU", bytes_per_s / 1e9, "GB/s", note=found.devices[0].name)
    models = [model for name, model in read_models(bench.cache_dir).items() if name in _MODELS]
    for number, model in enumerate(models):
        bench.progress(number, len(models), model.name)
        try:
            measure_returns(bench, model, device, bytes_per_s, bench.choose(20, 5))
        except AdapterError as error:  # this build of the framework cannot use the GPU
            bench.skip(model.name, str(error))
    bench.progress(len(models), len(models))


def copy_bytes_per_s(device: Device) -> float:
    """The best of some copies from page-locked memory."""
    import torch

    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=torch.device("cuda", device.index))
    best_s = float("inf")
    for _ in range(_COPIES):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - began)
    return _COPY_BYTES / best_s


def measure_returns(bench: Reporter, model: BenchModel, device: Device, bytes_per_s: float, rounds: int) -> None:
    """Park and bring back so often; every answer is checked. Raises AdapterError where it does not load there."""
    adapter = adapter_for(model.format)
    options = LoadOptions(model_id=model.name, device=device, trusted=True)
    with tempfile.TemporaryDirectory() as directory:
        form = Path(directory) / "prepared"
        form.mkdir()
        prepared = adapter.prepare(model.artifact, form, options)
        loaded: LoadedModel = adapter.load(form if prepared else model.artifact, options)
        loaded.warm_up()
        inputs = sample_inputs(loaded.metadata)
        expected = loaded.infer(inputs)
        returns_ms: list[float] = []
        for _ in range(rounds):
            assert isinstance(loaded, Parkable)
            parked = loaded.park()
            began = time.perf_counter()
            loaded = parked.unpark(device)
            answer = loaded.infer(inputs)
            returns_ms.append((time.perf_counter() - began) * 1e3)
            for name, array in expected.items():
                np.testing.assert_allclose(answer[name], array, rtol=1e-3, atol=1e-4)
        size = loaded.size()
        loaded.unload()
    moved_bytes = size.device_bytes or size.total_bytes
    back = bench.samples(f"{model.name}: parked -> answering again", returns_ms, "ms")
    bench.figure(
        f"{model.name}: share of the bus's bandwidth",
        moved_bytes / (back.value / 1e3) / bytes_per_s,
        "times",
        bar=None if model.format == "xgboost" else BAR,
        at_least=True,
        note=f"{moved_bytes / 1e6:.0f} MB",
    )
