"""Random loads with wrong declared sizes, in a box whose limit the kernel enforces.

**Predicted against observed.** A pod loads each model of 5 MB and more, one at a time, a few times. Predicted is what
the first load of a content was measured to take, which the pod then reserves for the next one; observed is how much
larger the process is with one of those than without, as the kernel counts: private dirty pages and resident pages of
mapped files of the pod's disk tier. A live heap keeps and gives some megabyte as it likes, which is a fifth of a small
model: of models that map nothing so many copies are loaded, under names of their own, that together they stand out, and
observed is their mean. The estimate before the first load is shown beside it. Models are loaded under names whose
declared sizes are wrong by up to five times either way.

**10,000 cycles.** A pod whose capacity is a quarter of the catalog is asked for random models by eight clients: every
miss evicts and loads. Names are registered anew all the while, with other wrong sizes. The pod lives in a memory
control group that leaves it what it took before its models, its capacity, and a fifth of both on top. Counted: kills by
the kernel, requests that failed, and the resident set at the end against the start, which is the pod after one load of
each model. About an hour, most of which is waiting for turns (thrash control); how it stands is said all the while, and
what is certain is reported at once, so that a run which is ended before its time has said something.

Predicted before the first run (2026-11-21): 0 kills; RSS +2 %; p95 of |predicted - observed| 6 %; estimates 10 %.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from mesh.client.async_client import AsyncClient
from mesh.client.client import Client
from mesh.client.errors import Overloaded
from mesh.client.operations import registration
from tests.bench.figures import Reporter, spread_of
from tests.bench.memory_groups import MemoryGroup, memory_group
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.pods import private_dirty_bytes_of, resident_bytes_of, running_pod, wait_prepared

CYCLES = 10_000
WRONG_FACTOR = 5.0
CAPACITY_SHARE = 0.25
GROWTH_BAR_PERCENT, OFF_BAR_PERCENT = 5.0, 10.0
_LARGE_BYTES = 5_000_000
_ROUNDS = 3
"""A live heap keeps some of what a load frees, and gives it to the next; what an unload frees may wait for a garbage
collection. So: the median of a few with the model, less the least without it."""
_STANDS_OUT_BYTES = 40_000_000
"""Of copies that are observed together."""
_NAMES_PER_MODEL = 4
_CLIENTS = 8
_REGISTER_EVERY = 50
"""Requests after which a name is given up and another takes its place, with another wrong size."""
_SAID_EVERY = 25
_MIB = 1 << 20
_SAFETY_SHARE = 0.2
"""Of the box, as `mesh.box` leaves it."""
_START_LIMIT_BYTES = 8 << 30
_SETTLE_S = 30.0
_STILL_S = 4.0
_SETTLE_PAUSE_S = 0.3
_STILL_BYTES = 256 << 10


def run(bench: Reporter) -> None:
    """The sizes, then the cycles."""
    models = [model for model in read_models(bench.cache_dir).values() if model.format != "python"]
    sizes = _predicted_and_observed(bench, models)
    _cycles(bench, models, sizes)


# Sizes ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    name: str
    observed_bytes: int
    estimated_bytes: int
    predicted_bytes: int

    def off_percent(self, bytes_said: int) -> float:
        return 100 * abs(bytes_said / self.observed_bytes - 1)


def _predicted_and_observed(bench: Reporter, models: list[BenchModel]) -> dict[str, int]:
    large = [model for model in models if model.weight_bytes >= _LARGE_BYTES]
    small_of = {model.format: model for model in models if model.weight_bytes < _LARGE_BYTES}
    chance = random.Random(11)
    seen: list[_Seen] = []
    with running_pod(bench) as pod, Client(pod.grpc_endpoint, timeout_s=120.0) as client:
        home = bench.cache_dir.resolve()
        predicted: dict[str, int] = {}
        mapped: set[str] = set()
        for model in [*small_of.values(), *large]:  # the frameworks' own baggage, and each content's prepared form
            _load(client, model, f"first-{model.name}", chance)
            (copy,) = client.describe(f"first-{model.name}").copies
            predicted[model.name] = copy.host_bytes + copy.mapped_bytes + copy.device_bytes
            if copy.mapped_bytes:
                mapped.add(model.name)
            _leave(client, [f"first-{model.name}"])
        for number, model in enumerate(large):
            bench.progress(number, len(large), model.name)
            rows = sample_inputs(_metadata(model))
            # Copies of one content share what they map.
            count = 1 if model.name in mapped else max(1, round(_STANDS_OUT_BYTES / predicted[model.name]))
            loaded: list[int] = []
            empty = [_observed_bytes(pod.pid, home)]
            for round_number in range(_ROUNDS):
                names = [f"again-{round_number}-{number}-{model.name}" for number in range(count)]
                for name in names:
                    _load(client, model, name, chance)
                    client.infer(name, rows)  # touches what is mapped
                loaded.append(_observed_bytes(pod.pid, home))
                _leave(client, names)
                empty.append(_observed_bytes(pod.pid, home))
            observed_bytes = (int(median(loaded)) - min(empty)) // count
            seen.append(_Seen(model.name, observed_bytes, _estimate(model), predicted[model.name]))
    for title, bar, errors in (
        ("predicted against observed, p95", OFF_BAR_PERCENT, [each.off_percent(each.predicted_bytes) for each in seen]),
        ("estimate before the first load, p95", None, [each.off_percent(each.estimated_bytes) for each in seen]),
    ):
        spread = spread_of(errors)
        worst = max(seen, key=lambda each: each.off_percent(each.predicted_bytes))
        note = f"{len(seen)} models of 5 MB and more; worst {worst.name}: said {worst.predicted_bytes / 1e6:.1f} MB, "
        bench.figure(title, spread.p95, "%", bar=bar, spread=spread, note=note + f"{worst.observed_bytes / 1e6:.1f} MB")
    return {each.name: each.predicted_bytes for each in seen}


def _load(client: Client, model: BenchModel, name: str, chance: random.Random) -> None:
    client.register_many([_registration(model, name, chance)])
    client.ensure_loaded(name, timeout_s=120.0)
    wait_prepared(client, name)


def _leave(client: Client, names: list[str]) -> None:
    client.unregister_many(names)
    _wait_empty(client)


def _registration(model: BenchModel, name: str, chance: random.Random) -> Any:
    declared_bytes = int(max(model.weight_bytes, 10_000) * WRONG_FACTOR ** chance.uniform(-1, 1))
    return registration(name, uri=model.artifact.as_uri(), format=model.format, capacity_hint_bytes=declared_bytes)


def _estimate(model: BenchModel) -> int:
    from runtime_adapters.registry import adapter_for

    return adapter_for(model.format).estimate(model.prepared, model.options).total_bytes


def _observed_bytes(pid: int, home: Path) -> int:
    """What the process holds of its own, and what it has mapped of the files below `home`; once it stands still."""
    until_s, last = time.monotonic() + _SETTLE_S, -1
    while True:
        now_bytes = private_dirty_bytes_of(pid) + _mapped_bytes(pid, home)
        if abs(now_bytes - last) < _STILL_BYTES or time.monotonic() > until_s:
            return now_bytes
        last = now_bytes
        time.sleep(_SETTLE_PAUSE_S)


def _mapped_bytes(pid: int, home: Path) -> int:
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = str(home) in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


# Cycles --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Answers:
    right: int = 0
    refused: int = 0
    failed: int = 0
    last_failure: str = ""


def _cycles(bench: Reporter, models: list[BenchModel], measured_bytes: dict[str, int]) -> None:
    cycles = bench.choose(CYCLES, 300)
    sizes = {model.name: measured_bytes.get(model.name, model.weight_bytes) for model in models}
    rows = {model.name: sample_inputs(_metadata(model)) for model in models}
    capacity_bytes = max(int(CAPACITY_SHARE * sum(sizes.values())), int(1.1 * max(sizes.values())))
    chance = random.Random(12)
    answers = _Answers()
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group(_START_LIMIT_BYTES, "hexcomb-bench"))
        if group is None:
            bench.skip("kills by the kernel", "no memory control group can be made here: the pod runs without a limit")
        with _inside(group):
            pod = stack.enter_context(
                running_pod(bench, capacity_bytes=capacity_bytes, settings=("--residency-min-s", "0"))
            )
        client = stack.enter_context(Client(pod.grpc_endpoint, timeout_s=120.0))
        for model in models:
            _load(client, model, f"first-{model.name}", chance)
            client.infer(f"first-{model.name}", rows[model.name])
            _leave(client, [f"first-{model.name}"])
        start_bytes = _settled_rss(pod.pid)
        limit_bytes = 0
        if group is not None:
            limit_bytes = int((group.unreclaimable_bytes + capacity_bytes) / (1 - _SAFETY_SHARE))
            group.limit(limit_bytes)
        names = _Names(client, models, chance)
        began = time.perf_counter()

        def standing() -> str:
            kills = "" if group is None else f"{group.oom_kills} kills, "
            rss = f"RSS {resident_bytes_of(pod.pid) / _MIB:.0f} MiB" if pod.is_running else "the pod is gone"
            return (
                f"{kills}{answers.failed} failed, {answers.refused} refused, {rss}, at first {start_bytes / _MIB:.0f}"
            )

        asyncio.run(_ask(pod.grpc_endpoint, cycles, names, rows, answers, chance, bench, standing))
        seconds = time.perf_counter() - began
        kills = group.oom_kills if group is not None else 0
        peak = f", peak {group.peak_bytes / _MIB:.0f}" if group is not None and group.peak_bytes else ""
        bench.figure(
            f"kills for want of memory in {cycles:,} cycles",
            kills + (not pod.is_running),
            "",
            bar=0,
            note=f"limit {limit_bytes / _MIB:.0f} MiB{peak}, capacity {capacity_bytes / _MIB:.0f} "
            f"of {sum(sizes.values()) / _MIB:.0f}; {seconds:.0f} s",
        )
        bench.figure(
            "requests that failed",
            answers.failed,
            "",
            bar=0,
            note=f"{answers.right} answered, {answers.refused} told to come back; {answers.last_failure[:200]}",
        )
        status = client.pod_status()[0]
        bench.figure("loads in these cycles", status.loads, "", note=f"{status.evictions} evictions")
        names.leave()
        _wait_empty(client)
        end_bytes = _settled_rss(pod.pid)
        bench.figure(
            "RSS afterwards against the start",
            100 * (end_bytes / start_bytes - 1),
            "%",
            bar=GROWTH_BAR_PERCENT,
            note=f"{start_bytes / _MIB:.0f} -> {end_bytes / _MIB:.0f} MiB",
        )


class _Names:
    """Names of the catalog, some of which give way to new ones all the while."""

    def __init__(self, client: Client, models: list[BenchModel], chance: random.Random) -> None:
        self._client = client
        self._chance = chance
        self._numbers = itertools.count(1)
        self.model_of: dict[str, BenchModel] = {}
        for model in models:
            for _ in range(_NAMES_PER_MODEL):
                self.model_of[self._register(model)] = model

    async def replace(self, name: str) -> None:
        """Another name for its model. It is in no one's reach while it is changed."""
        model = self.model_of.pop(name)
        self.model_of[await asyncio.to_thread(self._exchange, name, model)] = model

    def _exchange(self, name: str, model: BenchModel) -> str:
        self._client.unregister_many([name])
        return self._register(model)

    def _register(self, model: BenchModel) -> str:
        name = f"{model.name}-{next(self._numbers)}"
        (result,) = self._client.register_many([_registration(model, name, self._chance)])
        if result.status_code:
            raise RuntimeError(f"{result.id}: {result.message}")
        return name

    def leave(self) -> None:
        self._client.unregister_many(list(self.model_of))


