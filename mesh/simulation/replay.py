"""A trace on this pod's real cache: the same machine, policies and limits as in `hexcomb serve`, on virtual time.

Each pod is a `CacheMachine`. A request that finds its model servable runs at once; one that does not waits until the
load is done, which takes what the trace says, with as many at a time as the limits allow; requests that come while it
loads wait for the rest of it (delayed hits). What is counted is that waiting: the cold time. A run holds its copy as
long as the trace says, and for no time where it does not; the percentiles of cold requests are of both together, which
is what a client sees.

Several pods: each model lives on one of them, chosen by rendezvous hashing, as the pool's routing does for models with
one copy; so a pod's cache is its own, and pods differ by luck. Artifacts are on the disk tier from the start, but where
the trace recorded that the first load of a model fetched. Deliberately absent: the network, failures, and that runs and
loads take cores from one another beyond what they did when they were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from heapq import heappop, heappush
from math import inf

from cache.commands import Command, Prefetch, Refuse, Serve, StartFetch, StartLoad, StartUnload, WakeAt
from cache.copies import Copy
from cache.events import Event, Fetched, Loaded, Tick, Unloaded, Want
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.policies import policy_named
from cache.policies.base import EvictionPolicy
from cache.types import Bytes, ModelKey, Place, WantedModel
from mesh.simulation.workloads.trace import Trace, TraceModel

MEMORY_SAMPLES = 240
"""Points of memory over time."""

UNLOAD_S = 0.001
"""What an unload takes."""

_PLACE = Place("device", "cpu")
_TENANT = "replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What is assumed of the pool."""

    capacity_bytes: int
    """Of all pods together; each has its equal part."""
    pods: int = 1
    policy: str | EvictionPolicy = "lru"
    prefetch: bool = False
    loads_concurrent_max: int = 4
    """On each pod."""
    fetches_concurrent_max: int = 8
    """On each pod."""
    residency_min_s: float = 3.0
    residency_override_wait_s: float = 0.05
    thrash_control: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """What had happened by a moment."""

    time_s: float
    requests: int
    cold: int
    """Cold requests that had been answered."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What would have happened. Times in seconds unless the name says otherwise."""

    requests: int
    cold: int
    """Requests that waited for a load."""
    refused: int
    """Those that got no copy: too large for a pod, or no room in time. Not among `cold`."""
    cold_time_s: float
    """Waiting of all cold requests together."""
    cold_p50_ms: float
    """Of the waiting, and of the run where the trace says what it takes."""
    cold_p99_ms: float
    loads: int
    evictions: int
    prefetches: int
    prefetches_used: int
    prefetches_wasted: int
    """Prefetched copies that left before anyone asked for them."""
    loaded_bytes: int
    memory: tuple[tuple[float, int], ...]
    """(time, bytes held by all pods)."""
    progress: tuple[Progress, ...]
    """Counts at the same times, and at the end."""

    @property
    def cold_fraction(self) -> float:
        """Of all requests."""
        return self.cold / self.requests if self.requests else 0.0


def replay(trace: Trace, options: ReplayOptions) -> ReplayResult:
    """Play the whole trace. Raises ValueError on options that make no sense."""
    if options.pods < 1:
        raise ValueError(f"{options.pods} pods cannot serve anything; say at least 1")
    policy = policy_named(options.policy) if isinstance(options.policy, str) else options.policy
    pods = [_Pod(trace.models, options, policy) for _ in range(options.pods)]
    pod_of = [pods[home_of(model.name, options.pods)] for model in trace.models]
    every_s = trace.span_s / MEMORY_SAMPLES
    next_sample_s = 0.0
    memory: list[tuple[float, int]] = []
    progress: list[Progress] = []
    for time_s, position in zip(trace.times_s, trace.asked, strict=True):
        if time_s >= next_sample_s:
            for pod in pods:
                pod.run_until(time_s)
            memory.append((time_s, sum(pod.used_bytes for pod in pods)))
            progress.append(_progress(time_s, pods))
            next_sample_s += every_s
        pod_of[position].request(position, time_s)
    for pod in pods:
        pod.finish(trace.span_s)
    progress.append(_progress(trace.span_s, pods))
    return _result(trace, pods, tuple(memory), tuple(progress))


def home_of(model: str, pods: int) -> int:
    """The pod that this model lives on: rendezvous hashing, so that one pod fewer moves that pod's models only."""
    if pods == 1:
        return 0
    return max(range(pods), key=lambda pod: blake2b(f"{pod}/{model}".encode(), digest_size=8).digest())


