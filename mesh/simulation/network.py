"""The network between pods, and between clients and pods: the transport seam without sockets.

A pod listens with a `SimulatedTransport` and calls with a `SimulatedLine`, both behind `mesh.transport.base`; so all of
a pod above the seam is real, down to the bytes of its messages. A message takes its time. What can happen to it is
what happens to TCP: nobody listens (refused at once), the machine's process is frozen (it arrives, and nothing comes
back), it dies (the line is reset), the way is cut (silence, until a keep-alive gives up), or one message in a hundred
is late.

Deliberately absent: bandwidth, connection set-up, streams, TLS. Links are cut in both directions, or in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from mesh.simulation.chance import delay_s
from mesh.simulation.virtual_loop import Process, VirtualLoop
from mesh.transport.base import (
    Call,
    Dial,
    Heard,
    LineBroken,
    ListenAddress,
    Metadata,
    PeerWays,
    Reply,
    Routes,
    StatusCode,
    TransportError,
    TransportLimits,
    UnaryHandler,
)

CLIENTS = "clients"
"""The machine that all clients are on: it has no process and is never cut off."""


@dataclass(frozen=True, slots=True)
class NetworkConditions:
    """How good the network is in this run. Seconds."""

    one_way_s: float = 0.0003
    slow_share: float = 0.01
    slow_s: float = 0.2
    """A share of the messages takes up to this much longer: retransmissions, a stalled write."""
    keepalive_s: float = 15.0
    """A call into silence is given up after this, whatever its deadline."""


@dataclass(slots=True)
class NetworkCounts:
    """What happened on the network in a run."""

    calls: int = 0
    refused: int = 0
    reset: int = 0
    lost: int = 0


class Network:
    """Who listens where, and what is cut. Belongs to the world."""

    def __init__(self, loop: VirtualLoop, random: Random, conditions: NetworkConditions) -> None:
        self.loop = loop
        self.conditions = conditions
        self.counts = NetworkCounts()
        self.broken_since_s: dict[tuple[str, str], float] = {}
        """(from, to) of every way that is cut, and since when."""
        self.mended_s: dict[tuple[str, str], float] = {}
        """When a way that was cut was mended last."""
        self._random = random
        self._listeners: dict[str, SimulatedTransport] = {}
        self._slow: dict[str, float] = {}

    # Faults ---------------------------------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Nothing passes from one machine to the other."""
        self.broken_since_s.setdefault((source, target), self.loop.time())

    def mend(self, source: str, target: str) -> None:
        """It passes again."""
        if self.broken_since_s.pop((source, target), None) is not None:
            self.mended_s[(source, target)] = self.loop.time()

    def mend_all(self) -> None:
        """Every way is open."""
        for source, target in list(self.broken_since_s):
            self.mend(source, target)
        self._slow.clear()

    def slow_down(self, machine: str, factor: float) -> None:
        """Every message from and to this machine takes so many times longer; 1: as usual."""
        if factor == 1:
            self._slow.pop(machine, None)
        else:
            self._slow[machine] = factor

    def machine_died(self, machine: str) -> None:
        """Its process is gone: lines to it are reset, and its own calls are cancelled at their peers."""
        for address, transport in list(self._listeners.items()):
            for exchange in list(transport.exchanges.values()):
                if transport.machine == machine:
                    self.counts.reset += 1
                    self.loop.world_later(self.one_way_s(machine, exchange.source), exchange.reset)
                elif exchange.source == machine:
                    self.loop.world_later(self.one_way_s(machine, transport.machine), exchange.cancel)
            if transport.machine == machine:
                del self._listeners[address]

    # Messages -------------------------------------------------------------------------------------------------------

    def dial(self, machine: str) -> Dial:
        """How a process on this machine makes lines."""
        return partial(SimulatedLine, self, machine)

    def open(self, source: str, target: str) -> bool:
        """Whether a message gets from one machine to the other now."""
        return (source, target) not in self.broken_since_s

    def one_way_s(self, source: str, target: str) -> float:
        """How long the next message takes."""
        conditions = self.conditions
        wait_s = delay_s(self._random, conditions.one_way_s, conditions.slow_share, conditions.slow_s)
        if self._slow:
            wait_s *= max(self._slow.get(source, 1.0), self._slow.get(target, 1.0))
        return wait_s

    def listen(self, transport: SimulatedTransport) -> None:
        """Calls to its address arrive there."""
        self._listeners[transport.address] = transport

    def hang_up(self, transport: SimulatedTransport) -> None:
        """Nobody listens there any more."""
        if self._listeners.get(transport.address) is transport:
            del self._listeners[transport.address]

    def send(self, exchange: _Exchange) -> None:
        """The request leaves."""
        self.counts.calls += 1
        transport = self._listeners.get(exchange.address)
        target = exchange.address if transport is None else transport.machine
        self.loop.world_later(self.one_way_s(exchange.source, target), self._arrive, exchange)

    def _arrive(self, exchange: _Exchange) -> None:
        if exchange.answer.done():
            return
        transport = self._listeners.get(exchange.address)
        if transport is None:
            self.counts.refused += 1
            back_s = self.one_way_s(exchange.address, exchange.source)
            self.loop.world_later(back_s, exchange.break_line, f"{exchange.address}: connection refused", False)
        elif not self.open(exchange.source, transport.machine):
            self._lose(exchange)
        else:
            transport.accept(exchange)

    def _lose(self, exchange: _Exchange) -> None:
        self.counts.lost += 1
        left_s = max(0.0, exchange.sent_s + self.conditions.keepalive_s - self.loop.time())
        self.loop.world_later(left_s, exchange.break_line, f"{exchange.address}: keep-alive timed out", True)

    def answered(self, exchange: _Exchange, machine: str, result: Reply | TransportError) -> None:
        """The answer leaves."""
        self.loop.world_later(self.one_way_s(machine, exchange.source), self._bring, exchange, machine, result)

    def _bring(self, exchange: _Exchange, machine: str, result: Reply | TransportError) -> None:
        if not self.open(machine, exchange.source):
            self._lose(exchange)
        elif not exchange.answer.done():
            if isinstance(result, TransportError):
                exchange.answer.set_exception(result)
            else:
                exchange.answer.set_result(result)


