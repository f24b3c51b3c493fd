"""What others raise while an artifact is read, turned into this package's errors, in one place.

obstore has few classes and puts the rest into the text: the HTTP status, the S3 error code, the kind of a transport
failure. So the text is searched for a fixed list of marks, and never passed on: it holds whole URLs, with the
signatures in them, and the server's answers. For the same reason our errors are not chained to obstore's.
"""

from __future__ import annotations

import re
from typing import NoReturn

from runtime_adapters.artifacts.errors import (
    ArtifactChanged,
    ArtifactDenied,
    ArtifactNotFound,
    BadLocation,
    FetchFailed,
    FetchTimedOut,
)
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.errors import AdapterError, BadArtifact

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_STORE_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
"""What S3 and Google, and Azure, call it."""
_TRANSIENT_STATUSES = {408, 425, 429}
_REASONS = (
    # obstore has one class for all of these; its text is the only place where they differ.
    ("Content-Length Header missing", "the server does not say how long the object is"),
    ("dns error", "the host name cannot be resolved"),
    ("ConnectionRefused", "the connection was refused"),
    ("certificate", "the server's TLS certificate was not accepted"),
    ("kind: Timeout", "the server stopped answering"),
    ("TimedOut", "the server stopped answering"),
    ("kind: Interrupted", "the connection broke"),
    ("IncompleteBody", "the connection broke"),
    ("kind: Connect", "no connection to the server"),
)


def map_foreign(error: BaseException, location: Location) -> BaseException:
    """Ours for theirs. What is not an error of obstore's comes back as it is."""
    if isinstance(error, AdapterError):
        return error
    from obstore import exceptions

    where = f"uri {location.shown!r}"
    text = str(error)
    code = _STORE_CODE.search(text)
    status = int(found.group(1)) if (found := _STATUS.search(text)) else None
    said = f" (HTTP {status}{', ' + code.group(1) if code else ''})" if status else ""
    match error:
        case FileNotFoundError():
            what = "the bucket does not exist" if code and code.group(1) in NO_BUCKET else "nothing is there"
            return ArtifactNotFound(f"{where}: {what}{said}; check the uri and the storage key's endpoint")
        case exceptions.PermissionDeniedError() | exceptions.UnauthenticatedError():
            return ArtifactDenied(
                f"{where}: the server denies access{said}; check the storage key and its permissions to read and list "
                "(without the latter, S3 says the same of an object that does not exist)"
            )
        case exceptions.PreconditionError() | exceptions.NotModifiedError():
            return ArtifactChanged(f"{where}: the object changed while it was read{said}; it is read again")
        case exceptions.NotSupportedError():
            return RangeIgnored(f"{where}: the server does not go on where a download stopped; it is read again")
        case exceptions.InvalidPathError() | ValueError():
            return BadLocation(f"{where}: a name there holds empty, `.` or `..` segments; rename the object")
        case exceptions.BaseError():
            return _map_generic(where, text, status, said, code.group(1) if code else None)
        case _:
            return error


class RangeIgnored(FetchFailed):
    """The server answered a request for the rest with the whole."""


def _map_generic(where: str, text: str, status: int | None, said: str, code: str | None) -> AdapterError:
    if code in NO_BUCKET:
        return ArtifactNotFound(
            f"{where}: the bucket does not exist{said}; check the uri and the storage key's endpoint"
        )
    if status == 412:  # obstore has a class for it, and does not always use it
        return ArtifactChanged(f"{where}: the object changed while it was read{said}; it is read again")
    if status == 416:
        return ArtifactChanged(f"{where}: the object is shorter than it was{said}; it is read again")
    if status is not None and status < 500 and status not in _TRANSIENT_STATUSES:
        return BadArtifact(
            f"{where}: the server refuses the request{said}; check the uri, the region and the storage key"
        )
    reason = next((reason for needle, reason in _REASONS if needle in text), "the transfer failed")
    if "does not say how long" in reason:
        return BadArtifact(f"{where}: {reason} (no Content-Length); serve it as a plain file")
    if "stopped answering" in reason:
        return FetchTimedOut(f"{where}: {reason}{said}; it is tried again later")
    return FetchFailed(f"{where}: {reason}{said}; it is tried again later")


def raise_for_file(error: OSError, location: Location) -> NoReturn:
    where = f"uri {location.shown!r}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise ArtifactNotFound(f"{where}: nothing is there on this pod's machine; check the path") from error
    if isinstance(error, PermissionError):
        raise ArtifactDenied(f"{where}: this pod's user may not read it; check its permissions") from error
    raise FetchFailed(f"{where}: {error.strerror or error}; it is tried again later") from error
