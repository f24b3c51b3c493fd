"""How many calls a transport has in hand, and whether there is room for one more.

Both transports, and the two halves of the native one, count here, so that a limit means the same on each: calls in
flight, and the bytes of their requests together. What does not fit is refused at once, with a hint; nothing queues.

Deliberately absent: the network, and threads. It belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from mesh.transport.base import StatusCode, TransportError, TransportLimits

_log = logging.getLogger(__name__)

_LAST_CALLS_S = 0.1
"""Once nothing runs, calls that were on their way are still refused for so long. Whoever hangs up on them answers them
with CANCELLED, or not at all, and clients repeat neither."""


class Running(Protocol):
    """A call in hand: the task that answers it, or what stands for it where none has to wait."""

    def cancel(self) -> object:
        """End it; it is answered with `stopped` while `ending`."""


class Admission:
    """The calls of one transport, all addresses together."""

    def __init__(self, limits: TransportLimits) -> None:
        self._limits = limits
        self._running: set[Running] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._bytes_in_flight = 0
        self._was_called = False
        self.refusing = False
        """The transport stops: nothing is let in."""
        self.ending = False
        """The grace is over: what still runs has been cancelled, and is answered."""
        self.shed = 0
        """Refused for want of room, since the start."""

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def refusal(self, body_bytes: int = 0) -> TransportError | None:
        """Why there is no room for a call of so many bytes; None: there is."""
        limits = self._limits
        self._was_called = True
        if self.refusing:
            return TransportError(
                StatusCode.UNAVAILABLE, "this pod is stopping; try another one", limits.shed_retry_after_s
            )
        if len(self._running) >= limits.calls_max:
            self.shed += 1
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"{limits.calls_max} calls are in flight on this pod, its limit; try again shortly",
                limits.shed_retry_after_s,
            )
        if self._running and self._bytes_in_flight + body_bytes > limits.bytes_in_flight_max:
            self.shed += 1
            return TransportError(
                StatusCode.RESOURCE_EXHAUSTED,
                f"requests of {self._bytes_in_flight} bytes are in flight on this pod, near its limit of "
                f"{limits.bytes_in_flight_max}; try again shortly",
                limits.shed_retry_after_s,
            )
        return None

    def enter(self, running: Running, body_bytes: int = 0) -> None:
        """A call that was not refused is in hand until `leave`."""
        self._bytes_in_flight += body_bytes
        self._running.add(running)
        self._idle.clear()

    def leave(self, running: Running, body_bytes: int = 0) -> None:
        """The call's handler has ended."""
        self._bytes_in_flight -= body_bytes
        self._running.discard(running)
        if not self._running:
            self._idle.set()

    async def close(self, grace_s: float) -> None:
        """Refuse what comes, and what is on its way; wait until nothing runs, and cancel what runs after `grace_s`."""
        self.refusing = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("%d calls did not finish within %.1f s of grace and are ended", len(self._running), grace_s)
            self.ending = True
            for running in tuple(self._running):
                running.cancel()
        if self._was_called:
            self._was_called = False
            await asyncio.sleep(_LAST_CALLS_S)

    def stopped(self) -> TransportError:
        """The answer to a call that `close` cancelled."""
        return TransportError(
            StatusCode.UNAVAILABLE,
            "this pod stopped before the call was done; try another one",
            self._limits.shed_retry_after_s,
        )
