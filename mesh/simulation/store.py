"""The pool's store, as a service that is reached over a line that fails: one server, and a client for each pod.

What the store does is real: `MemoryStore` has the semantics of all our stores. What is simulated is everything around
it: requests and answers take time and overtake one another; a line that is cut swallows them (a write may have been
done although its answer never came); the server goes away and comes back, with its data or without it; history is
compacted under a watcher; watches lag. Leases run out by virtual time, and stand still while the server is away, as
etcd's do (a new etcd leader gives every lease its full time again).

Answers come to a client as they would from etcd: StoreUnavailable after a time limit, or at once when nothing listens;
Compacted, and StoreReplaced after a wipe, from a watch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from mesh.simulation.chance import delay_s
from mesh.simulation.virtual_loop import VirtualLoop
from placement.errors import Compacted, PlacementError, StoreClosed, StoreReplaced, StoreUnavailable
from placement.store.base import Condition, KeyValue, Operation, Page, StoreLimits, TxnResult, WatchBatch
from placement.store.memory import MemoryStore

T = TypeVar("T")

LEASE_CHECK_S = 0.5
"""How often the server looks for leases that have run out; etcd's own pace."""
FIRST_CLUSTER = 1
LEASES_PER_CLUSTER = 1_000_000
"""etcd's leases are random numbers of 63 bits; here those of two clusters differ by this."""
REACH_SETTLES_S = 15.0
"""A pod that reached the store for less has not caught up for certain."""


@dataclass(frozen=True, slots=True)
class StoreConditions:
    """How well the store is reached in this run. Seconds."""

    one_way_s: float = 0.002
    """A request's way there, or an answer's way back."""
    slow_share: float = 0.01
    slow_s: float = 0.2
    """A share of the messages takes up to this much longer."""
    watch_s: float = 0.005
    """How late a change reaches a watcher."""
    watch_slow_share: float = 0.01
    watch_slow_s: float = 3.0
    call_timeout_s: float = 4.0
    watch_silence_s: float = 5.0
    """A watcher whose line says nothing for so long may give up."""


@dataclass(slots=True)
class StoreCounts:
    """What happened to the store in a run."""

    calls: int = 0
    calls_lost: int = 0
    answers_lost: int = 0
    leases_expired: int = 0
    batches: int = 0
    watches_broken: int = 0
    compactions: int = 0
    outages: int = 0
    wipes: int = 0


