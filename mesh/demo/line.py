"""A network line that can be spoiled: a TCP proxy between two processes on this machine.

Each `Line` listens on a port of its own and forwards every connection to one target. It can be

* slow: every piece arrives `delay_s` later, in order, as over a longer way;
* stalling: a share of the pieces holds up its connection for `stall_s`, as a lost packet does;
* frozen: connections stay, and nothing passes, as behind a broken switch;
* cut: connections are reset, and new ones too, as by a dead host.

Freezing and cutting may be for some callers only, told apart by name: so two pods of four can be kept from one another.

All lines live on one event loop in a thread of their own; their methods may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Literal

_PIECE_BYTES = 65_536
_PIECES_MAX = 256
"""On the way in one direction; then the sender waits."""
_CLOSE_TIMEOUT_S = 10.0

Identify = Callable[[int], str]
"""The name of the process that a connection from this local port comes from; empty: unknown."""


class _State(Enum):
    OPEN = "open"
    FROZEN = "frozen"
    CUT = "cut"


class _Everybody:
    def __contains__(self, name: object) -> bool:
        return True


EVERYBODY: Container[str] = _Everybody()


@dataclass(eq=False)
class _Connection:
    caller: str
    writers: list[asyncio.StreamWriter]
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, state: _State) -> None:
        if state is _State.CUT:
            for writer in self.writers:
                writer.transport.abort()
        elif state is _State.FROZEN:
            self.flows.clear()
        else:
            self.flows.set()


class Line:
    """One way to one machine: to one port of it, or to several; made by `Lines.open`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, identify: Identify | None) -> None:
        self.delay_s = 0.0
        self.stall_share = 0.0
        """Of the pieces, that are held up."""
        self.stall_s = 0.0
        self.ports: list[int] = []
        """Where it listens, in the order of its targets."""
        self._loop = loop
        self._identify = identify
        self._state = _State.OPEN
        self._whose: Container[str] = EVERYBODY
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._chance = random.Random(0)
        self._servers: list[asyncio.Server] = []

    @property
    def endpoint(self) -> str:
        """HOST:PORT to call in place of the (first) target's."""
        return self.endpoints[0]

    @property
    def endpoints(self) -> list[str]:
        """HOST:PORT to call in place of each target's."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    def freeze(self, callers: Container[str] = EVERYBODY) -> None:
        """No byte passes any more; connections stay."""
        self._set(_State.FROZEN, callers)

    def cut(self, callers: Container[str] = EVERYBODY) -> None:
        """Connections break, and new ones too."""
        self._set(_State.CUT, callers)

    def mend(self) -> None:
        """Everything passes; what was held back, too."""
        self._set(_State.OPEN, EVERYBODY)

    def _set(self, state: _State, callers: Container[str]) -> None:
        async def change() -> None:
            self._change(state, callers)

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(_CLOSE_TIMEOUT_S)

    @staticmethod
    def part(lines: Mapping[Line, Container[str]], how: Literal["cut", "freeze"]) -> None:
        """Cut or freeze several lines of one `Lines`, each for its callers, in one moment, as a partition does."""
        state = _State.CUT if how == "cut" else _State.FROZEN

        async def change_all() -> None:
            for line, callers in lines.items():
                line._change(state, callers)

        for loop in {line._loop for line in lines}:
            asyncio.run_coroutine_threadsafe(change_all(), loop).result(_CLOSE_TIMEOUT_S)

    def _change(self, state: _State, callers: Container[str]) -> None:
        self._state, self._whose = state, callers
        for connection in list(self._connections):
            connection.take(self._state_for(connection.caller))

    def _state_for(self, caller: str) -> _State:
        return self._state if caller in self._whose else _State.OPEN

    # On the lines' own loop -------------------------------------------------------------------------------------

    async def listen(self, target_port: int, port: int = 0) -> None:
        """Take connections for this target from now on."""
        server = await asyncio.start_server(partial(self._accept, target_port), "127.0.0.1", port)
        self._servers.append(server)
        self.ports.append(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End it, and every connection."""
        for server in self._servers:
            server.close()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, target_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connection = _Connection("", [writer])
        self._connections[connection] = task
        try:
            if self._identify is not None:
                port = writer.get_extra_info("peername")[1]
                connection.caller = await asyncio.to_thread(self._identify, port)
            state = self._state_for(connection.caller)
            connection.take(state)
            if state is not _State.CUT:
                await self._carry(connection, target_port, reader, writer)
        except (OSError, asyncio.CancelledError):  # nobody listens there; or the line is closed
            pass
        finally:
            for each in connection.writers:
                each.transport.abort()
            del self._connections[connection]

    async def _carry(
        self, connection: _Connection, target_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        connection.writers.append(target_writer)
        ways = [
            asyncio.ensure_future(self._forward(reader, target_writer, connection.flows)),
            asyncio.ensure_future(self._forward(target_reader, writer, connection.flows)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_MAX)
        taking = asyncio.ensure_future(self._take(reader, pieces))
        try:
            while True:
                due_s, piece = await pieces.get()
                if not piece:
                    return
                if (wait_s := due_s - self._loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                if self.stall_share and self._chance.random() < self.stall_share:
                    await asyncio.sleep(self.stall_s)
                await flows.wait()
                writer.write(piece)
                await writer.drain()
        finally:
            taking.cancel()

    async def _take(self, reader: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]) -> None:
        piece = b"..."
        while piece:
            piece = b""
            with contextlib.suppress(OSError):
                piece = await reader.read(_PIECE_BYTES)
            await pieces.put((self._loop.time() + self.delay_s, piece))


class Lines:
    """The lines of one pool, and their thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lines", daemon=True)
        self._thread.start()
        self._lines: list[Line] = []

    def open(self, *target_ports: int, identify: Identify | None = None, port: int = 0) -> Line:
        """A new line to ports of this machine, the first on `port` or all on those that the system picks."""
        line = Line(self._loop, identify)
        for target_port in target_ports:
            listening = line.listen(target_port, 0 if line.ports else port)
            asyncio.run_coroutine_threadsafe(listening, self._loop).result(_CLOSE_TIMEOUT_S)
        self._lines.append(line)
        return line

    def close(self) -> None:
        """End all lines."""
        for line in self._lines:
            asyncio.run_coroutine_threadsafe(line.close(), self._loop).result(_CLOSE_TIMEOUT_S)
        self._lines.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
