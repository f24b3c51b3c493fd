"""A line between a client and a server on this machine, to be slowed, silenced and cut."""

from __future__ import annotations

import asyncio
import contextlib


class TcpProxy:
    """Forwards connections to one port. Belongs to the test's event loop; use it as a context."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        """Every piece waits so long, in both directions."""
        self.port = 0
        self.connections = 0
        """Accepted so far."""
        self._target_port = target_port
        self._requests_flow = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self.thaw()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def freeze(self) -> None:
        """From now on no byte passes, on old and new connections; they stay open, as behind a broken network."""
        self._requests_flow.clear()
        self._answers_flow.clear()

    def freeze_answers(self) -> None:
        """What the client sends arrives; what it is answered does not."""
        self._answers_flow.clear()

    def thaw(self) -> None:
        """Bytes pass again, those that were held back too."""
        self._requests_flow.set()
        self._answers_flow.set()

    def cut(self) -> None:
        """Break all connections; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> TcpProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        used = [writer]
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            used.append(target_writer)
            self._writers.add(target_writer)
            await asyncio.gather(
                self._forward(reader, target_writer, self._requests_flow),
                self._forward(target_reader, writer, self._answers_flow),
            )
        except (OSError, asyncio.CancelledError):  # nobody listens there; or the test is over
            pass
        finally:
            for one in used:
                one.transport.abort()
                self._writers.discard(one)
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await flow.wait()
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()
