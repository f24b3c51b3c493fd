"""Asking a model of a server beside the pod, by the V2 protocol; and what the server's errors mean to the pod.

A server that has lost a model says NOT_FOUND, or words of its own; so may the model's own code, of something else. So
the server is asked whether the model is ready before such an error is believed: a copy that is there stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mesh.runtimes.channel import RuntimeChannel, RuntimeLate, RuntimeSaid, RuntimeSilent
from mesh.transport.base import StatusCode
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage, UnsendableOutput
from mesh.wire.generated import inference_pb2
from mesh.wire.tensors import decode_response, encode_request
from runtime_adapters.base import Array, ModelMetadata, Tensors, TensorSpec
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import AdapterError, BadArtifact, BadInput, LoadFailed, ModelCrashed, ModelRaised
from runtime_adapters.errors import OutOfMemory as NoMemory

QUICK_CALL_S = 10.0
"""For calls that only ask."""

_REQUESTS_FAULT = frozenset({StatusCode.INVALID_ARGUMENT, StatusCode.OUT_OF_RANGE, StatusCode.UNIMPLEMENTED})
_NEVER = frozenset({StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND})
"""Of a load: the artifact's fault."""
_LOST = re.compile(
    r"unknown model|model \S+( with version \S+)?,? (is )?not (found|ready)|no available versions", re.IGNORECASE
)
"""Words of Triton and MLServer about a model that they were told to load and have no more."""


class V2Models:
    """The models of one server, by V2."""

    def __init__(self, channel: RuntimeChannel, runtime: str, run_timeout_s: float) -> None:
        self._channel = channel
        self._runtime = runtime
        self._run_timeout_s = run_timeout_s

    def metadata(self, name: str) -> ModelMetadata | None:
        """What the server tells of a model's tensors; None: it does not know V2's question. Raises RuntimeSaid,
        RuntimeSilent."""
        request = inference_pb2.ModelMetadataRequest(name=name)
        try:
            found = self._channel.ask(messages.MODEL_METADATA, request, QUICK_CALL_S)
        except (RuntimeSaid, InvalidMessage) as error:
            if isinstance(error, RuntimeSaid) and error.status is not StatusCode.UNIMPLEMENTED:
                raise
            return None
        inputs, outputs = _specs(found.inputs), _specs(found.outputs)
        return ModelMetadata(found.platform or self._runtime, inputs, outputs, unchecked=not (inputs and outputs))

    def infer(self, name: str, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        """See `RuntimeLink`."""
        try:
            message = encode_request(name, inputs, outputs)
            answer = self._channel.call(messages.MODEL_INFER.path, message, self._run_timeout_s)
            return decode_response(answer).outputs
        except (RuntimeSaid, RuntimeSilent) as error:
            raise self.run_error(name, error) from error
        except UnsendableOutput as error:
            raise BadInput(str(error)) from error
        except InvalidMessage as error:
            raise ModelRaised(f"runtime {self._runtime!r} answered what cannot be read: {error}") from error

    def run_error(self, name: str, error: RuntimeSaid | RuntimeSilent) -> AdapterError:
        """What a run's failure means. ModelCrashed: the copy is gone. May ask the server; blocks."""
        if isinstance(error, RuntimeSaid) and _sounds_lost(error) and self._is_ready(name):
            return ModelRaised(f"runtime {self._runtime!r}: the model itself answered: {error}")
        return run_error(self._runtime, error)

    def _is_ready(self, name: str) -> bool:
        request = inference_pb2.ModelReadyRequest(name=name)
        try:
            return self._channel.ask(messages.MODEL_READY, request, QUICK_CALL_S).ready
        except (RuntimeSaid, RuntimeSilent, InvalidMessage):
            return False


def _specs(tensors: Sequence[inference_pb2.ModelMetadataResponse.TensorMetadata]) -> tuple[TensorSpec, ...]:
    """Empty where the server names a datatype that V2 does not have."""
    if any(tensor.datatype not in DTYPE_OF for tensor in tensors):
        return ()
    return tuple(TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)


def run_error(runtime: str, error: RuntimeSaid | RuntimeSilent) -> AdapterError:
    """What a run's failure means. ModelCrashed: the copy is gone."""
    if isinstance(error, RuntimeLate):  # else a client's short deadline would have the copy taken away from all others
        return ModelRaised(f"runtime {runtime!r}: {error}")
    if isinstance(error, RuntimeSilent):
        return ModelCrashed(f"runtime {runtime!r}: {error}; this copy is gone, load it again")
    if _sounds_lost(error):
        return ModelCrashed(f"runtime {runtime!r} has it no more: {error}; load it again")
    if error.status in _REQUESTS_FAULT:
        return BadInput(f"runtime {runtime!r} refused the request: {error}")
    if error.status is StatusCode.RESOURCE_EXHAUSTED:
        return NoMemory(f"runtime {runtime!r}: {error}")
    return ModelRaised(f"runtime {runtime!r}: {error}")


def _sounds_lost(error: RuntimeSaid) -> bool:
    return error.status is StatusCode.NOT_FOUND or _LOST.search(error.details) is not None


def load_error(runtime: str, error: RuntimeSaid | RuntimeSilent) -> AdapterError:
    """What a load's failure means."""
    if isinstance(error, RuntimeSaid):
        if error.status in _NEVER:
            return BadArtifact(f"runtime {runtime!r} refused the model: {error}")
        if error.status is StatusCode.RESOURCE_EXHAUSTED:
            return NoMemory(f"runtime {runtime!r}: {error}")
    return LoadFailed(f"runtime {runtime!r} did not load the model: {error}")
