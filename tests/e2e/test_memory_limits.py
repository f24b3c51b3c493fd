"""A pod in a box that is smaller than it was told: the kernel kills nobody, clients get answers or a reason.

The box is a memory control group where this machine lets one be made; for the frameworks' own refusals, a limit on the
address space, beyond which no allocation succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mesh.client.errors import HexcombError
from mesh.client.operations import registration
from mesh.client.retries import RetryPolicy
from mesh.wire.generated import hexcomb_pb2
from tests.bench.memory_groups import MemoryGroup, memory_group
from tests.e2e.conftest import Example, Pod, PodStarter, StartPod

MIB = 1 << 20
MODEL_BYTES = 30 * MIB
MODELS = 12
ROUNDS = 2


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group(8192 * MIB, "hexcomb-test") as made:
        if made is None:
            pytest.skip("no memory control group can be made on this machine")
        yield made


@pytest.fixture
def start_in_group(group: MemoryGroup, tmp_path: Path) -> Iterator[StartPod]:
    """Starts pods in the group, and ends them before the group goes."""
    starter = PodStarter(tmp_path)

    def start(**settings: object) -> Pod:
        with group.entered():
            return starter(**settings)  # type: ignore[arg-type]

    yield start
    starter.close()


def packed(directory: Path, count: int = MODELS) -> list[Example]:
    """Models whose weights are private memory, not pages of a file: packed for matrix products."""
    from onnx import TensorProto, helper, numpy_helper, save

    columns = MODEL_BYTES // 4 // 8
    examples = []
    for number in range(count):
        random = np.random.default_rng(number)
        into = random.random((4, columns), np.float32)
        back = random.random((columns, 4), np.float32) / columns
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "into"], ["wide"]), helper.make_node("MatMul", ["wide", "back"], ["y"])],
            "large",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(into, "into"), numpy_helper.from_array(back, "back")],
        )
        path = directory / f"large-{number}.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
        examples.append(Example(path, {"x": x}, {"y": x @ into @ back}))
    return examples


def register(pod: Pod, examples: list[Example], weights: str = "packed") -> None:
    with pod.client() as client:
        for number, example in enumerate(examples):
            entry = registration(f"m{number}", uri=example.uri, format="onnx", parameters={"weights": weights})
            (result,) = client.register_many([entry])
            assert not result.status_code, result.message


def ask(pod: Pod, examples: list[Example]) -> tuple[int, list[HexcombError]]:
    """Every model in turn, some rounds: how many answers were right, and what was refused."""
    right, refused = 0, []
    with pod.client(retry=RetryPolicy(attempts_max=1), timeout_s=30.0) as client:
        for _ in range(ROUNDS):
            for number, example in enumerate(examples):
                try:
                    answer = client.infer(f"m{number}", example.inputs)
                except HexcombError as error:
                    refused.append(error)
                else:
                    np.testing.assert_allclose(answer.outputs["y"], example.expected["y"], rtol=1e-3)
                    right += 1
    return right, refused


def capacity(status: hexcomb_pb2.PodDescription) -> int:
    return next(tier.capacity_bytes for tier in status.tiers if tier.tier == "device")


def test_a_pod_that_was_told_more_than_its_box_has_is_not_killed(
    start_in_group: StartPod, tmp_path: Path, group: MemoryGroup
) -> None:
    examples = packed(tmp_path)
    pod = start_in_group(capacity="2GiB", residency_min_s=0)
    register(pod, examples)
    ask(pod, examples[:1])  # the framework's own baggage
    group.limit(group.unreclaimable_bytes + 6 * MODEL_BYTES)
    right, refused = ask(pod, examples)
    assert group.oom_kills == 0
    assert pod.process.poll() is None
    assert right + len(refused) == ROUNDS * MODELS
    assert right > 0.8 * ROUNDS * MODELS, refused[-1]
    assert all("RESOURCE_EXHAUSTED" in error.status.name for error in refused), refused
    status = pod.status()
    assert status.memory_pressure, "it says so"
    assert capacity(status) < MODELS * MODEL_BYTES
    assert "memory is short" in pod.log_text()


def test_the_capacity_comes_back_when_the_box_has_room_again(
    start_in_group: StartPod, tmp_path: Path, group: MemoryGroup
) -> None:
    examples = packed(tmp_path, 4)
    pod = start_in_group(capacity="200MiB", residency_min_s=0)
    register(pod, examples)
    ask(pod, examples)
    group.limit(group.unreclaimable_bytes + 8 * MIB)
    lowered = pod.wait_until(
        lambda: (found := pod.status()).memory_pressure and capacity(found), "the pod noticed that memory is short"
    )
    assert lowered < 200 * MIB
    group.limit(8192 * MIB)
    pod.wait_until(lambda: capacity(pod.status()) > lowered, "the capacity began to come back", 60.0)
    right, refused = ask(pod, examples)
    assert right == ROUNDS * len(examples), refused


def test_the_default_capacity_is_made_from_the_box_and_the_status_says_how(
    start_in_group: StartPod, group: MemoryGroup
) -> None:
    group.limit(2048 * MIB)
    pod = start_in_group()
    status = pod.status()
    origin = {limit.name: limit.origin for limit in status.box_limits}["capacity"]
    assert "2.00 GiB" in origin
    assert group.directory.name in origin
    assert capacity(status) == int(2048 * MIB * 0.8) - 256 * MIB


def test_a_framework_that_finds_no_memory_costs_the_pod_a_copy_and_not_its_life(
    start_pod: StartPod, tmp_path: Path
) -> None:
    examples = packed(tmp_path)
    # Room for the pod, onnxruntime's threads and a few models; then malloc answers NULL.
    pod = start_pod(capacity="2GiB", residency_min_s=0, under=("prlimit", f"--data={900 * MIB}", "--"), infer_threads=2)
    register(pod, examples)
    right, refused = ask(pod, examples)
    assert pod.process.poll() is None
    assert right + len(refused) == ROUNDS * MODELS
    assert right > 0.5 * ROUNDS * MODELS, refused[-1] if refused else ""
    with pod.client() as client:
        assert client.infer("m0", examples[0].inputs), "and it goes on"
