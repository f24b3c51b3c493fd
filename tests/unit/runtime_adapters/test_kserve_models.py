"""Classes written for KServe's SDK: what they are given, and what may come of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import V1_BODY, Array, LoadedModel, LoadOptions
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised
from runtime_adapters.kserve import InferenceError, InferInput, InferOutput, InferResponse, InvalidInput, ModelServer
from runtime_adapters.kserve_models import V1_EXPLANATION, KServeModel
from runtime_adapters.python_models import ADAPTER

_HEAD = "import numpy as np\nfrom runtime_adapters.kserve import *\nfrom runtime_adapters.kserve import Model\n"
_MODEL = "class M(Model):\n    def predict(self, payload, headers=None):\n        {0}\n"
_ROWS = {"x": np.ones((2, 2), np.float32)}

LoadHere = Callable[..., KServeModel]


@pytest.fixture
def load_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadHere:
    """Load source text as the child would, in this process."""
    monkeypatch.setattr("sys.path", list(__import__("sys").path))

    def load(source: str, **parameters: str) -> KServeModel:
        (tmp_path / "model.py").write_text(_HEAD + source)
        model: LoadedModel = ADAPTER.load_in_this_process(
            tmp_path, LoadOptions("the-name", trusted=True, parameters=parameters)
        )
        assert isinstance(model, KServeModel)
        return model

    return load


def body(payload: Any) -> dict[str, Array]:
    return {V1_BODY: np.array([json.dumps(payload).encode()], np.object_)}


def answered(model: KServeModel, payload: Any, *outputs: str) -> Any:
    (answer,) = model.infer(body(payload), outputs).values()
    return json.loads(answer.item())


def test_every_method_may_be_a_coroutine_and_they_share_one_dict_of_headers(load_here: LoadHere) -> None:
    model = load_here(
        """
class M(Model):
    async def load(self):
        self.ready = True

    async def preprocess(self, payload, headers):
        headers["seen"] = self.name
        return payload["instances"]

    async def predict(self, rows, headers, response_headers):
        response_headers["rows"] = "2"
        return {"predictions": np.asarray(rows, np.float32) * np.float32(0.1), "by": headers["seen"]}

    async def postprocess(self, result, headers):
        return {**result, "more": headers}

    async def stop(self):
        self.name = "stopped"
"""
    )
    answer = answered(model, {"instances": [1, 2]})
    assert answer == {"predictions": [0.1, 0.2], "by": "the-name", "more": {"seen": "the-name"}}
    model.unload()
    with pytest.raises(ModelRaised, match="postprocess raised KeyError"):
        load_here(_MODEL.format("return 1") + "    def postprocess(self, *given): return given[1]['nobody']\n").infer(
            _ROWS
        )


def test_a_model_whose_init_has_loaded_it_is_not_loaded_again(load_here: LoadHere) -> None:
    source = """
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    def load(self):
        raise RuntimeError("twice")
