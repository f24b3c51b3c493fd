"""What `hexcomb infer` reads, sends and shows."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.cli import infer as infer_command
from mesh.cli.inference_input import name_table, read_input, to_v2_json
from mesh.cli.main import run
from mesh.wire.generated import inference_pb2
from mesh.wire.tensors import InferResult


def _npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _v2(**tensor: Any) -> bytes:
    whole = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], **tensor}
    return json.dumps({"inputs": [{key: value for key, value in whole.items() if value is not None}]}).encode()


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]])
def test_v2_json_may_be_flat_or_nested(data: Any) -> None:
    (tensor,) = read_input("request.json", _v2(shape=[2, 2], data=data)).tensors
    assert tensor.values.dtype == np.float32
    assert tensor.values.tolist() == [[1, 2], [3, 4]]


def test_v2_json_names_outputs_and_an_id() -> None:
    request = json.loads(_v2()) | {"outputs": [{"name": "predict"}], "id": "42"}
    read = read_input("-", json.dumps(request).encode())
    assert (read.outputs, read.id) == (("predict",), "42")


def test_text_travels_as_bytes() -> None:
    (tensor,) = read_input("r.json", _v2(datatype="BYTES", data=["a", "ü"])).tensors
    assert tensor.values.ravel().tolist() == [b"a", "ü".encode()]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"{", "not JSON"),
        (b"{}", "a V2 request has"),
        (b'{"inputs": []}', "a V2 request has"),
        (b'{"inputs": [7]}', "inputs[0] is not an object"),
        (_v2(shape=None), "shape is missing"),
        (_v2(shape=[1, 3]), "3 elements, data has 2"),
        (_v2(shape=[-1, 2]), "shape is [-1, 2]"),
        (_v2(datatype="FLOAT"), "'FLOAT' is not known"),
        (_v2(datatype="INT8", data=[1, 300]), "does not fit INT8"),
        (_v2(datatype="FP32", data=["a", "b"]), "does not fit FP32"),
    ],
)
def test_what_cannot_be_sent_is_named(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r"^--input: ") as raised:
        read_input("request.json", content)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2\n3,4\n", [[1, 2], [3, 4]]),
        ("sepal,petal\n1,2\n", [[1, 2]]),
        ("1,2\n\n3,\n", [[1, 2], [3, float("nan")]]),
        ("\ufeff1,2\n", [[1, 2]]),
    ],
)
def test_a_csv_is_a_table_with_or_without_headings(text: str, rows: Any) -> None:
    table = read_input("rows.csv", text.encode()).table
    assert table is not None
    np.testing.assert_array_equal(table, np.array(rows))


def test_rows_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 1 to 2 fields"):
        read_input("rows.csv", b"1,2\n3\n")


def test_an_array_with_python_objects_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"not a \.npy array"):
        read_input("rows.npy", buffer.getvalue())


def test_numbers_are_converted_only_when_nothing_is_lost() -> None:
    assert name_table(np.array([[1.0, 2.0]]), "x", "INT64").values.dtype == np.int64
    assert name_table(np.array([[1.5]]), "x", "FP32").values.dtype == np.float32
    with pytest.raises(ValueError, match="no INT64"):
        name_table(np.array([[1.5]]), "x", "INT64")
    with pytest.raises(ValueError, match="no UINT8"):
        name_table(np.array([[300]]), "x", "UINT8")
    with pytest.raises(ValueError, match="holds text"):
        name_table(np.array([["a"]]), "x", "FP32")


def test_answers_are_v2_json() -> None:
    assert to_v2_json({"label": np.array([b"a"], object), "p": np.array([[0.5]], np.float32)}) == [
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["a"]},
        {"name": "p", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
    ]


class _Client:
    """Answers one model; remembers what it was sent."""

    def __init__(self, inputs: int = 1) -> None:
        self.sent: dict[str, Any] = {}
        self._inputs = inputs

    def model_metadata(self, name: str) -> Any:
        metadata = inference_pb2.ModelMetadataResponse(name=name)
        for index in range(self._inputs):
            metadata.inputs.add(name=f"input_{index}", datatype="FP32", shape=[-1, 2])
        return metadata

    def infer(self, name: str, inputs: dict[str, Any], outputs: Any, **_: Any) -> InferResult:
        self.sent = inputs
        return InferResult(name, "1", "", {"predict": np.array([7, 8]), "share": np.array([[0.25, 0.75], [1.0, 0.0]])})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> _Client:
    return _use(_Client(), monkeypatch)


def _use(client: _Client, monkeypatch: pytest.MonkeyPatch) -> _Client:
    @contextlib.contextmanager
    def connected(target: Any, **_: Any) -> Iterator[_Client]:
        yield client

    monkeypatch.setattr(infer_command, "connected", connected)
    return client


def test_a_table_goes_to_the_models_one_input(
    client: _Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.npy").write_bytes(_npy(np.array([[1.0, 2.0], [3.0, 4.0]])))
    assert run(["infer", "iris", "--input", str(tmp_path / "rows.npy")]) == 0
    assert client.sent["input_0"].dtype == np.float32
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["row", "predict", "share[0]", "share[1]"],
        ["0", "7", "0.25", "0.75"],
        ["1", "8", "1", "0"],
    ]


def test_text_in_a_table_of_numbers_is_pointed_at(
    client: _Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,oops\n")
    assert run(["infer", "iris", "--input", str(tmp_path / "rows.csv")]) == 2
    assert "text ('oops' in row 2, column 2), but input 'input_0' takes FP32" in capsys.readouterr().err


def test_json_goes_out_as_v2_json(client: _Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.json").write_bytes(_v2())
    assert run(["infer", "iris", "--input", str(tmp_path / "request.json"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["model_name"] == "iris"
    assert answer["outputs"][0] == {"name": "predict", "datatype": "INT64", "shape": [2], "data": [7, 8]}
    assert list(client.sent) == ["x"]


def test_a_table_goes_to_the_first_of_several_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = _Client(inputs=2)  # as of an XGBoost model, whose base_margin is optional
    _use(client, monkeypatch)
    (tmp_path / "rows.csv").write_text("1,2\n")
    assert run(["infer", "iris", "--input", str(tmp_path / "rows.csv")]) == 0
    assert list(client.sent) == ["input_0"]


def test_a_model_that_cannot_be_loaded_comes_with_how_it_is_tried_again(
    client: _Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hints: list[str] = []

    @contextlib.contextmanager
    def connected(target: Any, precondition_hint: str) -> Iterator[_Client]:
        hints.append(precondition_hint)
        yield client

    monkeypatch.setattr(infer_command, "connected", connected)
    (tmp_path / "rows.csv").write_text("1,2\n")
    assert run(["infer", "iris", "--input", str(tmp_path / "rows.csv")]) == 0
    assert hints == ["once that is mended, `hexcomb models release iris` has it tried again"]
