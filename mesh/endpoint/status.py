"""The one table from our errors to gRPC's codes.

Handlers raise what the layers below raise; `as_transport_error` turns it into the status that tells the client what to
do next. Whoever wants to know which code an error gives, or why, reads this file.

| error | code | because the client ... |
|---|---|---|
| wrong tensors, names, fields | INVALID_ARGUMENT | must send something else |
| unknown model, version, alias | NOT_FOUND | must register it, or name another |
| another spec under this id | ALREADY_EXISTS | must choose another id, or say `if_generation` |
| stale `if_generation`, alias moved or still in use | FAILED_PRECONDITION | must read again, then decide |
| others changed the same name all the while | ABORTED | may send it again as it is |
| bad or untrusted artifact, model too big for the pod | FAILED_PRECONDITION | must correct the registration |
| pod full or overloaded | RESOURCE_EXHAUSTED + retry hint | comes back later |
| no memory for this run, twice | RESOURCE_EXHAUSTED | sends fewer rows, or comes back later |
| load failed for now, pod stopping, store away | UNAVAILABLE + retry hint | tries again, elsewhere first |
| deadline shorter than the load | DEADLINE_EXCEEDED + retry hint | waits longer, or comes back when it is loaded |
| deadline shorter than the wait for a run, and the run | DEADLINE_EXCEEDED | waits longer |
| deadline in the middle of an explanation | DEADLINE_EXCEEDED | sends fewer rows, or waits longer |
| one answer asked of a model that streams | UNIMPLEMENTED | asks for a stream |
| a pipeline that cannot answer as it is registered | FAILED_PRECONDITION | must correct the registration |
| no condition of a pipeline's Switch holds | NOT_FOUND | sends another request, as to KServe's router |
| a pipeline's request beyond this pod's limits | RESOURCE_EXHAUSTED | sends less, or divides the graph |
| the model's own code failed | INTERNAL | tells the model's author |
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from cache.types import RefusalKind
from mesh.completing import OnlyStreams
from mesh.loading.loading import Refused
from mesh.pipelines.errors import BrokenPipeline, NoBranch, TooMuch
from mesh.running import TooLate
from mesh.serving import UnknownModel
from mesh.transport.base import Call, Reply, StatusCode, StreamHandler, TransportError, UnaryHandler
from mesh.wire.errors import InvalidMessage, UnsendableOutput
from placement import errors as placement_errors
from placement.errors import PlacementError
from runtime_adapters.errors import BadArtifact, BadInput, ModelCrashed, ModelRaised, NobodyWaits, OutOfMemory

_REFUSALS: dict[RefusalKind, StatusCode] = {
    RefusalKind.TOO_BIG: StatusCode.FAILED_PRECONDITION,
    RefusalKind.FULL: StatusCode.RESOURCE_EXHAUSTED,
    RefusalKind.OVERLOADED: StatusCode.RESOURCE_EXHAUSTED,
    RefusalKind.DEADLINE: StatusCode.DEADLINE_EXCEEDED,
    RefusalKind.LOAD_FAILED_PERMANENT: StatusCode.FAILED_PRECONDITION,
    RefusalKind.LOAD_FAILED_TRANSIENT: StatusCode.UNAVAILABLE,
    RefusalKind.GONE: StatusCode.NOT_FOUND,
    RefusalKind.DRAINING: StatusCode.UNAVAILABLE,
    RefusalKind.CANCELLED: StatusCode.CANCELLED,
}

_PLACEMENT: tuple[tuple[type[Exception], StatusCode], ...] = (
    (placement_errors.InvalidName, StatusCode.INVALID_ARGUMENT),
    (placement_errors.InvalidSpec, StatusCode.INVALID_ARGUMENT),
    (placement_errors.LimitExceeded, StatusCode.INVALID_ARGUMENT),
    (placement_errors.NotFound, StatusCode.NOT_FOUND),
    (placement_errors.AlreadyExists, StatusCode.ALREADY_EXISTS),
    (placement_errors.GenerationMismatch, StatusCode.FAILED_PRECONDITION),
    (placement_errors.TargetMismatch, StatusCode.FAILED_PRECONDITION),
    (placement_errors.StillReferenced, StatusCode.FAILED_PRECONDITION),
    (placement_errors.UnsupportedRecord, StatusCode.FAILED_PRECONDITION),
    (placement_errors.Contended, StatusCode.ABORTED),
    (placement_errors.StoreError, StatusCode.UNAVAILABLE),
)


def as_transport_error(error: Exception) -> TransportError | None:
    """The status for an error of ours; None for a defect, which the transport logs and answers as INTERNAL."""
    match error:
        case TransportError():
            return error
        case Refused():
            refusal = error.refusal
            return TransportError(_REFUSALS[refusal.kind], refusal.message, refusal.retry_after_s)
        case TooLate() | NobodyWaits():
            return TransportError(StatusCode.DEADLINE_EXCEEDED, str(error))
        case UnknownModel():
            return TransportError(StatusCode.NOT_FOUND, str(error))
        case BadInput() | InvalidMessage():
            return TransportError(StatusCode.INVALID_ARGUMENT, str(error))
        case OnlyStreams():
            return TransportError(StatusCode.UNIMPLEMENTED, str(error))
        case BadArtifact():
            return TransportError(StatusCode.FAILED_PRECONDITION, str(error))
        case BrokenPipeline():
            return TransportError(StatusCode.FAILED_PRECONDITION, str(error))
        case NoBranch():
            return TransportError(StatusCode.NOT_FOUND, str(error))
        case OutOfMemory() | TooMuch():
            return TransportError(StatusCode.RESOURCE_EXHAUSTED, str(error))
        case ModelRaised() | ModelCrashed() | UnsendableOutput():
            return TransportError(StatusCode.INTERNAL, str(error))
    for kind, status in _PLACEMENT:
        if isinstance(error, kind):
            return TransportError(status, str(error))
    return None


def code_name(error: Exception) -> str:
    """The name of an error's code, for metrics."""
    known = as_transport_error(error)
    return (StatusCode.INTERNAL if known is None else known.status).name


def status_of_refusal(error: PlacementError) -> TransportError:
    """The status of one refused entry of a bulk call."""
    return as_transport_error(error) or TransportError(StatusCode.INTERNAL, str(error))


def guarded_unary(handler: UnaryHandler) -> UnaryHandler:
    """The handler, with every error of ours turned into its status."""

    async def guarded(call: Call) -> Reply:
        try:
            return await handler(call)
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            raise known from error

    return guarded


def guarded_stream(handler: StreamHandler) -> StreamHandler:
    """The same for streams."""

    async def guarded(call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for message in handler(call, requests):
                yield message
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            raise known from error

    return guarded
