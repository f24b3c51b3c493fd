"""A server behind ModelMesh's runtime interface, which its adapters for Triton, MLServer, OVMS and TorchServe speak.

The artifact lies on this pod's disk, and the server reads it there: both see the same path. What ModelMesh's puller
told adapters beside it goes into `modelKey`, as there: the format, and the bytes on disk.

Sizes: `predictModelSize` where the runtime has it; else the artifact's bytes by a factor, never the default that
runtimes name, since that is the same megabyte for a small model and for a large one. After a load: what it answered,
else `modelSize`, else what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.runtimes import methods
from mesh.runtimes.channel import RuntimeChannel, RuntimeSaid, RuntimeSilent
from mesh.runtimes.config import RuntimeConfig
from mesh.runtimes.v2 import QUICK_CALL_S, V2Models, load_error
from mesh.transport.base import StatusCode
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.field_paths import with_text_at
from mesh.wire.generated import model_runtime_pb2 as pb
from runtime_adapters.base import Array, ModelMetadata, Tensors
from runtime_adapters.errors import BadInput, LoadFailed
from runtime_adapters.external import LoadedThere, ToLoad, bytes_on_disk
from runtime_adapters.validation import refuse_unknown_parameters

_SIZING_S = 30.0
"""ModelMesh's own limit."""
_NEVER_BEGUN = frozenset({StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION})
_STATUS = pb.RuntimeStatusResponse


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What a server says of itself when it is ready."""

    version: str
    capacity_bytes: int
    load_timeout_s: float
    injections: Mapping[str, tuple[int, ...]]
    """By `/package.Service/Method`: where in its requests a model's id is written."""


