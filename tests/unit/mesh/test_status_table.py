"""Every error of ours has its code, in one table; a defect has none, and tells the client nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cache.types import Refusal, RefusalKind
from mesh.endpoint.status import as_transport_error, code_name, guarded_stream, guarded_unary
from mesh.loading.loading import Refused
from mesh.serving import UnknownModel
from mesh.transport.base import Call, StatusCode, TransportError
from mesh.wire.errors import InvalidMessage, UnsendableOutput
from placement import errors as placement_errors
from placement.errors import PlacementError
from runtime_adapters import errors as adapter_errors

CODES: list[tuple[Exception, StatusCode]] = [
    (UnknownModel("m"), StatusCode.NOT_FOUND),
    (InvalidMessage("m"), StatusCode.INVALID_ARGUMENT),
    (UnsendableOutput("m"), StatusCode.INTERNAL),
    (adapter_errors.BadInput("m"), StatusCode.INVALID_ARGUMENT),
    (adapter_errors.BadArtifact("m"), StatusCode.FAILED_PRECONDITION),
    (adapter_errors.UntrustedArtifact("m"), StatusCode.FAILED_PRECONDITION),
    (adapter_errors.ModelRaised("m"), StatusCode.INTERNAL),
    (adapter_errors.ModelCrashed("m"), StatusCode.INTERNAL),
    (placement_errors.InvalidName("m"), StatusCode.INVALID_ARGUMENT),
    (placement_errors.InvalidSpec("m"), StatusCode.INVALID_ARGUMENT),
    (placement_errors.LimitExceeded("m"), StatusCode.INVALID_ARGUMENT),
    (placement_errors.NotFound("m"), StatusCode.NOT_FOUND),
    (placement_errors.AlreadyExists("m"), StatusCode.ALREADY_EXISTS),
    (placement_errors.GenerationMismatch("m"), StatusCode.FAILED_PRECONDITION),
    (placement_errors.TargetMismatch("m"), StatusCode.FAILED_PRECONDITION),
    (placement_errors.StillReferenced("m"), StatusCode.FAILED_PRECONDITION),
    (placement_errors.UnsupportedRecord("m"), StatusCode.FAILED_PRECONDITION),
    (placement_errors.Contended("m"), StatusCode.ABORTED),
    (placement_errors.StoreUnavailable("m"), StatusCode.UNAVAILABLE),
    (placement_errors.StoreClosed("m"), StatusCode.UNAVAILABLE),
    (TransportError(StatusCode.DATA_LOSS, "m"), StatusCode.DATA_LOSS),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_an_error_of_ours_has_its_code_and_keeps_its_message(error: Exception, code: StatusCode) -> None:
    known = as_transport_error(error)
    assert known is not None
    assert known.status is code
    assert known.message == "m"
    assert code_name(error) == code.name


@pytest.mark.parametrize("kind", RefusalKind, ids=lambda kind: kind.name)
def test_every_kind_of_refusal_has_a_code_and_keeps_its_hint(kind: RefusalKind) -> None:
    known = as_transport_error(Refused(Refusal(kind, "why", 1.5)))
    assert known is not None
    assert (known.message, known.retry_after_s) == ("why", 1.5)


def test_every_error_of_the_registry_has_a_code() -> None:
    for name, kind in vars(placement_errors).items():
        if isinstance(kind, type) and issubclass(kind, PlacementError) and kind is not PlacementError:
            if name in ("Compacted", "StoreReplaced", "LeaseNotFound", "PodIdTaken"):
                continue  # they take other arguments, and come from what no client asks for
            assert as_transport_error(kind("m")) is not None, name


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), RuntimeError("secret")])
def test_a_defect_has_no_code_of_ours(error: Exception) -> None:
    assert as_transport_error(error) is None
    assert code_name(error) == "INTERNAL"


async def test_guarded_handlers_raise_the_status_and_let_defects_through() -> None:
    failure: Exception = UnknownModel("who?")

    async def unary(_: Call) -> bytes:
        raise failure

    async def stream(_: Call, __: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"first"
        raise failure

    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    call = Call("/x", b"")
    with pytest.raises(TransportError, match="NOT_FOUND: who"):
        await guarded_unary(unary)(call)
    answers = guarded_stream(stream)(call, nothing())
    assert await anext(answers) == b"first"
    with pytest.raises(TransportError, match="NOT_FOUND: who"):
        await anext(answers)
    failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await guarded_unary(unary)(call)
