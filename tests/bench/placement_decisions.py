"""What a placement decision costs in a large pool: 100 pods and 100,000 models, and what a pod's loss sets off.

The pool is full as a busy one is: every model that fits has a copy where the policy itself would put it, half of the
pods have no free room, the hottest models have several copies. All figures are of pure functions; nothing is loaded
and no store is asked. Time is CPU time of this thread: what else runs on the machine does not count.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.places import Terms
from placement.policy.rendezvous import closest
from placement.policy.restore import plan_restore
from placement.policy.routing import choose_copy, choose_route
from placement.policy.scaling import NO_HISTORY, plan_copies
from placement.policy.snapshot import BusyModel, Copy, ModelFacts, ModelName, Pod, PoolView
from tests.bench.figures import Reporter

PODS, MODELS, MODELS_QUICK = 100, 100_000, 10_000
HOT = 1_000
"""Models with a rate; the hottest tenth of them has three copies."""
SAMPLES, SAMPLES_QUICK = 5_000, 1_000
SEED = 1


def run(bench: Reporter) -> None:
    """Single decisions, then a whole plan after a loss."""
    pool = _Pool(bench.choose(MODELS, MODELS_QUICK))
    samples = bench.choose(SAMPLES, SAMPLES_QUICK)
    what = f"{PODS} pods × {len(pool.names):,} models"
    _single_decisions(bench, pool, samples, what)
    bench.progress(1, 3, "a pod is lost")
    _loss(bench, pool, what)
    bench.progress(2, 3, "copies by rate")
    began_s = time.thread_time()
    for name, _ in pool.hot:
        plan_copies(pool.view, pool.facts(name), pool.busy(name), NO_HISTORY, healthy=pool.healthy, now_s=0.0)
    bench.figure(f"copies up or down of {HOT:,} busy models", (time.thread_time() - began_s) * 1e3, "ms", note=what)
    bench.progress(3, 3)


def _single_decisions(bench: Reporter, pool: _Pool, samples: int, what: str) -> None:
    chance = random.Random(SEED)
    cold = [pool.facts(ModelName("t", f"cold-{number}")) for number in range(samples)]
    took_us = _timed(samples, lambda i: choose_load_pod(pool.view, cold[i], healthy=pool.healthy))
    bench.samples("where to load a model, p50", took_us, "µs", note=what)
    p99_us = sorted(took_us)[int(samples * 0.99)]
    bench.figure("where to load a model, p99", p99_us / 1e3, "ms", bar=1.0, note=what)

    none = pool.facts(ModelName("t", "huge"), size_bytes=1 << 50)
    took_us = _timed(min(samples, 500), lambda i: choose_load_pod(pool.view, none, healthy=pool.healthy))
    bench.samples("that no pod can load it, and every reason, p50", took_us, "µs", note=what)

    asked = [pool.names[chance.randrange(len(pool.names))] for _ in range(samples)]
    in_flight = {pod: chance.randrange(4) for pod in pool.view.pods}
    took_us = _timed(
        samples,
        lambda i: choose_route(
            pool.view, asked[i], 1, self_pod="pod-000", servable_here=0, loading_here=False, here_in_flight=0,
            here_limit=0, forwarded=False, healthy=pool.healthy, in_flight=in_flight, excluded=frozenset(), ordinal=i,
        ),
    )  # fmt: skip
    bench.samples("who answers a request, p50", took_us, "µs", note=what)
    name = pool.hot[0][0]
    copies = pool.view.copies[name]
    took_us = _timed(samples, lambda i: choose_copy(pool.view, name, copies, in_flight, i))
    bench.samples("which of three copies, p50", took_us, "µs", bar=10.0)


def _loss(bench: Reporter, pool: _Pool, what: str) -> None:
    lost = "pod-042"
    after = pool.without(lost)
    healthy = frozenset(after.pods)
    orphans = [name for name in pool.names if name in pool.view.copies and name not in after.copies]
    rates = dict(pool.hot)
    wanted = [(pool.facts(name), rates.get(name, 0.001)) for name in orphans]
    began_s = time.thread_time()
    plan = plan_restore(after, wanted, Terms(healthy, loads_per_pod_max=10**6), places_max=10**6)
    took_s = time.thread_time() - began_s
    note = f"{len(orphans):,} of its models have no other copy; {len(plan.places):,} are placed"
    bench.figure("plan of all that a lost pod leaves behind", took_s, "s", bar=2.0, note=note)
    touched = sum(place.name in after.copies for place in plan.places)
    bench.figure("models of other pods that this plan touches", touched, "models", bar=0.0, note=what)

    # And what has no copy now: where it would go, before and after.
    cold = [pool.facts(ModelName("t", f"cold-{number}")) for number in range(bench.choose(5_000, 1_000))]
    moved = others = 0
    for model in cold:
        before = choose_load_pod(pool.view, model, healthy=pool.healthy)
        then = choose_load_pod(after, model, healthy=healthy)
        if isinstance(before, LoadChoice) and isinstance(then, LoadChoice) and before.pod != lost:
            others += 1
            moved += then.pod != before.pod
    bench.figure(
        "cold models of other pods that would go elsewhere", 100 * moved / others, "%", note=f"{moved} of {others:,}"
    )


class _Pool:
    """The picture, and what is known beside it."""

    def __init__(self, models: int) -> None:
        chance = random.Random(SEED)
        self.names = [ModelName(f"tenant-{number % 50}", f"model-{number:06}") for number in range(models)]
        pod_ids = [f"pod-{number:03}" for number in range(PODS)]
        self.hot = [(name, 1000.0 / (rank + 1)) for rank, name in enumerate(self.names[:HOT])]
        self._busy: dict[ModelName, dict[str, BusyModel]] = {}
        copies: dict[ModelName, tuple[Copy, ...]] = {}
        for rank, name in enumerate(self.names):
            home = closest(name, pod_ids)
            others = chance.sample([pod for pod in pod_ids if pod != home], 2) if rank < HOT // 10 else []
            copies[name] = tuple(Copy(pod, 1, 0, 40 << 20, 0.0) for pod in sorted([home, *others]))
        for name, rate_per_s in self.hot:
            share = rate_per_s / len(copies[name])
            self._busy[name] = {
                copy.pod: BusyModel(name, share, share * 0.005, 0.001, 0.004, 8) for copy in copies[name]
            }
        pods = {
            pod: Pod(
                pod, f"{pod}-1", f"{pod}:8033", zone=f"zone-{number % 3}", labels=frozenset({"cpu"}), ready=True,
                capacity_bytes=64 << 30, free_bytes=0 if number % 2 else 4 << 30, pinned_bytes=1 << 30,
                eviction_age_s=chance.uniform(600, 6000), load_wait_s=chance.choice([0.0, 0.0, 0.3]),
                requests_in_flight=chance.randrange(30),
            )
            for number, pod in enumerate(pod_ids)
        }  # fmt: skip
        self.view = PoolView(1, pods, copies)
        self.healthy = frozenset(pods)

    def facts(self, name: ModelName, size_bytes: int = 40 << 20) -> ModelFacts:
        return ModelFacts(name, 1, size_bytes, format="onnx", load_s=0.4)

    def busy(self, name: ModelName) -> dict[str, BusyModel]:
        return self._busy.get(name, {})

    def without(self, lost: str) -> PoolView:
        copies = {
            name: left
            for name, of in self.view.copies.items()
            if (left := tuple(copy for copy in of if copy.pod != lost))
        }
        return PoolView(2, {pod: record for pod, record in self.view.pods.items() if pod != lost}, copies)


def _timed(times: int, call: Callable[[int], object]) -> list[float]:
    """Microseconds of each call, after a few that do not count."""
    for number in range(min(50, times)):
        call(number)
    took_us = []
    for number in range(times):
        began_s = time.thread_time()
        call(number)
        took_us.append((time.thread_time() - began_s) * 1e6)
    return took_us
