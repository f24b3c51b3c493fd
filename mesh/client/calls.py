"""How a call begins and how its answer is read: what the blocking and the asyncio client have in common."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

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
        """`ready`: see `Owners`; None: no owner is followed."""
        self._endpoints = Endpoints(addresses, time.monotonic, random.randrange(len(addresses)))
        self._metadata = metadata if tenant is None else (*metadata, (TENANT_METADATA, tenant))
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._owners = None if ready is None else Owners(ready, time.monotonic, random.random)

    def deadline_s(self, timeout_s: float | None) -> float:
        """On the monotonic clock: after `timeout_s`, or after the client's own time."""
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)

    def begin(self, timeout_s: float | None, model: str) -> Conversation:
        """A call that ends after `timeout_s`, or after the client's own time. `model`: see `Operation`."""
        return conversation(
            self._endpoints,
            self._retry,
            self._metadata,
            self.deadline_s(timeout_s),
            time.monotonic,
            random.random,
            self._owners,
            model,
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
