"""Weights as content: equal tensors of different models are equal files, mapped once, and counted as shareable."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime_adapters.base import SHARED_FORM, Array, LoadOptions
from runtime_adapters.onnx_model import OnnxModel
from runtime_adapters.onnx_runtime import ADAPTER

OPTIONS = LoadOptions("m")
WIDTH = 600
BACKBONE_LAYERS = 2


def matrix(seed: int, rows: int, columns: int) -> Array:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)


def a_fine_tune(path: Path, number: int, *, width: int = WIDTH, branch: bool = False) -> Path:
    """A backbone that all have, and a head of its own; the head may lie in a subgraph. Some weights are small."""
    nodes, weights, last = [], [], "x"
    for layer in range(BACKBONE_LAYERS):
        weights += [
            numpy_helper.from_array(matrix(layer, width, width), f"w{layer}"),
            numpy_helper.from_array(np.full(width, 0.1, np.float32), f"b{layer}"),
        ]
        nodes += [
            helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"gemm{layer}"]),
            helper.make_node("Relu", [f"gemm{layer}"], [f"relu{layer}"]),
        ]
        last = f"relu{layer}"
    head = numpy_helper.from_array(matrix(1000 + number, width, 8), "head")  # 19 KiB: in the private file
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])
    if branch:
        inside = helper.make_graph(
            [helper.make_node("MatMul", [last, "inner"], ["y"])],
            "branch",
            [],
            [output],
            [numpy_helper.from_array(matrix(1000 + number, width, 8), "inner")],
        )
        nodes.append(helper.make_node("If", ["c"], ["y"], then_branch=inside, else_branch=inside))
    else:
        nodes.append(helper.make_node("MatMul", [last, "head"], ["y"]))
        weights.append(head)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])]
    if branch:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph(nodes, "fine-tune", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def prepared(directory: Path, artifact: Path) -> Path:
    into = directory / f"{artifact.stem}.prepared"
    into.mkdir()
    assert ADAPTER.prepare(artifact, into, OPTIONS)
    return into


def answer_of(path: Path, inputs: dict[str, Array], **parameters: str) -> Array:
    model = ADAPTER.load(path, LoadOptions("m", parameters=parameters))
    try:
        return model.infer(inputs)["y"]
    finally:
        model.unload()


def shared_in(form: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (form / SHARED_FORM).iterdir()}


def loaded(path: Path) -> OnnxModel:
    model = ADAPTER.load(path, OPTIONS)
    assert isinstance(model, OnnxModel)
    return model


def test_fine_tunes_of_one_backbone_have_its_tensors_under_the_same_names(tmp_path: Path) -> None:
    forms = [prepared(tmp_path, a_fine_tune(tmp_path / f"{number}.onnx", number)) for number in range(2)]
    first, second = (shared_in(form) for form in forms)
    assert first == second
    assert len(first) == BACKBONE_LAYERS
    for name, content in first.items():
        assert hashlib.sha256(content).hexdigest() == name
    assert (forms[0] / "weights.bin").read_bytes() != (forms[1] / "weights.bin").read_bytes()


@pytest.mark.parametrize("branch", [False, True])
def test_a_model_taken_apart_answers_as_before(tmp_path: Path, branch: bool) -> None:
    artifact = a_fine_tune(tmp_path / "m.onnx", 1, branch=branch)
    inputs: dict[str, Array] = {"x": matrix(5, 3, WIDTH)}
    if branch:
        inputs["c"] = np.array(True)
    expected = answer_of(artifact, inputs)
    form = prepared(tmp_path, artifact)
    np.testing.assert_allclose(answer_of(form, inputs), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer_of(form, inputs, weights="packed"), expected)


def test_equal_tensors_of_one_model_are_one_file(tmp_path: Path) -> None:
    weight = matrix(0, WIDTH, WIDTH)
    weights = [numpy_helper.from_array(weight, "w0"), numpy_helper.from_array(weight.copy(), "w1")]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    shape: Any = ["N", WIDTH]
    graph = helper.make_graph(
        nodes,
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    )
    form = prepared(tmp_path, path)
    assert len(shared_in(form)) == 1
    x = matrix(5, 2, WIDTH)
    np.testing.assert_allclose(answer_of(form, {"x": x}), x @ weight @ weight, rtol=1e-3, atol=1e-4)


def test_what_may_be_shared_is_part_of_the_size_and_of_the_estimate(tmp_path: Path) -> None:
    form = prepared(tmp_path, a_fine_tune(tmp_path / "m.onnx", 1))
    model = loaded(form)
    content = {f"sha256-{name}": len(data) for name, data in shared_in(form).items()}
    assert dict(model.size().shared) == content == dict(ADAPTER.estimate(form, OPTIONS).shared)
    assert sum(content.values()) <= model.size().mapped_bytes
    model.promote()
    assert model.size().shared == ()
    model.unload()


_MAPPED_TWICE = """
import pathlib, sys
from runtime_adapters.base import LoadOptions
from runtime_adapters.onnx_runtime import ADAPTER
import numpy as np
def mapped(name):
    total = 0
    inside = False
    for line in open("/proc/self/smaps"):
        words = line.split()
        if words[0].endswith(":"):
            total += int(words[1]) * 1024 if inside and words[0] == name else 0
        else:
            inside = "/shared/" in line
    return total