"""
    assert answered(load_here(_MODEL.format("return {'name': self.name}") + source), {}) == {"name": "the-name"}


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        ("    def load(self): return False\n", LoadFailed, "left `ready` False"),
        ("    def load(self): raise OSError('no weights')\n", LoadFailed, "load raised OSError: no weights"),
        ("    def __init__(self, name, more): pass\n", BadArtifact, "made with its name and nothing else"),
        ("    def get_input_types(self): return [{'name': 'x'}]\n", BadArtifact, "get_input_types must return dicts"),
        (
            "    def get_output_types(self): return [{'name': 'y', 'datatype': 'F', 'shape': [1]}]\n",
            BadArtifact,
            "y has datatype 'F'",
        ),
    ],
)
def test_a_class_that_cannot_be_served_is_told_why(
    load_here: LoadHere, source: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        load_here(_MODEL.format("pass") + source)


def test_a_parameter_that_means_nothing_is_refused(load_here: LoadHere) -> None:
    with pytest.raises(BadArtifact, match="temperature"):
        load_here(_MODEL.format("pass"), temperature="1")


def test_a_v2_request_has_its_tensors_by_name_and_the_answer_only_what_was_asked_for(load_here: LoadHere) -> None:
    model = load_here(
        _MODEL.format("""x = payload.get_input_by_name("x")
        words = InferOutput("words", [2], "BYTES", ["a", b"b"])
        y = InferOutput("y", x.shape, x.datatype)
        y.set_data_from_numpy(x.as_numpy() * 2)
        return InferResponse(payload.id, self.name, [words, y])""")
    )
    answer = model.infer(_ROWS)
    assert answer["words"].tolist() == [b"a", b"b"]
    np.testing.assert_array_equal(answer["y"], 2 * _ROWS["x"])
    assert list(model.infer(_ROWS, ["y"])) == ["y"]
    with pytest.raises(ModelRaised, match="without z"):
        model.infer(_ROWS, ["z"])


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("return {'predictions': []}", "answered a V2 request with a dict"),
        ("return InferResponse(None, 'm', [InferOutput('y', [3], 'FP32', [1.0])])", "no FP32 of shape"),
        ("return InferResponse(None, 'm', [InferOutput('y', [1], 'FP31', [1.0])])", "no datatype 'FP31'"),
        ("return InferResponse(None, 'm', [InferOutput('y', [1], 'FP32')])", "it has no data"),
        ("return InferResponse(None, 'm', [InferOutput('y', [1], 'BYTES', [5])])", "holds a int; BYTES holds"),
        ("raise InferenceError('too hot')", "predict raised InferenceError: too hot"),
    ],
)
def test_an_answer_that_v2_cannot_say_is_the_models_fault(load_here: LoadHere, returned: str, told: str) -> None:
    with pytest.raises(ModelRaised, match=told):
        load_here(_MODEL.format(returned)).infer(_ROWS)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({V1_BODY: np.array([b"{"], np.object_)}, "a V1 request in JSON"),
        ({V1_BODY: np.array([b"[]"], np.object_)}, "not an object"),
        ({V1_BODY: np.array([b"{}", b"{}"], np.object_)}, "must be one element"),
        ({**body({}), **_ROWS}, "the whole of a V1 request"),
        (body({"instances": {}}), "must be an array of rows"),
        (body({"refused": 1}), "not like that"),
    ],
)
def test_a_v1_request_that_is_none_is_the_clients_fault(
    load_here: LoadHere, inputs: dict[str, Array], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        load_here(_MODEL.format("raise InvalidInput('not like that')")).infer(inputs)


def test_nan_has_no_place_in_a_v1_answer(load_here: LoadHere) -> None:
    with pytest.raises(ModelRaised, match="cannot be written as JSON"):
        answered(load_here(_MODEL.format("return {'predictions': float('nan')}")), {})


def test_an_explanation_is_offered_by_who_has_one(load_here: LoadHere) -> None:
    plain = load_here(_MODEL.format("return {}"))
    assert V1_EXPLANATION not in [output.name for output in plain.metadata.outputs]
    explains = load_here(_MODEL.format("return {}") + "    def explain(self, payload): return {'why': 'so'}\n")
    assert V1_EXPLANATION in [output.name for output in explains.metadata.outputs]
    assert answered(explains, {}, V1_EXPLANATION) == {"why": "so"}


def test_tensors_hold_what_they_announce() -> None:
    words = InferInput("words", [2], "bytes", ["a", b"b"])
    assert words.as_string() == ["a", "b"]
    with pytest.raises(InvalidInput, match="is not text"):
        InferInput("x", [1], "FP32", [1.0]).as_string()
    output = InferOutput("y", [2], "FP32")
    with pytest.raises(InferenceError, match="an array of FP64"):
        output.set_data_from_numpy(np.zeros(2))
    output.set_data_from_numpy(np.ones(2, np.float32))
    response = InferResponse("id", "m", [output])
    assert response.get_output_by_name("y") is output
    assert response.get_output_by_name("z") is None
    assert response.to_dict()["outputs"] == [{"name": "y", "shape": [2], "datatype": "FP32", "data": [1.0, 1.0]}]
    with pytest.raises(RuntimeError, match="register this directory"):
        ModelServer(http_port=8080).start([])
