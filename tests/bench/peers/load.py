"""The load: requests at a chosen number in flight, or at a chosen rate, and what they cost.

It runs in a process of its own on a core of its own, and must be cheaper than what it measures: its CPU time per
request is part of every result, and a result that it limited says so. Two ways to ask:

* **closed**: `in_flight` requests are always under way; an answer starts the next. Shows what a server can do.
* **paced**: requests begin at random moments (Poisson) of a fixed rate, whether or not earlier ones were answered, and
  are timed from the moment at which they should have begun: a server that stalls cannot hide it. Shows how long a
  caller waits at that rate. The loop spins while the next one is near, so its own CPU time means nothing here.

The server's CPU time is read at the same two moments as the clock.
"""

from __future__ import annotations

import gc
import itertools
import os
import select
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime_adapters.base import Array
from tests.bench.peers.answers import Finished, Judge, LoadFailed
from tests.bench.peers.http1_connection import Http1Connection
from tests.bench.peers.http2_connection import Http2Connection
from tests.bench.peers.process_tree import cpu_s_of

HTTP2_CONNECTIONS_MAX = 8
"""What a handful of clients with a channel each would open."""
_PACED_IN_FLIGHT_MAX = 256
_SPIN_BELOW_S = 0.002
_SILENCE_MAX_S = 60.0
_WRONG_MAX = 1000
_FINISH_MAX_S = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What to send where, and how. `requests` are messages for gRPC and whole requests for HTTP/1.1."""

    address: tuple[str, int]
    grpc_path: str
    """Empty: the server is asked over HTTP/1.1."""
    requests: tuple[bytes, ...]
    expected: tuple[Array | bytes, ...]
    """Per request: see Judge."""
    order: tuple[int, ...]
    """Which request follows which, over and over."""
    in_flight: int
    rate_per_s: float
    """0: closed."""
    warm_up_s: float
    duration_s: float
    """At least; a closed load goes on until as many ended as are in flight, a paced one until one did."""
    server_pids: tuple[int, ...]
    connections_max: int = HTTP2_CONNECTIONS_MAX
    more_addresses: tuple[tuple[str, int], ...] = ()
    """Of further servers that the same requests may go to: over gRPC, connections are shared out among all."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What was seen in the measured seconds. Latencies are of right answers."""

    duration_s: float
    answered: int
    wrong: int
    latencies_ms: tuple[float, ...]
    """p50, p99, p99.9."""
    server_cpu_s: float
    own_cpu_s: float

    @property
    def per_server_core_s(self) -> float:
        """Right answers per second of the server's processor time."""
        return self.answered / self.server_cpu_s


class _Connection(Protocol):
    @property
    def room(self) -> int: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def wants_to_send(self) -> bool: ...

    def fileno(self) -> int: ...
    def start(self, request: int, begun_s: float) -> None: ...
    def flush(self) -> None: ...
    def finished(self) -> list[Finished]: ...
    def close(self) -> None: ...


def run_load(load: Load) -> LoadResult:
    """Warm up, measure, hang up. Raises LoadFailed when the server goes away or stops to answer."""
    gc.collect()
    gc.disable()  # a pause of ours would count as the server's
    connections = _connections(load)
    try:
        return _Run(load, connections).run()
    finally:
        for connection in connections:
            connection.close()
        gc.enable()