async def _ask(
    endpoint: str,
    cycles: int,
    names: _Names,
    rows: dict[str, Any],
    answers: _Answers,
    chance: random.Random,
    bench: Reporter,
    standing: Callable[[], str],
) -> None:
    """Ask as often; now and then `standing` is said."""
    left = iter(range(cycles))
    done = 0
    busy: dict[str, int] = {}
    async with AsyncClient(endpoint, timeout_s=120.0) as client:

        async def client_of_its_own() -> None:
            nonlocal done
            for number in left:
                name = chance.choice(list(names.model_of))
                model = names.model_of[name]
                busy[name] = busy.get(name, 0) + 1
                try:
                    await client.infer(name, rows[model.name])
                    answers.right += 1
                except Exception as error:
                    _count(answers, error)
                busy[name] -= 1
                if number % _REGISTER_EVERY == 0:
                    idle = next((each for each in names.model_of if not busy.get(each)), None)
                    if idle is not None:
                        await names.replace(idle)
                done += 1
                if done % _SAID_EVERY == 0:
                    bench.progress(done, cycles, standing())

        await asyncio.gather(*(client_of_its_own() for _ in range(_CLIENTS)))


def _count(answers: _Answers, error: Exception) -> None:
    if isinstance(error, Overloaded):
        answers.refused += 1
    else:
        answers.failed += 1
        answers.last_failure = f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _inside(group: MemoryGroup | None) -> Iterator[None]:
    if group is None:
        yield
        return
    with group.entered():
        yield


def _metadata(model: BenchModel) -> Any:
    loaded = model.load()
    try:
        return loaded.metadata
    finally:
        loaded.unload()


def _settled_rss(pid: int) -> int:
    """Its resident set without mapped models, none of which is there: once it has stood still for longer than the pod
    waits with giving freed memory back."""
    until_s = time.monotonic() + _SETTLE_S
    last = resident_bytes_of(pid)
    still_since_s = time.monotonic()
    while (now_s := time.monotonic()) < until_s and now_s - still_since_s < _STILL_S:
        time.sleep(_SETTLE_PAUSE_S)
        now_bytes = resident_bytes_of(pid)
        if abs(now_bytes - last) >= _STILL_BYTES:
            last, still_since_s = now_bytes, time.monotonic()
    return last


def _wait_empty(client: Client) -> None:
    until_s = time.monotonic() + 20
    while (status := client.pod_status()[0]).models_resident or any(tier.unloading_bytes for tier in status.tiers):
        if time.monotonic() > until_s:
            raise RuntimeError("the pod still holds models 20 s after all were unregistered")
        time.sleep(0.02)