class _Exchange:
    """One call on its way, seen from both ends."""

    __slots__ = ("address", "answer", "call", "sent_s", "source", "task")

    def __init__(self, source: str, address: str, call: Call, sent_s: float, answer: asyncio.Future[Reply]) -> None:
        self.source = source
        self.address = address
        self.call = call
        self.sent_s = sent_s
        self.answer = answer
        self.task: asyncio.Task[Reply] | None = None

    def break_line(self, message: str, sent: bool) -> None:
        if not self.answer.done():
            self.answer.set_exception(LineBroken(message, sent=sent))

    def reset(self) -> None:
        self.break_line(f"{self.address}: connection reset", True)

    def cancel(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()


class SimulatedLine:
    """The calling side: `mesh.transport.base.Line`."""

    def __init__(self, network: Network, machine: str, ways: PeerWays) -> None:
        self._network = network
        self._machine = machine
        self._address = ways.address

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> None:
        """See `Line`: here every call is waited for."""

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        """See `Line`."""
        loop = self._network.loop
        answer: asyncio.Future[Reply] = loop.create_future()
        call = Call(path, bytes(body), metadata, deadline_s, peer=self._machine)
        exchange = _Exchange(self._machine, self._address, call, loop.time(), answer)
        self._network.send(exchange)
        limit = None if deadline_s is None else loop.call_at(deadline_s, self._too_late, exchange)
        try:
            return await answer
        except asyncio.CancelledError:
            loop.world_later(self._network.one_way_s(self._machine, self._address), exchange.cancel)
            raise
        finally:
            if limit is not None:
                limit.cancel()

    def _too_late(self, exchange: _Exchange) -> None:
        if not exchange.answer.done():
            message = f"no answer from {self._address} before the deadline"
            exchange.answer.set_exception(TransportError(StatusCode.DEADLINE_EXCEEDED, message))

    async def close(self) -> None:
        """See `Line`."""


class SimulatedTransport:
    """The listening side: `mesh.transport.base.Transport`."""

    name = "simulated"

    def __init__(
        self, network: Network, process: Process, machine: str, address: str, routes: Routes, limits: TransportLimits
    ) -> None:
        self.machine = machine
        self.address = address
        self.limits = limits
        self.calls_shed = 0
        self.exchanges: dict[int, _Exchange] = {}
        """Calls that are in the process."""
        self._network = network
        self._process = process
        self._routes = routes
        self._ids = iter(range(1 << 62))
        self._stopping = False
        self._empty: asyncio.Future[None] | None = None

    @property
    def addresses(self) -> Sequence[ListenAddress]:
        """See `Transport`."""
        return (ListenAddress(self.address),)

    @property
    def peer_ways(self) -> PeerWays | None:
        """See `Transport`."""
        return None

    @property
    def calls_in_flight(self) -> int:
        """See `Transport`."""
        return len(self.exchanges)

    async def start(self) -> int:
        """See `Transport`."""
        self._network.listen(self)
        return int(self.address.rpartition(":")[2])

    def accept(self, exchange: _Exchange) -> None:
        """A call arrives. Called by the network, as the world."""
        handler = self._routes.unary.get(exchange.call.method)
        refusal: TransportError | None = None
        if handler is None:
            refusal = TransportError(StatusCode.UNIMPLEMENTED, f"{exchange.call.method} is not served here")
        elif self._stopping:
            refusal = TransportError(StatusCode.UNAVAILABLE, "the pod is stopping", 0.1)
        elif len(self.exchanges) >= self.limits.calls_max:
            self.calls_shed += 1
            refusal = TransportError(StatusCode.RESOURCE_EXHAUSTED, "too many calls", self.limits.shed_retry_after_s)
        if refusal is not None or handler is None:
            assert refusal is not None
            self._network.answered(exchange, self.machine, refusal)
            return
        exchange_id = next(self._ids)
        self.exchanges[exchange_id] = exchange
        exchange.task = task = self._process.start(self._handle(handler, exchange.call))
        # Not in the handler itself: one that is cancelled before its first step never takes it.
        task.add_done_callback(partial(self._ended, exchange_id, exchange))
        if exchange.call.deadline_s is not None:
            self._process.call(self._network.loop.call_at, exchange.call.deadline_s, exchange.cancel)

    async def _handle(self, handler: UnaryHandler, call: Call) -> Reply:
        try:
            return await handler(call)
        except (TransportError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._network.loop.call_exception_handler({"message": call.method, "exception": error})
            raise TransportError(StatusCode.INTERNAL, f"{type(error).__name__} in {call.method}") from error

    def _ended(self, exchange_id: int, exchange: _Exchange, task: asyncio.Task[Reply]) -> None:
        del self.exchanges[exchange_id]
        if not self.exchanges and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)
        result: Reply | TransportError
        if task.cancelled():
            result = TransportError(StatusCode.CANCELLED, "the call was cancelled")
        elif isinstance(error := task.exception(), TransportError):
            result = error
        else:
            result = task.result()
        self._network.answered(exchange, self.machine, result)

    async def stop(self, grace_s: float) -> None:
        """See `Transport`."""
        self._stopping = True
        if self.exchanges:
            self._empty = self._network.loop.create_future()
            await asyncio.wait([self._empty], timeout=grace_s)
        for exchange in list(self.exchanges.values()):
            exchange.cancel()
        self._network.hang_up(self)
