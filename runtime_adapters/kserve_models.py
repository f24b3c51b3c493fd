"""A class written for KServe's SDK, driven as KServe's server would drive it (`runtime_adapters.kserve`).

A request is either V2 tensors, or the body of a V1 request in the input V1_BODY. What it takes and gives is known to
the class alone: nothing is checked before it is asked, and its answer is only held to what V2 can say.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np

from runtime_adapters.base import EXPLANATION, V1_BODY, Array, ModelMetadata, Size, Tensors, TensorSpec, is_explanation
from runtime_adapters.custom_calls import CustomCalls, yields_answers
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised
from runtime_adapters.isolation_messages import summary_of
from runtime_adapters.kserve import InferInput, InferOutput, InferRequest, InferResponse, Model

V1_EXPLANATION = f"{EXPLANATION}.{V1_BODY}"
_ARGUMENTS_MAX = 3
"""Of a method: the payload, the headers, and those of the answer."""


class KServeModel:
    """Such a model in this process."""

    def __init__(self, model: Model) -> None:
        """Loads it. Raises BadArtifact, LoadFailed, and what `load` raises."""
        self._model = model
        self._calls = CustomCalls()
        if not model.ready and not self._calls.finished(model.load()) and not model.ready:
            raise LoadFailed("load left `ready` False; set it, or return True, once the model is loaded")
        self._metadata = _metadata_of(model)

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        """Nobody but the class knows what a request looks like."""

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Of a model that is decoupled: its first answer."""
        if self._metadata.decoupled:
            with contextlib.closing(self.infer_stream(inputs, outputs)) as answers:
                return next(answers, {})
        headers: dict[str, str] = {}
        method = "explain" if any(is_explanation(name) for name in outputs) else "predict"
        return self._processed(self._asked(method, inputs, headers), headers, V1_BODY in inputs, outputs)

    def infer_stream(self, inputs: Tensors, outputs: Sequence[str] = ()) -> Generator[dict[str, Array], None, None]:
        headers: dict[str, str] = {}
        as_v1 = V1_BODY in inputs
        with contextlib.closing(self._calls.answers("predict", self._asked("predict", inputs, headers))) as answers:
            for answer in answers:
                yield self._processed(answer, headers, as_v1, outputs)

    def size(self) -> Size:
        return Size(host_bytes=0)  # the pod measures the whole process

    def unload(self) -> None:
        self._calls.finished(self._model.stop())
        self._calls.close()

    def _payload(self, inputs: Tensors) -> dict[str, Any] | InferRequest:
        if V1_BODY not in inputs:
            tensors = []
            for name, array in inputs.items():
                datatype = datatype_of(array.dtype)
                assert datatype is not None, "the pod decoded it from one"
                tensors.append(InferInput(name, array.shape, datatype, array.copy()))
            return InferRequest(self._model.name, tensors, from_grpc=True)
        if len(inputs) > 1:
            raise BadInput(f"{V1_BODY} is the whole of a V1 request; {len(inputs) - 1} tensors were sent beside it")
        try:
            payload = json.loads(inputs[V1_BODY].item())
        except (ValueError, TypeError, RecursionError) as error:
            raise BadInput(f"{V1_BODY} must be one element, a V1 request in JSON: {error}") from error
        if not isinstance(payload, dict):
            raise BadInput(f"{V1_BODY} is JSON, but not an object")
        return payload

    def _asked(self, method: str, inputs: Tensors, headers: dict[str, str]) -> Any:
        """What `predict` or `explain` gives back."""
        prepared = self._stage("preprocess", self._payload(inputs), headers)
        if isinstance(prepared, dict) and not isinstance(prepared.get("instances", []), list):
            raise BadInput('"instances" must be an array of rows')
        return self._stage(method, prepared, headers)

    def _processed(
        self, result: object, headers: dict[str, str], as_v1: bool, outputs: Sequence[str]
    ) -> dict[str, Array]:
        return _answer(self._stage("postprocess", result, headers), as_v1, outputs)

    def _stage(self, name: str, payload: object, headers: dict[str, str]) -> Any:
        method = getattr(self._model, name)
        for_the_answer: dict[str, str] = {}
        return self._calls.call(name, method, *(payload, headers, for_the_answer)[: _arguments_of(method)])


def _answer(result: object, as_v1: bool, outputs: Sequence[str]) -> dict[str, Array]:
    if isinstance(result, InferResponse) and not as_v1 and V1_EXPLANATION not in outputs:
        answer = {output.name: _array_of(output) for output in result.outputs}
        missing = [name for name in outputs if name not in answer]
        if missing:
            raise ModelRaised(f"its answer has {', '.join(answer) or 'no output'}, without {', '.join(missing)}")
        return {name: answer[name] for name in outputs} if outputs else answer
    if isinstance(result, InferResponse):
        result = result.to_dict()
    if as_v1 or V1_EXPLANATION in outputs:
        wanted = V1_EXPLANATION if V1_EXPLANATION in outputs else V1_BODY
        return {wanted: np.array([_as_json(result)], np.object_)}
    raise ModelRaised(
        f"it answered a V2 request with a {type(result).__name__}; return an InferResponse, or ask it by V1"
    )


def _metadata_of(model: Model) -> ModelMetadata:
    explains = type(model).explain is not Model.explain
    body = TensorSpec(V1_BODY, "BYTES", (1,), optional=True)
    explanation = (TensorSpec(V1_EXPLANATION, "BYTES", (1,), optional=True),) if explains else ()
    return ModelMetadata(
        platform="hexcomb_kserve",
        inputs=(*_specs("get_input_types", model.get_input_types()), body),
        outputs=(*_specs("get_output_types", model.get_output_types()), body, *explanation),
        unchecked=True,
        decoupled=yields_answers(model.predict),
    )


def _specs(method: str, described: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    try:
        specs = tuple(
            TensorSpec(str(each["name"]), str(each["datatype"]), tuple(int(size) for size in each["shape"]))
            for each in described
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadArtifact(f"{method} must return dicts with name, datatype and shape: {summary_of(error)}") from error
    for spec in specs:
        if spec.datatype not in DTYPE_OF:
            raise BadArtifact(
                f"{method}: {spec.name} has datatype {spec.datatype!r}; allowed are {', '.join(DTYPE_OF)}"
            )
    return specs


def _arguments_of(method: Callable[..., Any]) -> int:
    """How many of payload, headers and the answer's headers a method takes: versions of KServe differ in that."""
    kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return _ARGUMENTS_MAX
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(_ARGUMENTS_MAX, sum(kind in positional for kind in kinds))


def _array_of(output: InferOutput) -> Array:
    try:
        array = output.as_numpy()
    except BadInput as error:
        raise ModelRaised(f"its output {error}") from error
    if output.datatype != "BYTES":
        return array
    elements = array.ravel().tolist()
    wrong = next((each for each in elements if not isinstance(each, bytes | str)), None)
    if wrong is not None:
        raise ModelRaised(f"its output {output.name} holds a {type(wrong).__name__}; BYTES holds bytes or str")
    converted = np.empty(len(elements), np.object_)
    converted[:] = [each.encode() if isinstance(each, str) else each for each in elements]
    return converted.reshape(array.shape)


def _as_json(result: object) -> bytes:
    try:
        return json.dumps(result, default=_plain, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelRaised(f"its answer cannot be written as JSON: {summary_of(error)}") from error


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype in (np.float32, np.float16):  # the shortest text that means it, as KServe's server writes it
            return np.asarray(value).astype(str).astype(np.float64).tolist()
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a {type(value).__name__} is no JSON")
