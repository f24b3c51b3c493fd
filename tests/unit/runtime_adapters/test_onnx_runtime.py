"""What is particular to ONNX: sizes without loading, paths that must not escape, forms that load fast."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from runtime_adapters.base import LoadOptions, ModelMetadata
from runtime_adapters.errors import BadArtifact, BadInput, MissingRuntime
from runtime_adapters.onnx_graph import is_onnx_file, outline_of_file
from runtime_adapters.onnx_runtime import ADAPTER, OnnxModel

OPTIONS = LoadOptions("m")


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    opsets: Sequence[Any] = (),
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 17), *opsets]
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())
    return path


def value(name: str, shape: Any = ("N", 4), datatype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, datatype, shape)


def linear(path: Path, rows: int = 4, columns: int = 4) -> Path:
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) / (rows * columns)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return save(
        path, [node], [value("x", ("N", rows))], [value("y", ("N", columns))], [numpy_helper.from_array(weight, "w")]
    )


def with_external_weight(directory: Path, location: str, where: str = "initializer") -> Path:
    """A model whose one weight lies at `location`, placed in one of the spots where ONNX allows a tensor."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=text)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"])
    directory.mkdir(exist_ok=True)
    if where == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [value("w", (4, 4))])
        true = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
        nodes = [true, helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch), matmul]
        return save(directory / "model.onnx", nodes, [value("x")], [value("y")])
    nodes, weights = ([matmul], [tensor]) if where == "initializer" else ([constant, matmul], [])
    return save(directory / "model.onnx", nodes, [value("x")], [value("y")], weights)


def metadata_of(path: Path, **parameters: str) -> ModelMetadata:
    model = ADAPTER.load(path, LoadOptions("m", parameters=parameters))
    try:
        return model.metadata
    finally:
        model.unload()


# --- metadata ---


