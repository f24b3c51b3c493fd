"""What a call can end with, told apart by what the caller does next.

* `InvalidRequest`   - change the request: the model does not take it, or it contradicts itself.
* `NotFound`         - check the name and the tenant.
* `AlreadyExists`    - another spec is registered under this id; send its generation to replace it.
* `Refused`          - the state of things forbids it now (an alias points there, a generation moved on).
* `NotAllowed`       - other credentials, or another role.
* `Overloaded`       - try again after `retry_after_s`; without a hint, send less.
* `Unavailable`      - try again, or another pod. The client has already tried as often as its policy says.
* `DeadlineExceeded` - allow more time, or load the model beforehand.
* `Unsupported`      - this server does not have that method.
* `ServerFailed`     - a fault of the server or of the model; its log has the story.

gRPC's status codes are mapped in one table, here.
"""

from __future__ import annotations

from typing import Any

from mesh.transport.base import StatusCode


class HexcombError(Exception):
    """Base of every error that a client raises. `retry_after_s` is the server's hint, if it gave one.

    `answered`: a server said so; else the network failed, and nobody knows whether the call was carried out, unless
    it was never `sent`. `draining`: the server that said so is about to stop. `endpoint`: HOST:PORT that was asked
    last; `attempts`: how often anybody was, for this call; empty and 0 for what was refused before it was sent.

    May be pickled, so that it comes out of worker processes as it went in.
    """

    answered = True
    sent = True
    draining = False
    endpoint = ""
    attempts = 0

    def __init__(self, message: str, status: StatusCode, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """gRPC's name of the status, as `NOT_FOUND`."""
        return self.status.name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.status, self.retry_after_s), self.__dict__


class InvalidRequest(HexcombError):
    """INVALID_ARGUMENT, OUT_OF_RANGE."""


class NotFound(HexcombError):
    """NOT_FOUND."""


class AlreadyExists(HexcombError):
    """ALREADY_EXISTS."""


class Refused(HexcombError):
    """FAILED_PRECONDITION, ABORTED."""


class NotAllowed(HexcombError):
    """PERMISSION_DENIED, UNAUTHENTICATED."""


class Overloaded(HexcombError):
    """RESOURCE_EXHAUSTED."""


class Unavailable(HexcombError):
    """UNAVAILABLE, and CANCELLED when it was the server that cancelled."""


class DeadlineExceeded(HexcombError):
    """DEADLINE_EXCEEDED."""


class Unsupported(HexcombError):
    """UNIMPLEMENTED."""


class ServerFailed(HexcombError):
    """INTERNAL, UNKNOWN, DATA_LOSS, and answers that cannot be read."""


_CLASS_OF: dict[StatusCode, type[HexcombError]] = {
    StatusCode.CANCELLED: Unavailable,
    StatusCode.UNKNOWN: ServerFailed,
    StatusCode.INVALID_ARGUMENT: InvalidRequest,
    StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    StatusCode.NOT_FOUND: NotFound,
    StatusCode.ALREADY_EXISTS: AlreadyExists,
    StatusCode.PERMISSION_DENIED: NotAllowed,
    StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    StatusCode.FAILED_PRECONDITION: Refused,
    StatusCode.ABORTED: Refused,
    StatusCode.OUT_OF_RANGE: InvalidRequest,
    StatusCode.UNIMPLEMENTED: Unsupported,
    StatusCode.INTERNAL: ServerFailed,
    StatusCode.UNAVAILABLE: Unavailable,
    StatusCode.DATA_LOSS: ServerFailed,
    StatusCode.UNAUTHENTICATED: NotAllowed,
}


def error_of(status: int, message: str, retry_after_s: float | None = None) -> HexcombError:
    """The error for a gRPC status; numbers that gRPC does not have are faults of the server."""
    try:
        code = StatusCode(status)
    except ValueError:
        code = StatusCode.UNKNOWN
    return _CLASS_OF.get(code, ServerFailed)(message, code, retry_after_s)