def _connections(load: Load) -> list[_Connection]:
    streams = load.in_flight if load.rate_per_s == 0 else _PACED_IN_FLIGHT_MAX
    if not load.grpc_path:
        return [Http1Connection(load.address, load.requests) for _ in range(streams)]
    count = min(load.connections_max, load.in_flight)
    shares = [streams // count + (number < streams % count) for number in range(count)]
    addresses = itertools.cycle((load.address, *load.more_addresses))
    return [Http2Connection(next(addresses), load.grpc_path, load.requests, share) for share in shares]


class _Run:
    def __init__(self, load: Load, connections: Sequence[_Connection]) -> None:
        self._load = load
        self._connections = connections
        self._by_descriptor = {connection.fileno(): connection for connection in connections}
        self._poll = select.epoll()
        for descriptor in self._by_descriptor:
            self._poll.register(descriptor, select.EPOLLIN)
        self._sending: set[int] = set()
        self._judge = Judge(load.expected, of_v2=bool(load.grpc_path))
        self._order = load.order
        self._position = 0
        self._latencies_s = array("d")
        self._wrong = 0

    def run(self) -> LoadResult:
        turn = self._closed_turn if self._load.rate_per_s == 0 else self._paced_turns()
        if self._load.rate_per_s == 0:
            for connection in self._connections:
                self._start(connection, connection.room, time.perf_counter())
        self._repeat(turn, self._load.warm_up_s, 0)
        self._latencies_s = array("d")
        self._wrong = 0
        cpu_s, own_s, began_s = cpu_s_of(self._load.server_pids), time.process_time(), time.perf_counter()
        self._repeat(turn, self._load.duration_s, self._load.in_flight if self._load.rate_per_s == 0 else 1)
        took_s = time.perf_counter() - began_s
        own_s, cpu_s = time.process_time() - own_s, cpu_s_of(self._load.server_pids) - cpu_s
        latencies_ms = np.asarray(self._latencies_s) * 1e3
        wrong = self._wrong
        self._finish()
        percentiles = np.percentile(latencies_ms, (50, 99, 99.9)) if len(latencies_ms) else (float("nan"),) * 3
        return LoadResult(took_s, len(latencies_ms), wrong, tuple(float(value) for value in percentiles), cpu_s, own_s)

    def _repeat(self, turn: Callable[[], int], duration_s: float, ended_min: int) -> None:
        until_s = time.perf_counter() + duration_s
        heard_s = time.perf_counter()
        ended = 0
        while (now_s := time.perf_counter()) < until_s or ended < ended_min:
            if count := turn():
                heard_s = now_s
                ended += count
            elif now_s - heard_s > _SILENCE_MAX_S:
                raise LoadFailed(f"no answer for {_SILENCE_MAX_S:g} s")
            if self._wrong > _WRONG_MAX:
                raise LoadFailed(f"more than {_WRONG_MAX} wrong or failed answers")

    def _finish(self) -> None:
        """Let what is under way end, so that the next cell finds an idle server.

        Triton's Python backend died when 32 of its callers hung up at once.
        """
        until_s = time.perf_counter() + _FINISH_MAX_S
        while any(connection.in_flight for connection in self._connections) and time.perf_counter() < until_s:
            self._arrived(timeout_s=0.1)

    def _closed_turn(self) -> int:
        """Take what arrived and start as many anew. Answers how many ended."""
        ended = 0
        for connection, finished in self._arrived(timeout_s=0.1):
            ended += len(finished)
            self._start(connection, connection.room, time.perf_counter())
        return ended

    def _paced_turns(self) -> Callable[[], int]:
        random = np.random.default_rng(11)
        planned_s = self._load.warm_up_s + self._load.duration_s
        count = int(planned_s * self._load.rate_per_s * 1.2) + 100
        due_s = (time.perf_counter() + np.cumsum(random.exponential(1 / self._load.rate_per_s, count))).tolist()
        due_s.reverse()

        def turn() -> int:
            now_s = time.perf_counter()
            if due_s and due_s[-1] <= now_s:
                while due_s and due_s[-1] <= now_s:
                    freest = max(self._connections, key=_room)
                    if not freest.room:
                        break
                    self._start(freest, 1, due_s.pop())
            near = bool(due_s) and due_s[-1] - now_s < _SPIN_BELOW_S
            return sum(len(finished) for _, finished in self._arrived(timeout_s=0 if near else _SPIN_BELOW_S / 2))

        return turn

    def _start(self, connection: _Connection, count: int, begun_s: float) -> None:
        order, position = self._order, self._position
        for _ in range(count):
            connection.start(order[position], begun_s)
            position = position + 1 if position + 1 < len(order) else 0
        self._position = position
        self._flush(connection)

    def _arrived(self, timeout_s: float) -> list[tuple[_Connection, list[Finished]]]:
        arrived = []
        for descriptor, event in self._poll.poll(timeout_s):
            connection = self._by_descriptor[descriptor]
            finished = connection.finished() if event & ~select.EPOLLOUT else []
            self._flush(connection)
            now_s = time.perf_counter()
            for begun_s, request, answer in finished:
                if self._judge.is_right(request, answer):
                    self._latencies_s.append(now_s - begun_s)
                else:
                    self._wrong += 1
            arrived.append((connection, finished))
        return arrived

    def _flush(self, connection: _Connection) -> None:
        """Send; be woken for writing only while the socket is full."""
        connection.flush()
        descriptor = connection.fileno()
        if connection.wants_to_send != (descriptor in self._sending):
            self._sending ^= {descriptor}
            wanted = select.EPOLLIN | (select.EPOLLOUT if descriptor in self._sending else 0)
            self._poll.modify(descriptor, wanted)


def _room(connection: _Connection) -> int:
    return connection.room


def pin_to(cores: Sequence[int]) -> None:
    """Keep this process on these cores."""
    os.sched_setaffinity(0, cores)
