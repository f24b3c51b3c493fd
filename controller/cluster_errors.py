"""What a call to the API server can end with, told apart by what the caller does next.

* `Unreachable` - nobody answered, or the server is starting, stopping or out of breath: the same call again, later.
* `Conflict`    - somebody wrote in between: read again, decide again.
* `Missing`     - there is no such object, or the cluster does not know the kind.
* `Expired`     - the place in the stream of changes is too old: list again.
* `Forbidden`   - the controller's service account may not: its role lacks a rule. The message names it.
* `Rejected`    - the server does not take the object: its schema, a webhook, a quota. The same again is refused again.
"""

from __future__ import annotations


class ClusterError(Exception):
    """Base of these."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(ClusterError):
    """No answer, 429, 500, 502, 503, 504."""


class Conflict(ClusterError):
    """409: another resource version, or the object exists."""


class Missing(ClusterError):
    """404."""


class Expired(ClusterError):
    """410."""


class Forbidden(ClusterError):
    """401, 403."""


class Rejected(ClusterError):
    """Any other 4xx."""


_OF_STATUS: dict[int, type[ClusterError]] = {
    401: Forbidden,
    403: Forbidden,
    404: Missing,
    409: Conflict,
    410: Expired,
    429: Unreachable,
}


def error_of(status: int, message: str, retry_after_s: float | None = None) -> ClusterError:
    """The error for an HTTP status."""
    kind = _OF_STATUS.get(status, Rejected if status < 500 else Unreachable)
    return kind(f"{status}: {message}", retry_after_s)