class StoreServer:
    """The store's process, and the wires to it. Belongs to the world."""

    def __init__(self, loop: VirtualLoop, random: Random, conditions: StoreConditions) -> None:
        self._loop = loop
        self._random = random
        self.conditions = conditions
        self.counts = StoreCounts()
        self.away: str = ""
        """`refusing`: nothing listens; `silent`: messages vanish; empty: it is there."""
        self.cluster = FIRST_CLUSTER
        self._away_since_s = 0.0
        self._stood_still_s = 0.0
        self._cut: dict[str, None] = {}
        self._clients: dict[str, None] = {}
        self._reach: dict[str, _Reach] = {}
        self._lost_lease_s: dict[str, float] = {}
        self._streams: list[_Stream] = []
        self._on_write: list[Callable[[], None]] = []
        self.memory = MemoryStore(clock=self._lease_clock)
        loop.world_later(LEASE_CHECK_S, self._expire_leases)

    # Faults ---------------------------------------------------------------------------------------------------------

    def cut(self, pod: str) -> None:
        """Nothing passes between this pod and the store."""
        self._cut[pod] = None
        self._mark_reach()

    def mend(self, pod: str) -> None:
        """It passes again."""
        if pod in self._cut:
            del self._cut[pod]
            self._mark_reach()
            self._poke_all()

    def reaches(self, pod: str) -> bool:
        """Whether messages between this pod and the store arrive now."""
        return not self.away and pod not in self._cut

    def go_away(self, how: str) -> None:
        """The server stops; `how` is `refusing` or `silent`."""
        if not self.away:
            self._away_since_s = self._loop.time()
            self.counts.outages += 1
        self.away = how
        self._mark_reach()

    def come_back(self) -> None:
        """It is there again; its leases have the time left that they had."""
        if self.away:
            self._stood_still_s += self._loop.time() - self._away_since_s
            self.away = ""
            self._mark_reach()
            self._poke_all()

    def informed_until_s(self, pod: str, lag_s: float) -> float:
        """Every change up to then has reached the pod, if it takes at most `lag_s` while the line is open."""
        reach = self._reach.get(pod)
        now_s = self._loop.time()
        if reach is None or (reach.open and now_s - reach.open_since_s > lag_s):
            return now_s - lag_s
        return reach.shut_since_s - lag_s

    def reached_since(self, pod: str, since_s: float) -> bool:
        """The pod has reached the store, with its lease standing, all the while."""
        reach = self._reach.get(pod)
        lost_s = self._lost_lease_s.get(pod, -1e9)
        return self.reaches(pod) and lost_s < since_s and (reach is None or reach.open_since_s < since_s)

    def _mark_reach(self) -> None:
        now_s = self._loop.time()
        for pod in dict.fromkeys((*self._clients, *self._cut)):
            reach = self._reach.setdefault(pod, _Reach())
            is_open = self.reaches(pod)
            if is_open and not reach.open:
                reach.open_since_s = now_s
            elif not is_open and reach.open and now_s - reach.open_since_s > REACH_SETTLES_S:
                reach.shut_since_s = now_s
            reach.open = is_open

    def wipe(self) -> None:
        """Another store at the same address: empty, of another cluster, from revision 1."""
        self.counts.wipes += 1
        self._lost_lease_s = dict.fromkeys(self._clients, self._loop.time())
        self.cluster += 1
        self.memory = MemoryStore(clock=self._lease_clock, first_lease=self.cluster * LEASES_PER_CLUSTER)
        self._poke_all()
        self._written()

    def compact(self) -> None:
        """Forget all history up to now; watchers that lag must list again."""
        self.counts.compactions += 1
        drive(self.memory.compact(self.memory.revision))

    def peek(self, key: str) -> KeyValue | None:
        """What the store holds, without a line."""
        return drive(self.memory.get(key))

    def revoke(self, pod: str, lease: int) -> None:
        """End a pod's lease now, with its keys."""
        self._lost_lease_s[pod] = self._loop.time()
        drive(self.memory.revoke_lease(lease))
        self._written()

    def forget_client(self, pod: str) -> None:
        """The process is gone; its streams are closed by the kernel."""
        self._streams = [stream for stream in self._streams if stream.pod != pod]

    def connect(self, pod: str) -> StoreClient:
        """A client for the process on this machine."""
        self._clients[pod] = None
        return StoreClient(self, pod)

    def on_write(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each revision, at the server."""
        self._on_write.append(listener)

    # The server's side ----------------------------------------------------------------------------------------------

    def _lease_clock(self) -> float:
        still_s = self._loop.time() - self._away_since_s if self.away else 0.0
        return self._loop.time() - self._stood_still_s - still_s

    def _expire_leases(self) -> None:
        if not self.away:
            before = self.memory.revision
            drive(self.memory.expire_leases())
            if self.memory.revision != before:
                self.counts.leases_expired += self.memory.revision - before
                self._written()
        self._loop.world_later(LEASE_CHECK_S, self._expire_leases)

    def send(self, pod: str, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """A request leaves the pod; the future is its answer, or what its client makes of the silence."""
        self.counts.calls += 1
        answer: asyncio.Future[T] = self._loop.create_future()
        self._loop.world_later(self._one_way_s(), self._arrive, _Request(pod, self._loop.time(), work, answer))
        return answer

    def _one_way_s(self) -> float:
        conditions = self.conditions
        return delay_s(self._random, conditions.one_way_s, conditions.slow_share, conditions.slow_s)

    def _arrive(self, request: _Request) -> None:
        if self.away == "refusing":
            self._fail(request, f"the store refuses connections from {request.pod}")
            return
        if not self.reaches(request.pod):
            self.counts.calls_lost += 1
            self._lose(request)
            return
        before = self.memory.revision
        result: Any = None
        error: PlacementError | None = None
        try:
            result = drive(request.work())
        except PlacementError as refused:
            error = refused
        self._loop.world_later(self._one_way_s(), self._answer, request, result, error)
        if self.memory.revision != before:
            self._written()

    def _answer(self, request: _Request, result: Any, error: PlacementError | None) -> None:
        if not self.reaches(request.pod):
            self.counts.answers_lost += 1
            self._lose(request)
        elif request.answer.done():
            pass  # the caller has left
        elif error is not None:
            request.answer.set_exception(error)
        else:
            request.answer.set_result(result)

    def _lose(self, request: _Request) -> None:
        left_s = request.sent_s + self.conditions.call_timeout_s - self._loop.time()
        self._loop.world_later(max(0.0, left_s), self._fail, request, "the store did not answer in time")

    def _fail(self, request: _Request, message: str) -> None:
        if not request.answer.done():
            request.answer.set_exception(StoreUnavailable(message))

    # Watches --------------------------------------------------------------------------------------------------------

    def open_stream(self, pod: str, prefixes: Sequence[str], from_revision: int) -> _Stream:
        """A watch begins."""
        stream = _Stream(self, pod, tuple(prefixes), from_revision, self.cluster, patient=self._random.random() < 0.5)
        self._streams.append(stream)
        self._poke(stream)
        return stream

    def close_stream(self, stream: _Stream) -> None:
        """The watcher has left."""
        if stream in self._streams:
            self._streams.remove(stream)

    def _written(self) -> None:
        for stream in self._streams:
            if not stream.on_its_way:
                self._poke(stream)
        for listener in self._on_write:
            listener()

    def _poke_all(self) -> None:
        for stream in list(self._streams):
            self._poke(stream)

    def _poke(self, stream: _Stream) -> None:
        """See to it that the stream is looked at soon: something may be there for it."""
        if stream.on_its_way:
            return
        if stream.position == self.memory.revision + 1 and stream.cluster == self.cluster and self.reaches(stream.pod):
            return
        stream.on_its_way = True
        conditions = self.conditions
        wait_s = delay_s(self._random, conditions.watch_s, conditions.watch_slow_share, conditions.watch_slow_s)
        self._loop.world_later(wait_s, self._deliver, stream)

    def _deliver(self, stream: _Stream) -> None:
        stream.on_its_way = False
        if stream.closed:
            return
        if not self.reaches(stream.pod):
            # A patient client waits for the line to come back, and resumes; another tells its caller.
            if self.away == "refusing" or not stream.patient:
                wait_s = 0.0 if self.away == "refusing" else self.conditions.watch_silence_s
                self._loop.world_later(wait_s, self._break, stream)
            return
        revision = self.memory.revision
        if stream.cluster != self.cluster or stream.position > revision + 1:
            stream.fail(StoreReplaced(stream.position, revision, f"cluster {self.cluster}"))
            return
        try:
            batch = self.memory.batch_from(stream.prefixes, stream.position)
        except Compacted as forgotten:
            stream.fail(forgotten)
            return
        stream.position = batch.revision + 1
        if batch.events:
            self.counts.batches += 1
            stream.push(batch)
        self._poke(stream)

    def _break(self, stream: _Stream) -> None:
        if self.reaches(stream.pod):
            self._poke(stream)
        else:
            self.counts.watches_broken += 1
            stream.fail(StoreUnavailable(f"the watch of {stream.pod} was cut off"))


@dataclass(slots=True)
class _Reach:
    """Whether one pod reaches the store, and since when."""

    open: bool = True
    open_since_s: float = -1e9
    shut_since_s: float = -1e9
    """When it was shut after it had been open for long enough to catch up."""


@dataclass(slots=True)
class _Request:
    pod: str
    sent_s: float
    work: Callable[[], Coroutine[Any, Any, Any]]
    answer: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Stream:
    """One watch: a position at the server, and a queue at the client."""

    server: StoreServer
    pod: str
    prefixes: tuple[str, ...]
    position: int
    cluster: int
    patient: bool
    on_its_way: bool = False
    closed: bool = False
    _queue: deque[WatchBatch] = field(default_factory=deque)
    _error: PlacementError | None = None
    _waiter: asyncio.Future[None] | None = None

    def push(self, batch: WatchBatch) -> None:
        self._queue.append(batch)
        self._wake()

    def fail(self, error: PlacementError) -> None:
        self.closed = True
        self._error = error
        self.server.close_stream(self)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> WatchBatch:
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._queue.popleft()


class StoreClient:
    """One pod's KeyValueStore."""

    def __init__(self, server: StoreServer, pod: str) -> None:
        self._server = server
        self._pod = pod
        self._closed = False

    @property
    def limits(self) -> StoreLimits:
        """See KeyValueStore."""
        return self._server.memory.limits

    async def get(self, key: str) -> KeyValue | None:
        """See KeyValueStore."""
        return await self._send(lambda: self._server.memory.get(key))

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """See KeyValueStore."""
        return await self._send(lambda: self._server.memory.range(prefix, limit=limit, from_key=from_key))

    async def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """See KeyValueStore."""
        given = (tuple(compares), tuple(success), tuple(failure))  # as they are now: the wire takes a copy
        return await self._send(lambda: self._server.memory.txn(*given))

    async def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See KeyValueStore."""
        self._check_open()
        stream = self._server.open_stream(self._pod, prefixes, from_revision)
        try:
            while True:
                yield await stream.next()
        finally:
            stream.closed = True
            self._server.close_stream(stream)

    async def grant_lease(self, ttl_s: float) -> int:
        """See KeyValueStore."""
        return await self._send(lambda: self._server.memory.grant_lease(ttl_s))

    async def keep_lease_alive(self, lease: int) -> None:
        """See KeyValueStore."""
        await self._send(lambda: self._server.memory.keep_lease_alive(lease))

    async def revoke_lease(self, lease: int) -> None:
        """See KeyValueStore."""
        await self._send(lambda: self._server.memory.revoke_lease(lease))

    async def compact(self, revision: int) -> None:
        """See KeyValueStore."""
        await self._send(lambda: self._server.memory.compact(revision))

    async def close(self) -> None:
        """See KeyValueStore."""
        self._closed = True

    async def _send(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._check_open()
        return await self._server.send(self._pod, work)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed("the store is closed: this process is stopping")


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of MemoryStore to its end, here and now: all that it waits for is a turn of the loop."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            result: T = end.value
            return result