models = []
for path in sys.argv[1:]:
    model = ADAPTER.load(pathlib.Path(path), LoadOptions("m"))
    model.warm_up()
    models.append(model)
    print(mapped("Rss:"), mapped("Pss:"))
"""


def test_two_models_that_share_a_file_take_its_memory_once(tmp_path: Path) -> None:
    forms = [prepared(tmp_path, a_fine_tune(tmp_path / f"{number}.onnx", number)) for number in range(2)]
    for name in shared_in(forms[0]):
        (forms[1] / SHARED_FORM / name).unlink()
        os.link(forms[0] / SHARED_FORM / name, forms[1] / SHARED_FORM / name)
    printed = subprocess.run(
        [sys.executable, "-c", _MAPPED_TWICE, *map(str, forms)], check=True, capture_output=True, text=True
    ).stdout
    (rss_one, pss_one), (rss_two, pss_two) = (map(int, line.split()) for line in printed.splitlines())
    backbone_bytes = sum(len(content) for content in shared_in(forms[0]).values())
    assert rss_one >= backbone_bytes
    assert rss_two >= 2 * backbone_bytes  # both have all its pages in their address space …
    assert pss_two <= 1.01 * pss_one  # … and the pages are there once


def test_a_run_on_the_old_form_ends_on_it_and_the_old_form_is_freed_after_it(tmp_path: Path) -> None:
    model = loaded(prepared(tmp_path, a_fine_tune(tmp_path / "m.onnx", 1)))
    old_run, old_session = model._run, weakref.ref(model._session)
    promoting = threading.Thread(target=model.promote)
    promoting.start()
    while not model.is_hot:
        promoting.join(0.001)
    x = matrix(5, 2, WIDTH)
    assert old_run is not None
    np.testing.assert_allclose(old_run(("y",), {"x": x})["y"], model.infer({"x": x})["y"], rtol=1e-4, atol=1e-5)
    assert promoting.is_alive()  # it waits for that run, so that what it reports as freed is free
    del old_run
    promoting.join()
    assert old_session() is None
    model.unload()


def test_a_model_whose_spec_asks_for_speed_is_hot_from_the_first_request_on(tmp_path: Path) -> None:
    form = prepared(tmp_path, a_fine_tune(tmp_path / "m.onnx", 1))
    model = ADAPTER.load(form, LoadOptions("m", parameters={"weights": "packed"}))
    assert isinstance(model, OnnxModel)
    assert model.is_hot
    assert model.hot_size() is None
    model.unload()


def test_an_unloaded_model_is_not_promoted(tmp_path: Path) -> None:
    model = loaded(prepared(tmp_path, a_fine_tune(tmp_path / "m.onnx", 1)))
    model.unload()
    model.promote()
    assert not model.is_hot
