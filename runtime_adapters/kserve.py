"""For classes written for the KServe SDK: its `Model`, its requests and its answers, with nothing of its server.

A `python` artifact whose `model.py` holds a subclass of this `Model` in place of `runtime_adapters.custom.Model`. What
was written for KServe needs another import and no other change:

    from runtime_adapters.kserve import InferOutput, InferRequest, InferResponse, InvalidInput, Model

    class Flowers(Model):
        def load(self):
            self.limit = 0.5
            self.ready = True

        def predict(self, payload, headers=None, response_headers=None):
            if isinstance(payload, InferRequest):
                rows = payload.inputs[0].as_numpy()
                output = InferOutput("label", [len(rows)], "INT64")
                output.set_data_from_numpy((rows.sum(axis=1) > self.limit).astype("int64"))
                return InferResponse(payload.id, self.name, [output])
            return {"predictions": [int(sum(row) > self.limit) for row in payload["instances"]]}

* It is made with its name; `load` follows unless `__init__` has set `ready`. The directory of `model.py` is the working
  directory, and stands for `/mnt/models`.
* `preprocess`, `predict` or `explain`, and `postprocess` are called in this order, and each may be a coroutine.
* A V1 body comes as the dict that it is, and a V2 request, over REST or gRPC, as an `InferRequest`; the answer is a
  dict for the former and an `InferResponse` for the latter. A request's tensors are as over gRPC (`from_grpc` is true):
  BYTES are bytes, whatever the client spoke.
* `predict` may be a generator, of either kind: then it answers `ModelStreamInfer` and `generate_stream`.
* `headers` is one dict for the methods of a request, empty at first; `response_headers` goes nowhere.

Tensors are not checked against `get_input_types` and `get_output_types`, which only tell clients what there is.

Deliberately absent: the server (`ModelServer` is a name only), the proxy to a `predictor_host`, CloudEvents, a
request's id, and everything else of the package: a module that asks for more says so when it is loaded.
"""

from __future__ import annotations

import importlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadInput

logger = logging.getLogger("kserve")
InvalidInput = BadInput
"""The client's values are at fault: 400, INVALID_ARGUMENT."""
Headers = dict[str, str]


class InferenceError(Exception):
    """The model is at fault: 500, INTERNAL."""


class _Tensor:
    """A named tensor, as elements in a list or as an array."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: list[Any] | Array | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.shape = list(shape)
        self.datatype = datatype.upper()
        self.parameters = parameters
        self._data = data

    @property
    def data(self) -> list[Any] | None:
        """The elements, flat unless they were given otherwise; None: there are none yet."""
        return self._data.ravel().tolist() if isinstance(self._data, np.ndarray) else self._data

    @data.setter
    def data(self, data: list[Any] | Array | None) -> None:
        self._data = data

    def as_numpy(self) -> Array:
        """An array of the datatype and the shape. Raises InvalidInput."""
        dtype = DTYPE_OF.get(self.datatype)
        if dtype is None:
            raise InvalidInput(f"{self.name}: no datatype {self.datatype!r}; allowed are {', '.join(DTYPE_OF)}")
        if self._data is None:
            raise InvalidInput(f"{self.name}: it has no data")
        try:
            return np.asarray(self._data, dtype).reshape(self.shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidInput(
                f"{self.name}: its data are no {self.datatype} of shape {self.shape}: {error}"
            ) from error

    def as_string(self) -> list[str]:
        """The elements as text. Raises InvalidInput."""
        if self.datatype != "BYTES":
            raise InvalidInput(f"{self.name}: {self.datatype} is not text")
        return [each.decode() if isinstance(each, bytes) else str(each) for each in self.as_numpy().ravel().tolist()]

    def set_data_from_numpy(self, input_tensor: Array, binary_data: bool = True) -> None:
        """Take an array of this datatype and shape. Raises InferenceError. `binary_data`: means nothing here."""
        found = datatype_of(input_tensor.dtype)
        if found != self.datatype or list(input_tensor.shape) != list(self.shape):
            raise InferenceError(
                f"{self.name}: an array of {found} {list(input_tensor.shape)}, where {self.datatype} {self.shape} was "
                "announced"
            )
        self._data = input_tensor

    def to_dict(self) -> dict[str, Any]:
        """As V2's JSON has it."""
        told = {"name": self.name, "shape": list(self.shape), "datatype": self.datatype, "data": self.data}
        return told | ({"parameters": self.parameters} if self.parameters else {})


