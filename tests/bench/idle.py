"""What a pod weighs before it serves anything, and what each framework adds once its first model was asked for.

The bar is the resident set right after start. The rest is for planning a machine: RSS counts shared library pages that
other processes may hold as well, so private pages stand beside it.
"""

from __future__ import annotations

from mesh.client.client import Client
from tests.bench.figures import Reporter
from tests.bench.models import read_models, sample_inputs
from tests.bench.pods import private_dirty_bytes_of, resident_bytes_of, running_pod, threads_of

IDLE_BAR_MIB = 250.0
_FIRST_OF_EACH = ("onnx-tiny", "xgboost-100x6", "lightgbm-100x63", "sklearn-pipeline", "torch-small", "python-small")


def run(bench: Reporter) -> None:
    """Start, weigh, then one request per format, weighing after each."""
    models = read_models(bench.cache_dir)
    chosen = [models[name] for name in _FIRST_OF_EACH if name in models]
    rows = {}
    for model in chosen:
        loaded = model.load()
        rows[model.name] = sample_inputs(loaded.metadata)
        loaded.unload()
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
        idle_bytes = resident_bytes_of(pod.pid)
        bench.figure(
            "RSS, idle",
            idle_bytes / 2**20,
            "MiB",
            bar=IDLE_BAR_MIB,
            note=f"private {private_dirty_bytes_of(pod.pid) / 2**20:.0f} MiB, {threads_of(pod.pid)} threads",
        )
        before_bytes = idle_bytes
        for number, model in enumerate(chosen):
            bench.progress(number, len(chosen), model.format)
            client.register(model.name, uri=model.artifact.as_uri(), format=model.format)
            client.infer(model.name, rows[model.name])
            now_bytes = resident_bytes_of(pod.pid)
            bench.figure(
                f"RSS, after a first {model.format} request",
                now_bytes / 2**20,
                "MiB",
                note=f"{(now_bytes - before_bytes) / 2**20:+.0f} MiB; private "
                f"{private_dirty_bytes_of(pod.pid) / 2**20:.0f} MiB, {threads_of(pod.pid)} threads",
            )
            before_bytes = now_bytes
