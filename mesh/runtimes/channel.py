"""A gRPC channel to a server beside the pod, for calls that block: models are loaded and run on worker threads.

A call ends in one of three ways: bytes, what the server said (`RuntimeSaid`), or no word of it (`RuntimeSilent`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from mesh.transport.base import StatusCode
from mesh.transport.grpcio_channel import channel_options, failed_call
from mesh.wire import messages
from mesh.wire.messages import Method, Request, Response

_PING_TIMEOUT_S = 5.0
_SILENCE = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED)


class RuntimeSaid(Exception):
    """The server answered with an error."""

    def __init__(self, status: StatusCode, details: str) -> None:
        super().__init__(f"{details or 'no reason given'} ({status.name})")
        self.status = status
        self.details = details


class RuntimeSilent(Exception):
    """The server cannot be reached, went away, or did not answer in time."""


class RuntimeLate(RuntimeSilent):
    """No answer in time. That says how long the caller would wait, and nothing of whether the server is there."""


class RuntimeChannel:
    """Threads may share it. Connects when it is first used, and heals itself."""

    def __init__(self, address: str) -> None:
        import grpc

        self._rpc_error = grpc.RpcError
        self._address = address
        self._channel = grpc.insecure_channel(address, channel_options(_PING_TIMEOUT_S, through_proxy=False))
        self._methods: dict[str, Callable[..., Any]] = {}
        self._guard = threading.Lock()

    def call(
        self, path: str, message: bytes, timeout_s: float | None, metadata: Sequence[tuple[str, str | bytes]] = ()
    ) -> bytes:
        """One unary call. Raises RuntimeSaid, RuntimeSilent."""
        with self._guard:
            method = self._methods.get(path)
            if method is None:
                method = self._methods[path] = self._channel.unary_unary(path)
        try:
            reply: bytes = method(message, timeout=timeout_s, metadata=tuple(metadata))
        except self._rpc_error as failure:
            failed = failed_call(failure)
            status = StatusCode(failed.status)
            if status is StatusCode.DEADLINE_EXCEEDED:
                raise RuntimeLate(f"no answer from {self._address} within {timeout_s or 0:g} s") from failure
            if status in _SILENCE and _is_grpcs_own(failed.details):
                raise RuntimeSilent(f"{self._address}: {failed.details or status.name}") from failure
            raise RuntimeSaid(status, failed.details) from failure
        return reply

    def ask(self, method: Method[Request, Response], request: Request, timeout_s: float) -> Response:
        """The same with messages. Raises RuntimeSaid, RuntimeSilent, InvalidMessage."""
        return messages.parse_response(method, self.call(method.path, request.SerializeToString(), timeout_s))

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


_GRPCS_OWN = (
    "failed to connect", "connections to all backends failing", "DNS resolution", "Socket closed", "GOAWAY",
    "Connection reset", "recvmsg", "Broken pipe", "Stream removed", "ping timeout", "keepalive", "Channel closed",
    "Cancelling all calls", "Endpoint closing", "Transport closed", "tcp handshaker", "Connection refused",
)  # fmt: skip
"""Words of a line that broke. Servers say UNAVAILABLE, too, of a single model."""


def _is_grpcs_own(details: str) -> bool:
    lowered = details.lower()
    return not details or any(words.lower() in lowered for words in _GRPCS_OWN)
