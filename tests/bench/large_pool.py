"""Duplicate loads in a large pool: 100 pods and 100,000 models, with views that lag and pods that lose the store.

The real decisions (`choose_route`, `choose_load_pod`) over real views (`pool_view.advance`), on a clock that jumps
from event to event; loads take their time, memory is a list of what was used last. Each request comes to some pod,
which sees the pool as it was up to a second ago, goes where that view says, and claims what it finds nowhere. A few
pods at a time do not reach the store: they claim nothing, and nobody sees what they load until they are back.

A duplicate is a load of a model that another pod serves or loads at that moment. Whole pods, with their caches, claims
and leaders, are `mesh.simulation`'s; a hundred of them with a hundred thousand models do not fit one process.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.routing import Forward, Load, RunHere, choose_route
from placement.policy.snapshot import Copy, ModelFacts, ModelName, Pod, PoolView
from placement.pool_view import CopyEvent, PodEvent, PoolEvent, advance
from tests.bench.figures import Reporter

PODS, MODELS, MODELS_QUICK = 100, 100_000, 10_000
REQUESTS, REQUESTS_QUICK = 100_000, 20_000
RATE_PER_S = 20_000.0
FIT_SHARE = 0.5
"""Of the models that fit into the pool."""
ZIPF = 0.9
MODEL_BYTES = 40 << 20
LOAD_S = 0.4
PUBLISH_EVERY_S = 0.02
LAG_MAX_S = 1.0
"""How old a pod's view may be."""
CUT_OFF_PODS, CUT_OFF_S = 3, 2.0
"""So many pods do not reach the store at any time, each for so long."""
TRIES_MAX = 8
SEED = 1
NO_FLIGHT: dict[str, int] = {}


def run(bench: Reporter) -> None:
    """Some seconds of a busy pool, and as many without the store."""
    models, requests = bench.choose(MODELS, MODELS_QUICK), bench.choose(REQUESTS, REQUESTS_QUICK)
    pool = _Pool(models)
    for cut_off, what in (
        (f"{CUT_OFF_PODS} pods at a time without the store", "loads of what another pod has"),
        ("no pod reaches the store", "the same while the store is away"),
    ):
        for number in range(requests):
            pool.request()
            if number % 1_000 == 0:
                bench.progress(number, requests, cut_off)
        note = f"{pool.duplicates:,} of {pool.loads:,}, of which {pool.unclaimed:,} not claimed"
        note += f"; {PODS} pods × {models:,} models, {requests:,} requests, {cut_off}"
        bench.figure(what, 100 * pool.duplicates / pool.loads, "%", bar=2.0, note=note)
        bench.figure(f"unanswered: {what}", pool.unanswered, "requests", bar=0.0, note=cut_off)
        pool.lose_store()
    bench.progress(requests, requests)


@dataclass(slots=True)
class _PodState:
    """What one pod really has, and how it stands to the store."""

    here: OrderedDict[ModelName, None] = field(default_factory=OrderedDict)
    """Longest unused first."""
    loading: dict[ModelName, None] = field(default_factory=dict)
    unpublished: dict[ModelName, Copy | None] = field(default_factory=dict)
    lag_s: float = 0.0
    cut_off_s: float | None = None
    """Since when it does not reach the store."""

    @property
    def cut_off(self) -> bool:
        return self.cut_off_s is not None


