"""A server with V2's repository extension: Triton in explicit mode, MLServer. No adapter between it and the pod.

A model is laid out in the server's model directory, loaded by its name there, and taken away again when it was
unloaded. Triton answers to an unload before it is over, so the index is asked until it is: only then are its bytes
free.

Deliberately absent: models of the server's own, which are left alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mesh.runtimes.channel import RuntimeChannel, RuntimeSaid, RuntimeSilent
from mesh.runtimes.config import RuntimeConfig
from mesh.runtimes.layouts import lay_out_for_mlserver, lay_out_for_triton
from mesh.runtimes.v2 import QUICK_CALL_S, V2Models, load_error
from mesh.transport.base import StatusCode
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2 as pb
from runtime_adapters.base import Array, ModelMetadata, Tensors
from runtime_adapters.errors import BadInput, LoadFailed
from runtime_adapters.external import LoadedThere, ToLoad, bytes_on_disk, is_server_name

_LOOK_AGAIN_S = 0.05
"""Between looks at an unload that goes on."""
_HELD = frozenset({"READY", "LOADING", "UNLOADING"})
"""States of the index in which a model takes memory. Of one that is gone Triton says UNAVAILABLE, MLServer UNKNOWN."""


class RepositoryLink:
    """`runtime_adapters.external.RuntimeLink` over the repository extension."""

    def __init__(self, name: str, config: RuntimeConfig, sleep: Callable[[float], None] = time.sleep) -> None:
        assert config.models is not None
        self._name = name
        self._config = config
        self._directory: Path = config.models
        self._sleep = sleep
        self._channel = RuntimeChannel(config.address)
        self._data = RuntimeChannel(config.inference) if config.inference else self._channel
        self._models = V2Models(self._data, name, config.run_timeout_s)
        self._version = "unknown"
        self.losses = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._version

    @property
    def capacity_bytes(self) -> int:
        """Bytes of models that it may hold."""
        return int(self._config.capacity or 0)

    @property
    def methods(self) -> frozenset[str]:
        """None: V2 is all that it speaks."""
        return frozenset()

    def connect(self) -> bool:
        """Whether it is ready. What an earlier pod, or an earlier life of the server, left is taken away then. Raises
        RuntimeSilent, RuntimeSaid."""
        if not self.is_there():
            return False
        server = self._channel.ask(messages.SERVER_METADATA, pb.ServerMetadataRequest(), QUICK_CALL_S)
        self._version = "-".join(f"{server.name} {server.version}".split())
        self._directory.mkdir(parents=True, exist_ok=True)
        for model in self._index():
            if is_server_name(model.name) and model.state in _HELD:
                try:
                    self.unload(model.name)
                except LoadFailed as error:
                    raise RuntimeSaid(StatusCode.FAILED_PRECONDITION, str(error)) from error
        for left in self._directory.iterdir():
            if is_server_name(left.name):
                shutil.rmtree(left, ignore_errors=True)
        return True

    def is_there(self) -> bool:
        """Whether it answers. Not whether it is ready: Triton is not while one of its models is loaded."""
        try:
            return self._channel.ask(messages.SERVER_LIVE, pb.ServerLiveRequest(), QUICK_CALL_S).live
        except (RuntimeSilent, RuntimeSaid, InvalidMessage):
            return False

    def lost(self) -> None:
        """It has lost its models."""
        self.losses += 1

    def size_before(self, model: ToLoad) -> int:
        return max(1, int(self._config.size_factor * bytes_on_disk(model.artifact)))

    def load(self, model: ToLoad) -> LoadedThere:
        into = self._directory / model.name
        try:
            if self._config.kind == "triton":
                lay_out_for_triton(model.artifact, model.format, model.parameters, into)
            else:
                implementation = self._config.implementations.get(model.format)
                lay_out_for_mlserver(model.artifact, implementation, model.parameters, into)
            request = pb.RepositoryModelLoadRequest(model_name=model.name)
            self._channel.ask(messages.REPOSITORY_LOAD, request, self._config.load_timeout_s)
            metadata = self._models.metadata(model.name)
        except BaseException as error:
            self._undo(model.name)
            if isinstance(error, OSError):
                raise LoadFailed(f"runtime {self._name!r}: {into} cannot be written: {error.strerror}") from error
            if isinstance(error, RuntimeSaid | RuntimeSilent):
                raise load_error(self._name, error) from error
            if isinstance(error, InvalidMessage):
                raise LoadFailed(f"runtime {self._name!r} answered what cannot be read: {error}") from error
            raise
        return LoadedThere(0, 0, metadata or ModelMetadata(self._name, (), (), unchecked=True))

    def _undo(self, name: str) -> None:
        """A load failed. What is left in the server, if anything, `connect` takes away."""
        try:
            self.unload(name)
        except LoadFailed:
            shutil.rmtree(self._directory / name, ignore_errors=True)

    def unload(self, name: str) -> None:
        ends_s = time.monotonic() + self._config.load_timeout_s
        try:
            request = pb.RepositoryModelUnloadRequest(model_name=name)
            self._channel.ask(messages.REPOSITORY_UNLOAD, request, self._config.load_timeout_s)
        except (RuntimeSaid, InvalidMessage):
            pass  # servers tell in several ways that they do not have it; the index says what counts
        except RuntimeSilent as error:
            raise LoadFailed(f"runtime {self._name!r} did not unload {name!r}: {error}") from error
        while self._is_held(name):
            if time.monotonic() > ends_s:
                raise LoadFailed(f"runtime {self._name!r} still holds {name!r} after {self._config.load_timeout_s:g} s")
            self._sleep(_LOOK_AGAIN_S)
        shutil.rmtree(self._directory / name, ignore_errors=True)

    def _is_held(self, name: str) -> bool:
        """Whether the server has it loaded, or is still about to let go of it. Raises LoadFailed."""
        try:
            return any(model.name == name and model.state in _HELD for model in self._index())
        except (RuntimeSaid, RuntimeSilent, InvalidMessage) as error:
            raise LoadFailed(f"runtime {self._name!r} does not say whether it holds {name!r}: {error}") from error

    def _index(self) -> Sequence[pb.RepositoryIndexResponse.ModelIndex]:
        return self._channel.ask(messages.REPOSITORY_INDEX, pb.RepositoryIndexRequest(), QUICK_CALL_S).models

    def tidy(self) -> None:
        """Nothing: `connect` does."""

    def infer(self, name: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        return self._models.infer(name, inputs, outputs)

    def relay(self, name: str, method: str, message: bytes, timeout_s: float | None) -> bytes:
        raise BadInput(f"runtime {self._name!r} runs models by V2 alone; {method} is none of its methods")

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
        if self._data is not self._channel:
            self._data.close()