def test_symbolic_and_unnamed_dimensions_are_dynamic_and_fixed_ones_stay(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    path = save(tmp_path / "m.onnx", [relu], [value("x", ("N", None, 3))], [value("y", ("N", None, 3))])
    metadata = metadata_of(path)
    assert metadata.inputs[0].shape == (-1, -1, 3)
    assert metadata.batch_dimension


@pytest.mark.parametrize(
    ("input_shapes", "output_shape", "batch"),
    [
        ([("N", 4)], ("N", 4), True),
        ([("N", 4), ("N", 4)], ("N", 4), True),
        ([("N", 4), ("M", 4)], ("N", 4), False),
        ([("N", 4), (1, 4)], ("N", 4), False),
        ([(2, 4)], (2, 4), False),
    ],
)
def test_rows_are_a_batch_only_where_all_tensors_share_the_symbol(
    tmp_path: Path, input_shapes: list[Any], output_shape: Any, batch: bool
) -> None:
    names = [f"x{n}" for n in range(len(input_shapes))]
    node = helper.make_node("Sum", names, ["y"])
    inputs = [value(name, shape) for name, shape in zip(names, input_shapes, strict=True)]
    path = save(tmp_path / "m.onnx", [node], inputs, [value("y", output_shape)])
    assert metadata_of(path).batch_dimension is batch
    assert not metadata_of(path, batch_dimension="false").batch_dimension


def test_a_spec_cannot_claim_a_batch_where_the_size_is_fixed(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", (2,))], [value("y", (2,))])
    with pytest.raises(BadArtifact, match="dimension 0 of x has a fixed size"):
        metadata_of(path, batch_dimension="true")
    with pytest.raises(BadArtifact, match="'maybe' found, auto or true or false allowed"):
        metadata_of(path, batch_dimension="maybe")


def test_an_input_without_a_rank_is_refused_and_a_scalar_is_not(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    shapeless = helper.make_value_info("x", helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    with pytest.raises(BadArtifact, match="input x declares no shape"):
        ADAPTER.load(save(tmp_path / "shapeless.onnx", relu, [shapeless], [value("y")]), OPTIONS)
    scalar = save(tmp_path / "scalar.onnx", relu, [value("x", ())], [value("y", ())])
    assert metadata_of(scalar).inputs[0].shape == ()


def test_a_classifier_with_a_zipmap_is_refused_with_the_way_out(tmp_path: Path) -> None:
    zipmap = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ()))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    opsets = [helper.make_opsetid("ai.onnx.ml", 3)]
    path = save(tmp_path / "m.onnx", [zipmap], [value("x", ("N", 2))], [output], opsets=opsets)
    with pytest.raises(BadArtifact, match=r"seq\(map.*options=\{'zipmap': False\}"):
        ADAPTER.load(path, OPTIONS)


# --- refusals ---


@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "link.bin", "", "."])
def test_external_data_must_lie_inside_the_artifact(tmp_path: Path, location: str, where: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    artifact = tmp_path / "artifact"
    with_external_weight(artifact, location, where)
    (artifact / "link.bin").symlink_to(tmp_path / "secret.bin")
    calls: list[Callable[[], object]] = [
        lambda: ADAPTER.load(artifact, OPTIONS),
        lambda: ADAPTER.estimate(artifact, OPTIONS),
        lambda: ADAPTER.prepare(artifact, tmp_path, OPTIONS),
    ]
    for call in calls:
        with pytest.raises(BadArtifact, match=r"outside the artifact|is missing"):
            call()


def test_an_encoding_that_names_the_location_twice_hides_nothing(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    graph = with_external_weight(artifact, "inside.bin")
    (artifact / "ok").write_bytes(bytes(64))
    honest = b"\x0a\x08location\x12\x0ainside.bin"
    content = graph.read_bytes()
    # The last value of a repeated field wins; lengths of the enclosing messages stay right by equal size.
    assert honest in content
    hostile = b"\x12\x02ok\x0a\x08location\x12\x06../s.b"
    assert len(hostile) == len(honest)
    graph.write_bytes(content.replace(honest, hostile))
    with pytest.raises(BadArtifact, match="outside the artifact"):
        ADAPTER.load(artifact, OPTIONS)


def test_a_single_file_may_not_name_others(tmp_path: Path) -> None:
    graph = with_external_weight(tmp_path / "artifact", "inside.bin")
    (graph.parent / "inside.bin").write_bytes(bytes(64))
    with pytest.raises(BadArtifact, match="register the directory that holds them all"):
        ADAPTER.load(graph, OPTIONS)
    ADAPTER.load(graph.parent, OPTIONS).unload()


def test_external_data_that_is_cut_short_is_named(tmp_path: Path) -> None:
    graph = with_external_weight(tmp_path / "artifact", "inside.bin")
    (graph.parent / "inside.bin").write_bytes(bytes(60))
    with pytest.raises(BadArtifact, match="take 64 bytes, but the external files hold 60"):
        ADAPTER.load(graph.parent, OPTIONS)


def test_prepared_names_in_an_artifact_are_refused(tmp_path: Path) -> None:
    for name in ("optimised.onnx", "optimised.ort"):
        artifact = tmp_path / name.replace(".", "_")
        artifact.mkdir()
        linear(artifact / name)
        with pytest.raises(BadArtifact, match=r"reserved; rename it to model\.onnx"):
            ADAPTER.prepare(artifact, tmp_path, OPTIONS)


@pytest.mark.parametrize("names", [(), ("a.onnx", "b.onnx"), ("readme.md",)])
def test_a_directory_must_hold_one_model(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        linear(tmp_path / name)
    assert not ADAPTER.detect(tmp_path)
    with pytest.raises(BadArtifact, match=r"must hold one \.onnx file"):
        ADAPTER.load(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), "opset"),
        (lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOperator"), "NoSuchOperator"),
        (lambda model: setattr(model.graph.node[0], "domain", "com.example"), "com.example"),
    ],
)
def test_what_onnxruntime_refuses_is_a_bad_artifact_with_its_reason(
    tmp_path: Path, change: Callable[[Any], None], said: str
) -> None:
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BadArtifact, match=said) as raised:
        ADAPTER.load(path, OPTIONS)
    assert str(tmp_path) not in str(raised.value)


