"""How a call begins and how its answer is read: what the blocking and the asyncio client have in common."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mesh.client.attempts import Conversation, conversation
from mesh.client.endpoints import Endpoints
from mesh.client.errors import HexcombError, ServerFailed
from mesh.client.operations import Operation
from mesh.client.owners import Owners
from mesh.client.retries import RetryPolicy
from mesh.transport.base import Metadata, StatusCode
from mesh.wire.messages import TENANT_METADATA

Answer = TypeVar("Answer")

DEFAULT_ENDPOINT = "127.0.0.1:8033"
CONNECTIONS_MAX = 256
"""To endpoints, and to pods that answers named: the pods of a large pool, and those that came after them."""
DEFAULT_TIMEOUT_S = 60.0
"""Long enough for a cold model of ordinary size; every method takes another."""
TIMEOUT_MAX_S = 30 * 86_400.0
"""gRPC takes one that it cannot count for none at all."""
_METADATA_KEY = re.compile(r"[0-9a-z_.-]+")
_METADATA_TEXT = re.compile(r"[ -~]*")


class Calls:
    """What both clients keep beside their connections: how a call begins."""

    def __init__(
        self,
        addresses: Sequence[str],
        tenant: str | None,
        timeout_s: float,
        retry: RetryPolicy | None,
        metadata: Metadata,
        ready: Callable[[str], bool] | None,
    ) -> None:
        """`ready`: see `Owners`; None: no owner is followed. Raises ValueError."""
        self._endpoints = Endpoints(addresses, time.monotonic, random.randrange(len(addresses)))
        self._metadata = metadata if tenant is None else (*metadata, (TENANT_METADATA, tenant))
        for key, value in self._metadata:
            _check_metadata(key, value)
        self._timeout_s = _checked(timeout_s)
        self._retry = retry or RetryPolicy()
        self._owners = None if ready is None else Owners(ready, time.monotonic, random.random)

    def deadline_s(self, timeout_s: float | None) -> float:
        """On the monotonic clock: after `timeout_s`, or after the client's own time. Raises ValueError."""
        return time.monotonic() + (self._timeout_s if timeout_s is None else _checked(timeout_s))

    def begin(self, timeout_s: float | None, operation: Operation[Any]) -> Conversation:
        """A call that ends after `timeout_s`, or after the client's own time. Raises ValueError."""
        return conversation(
            self._endpoints,
            self._retry,
            self._metadata,
            self.deadline_s(timeout_s),
            time.monotonic,
            random.random,
            self._owners,
            operation.model,
            repeats=operation.repeats,
        )


def _checked(timeout_s: float) -> float:
    if not 0 < timeout_s <= TIMEOUT_MAX_S:  # not a number is neither
        raise ValueError(
            f"timeout_s is {timeout_s}; it must be above 0 and at most {TIMEOUT_MAX_S:,.0f} seconds (30 days)"
        )
    return timeout_s


def _check_metadata(key: str, value: str | bytes) -> None:
    if not _METADATA_KEY.fullmatch(key):
        raise ValueError(f"metadata key {key!r}: only lower-case letters, digits, and _ . - may stand in it")
    if isinstance(value, bytes) != key.endswith("-bin") or (
        isinstance(value, str) and not _METADATA_TEXT.fullmatch(value)
    ):
        raise ValueError(
            f"metadata {key!r} is {value!r}; it must be printable ASCII, or bytes where the key ends in -bin"
        )


def decoded(operation: Operation[Answer], body: bytes) -> Answer:
    """Read an answer; one that cannot be read is the server's fault."""
    try:
        return operation.decode(body)
    except HexcombError:
        raise
    except Exception as error:
        raise ServerFailed(f"cannot read the server's answer to {operation.path}: {error}", StatusCode.UNKNOWN) from (
            error
        )
