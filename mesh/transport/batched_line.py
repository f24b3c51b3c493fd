"""The line from one pod to another: calls in batches where that is possible, and gRPC's own calls where it is not.

The two ends of the batches are `calling` and `answering`; here is decided over what they talk, and when not at all:

* over a unix socket, when the other pod has one and this machine is its machine: then its path is here, and is this
  user's (where somebody else's process has taken it, it would be shown the key, and be asked);
* else over TCP, to the port that the other pod takes batches on;
* as a call of its own on gRPC, while there is no such connection or the other pod is behind with reading, where none
  can be made (that port is closed to this pod, or the other one is of an older version), and for large messages,
  behind which the small ones would wait.

So whether a pod is there, and how long one waits for it, is always found out by a call on gRPC, and a connection that
cannot be made costs cheapness and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from math import inf

from mesh.transport.base import Heard, Line, Metadata, PeerWays, Reply
from mesh.transport.calling import Calling
from mesh.transport.frames import CALL_BYTES_MAX
from mesh.transport.pipe import SocketPipe
from mesh.transport.socket_directory import is_own_socket

OPEN_WITHIN_S = 5.0
"""A connection that is not made and greeted by then is given up."""
AGAIN_FIRST_S = 0.5
AGAIN_MAX_S = 30.0
"""Between tries to make one; doubles with each that fails."""


class BatchedLine:
    """`mesh.transport.base.Line`. Belongs to the loop that it is first used on."""

    def __init__(self, plain: Line, ways: PeerWays) -> None:
        """`plain`: how a call goes there by itself."""
        self._plain = plain
        self._ways = ways
        self._calling: Calling | None = None
        self._holding: asyncio.Task[None] | None = None
        self._failures = 0
        self._again_s = 0.0 if ways.line or ways.socket else inf

    @property
    def is_batched(self) -> bool:
        """Whether calls that come now go in batches."""
        return self._calling is not None and self._calling.is_open

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> Callable[[], None] | None:
        """See `Line`."""
        calling = self._calling
        if calling is None or not calling.is_open or calling.is_full or len(body) > CALL_BYTES_MAX:
            return None
        return calling.begin(path, body, metadata, deadline_s, heard)

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        """See `Line`."""
        calling = self._calling
        if calling is None or not calling.is_open:
            self._open_soon(metadata)
        elif len(body) <= CALL_BYTES_MAX and not calling.is_full:
            return await calling.call(path, body, metadata, deadline_s)
        return await self._plain.call(path, body, metadata, deadline_s)

    async def close(self) -> None:
        """See `Line`."""
        self._again_s = inf
        if self._holding is not None:
            self._holding.cancel()
            await asyncio.gather(self._holding, return_exceptions=True)
        await self._plain.close()

    def _open_soon(self, hello: Metadata) -> None:
        if self._holding is None and time.monotonic() >= self._again_s:
            self._holding = asyncio.get_running_loop().create_task(self._hold(hello))

    async def _hold(self, hello: Metadata) -> None:
        """Make a connection, and hold it as long as it lasts. Whoever makes it shows what calls show (`hello`)."""
        calling = Calling(self._ways.address, hello)
        pipe = SocketPipe(calling)
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                await self._connect(lambda: pipe)
                is_open = await calling.ready
            if is_open:
                self._calling, self._failures = calling, 0
                await pipe.ended
        except (OSError, TimeoutError):  # gRPC's way tells whoever calls what is wrong
            pass
        finally:
            self._calling = self._holding = None
            pipe.abort()
            pause_s = min(AGAIN_FIRST_S * 2.0**self._failures, AGAIN_MAX_S)
            self._again_s = max(self._again_s, time.monotonic() + pause_s)
            self._failures = min(self._failures + 1, 10)

    async def _connect(self, make: Callable[[], SocketPipe]) -> None:
        loop = asyncio.get_running_loop()
        if is_own_socket(self._ways.socket):
            with contextlib.suppress(OSError):  # nobody listens there, or only others of this machine may call
                await loop.create_unix_connection(make, self._ways.socket)
                return
        host, _, port = self._ways.line.rpartition(":")
        await loop.create_connection(make, host.strip("[]"), int(port or 0))