def test_a_cuda_copy_without_the_provider_names_the_package(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("the CUDA provider is installed here")
    from runtime_adapters.base import Device

    with pytest.raises(MissingRuntime, match=r"pip install 'hexcomb\[onnx-gpu\]'"):
        ADAPTER.load(linear(tmp_path / "m.onnx"), LoadOptions("m", device=Device("cuda")))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_outlined_or_refused_but_never_breaks_the_walk(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(linear(tmp_path / "whole.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(1, len(content)))]))
    is_onnx_file(damaged)
    try:
        outline = outline_of_file(damaged)
    except BadArtifact:
        return
    assert 0 <= outline.inline_bytes <= outline.file_bytes


# --- sizes and forms ---


def test_the_outline_counts_what_the_onnx_package_counts(tmp_path: Path) -> None:
    outline = outline_of_file(linear(tmp_path / "m.onnx", 100, 30))
    assert (outline.nodes, outline.tensors, outline.inline_bytes) == (1, 1, 100 * 30 * 4)
    assert outline.external_bytes == 0


def test_large_weights_are_mapped_and_small_ones_are_not(tmp_path: Path) -> None:
    for rows, mapped in ((64, False), (800, True)):
        into = tmp_path / str(rows)
        into.mkdir()
        path = linear(tmp_path / f"{rows}.onnx", rows, 800)
        assert ADAPTER.prepare(path, into, OPTIONS)
        model = ADAPTER.load(into, OPTIONS)
        assert (model.size().mapped_bytes == rows * 800 * 4) is mapped
        estimate = ADAPTER.estimate(path, OPTIONS)
        assert estimate.total_bytes == pytest.approx(model.size().total_bytes, rel=0.05)
        packed = ADAPTER.load(into, LoadOptions("m", parameters={"weights": "packed"}))
        assert packed.size().mapped_bytes == 0
        x = np.ones((2, rows), np.float32)
        np.testing.assert_allclose(model.infer({"x": x})["y"], packed.infer({"x": x})["y"], rtol=1e-5)


def test_a_tree_ensemble_is_prepared_without_its_protobuf(tmp_path: Path) -> None:
    from skl2onnx import to_onnx
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import RandomForestRegressor

    features, targets = load_diabetes(return_X_y=True)
    features = features.astype(np.float32)
    forest = RandomForestRegressor(20, random_state=0).fit(features, targets)
    path = tmp_path / "forest.onnx"
    path.write_bytes(to_onnx(forest, features[:1]).SerializeToString())
    into = tmp_path / "prepared"
    into.mkdir()
    assert ADAPTER.prepare(path, into, OPTIONS)
    assert sorted(os.listdir(into)) == ["optimised.ort", "size.json"]
    plain, prepared = ADAPTER.load(path, OPTIONS), ADAPTER.load(into, OPTIONS)
    assert plain.metadata == prepared.metadata
    assert np.array_equal(plain.infer({"X": features})["variable"], prepared.infer({"X": features})["variable"])
    assert prepared.size() == ADAPTER.estimate(path, OPTIONS) == ADAPTER.estimate(into, OPTIONS)
    assert prepared.size().total_bytes * 3 < plain.size().total_bytes
    (into / "size.json").write_text(json.dumps({"bytes": 1}))
    with pytest.raises(BadArtifact, match="prepared form is damaged"):
        ADAPTER.load(into, OPTIONS)


def test_a_hundred_sessions_start_no_thread(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    models = [ADAPTER.load(path, OPTIONS)]
    x = np.ones((3, 4), np.float32)
    models[0].infer({"x": x})
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
    for _ in range(100):
        models.append(ADAPTER.load(path, OPTIONS))
        models[-1].infer({"x": x})
    after = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
    assert after == before


def test_the_runtime_version_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    version = ADAPTER.runtime_version()
    assert version.startswith("onnxruntime-1.")
    monkeypatch.setattr("runtime_adapters.onnx_runtime._instruction_sets", lambda: ["sve"])
    assert ADAPTER.runtime_version() != version


def test_a_kernel_s_refusal_of_values_is_the_client_s_error(tmp_path: Path) -> None:
    gather = helper.make_node("Gather", ["table", "x"], ["y"])
    table = numpy_helper.from_array(np.zeros(3, np.float32), "table")
    ids = value("x", ("N",), TensorProto.INT64)
    model = ADAPTER.load(save(tmp_path / "m.onnx", [gather], [ids], [value("y", ("N",))], [table]), OPTIONS)
    assert isinstance(model, OnnxModel)
    with pytest.raises(BadInput, match="out of data bounds"):
        model.infer({"x": np.array([3])})
    model.warm_up()