class _Pod:
    """One pod: its machine, and what answers the machine's commands when their time has come."""

    def __init__(self, models: tuple[TraceModel, ...], options: ReplayOptions, policy: EvictionPolicy) -> None:
        limits = CacheLimits(
            capacity=Bytes.of(_PLACE, options.capacity_bytes // options.pods),
            loads_concurrent_max=options.loads_concurrent_max,
            fetches_concurrent_max=options.fetches_concurrent_max,
            waiters_per_model_max=1_000_000,
            waiters_total_max=1_000_000,
            wait_max_s=1e9,  # a client that gives up would hide the time that it waited
            residency_min_s=options.residency_min_s,
            residency_override_wait_s=options.residency_override_wait_s,
            prefetch=options.prefetch,
            thrash_control=options.thrash_control,
        )
        self._models = models
        self.machine = CacheMachine(limits, policy)
        self._wanted = [WantedModel(ModelKey(_TENANT, model.name)) for model in models]
        self._keys = [wanted.key for wanted in self._wanted]
        self._position = {key: position for position, key in enumerate(self._keys)}
        self._sizes = [Bytes.of(_PLACE, model.size_bytes) for model in models]
        self._brought_in: set[int] = set()
        self._load_s: dict[int, float] = {}
        """By copy that is being fetched: what its load will take."""
        self._due: list[tuple[float, int, Event | Copy]] = []
        """What happens when; a copy is one that a run gives back."""
        self._order = 0
        self._wake_at_s = inf
        self._asked_s: list[float] = []
        self._background: set[int] = set()
        self.waits_s: list[float] = []
        self.latencies_s: list[float] = []
        self.requests = self.refused = self.loads = self.loaded_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self.machine.used.total_bytes

    def request(self, position: int, now_s: float) -> None:
        """Someone asks for a model."""
        self.run_until(now_s)
        self.requests += 1
        copy = self.machine.servable(self._keys[position])
        if copy is not None:
            copy.pin(now_s)
            self._run(copy, self._models[position].run_at(now_s), now_s)
            return
        waiter_id = len(self._asked_s)
        self._asked_s.append(now_s)
        self._send(Want(waiter_id, self._wanted[position]), now_s)

    def run_until(self, now_s: float) -> None:
        """All that is due by now happens."""
        due = self._due
        while True:
            next_s = due[0][0] if due else inf
            if min(next_s, self._wake_at_s) > now_s:
                return
            if self._wake_at_s < next_s:
                at_s, self._wake_at_s = self._wake_at_s, inf
                self._send(Tick(), at_s)
            else:
                at_s, _, event = heappop(due)
                if isinstance(event, Copy):
                    self._carry_out(self.machine.unpin(event, at_s), at_s)
                else:
                    self._send(event, at_s)

    def finish(self, now_s: float) -> None:
        """The last waits end; nothing new begins."""
        while self._due:
            self.run_until(max(now_s, self._due[0][0]))

    def _send(self, event: Event, now_s: float) -> None:
        self._carry_out(self.machine.handle(event, now_s), now_s)

    def _carry_out(self, commands: Iterable[Command], now_s: float) -> None:
        for command in commands:
            match command:
                case StartFetch(key, copy_id):
                    position = self._position[key]
                    taken = self._models[position].load_at(now_s, is_first=position not in self._brought_in)
                    self._brought_in.add(position)
                    self._load_s[copy_id] = taken.load_s
                    self._later(now_s + taken.fetch_s, Fetched(copy_id, self._sizes[position]))
                case StartLoad(key, copy_id, _):
                    position = self._position[key]
                    self.loads += 1
                    self.loaded_bytes += self._models[position].size_bytes
                    self._later(now_s + self._load_s.pop(copy_id), Loaded(copy_id, self._sizes[position]))
                case StartUnload(_, copy_id, _):
                    self._later(now_s + UNLOAD_S, Unloaded(copy_id))
                case Serve(waiter_id, copy_id):
                    self._serve(waiter_id, self.machine.copy(copy_id), now_s)
                case Refuse(waiter_id, _):
                    if waiter_id in self._background:
                        self._background.discard(waiter_id)
                    else:
                        self.refused += 1
                case Prefetch(model, expected_at_s):
                    waiter_id = len(self._asked_s)
                    self._asked_s.append(now_s)
                    self._background.add(waiter_id)
                    self._send(Want(waiter_id, model, background=True, expected_at_s=expected_at_s), now_s)
                case WakeAt(at_s):
                    self._wake_at_s = at_s

    def _serve(self, waiter_id: int, copy: Copy, now_s: float) -> None:
        run_s = 0.0
        if waiter_id in self._background:
            self._background.discard(waiter_id)
        else:
            asked_s = self._asked_s[waiter_id]
            run_s = self._models[self._position[copy.key]].run_at(asked_s)
            self.waits_s.append(now_s - asked_s)
            self.latencies_s.append(now_s - asked_s + run_s)
        self._run(copy, run_s, now_s)

    def _run(self, copy: Copy, run_s: float, now_s: float) -> None:
        """The pinned copy is given back after that."""
        if run_s > 0:
            self._later(now_s + run_s, copy)
        else:
            self._carry_out(self.machine.unpin(copy, now_s), now_s)

    def _later(self, at_s: float, event: Event | Copy) -> None:
        self._order += 1
        heappush(self._due, (at_s, self._order, event))


def _progress(time_s: float, pods: list[_Pod]) -> Progress:
    return Progress(time_s, _sum(pods, lambda pod: pod.requests), _sum(pods, lambda pod: len(pod.waits_s)))


def _result(
    trace: Trace, pods: list[_Pod], memory: tuple[tuple[float, int], ...], progress: tuple[Progress, ...]
) -> ReplayResult:
    waits_s = sorted(wait_s for pod in pods for wait_s in pod.waits_s)
    latencies_s = sorted(latency_s for pod in pods for latency_s in pod.latencies_s)
    usage = [pod.machine.usage() for pod in pods]
    return ReplayResult(
        requests=len(trace),
        cold=len(waits_s),
        refused=_sum(pods, lambda pod: pod.refused),
        cold_time_s=sum(waits_s),
        cold_p50_ms=1e3 * _percentile(latencies_s, 0.5),
        cold_p99_ms=1e3 * _percentile(latencies_s, 0.99),
        loads=_sum(pods, lambda pod: pod.loads),
        evictions=sum(each.evictions_total for each in usage),
        prefetches=sum(each.prefetches for each in usage),
        prefetches_used=sum(each.prefetches_used for each in usage),
        prefetches_wasted=sum(each.prefetches_wasted for each in usage),
        loaded_bytes=_sum(pods, lambda pod: pod.loaded_bytes),
        memory=memory,
        progress=progress,
    )


def _sum(pods: list[_Pod], count: Callable[[_Pod], int]) -> int:
    return sum(count(pod) for pod in pods)


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share does not exceed; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