class InferInput(_Tensor):
    """One input of a request."""


class InferOutput(_Tensor):
    """One output of an answer."""


class InferRequest:
    """A V2 request."""

    def __init__(
        self,
        model_name: str,
        infer_inputs: list[InferInput],
        request_id: str | None = None,
        raw_inputs: object = None,
        from_grpc: bool | None = False,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self.id = request_id or ""
        self.model_name = model_name
        self.inputs = infer_inputs
        self.from_grpc = bool(from_grpc)
        self.parameters = parameters

    def get_input_by_name(self, name: str) -> InferInput | None:
        """None: it was not sent."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def as_dataframe(self) -> Any:
        """A column for each input; pandas has to be there."""
        return importlib.import_module("pandas").DataFrame(
            {tensor.name: list(tensor.as_numpy()) for tensor in self.inputs}
        )


class InferResponse:
    """A V2 answer."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: list[InferOutput],
        model_version: str | None = None,
        raw_outputs: object = None,
        from_grpc: bool | None = False,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        self.id = response_id or ""
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = infer_outputs
        self.from_grpc = bool(from_grpc)
        self.parameters = parameters

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """None: there is no such output."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """As V2's JSON has it."""
        return {"id": self.id, "model_name": self.model_name, "outputs": [each.to_dict() for each in self.outputs]}


class ModelServer:
    """So that the last lines of a module may stay, which start KServe's server when it is run by itself."""

    def __init__(self, **settings: object) -> None:
        """`settings`: of KServe's, of which none means anything here."""

    def start(self, models: Sequence[Model]) -> None:
        """Raises RuntimeError: models are served by a pod."""
        raise RuntimeError(
            "register this directory in place of running it: hexcomb models register NAME --uri DIRECTORY"
        )


class Model:
    """Subclass this once in `model.py`."""

    name = ""
    ready = False

    def __init__(self, name: str, return_response_headers: bool = False) -> None:
        self.name = name
        self.ready = False

    def load(self) -> Any:
        """Make ready to predict: set `ready`, or return True. An exception here fails the load."""
        self.ready = True
        return self.ready

    def preprocess(self, payload: Any, headers: Headers | None = None) -> Any:
        """What `predict` and `explain` are given."""
        return payload

    def predict(self, payload: Any, headers: Headers | None = None, response_headers: Headers | None = None) -> Any:
        """Answer one request; a generator yields any number of answers."""
        raise NotImplementedError(f"{type(self).__name__} has no predict method")

    def explain(self, payload: Any, headers: Headers | None = None) -> Any:
        """Explain what `predict` would answer."""
        raise NotImplementedError(f"{type(self).__name__} has no explain method")

    def postprocess(self, result: Any, headers: Headers | None = None, response_headers: Headers | None = None) -> Any:
        """What the client is given."""
        return result

    def get_input_types(self) -> list[Mapping[str, Any]]:
        """`{"name": ..., "datatype": ..., "shape": [...]}` of each input, for clients to see."""
        return []

    def get_output_types(self) -> list[Mapping[str, Any]]:
        """The same of the outputs."""
        return []

    def stop(self) -> Any:
        """Let go of what the end of the process would not."""


def generate_uuid() -> str:
    """For the id of an answer."""
    return str(uuid.uuid4())


__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceError",
    "InvalidInput",
    "Model",
    "ModelServer",
    "generate_uuid",
    "logger",
]