class SpiLink:
    """`runtime_adapters.external.RuntimeLink` over ModelMesh's interface."""

    def __init__(self, name: str, config: RuntimeConfig) -> None:
        self._name = name
        self._config = config
        self._control = RuntimeChannel(config.address)
        self._data = RuntimeChannel(config.inference) if config.inference else self._control
        self._models = V2Models(self._data, name, config.run_timeout_s)
        self._facts = RuntimeFacts("unknown", 0, config.load_timeout_s, {})
        self._predicts = True
        self._left: set[str] = set()
        self.losses = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._facts.version

    @property
    def capacity_bytes(self) -> int:
        """Bytes of models that it may hold."""
        return int(self._config.capacity or self._facts.capacity_bytes)

    @property
    def methods(self) -> frozenset[str]:
        """Methods of its own, by path."""
        return frozenset(self._facts.injections)

    def connect(self) -> bool:
        """Whether it is ready; what it held before it has dropped then. Raises RuntimeSilent, RuntimeSaid."""
        status = self._control.ask(methods.RUNTIME_STATUS, pb.RuntimeStatusRequest(), QUICK_CALL_S)
        if status.status == _STATUS.FAILING:
            raise RuntimeSaid(StatusCode.FAILED_PRECONDITION, "it says that it is failing")
        if status.status != _STATUS.READY:
            return False
        self._facts = RuntimeFacts(
            "-".join((status.runtimeVersion or "unknown").split()),
            status.capacityInBytes,
            status.modelLoadingTimeoutMs / 1000 or self._config.load_timeout_s,
            {f"/{method}": tuple(info.idInjectionPath) for method, info in status.methodInfos.items()},
        )
        self._left.clear()
        return True

    def is_there(self) -> bool:
        """Whether it answers. `runtimeStatus` is not for that: to some adapters it says that all is to be dropped."""
        try:
            self._control.ask(methods.MODEL_SIZE, pb.ModelSizeRequest(modelId="hexcomb-is-there"), QUICK_CALL_S)
        except RuntimeSilent:
            return False
        except (RuntimeSaid, InvalidMessage):
            pass
        return True

    def lost(self) -> None:
        """It has lost its models."""
        self.losses += 1

    def size_before(self, model: ToLoad) -> int:
        disk_bytes = bytes_on_disk(model.artifact)
        if self._predicts:
            request = pb.PredictModelSizeRequest(
                modelId=model.name,
                modelType=model.format,
                modelPath=str(model.artifact),
                modelKey=_key_of(model, disk_bytes),
            )
            try:
                predicted = self._control.ask(methods.PREDICT_MODEL_SIZE, request, _SIZING_S).sizeInBytes
            except RuntimeSaid as error:
                predicted = 0
                self._predicts = error.status is not StatusCode.UNIMPLEMENTED
            except (RuntimeSilent, InvalidMessage):
                predicted = 0
            if predicted:
                return predicted
        return max(1, int(self._config.size_factor * disk_bytes))

    def load(self, model: ToLoad) -> LoadedThere:
        refuse_unknown_parameters(model.parameters)
        request = pb.LoadModelRequest(
            modelId=model.name,
            modelType=model.format,
            modelPath=str(model.artifact),
            modelKey=_key_of(model, bytes_on_disk(model.artifact)),
        )
        try:
            loaded = self._control.ask(methods.LOAD_MODEL, request, self._facts.load_timeout_s)
        except (RuntimeSaid, RuntimeSilent) as error:
            if not (isinstance(error, RuntimeSaid) and error.status in _NEVER_BEGUN):
                self._undo(model.name)
            raise load_error(self._name, error) from error
        except InvalidMessage as error:
            self._undo(model.name)
            raise LoadFailed(f"runtime {self._name!r} answered what cannot be read: {error}") from error
        try:
            size_bytes = loaded.sizeInBytes or self._size_after(model.name)
            metadata = self._models.metadata(model.name)
        except (RuntimeSaid, RuntimeSilent) as error:
            self._undo(model.name)
            raise load_error(self._name, error) from error
        unknown = ModelMetadata(self._name, (), (), unchecked=True)
        return LoadedThere(size_bytes, loaded.maxConcurrency, metadata or unknown)

    def _size_after(self, name: str) -> int:
        try:
            return self._control.ask(methods.MODEL_SIZE, pb.ModelSizeRequest(modelId=name), _SIZING_S).sizeInBytes
        except (RuntimeSaid, InvalidMessage):
            return 0

    def _undo(self, name: str) -> None:
        """A load failed somewhere between its beginning and its end."""
        try:
            self.unload(name)
        except LoadFailed:
            self._left.add(name)

    def unload(self, name: str) -> None:
        try:
            self._control.ask(methods.UNLOAD_MODEL, pb.UnloadModelRequest(modelId=name), self._facts.load_timeout_s)
        except RuntimeSaid as error:
            if error.status is not StatusCode.NOT_FOUND:
                raise LoadFailed(f"runtime {self._name!r} did not unload {name!r}: {error}") from error
        except (RuntimeSilent, InvalidMessage) as error:
            raise LoadFailed(f"runtime {self._name!r} did not unload {name!r}: {error}") from error

    def tidy(self) -> None:
        """Unload what failed loads may have left."""
        for name in list(self._left):
            self.unload(name)
            self._left.discard(name)

    def infer(self, name: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        return self._models.infer(name, inputs, outputs)

    def relay(self, name: str, method: str, message: bytes, timeout_s: float | None) -> bytes:
        path = self._facts.injections.get(method)
        try:
            message = with_text_at(message, path, name) if path else message
            # The header is ModelMesh's way to say the same to runtimes that read it there.
            named = ((messages.MODEL_ID_METADATA, name),)
            return self._data.call(method, message, timeout_s or self._config.run_timeout_s, named)
        except (RuntimeSaid, RuntimeSilent) as error:
            raise self._models.run_error(name, error) from error
        except InvalidMessage as error:
            raise BadInput(str(error)) from error

    def close(self) -> None:
        """Hang up."""
        self._control.close()
        if self._data is not self._control:
            self._data.close()


def _key_of(model: ToLoad, disk_bytes: int) -> str:
    return json.dumps({"model_type": {"name": model.format}, "disk_size_bytes": disk_bytes})