class _Pool:
    """The pool, and what all pods see of it."""

    def __init__(self, models: int) -> None:
        self._random = random.Random(SEED)
        self._names = [ModelName(f"t{number % 50}", f"m{number:06}") for number in range(models)]
        self._weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(models)))
        self._ids = [f"pod-{number:03}" for number in range(PODS)]
        self._room = int(models * FIT_SHARE / PODS)
        self._pods = {pod: _PodState(lag_s=self._random.uniform(0.0, LAG_MAX_S)) for pod in self._ids}
        self._healthy = frozenset(self._ids)
        self._have: dict[ModelName, dict[str, None]] = {}
        """Who really serves or loads each model."""
        self._claimed: dict[ModelName, dict[str, None]] = {}
        """The keys in the store."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now_s = 0.0
        self._revision = 1
        self._changes: list[PoolEvent] = []
        pods = {pod: self._record(pod) for pod in self._ids}
        self._views: deque[tuple[float, PoolView]] = deque([(0.0, PoolView(1, pods, {}))])
        self.loads = self.duplicates = self.unclaimed = self.unanswered = 0
        self._store_away = False
        self._at(PUBLISH_EVERY_S, self._publish)
        self._at(1.0, self._say_all)
        for _ in range(CUT_OFF_PODS):
            self._cut_off_another()

    def _record(self, pod: str) -> Pod:
        state = self._pods[pod]
        capacity = self._room * MODEL_BYTES
        return Pod(
            pod, f"{pod}-1", f"{pod}:8033", zone=f"zone-{int(pod[-3:]) % 3}", ready=True, capacity_bytes=capacity,
            free_bytes=max(0, capacity - (len(state.here) + len(state.loading)) * MODEL_BYTES),
            eviction_age_s=10.0, loads_queued=len(state.loading),
        )  # fmt: skip

    # Time -----------------------------------------------------------------------------------------------------------

    def _at(self, in_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + in_s, next(self._order), what))

    def request(self) -> None:
        """The next request, and all that happens before it."""
        until_s = self._now_s + self._random.expovariate(RATE_PER_S)
        while self._events and self._events[0][0] <= until_s:
            self._now_s, _, what = heapq.heappop(self._events)
            what()
        self._now_s = until_s
        name = self._names[bisect(self._weights, self._random.random() * self._weights[-1])]
        self._route(name, self._ids[self._random.randrange(PODS)])

    def _publish(self) -> None:
        if self._changes:
            self._revision += 1
            changes = [replace(change, revision=self._revision) for change in self._changes]
            self._changes = []
            view, _ = advance(self._views[-1][1], changes, self._revision)
            self._views.append((self._now_s, view))
        while not self._store_away and len(self._views) > 1 and self._views[1][0] < self._now_s - LAG_MAX_S - CUT_OFF_S:
            self._views.popleft()
        self._at(PUBLISH_EVERY_S, self._publish)

    def _say_all(self) -> None:
        for pod, state in self._pods.items():
            if not state.cut_off:
                self._changes.append(PodEvent(0, pod, self._record(pod)))
        self._at(1.0, self._say_all)

    def _cut_off_another(self) -> None:
        pod = self._ids[self._random.randrange(PODS)]
        state = self._pods[pod]
        state.cut_off_s = self._now_s

        def mend() -> None:
            if self._store_away:
                return
            state.cut_off_s = None
            for name, copy in state.unpublished.items():
                self._tell(pod, name, copy)
            state.unpublished.clear()
            self._cut_off_another()

        self._at(CUT_OFF_S, mend)

    def lose_store(self) -> None:
        """Nobody reaches the store any more; counts begin anew."""
        self._store_away = True
        for state in self._pods.values():
            state.cut_off_s = self._now_s
        self.loads = self.duplicates = self.unclaimed = self.unanswered = 0

    # Requests -------------------------------------------------------------------------------------------------------

    def _view_of(self, pod: str) -> PoolView:
        """The pool as this pod sees it: a while ago, and not since it was cut off."""
        state = self._pods[pod]
        seen_s = self._now_s - state.lag_s
        if state.cut_off_s is not None:
            seen_s = min(seen_s, state.cut_off_s)
        return next((view for at_s, view in reversed(self._views) if at_s <= seen_s), self._views[0][1])

    def _route(self, name: ModelName, ingress: str) -> None:
        view = self._view_of(ingress)
        gone = {ingress}
        for ordinal in range(TRIES_MAX):
            route = choose_route(
                view, name, 1, self_pod=ingress, servable_here=int(name in self._pods[ingress].here),
                loading_here=name in self._pods[ingress].loading, here_in_flight=0, here_limit=0, forwarded=False,
                healthy=self._healthy, in_flight=NO_FLIGHT, excluded=gone - {ingress}, ordinal=ordinal,
            )  # fmt: skip
            if isinstance(route, RunHere):
                return self._use(ingress, name)
            if isinstance(route, Forward):
                if name in self._pods[route.pod].here or name in self._pods[route.pod].loading:
                    return self._use(route.pod, name)
                gone.add(route.pod)
                continue
            assert isinstance(route, Load)
            without = {name: tuple(copy for copy in view.copies.get(name, ()) if copy.pod not in gone)}
            choice = choose_load_pod(
                replace(view, copies=without), ModelFacts(name, 1, MODEL_BYTES, load_s=LOAD_S),
                healthy=self._healthy,
            )  # fmt: skip
            if not isinstance(choice, LoadChoice):
                break
            holder = self._claim(choice.pod, name)
            return self._use(holder, name) if holder is not None else self._load(choice.pod, name)
        self.unanswered += 1
        return None

    def _claim(self, pod: str, name: ModelName) -> str | None:
        """Who has claimed the model, if the pod can ask."""
        state = self._pods[pod]
        if name in state.here or name in state.loading:
            return pod
        if state.cut_off:
            return None
        return next(iter(self._claimed.get(name, ())), None)

    def _use(self, pod: str, name: ModelName) -> None:
        here = self._pods[pod].here
        if name in here:
            here.move_to_end(name)

    def _load(self, pod: str, name: ModelName) -> None:
        state = self._pods[pod]
        self.loads += 1
        self.unclaimed += state.cut_off
        self.duplicates += bool(self._have.get(name))
        self._have.setdefault(name, {})[pod] = None
        state.loading[name] = None
        self._say(pod, name, Copy(pod, 0, 1, MODEL_BYTES, self._now_s))
        while len(state.here) + len(state.loading) > self._room and state.here:
            victim, _ = state.here.popitem(last=False)
            del self._have[victim][pod]
            self._say(pod, victim, None)

        def loaded() -> None:
            del state.loading[name]
            state.here[name] = None
            self._say(pod, name, Copy(pod, 1, 0, MODEL_BYTES, self._now_s))

        self._at(LOAD_S, loaded)

    def _say(self, pod: str, name: ModelName, copy: Copy | None) -> None:
        state = self._pods[pod]
        if state.cut_off:
            state.unpublished[name] = copy
        else:
            self._tell(pod, name, copy)

    def _tell(self, pod: str, name: ModelName, copy: Copy | None) -> None:
        self._changes.append(CopyEvent(0, name, pod, copy))
        if copy is None:
            self._claimed.get(name, {}).pop(pod, None)
        else:
            self._claimed.setdefault(name, {})[pod] = None
