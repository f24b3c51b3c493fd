"""Twenty fine-tunes of one 100 MB backbone on one pod: what they take on its disk and in its memory, all loaded.

Each has the backbone's six matrices and a head of its own. They are uploaded as whole files that differ, one after the
other; each must answer right. Disk is what the pod's status says and what the file system counts, each inode once;
memory is the process's proportional set (`Pss`), which counts a page once however often it is mapped.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mesh.client.client import Client
from runtime_adapters.base import Array
from tests.bench.figures import Reporter
from tests.bench.pods import running_pod, wait_prepared

WIDTH, LAYERS, HEAD = 2048, 6, 64
MODELS, MODELS_QUICK = 20, 4
_SETTLED_S = 3.0
BAR = 1.5
"""Of one model's bytes."""


def run(bench: Reporter) -> None:
    """Load all, ask all, look."""
    count = bench.choose(MODELS, MODELS_QUICK)
    random = np.random.default_rng(5)
    backbone = [(random.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32) for _ in range(LAYERS)]
    x = random.standard_normal((2, WIDTH)).astype(np.float32)
    features = x
    for matrix in backbone:
        features = np.maximum(features @ matrix, 0)
    with (
        tempfile.TemporaryDirectory(prefix="fine-tunes-", dir=bench.cache_dir) as directory,
        running_pod(bench, settings=("--no-promotion",)) as pod,
        Client(pod.grpc_endpoint, timeout_s=120.0) as client,
    ):
        artifact = Path(directory) / "model.onnx"
        _warm_framework(client, Path(directory))
        before_bytes = _pss_bytes(pod.pid)
        for number in range(count):
            bench.progress(number, count, "fine-tunes")
            head = random.standard_normal((WIDTH, HEAD)).astype(np.float32) / np.float32(WIDTH)
            artifact.write_bytes(_fine_tune(backbone, head).SerializeToString())
            one_bytes = artifact.stat().st_size
            name = f"fine-tune-{number}"
            client.register(name, uri=artifact.as_uri(), format="onnx")
            answer = client.infer(name, {"x": x})
            np.testing.assert_allclose(answer.outputs["y"], features @ head, rtol=1e-2, atol=1e-3)
            wait_prepared(client, name)
        bench.progress(count, count)
        grown_bytes = _pss_bytes(pod.pid) - before_bytes
        disk = _settled_disk(client)
        resident = client.pod_status()[0].models_resident
        disk_bytes = _file_bytes(_data_dir_of(pod.pid))
    bench.figure("models resident", resident, "models", bar=count, at_least=True)
    where = f"of one model's {one_bytes / 1e6:.0f} MB; each for itself: {count}"
    bench.figure("on disk, counted by the pod", disk.resident_bytes / one_bytes, "times", bar=BAR, note=where)
    bench.figure("on disk, counted by the file system", disk_bytes / one_bytes, "times", bar=BAR)
    bench.figure(
        "saved on disk, by the pod's status",
        disk.saved_bytes / 1e6,
        "MB",
        note=f"and {disk.dropped_bytes / 1e6:.0f} MB of originals",
    )
    bench.figure("in memory (Pss)", grown_bytes / one_bytes, "times", bar=BAR, note=where)


def _fine_tune(backbone: list[Array], head: Array) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for number, matrix in enumerate(backbone):
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{number}"], [f"product{number}"]),
            helper.make_node("Relu", [f"product{number}"], [f"relu{number}"]),
        ]
        last = f"relu{number}"
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("MatMul", [last, "head"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "fine-tune",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", backbone[0].shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", head.shape[1]])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def _warm_framework(client: Client, directory: Path) -> None:
    """The framework's own baggage is not a model's."""
    artifact = directory / "first.onnx"
    eye = np.eye(4, dtype=np.float32)
    artifact.write_bytes(_fine_tune([eye], eye).SerializeToString())
    client.register("first", uri=artifact.as_uri(), format="onnx")
    client.infer("first", {"x": np.zeros((1, 4), np.float32)})
    client.unregister("first")


def _pss_bytes(pid: int) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _settled_disk(client: Client) -> Any:
    """The disk tier once originals that are no longer needed have left it: when it has not changed for a while."""
    last, since_s = None, time.monotonic()
    while True:
        tier = next(tier for tier in client.pod_status()[0].tiers if tier.tier == "disk")
        if last is None or tier.resident_bytes != last.resident_bytes:
            last, since_s = tier, time.monotonic()
        elif time.monotonic() - since_s > _SETTLED_S:
            return tier
        time.sleep(0.05)


def _data_dir_of(pid: int) -> Path:
    """Of a pod, by its command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return Path(words[words.index("--data-dir") + 1])


def _file_bytes(directory: Path) -> int:
    found = {}
    for inside, _, names in os.walk(directory):
        for name in names:
            stat = os.lstat(Path(inside) / name)
            found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())
