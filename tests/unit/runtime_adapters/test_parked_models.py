"""Models that leave their device and come back, between two places in RAM: what stays as it was when a move fails."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import CPU, Array, LoadOptions
from runtime_adapters.devices import cuda_devices
from runtime_adapters.errors import LoadFailed, ModelRaised, OutOfMemory
from runtime_adapters.host_block import HostBlock
from runtime_adapters.onnx_runtime import ADAPTER as ONNX
from runtime_adapters.onnx_runtime import OnnxModel
from runtime_adapters.torch_programs import ADAPTER as TORCH
from runtime_adapters.torch_programs import TorchModel
from runtime_adapters.xgboost_trees import ADAPTER as XGBOOST
from runtime_adapters.xgboost_trees import XgboostModel

ROWS: Array = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counter(tmp_path: Path) -> TorchModel:
    """Adds a count of its own to a tied layer's answer."""
    torch = pytest.importorskip("torch")

    class Counter(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 4)
            self.second = torch.nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.count += 1
            return self.second(self.first(x)) + self.count

    torch.manual_seed(0)
    program = torch.export.export(Counter().eval(), (torch.zeros(5, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    model = TORCH.load(tmp_path / "model.pt2", LoadOptions("m", trusted=True))
    assert isinstance(model, TorchModel)
    return model


def answer(model: Any, name: str = "output_0", given: str = "x") -> Array:
    answered: Array = model.infer({given: ROWS})[name]
    return answered


def test_what_a_program_has_counted_survives_the_way_down_and_up(counter: TorchModel) -> None:
    first = answer(counter)
    np.testing.assert_allclose(answer(counter), first + 1, rtol=1e-5)
    back = counter.park().unpark(CPU)
    np.testing.assert_allclose(answer(back), first + 2, rtol=1e-5)


def test_tied_weights_are_moved_once_and_stay_tied(counter: TorchModel) -> None:
    before = counter.size()
    said = counter.parked_size()
    assert said is not None
    tied_bytes = 4 * 4 * 4
    assert said.total_bytes < before.total_bytes + tied_bytes + 4 * 256, "each storage may begin at a boundary"
    parked = counter.park()
    assert parked.size() == said
    assert parked.unpark(CPU).size().total_bytes == said.total_bytes


def test_weights_that_find_no_room_in_ram_stay_where_they_are(
    counter: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*arguments: Any) -> Any:
        raise MemoryError("no RAM for a block")

    expected = answer(counter)
    with monkeypatch.context() as patched:
        patched.setattr("runtime_adapters.torch_weights.HostBlock", no_room)
        with pytest.raises(OutOfMemory):
            counter.park()
    np.testing.assert_allclose(answer(counter), expected + 1, rtol=1e-5)


def test_weights_that_find_no_room_on_the_device_stay_parked(
    counter: TorchModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def no_room(*arguments: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = answer(counter)
    parked = counter.park()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", no_room)
        with pytest.raises(OutOfMemory):
            parked.unpark(CPU)
    with pytest.raises(ModelRaised, match="parked"):
        answer(counter)
    np.testing.assert_allclose(answer(parked.unpark(CPU)), expected + 1, rtol=1e-5)


def test_a_parked_program_that_was_unloaded_does_not_come_back(counter: TorchModel) -> None:
    parked = counter.park()
    parked.unload()
    parked.unload()
    with pytest.raises(LoadFailed, match="unloaded"):
        parked.unpark(CPU)
    with pytest.raises(LoadFailed):
        counter.park()


@pytest.mark.gpu
def test_on_a_gpu_parked_weights_leave_it_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cuda_devices()
    if not found.devices:
        pytest.skip(f"no CUDA device: {found.why_none}")
    torch = pytest.importorskip("torch")
    device = found.devices[0].device
    network = torch.nn.Sequential(torch.nn.Linear(4, 4096), torch.nn.Linear(4096, 4096), torch.nn.Linear(4096, 4))
    torch.export.save(torch.export.export(network.eval(), (torch.zeros(5, 4),)), tmp_path / "model.pt2")
    model = TORCH.load(tmp_path / "model.pt2", LoadOptions("m", device=device, trusted=True))
    expected, on_device_bytes = answer(model), model.size().device_bytes
    assert on_device_bytes > 4096 * 4096 * 4
    held_bytes = torch.cuda.memory_allocated(device.index)
    assert isinstance(model, TorchModel)
    parked = model.park()
    assert torch.cuda.memory_allocated(device.index) <= held_bytes - on_device_bytes
    began = time.perf_counter()
    back = parked.unpark(device)
    took_s = time.perf_counter() - began
    np.testing.assert_allclose(answer(back), expected, rtol=1e-5)
    back.unload()
    block = HostBlock(1 << 20, device)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{found.devices[0].name}: {on_device_bytes / 1e6:.0f} MB back in {took_s * 1e3:.1f} ms, "
            f"{on_device_bytes / took_s / 1e9:.1f} GB/s; locked: {block.is_locked} {block.why_not_locked}\n"
        )
    block.free()


# --- onnxruntime ------------------------------------------------------------------------------------------------------


def onnx_model(directory: Path, width: int) -> OnnxModel:
    """Prepared and loaded; its weights take 4 * 4 * width bytes and a square of the width."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    matrices = [random.normal(size=size).astype(np.float32) for size in ((4, width), (width, width))]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(matrix, f"w{index}") for index, matrix in enumerate(matrices)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    (directory / "model.onnx").write_bytes(made.SerializeToString())
    form = directory / "form"
    form.mkdir()
    assert ONNX.prepare(directory / "model.onnx", form, LoadOptions("m"))
    model = ONNX.load(form, LoadOptions("m"))
    assert isinstance(model, OnnxModel)
    return model


def test_an_onnx_model_comes_back_in_the_form_in_which_it_left(tmp_path: Path) -> None:
    model = onnx_model(tmp_path, 600)
    model.promote()
    expected, size = answer(model, "y"), model.size()
    parked = model.park()
    assert parked.size().total_bytes >= 600 * 600 * 4
    back = parked.unpark(CPU)
    assert back.is_hot
    assert back.size() == size
    np.testing.assert_array_equal(answer(back, "y"), expected)


def test_an_onnx_model_with_few_weights_is_not_parked(tmp_path: Path) -> None:
    model = onnx_model(tmp_path, 20)
    assert model.parked_size() is None
    with pytest.raises(LoadFailed):
        model.park()
    answer(model, "y")


def test_an_onnx_model_whose_weights_cannot_be_read_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(paths: Any) -> Any:
        raise OSError("input/output error")

    model = onnx_model(tmp_path, 600)
    expected = answer(model, "y")
    monkeypatch.setattr("runtime_adapters.onnx_model.MappedFiles", unreadable)
    with pytest.raises(LoadFailed, match="input/output error"):
        model.park()
    np.testing.assert_array_equal(answer(model, "y"), expected)


# --- xgboost ----------------------------------------------------------------------------------------------------------


def test_trees_that_find_no_room_on_the_device_stay_parked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xgboost

    labels = (ROWS[:, 0] > 0).astype(int)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, xgboost.DMatrix(ROWS, labels), 3)
    booster.save_model(tmp_path / "model.ubj")
    model = XGBOOST.load(tmp_path / "model.ubj", LoadOptions("m"))
    assert isinstance(model, XgboostModel)
    expected = answer(model, "predict", "input")
    parked = model.park()

    set_param = xgboost.Booster.set_param

    def no_room(self: Any, given: Any, *arguments: Any) -> None:
        if given == {"device": "cpu"}:
            raise xgboost.core.XGBoostError("cudaErrorMemoryAllocation: out of memory")
        set_param(self, given, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(xgboost.Booster, "set_param", no_room)
        with pytest.raises(OutOfMemory):
            parked.unpark(CPU)
    with pytest.raises(ModelRaised, match="parked"):
        answer(model, "predict", "input")
    np.testing.assert_array_equal(answer(parked.unpark(CPU), "predict", "input"), expected)
