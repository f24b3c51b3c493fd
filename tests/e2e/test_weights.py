"""What becomes of weights on a real pod: shared on disk, whatever happens to the pod, and packed when they are hot."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime_adapters.base import Array

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

FACTORS = (2.0, 3.0, 4.0, 5.0)
BALLAST_BYTES = 3 << 20


def disk(pod: Pod) -> Any:
    return next(tier for tier in pod.status().tiers if tier.tier == "disk")


def ask_all(pod: Pod, files: ModelFiles) -> None:
    with pod.client() as client:
        for factor in FACTORS:
            example = files.scale(factor, BALLAST_BYTES, same_ballast=True)
            answer = client.infer(f"m{factor:g}", example.inputs)
            np.testing.assert_array_equal(answer.outputs["y"], example.expected["y"])


def test_models_with_equal_weights_have_them_on_disk_once_also_after_a_crash(
    start_pod: StartPod, files: ModelFiles, tmp_path: Path
) -> None:
    pod = start_pod(data_dir=tmp_path / "data")
    with pod.client() as client:
        for factor in FACTORS:
            client.register(f"m{factor:g}", uri=files.scale(factor, BALLAST_BYTES, same_ballast=True).uri)
    ask_all(pod, files)
    saved_bytes = (len(FACTORS) - 1) * BALLAST_BYTES
    dropped_bytes = len(FACTORS) * BALLAST_BYTES

    def is_lean(pod: Pod) -> bool:
        tier = disk(pod)
        lean = bool(tier.resident_bytes < 1.5 * BALLAST_BYTES)
        return lean and tier.saved_bytes >= saved_bytes and tier.dropped_bytes >= dropped_bytes

    pod.wait_until(lambda: is_lean(pod), "equal weights were stored once, and originals were deleted")
    pod.stop(signal.SIGKILL)

    again = start_pod(data_dir=tmp_path / "data")
    assert is_lean(again)
    ask_all(again, files)
    assert is_lean(again)
    again.wait_settled()


def test_an_isolated_model_gets_its_original_back(start_pod: StartPod, files: ModelFiles, tmp_path: Path) -> None:
    pod = start_pod(data_dir=tmp_path / "data")
    example = files.scale(6.0, BALLAST_BYTES)
    with pod.client() as client:
        client.register("here", uri=example.uri)
        client.infer("here", example.inputs)
        pod.wait_until(lambda: disk(pod).dropped_bytes >= BALLAST_BYTES, "the original was deleted")
        client.register("apart", uri=example.uri, isolation="process")
        answer = client.infer("apart", example.inputs, timeout_s=60.0)
        np.testing.assert_array_equal(answer.outputs["y"], example.expected["y"])
        assert disk(pod).dropped_bytes == 0
        client.unregister("apart")
        pod.wait_until(lambda: disk(pod).dropped_bytes >= BALLAST_BYTES, "the original was deleted again")


def a_network(path: Path, width: int = 1024) -> tuple[Array, Array]:
    """A matrix product and what it answers."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(3)
    weight = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    x = random.standard_normal((8, width)).astype(np.float32)
    return x, x @ weight


def test_a_copy_that_is_asked_much_becomes_hot_and_answers_right_all_the_while(
    start_pod: StartPod, tmp_path: Path
) -> None:
    x, expected = a_network(tmp_path / "network.onnx")
    pod = start_pod(data_dir=tmp_path / "data", promotion_horizon_s=100_000)
    with pod.client() as client:
        client.register("m", uri=(tmp_path / "network.onnx").as_uri())

        def ask() -> str:
            np.testing.assert_allclose(client.infer("m", {"x": x}).outputs["y"], expected, rtol=1e-3, atol=1e-3)
            return str(client.describe("m").copies[0].form)

        assert ask() in ("fetched", "cold")
        pod.wait_until(lambda: ask() == "hot", "the copy was promoted")
        ask()
    assert 'hexcomb_form_changes_total{change="promotion"} 1.0' in metrics_of(pod)
    pod.wait_settled()


def test_an_operator_may_do_without_promotion(start_pod: StartPod, tmp_path: Path) -> None:
    x, _ = a_network(tmp_path / "network.onnx")
    pod = start_pod(data_dir=tmp_path / "data", no_promotion=True, promotion_horizon_s=100_000)
    with pod.client() as client:
        client.register("m", uri=(tmp_path / "network.onnx").as_uri())
        for _ in range(50):
            client.infer("m", {"x": x})
        pod.wait_until(lambda: client.describe("m").copies[0].form == "cold", "it was prepared")
    assert 'hexcomb_form_changes_total{change="promotion"} 0.0' in metrics_of(pod)


def metrics_of(pod: Pod) -> str:
    from urllib.request import urlopen

    with urlopen(f"{pod.http}/metrics") as answer:
        return str(answer.read().decode())
