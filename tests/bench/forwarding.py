"""What a request costs that another pod has to answer: processor time of all pods together, and a client's wait.

Processor time per request is the figure, not requests per second: it is the same on a busy machine, nearly. Pods are
real processes with etcd, on the native transport unless a line says otherwise; requests come from `peers/load.py` and
are compared with the first answer, byte by byte.

* **One pod against two**: one model with one copy; in turns the pod that has it is asked, and the other one.
* **Four pods, any of them**: models with one copy each, spread as the pool spreads them; every connection goes to the
  next pod, so three requests of four are for another one. Each round makes new connections, as clients behind a load
  balancer do every minute. With 512 requests in flight, 128 at each pod, and with 64, 16 at each. Whose time it is, and
  what the pods take while nobody asks, stands beside.
* **One to two pods**: the same model with a copy on one pod, asked there, and with one on each of two, asked on both.
  Of a tiny model: requests per second of processor time, with as many in flight at each of the two as at the one, and
  with as many in all. Of one whose requests cost 100 µs and more, each pod on a core
  of its own: requests a second; the load generator shares the two cores, so twice as many cannot come of it.
* **One at a time**: what a client waits for at the pod that has the model, at the other one, and when it heeds what the
  other one's answers say of where the model is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import numpy as np

from mesh.client.client import Client
from mesh.client.operations import infer, registration
from mesh.client.retries import RetryPolicy
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.local_pool import LocalPod, LocalPool
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from tests.bench.figures import Reporter
from tests.bench.models import BenchModel, read_models, sample_inputs
from tests.bench.peers.answers import LoadFailed
from tests.bench.peers.load import Load, LoadResult, run_load
from tests.bench.pods import pin_process
from tests.bench.thread_times import thread_times_of
from tests.bench.transport import ask_once

FORWARDED_64_MAX, FORWARDED_1_MAX = 2.5, 4.0
"""Processor time of a forwarded request against a local one: issue 5's bars."""
PER_CORE_MIN = 13_000
"""Requests per second of pods' processor time where three of four are forwarded: issue 5's bar."""
TWO_PODS_MIN = 0.9
"""Requests per second of processor time on two pods against one: issue 5's bar."""
TWICE_MIN = 1.7
"""Requests a second on two pods against one, where a request costs `_DEAR_US` or more: issue 5's bar."""
_MODEL = "onnx-tiny"
_DEAR_MODEL, _DEAR_US = "sklearn-pipeline", 100.0
_SPREAD_MODELS = 16
_FOUR_PODS_IN_FLIGHT = (512, 64)
"""The bar is for the first: what a pool of four pods is there for."""
_IDLE_S = 5.0
_CONNECTIONS = 8
_WARM_UP_S = 1.0
_WARM_UP_TIMES = 200
_KNOWN_WITHIN_S = 10.0
"""In which every pod knows of a copy that has answered."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A message that is sent, and its right answer."""

    message: bytes
    answer: bytes


def run(bench: Reporter) -> None:
    """All of it, on the native transport, then the ratios on grpcio."""
    try:
        for number, transport in enumerate(("native", "grpcio")):
            bench.progress(number, 4, transport)
            _two_pods(bench, transport)
        bench.progress(2, 4, "two cores")
        _two_cores(bench)
        bench.progress(3, 4, "four pods")
        _four_pods(bench)
    except EtcdMissing as error:
        bench.skip("forwarded requests", str(error))
    bench.progress(4, 4)


def _two_pods(bench: Reporter, transport: str) -> None:
    model = read_models(bench.cache_dir)[_MODEL]
    with _pool(bench, 2, transport) as pool, Client(pool.endpoints, timeout_s=120.0) as client:
        there = _register(client, pool, model, ["one"])["one"]
        elsewhere = next(pod for pod in pool.pods if pod is not there)
        asked = _asked("one", model, there)
        for in_flight, bar in ((64, FORWARDED_64_MAX), (1, FORWARDED_1_MAX)):
            local, forwarded = _in_turns(
                bench,
                [
                    ([there], [there], [asked], in_flight),
                    ([elsewhere], [elsewhere, there], [asked], in_flight),
                ],
            )
            name = f"{transport}, {in_flight} in flight"
            _report(bench, f"{name}, local", local)
            _report(bench, f"{name}, forwarded, both pods", forwarded)
            ratio = _cost_us(forwarded) / _cost_us(local)
            bench.figure(f"{name}, forwarded / local", ratio, "times", bar=bar)
        if transport == "native":
            _one_at_a_time(bench, model, there, elsewhere)
            client.register_many([_registration("both", model, copies=2)])
            for pod in pool.pods:
                ask_once(pod.grpc_port, _message("both", model))
            both = _asked("both", model, there)
            pods = pool.pods
            one, two, sharing = _in_turns(
                bench, [([there], [there], [asked], 64), (pods, pods, [both], 128), (pods, pods, [both], 64)]
            )
            for name, rounds, bar in (("64 in flight at each", two, TWO_PODS_MIN), ("64 in all", sharing, None)):
                _report(bench, f"a copy on each of two pods, {name}", rounds)
                share = _cost_us(one) / _cost_us(rounds)
                title = f"two pods against one, {name}, requests per processor second"
                bench.figure(title, share, "times", bar=bar, at_least=True)


def _two_cores(bench: Reporter) -> None:
    """A model that takes a while, on one core and on two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        bench.skip("two pods against one, requests a second", "each pod needs a core of its own, and there is one")
        return
    model = read_models(bench.cache_dir)[_DEAR_MODEL]
    with _pool(bench, 2, "native") as pool, Client(pool.endpoints, timeout_s=120.0) as client:
        there = _register(client, pool, model, ["one"])["one"]
        client.register_many([_registration("both", model, copies=2)])
        for pod, core in zip(pool.pods, cores, strict=False):
            ask_once(pod.grpc_port, _message("both", model))
            pin_process(pod.pid, core)
        one, two = _in_turns(
            bench,
            [
                ([there], [there], [_asked("one", model, there)], 64),
                (pool.pods, pool.pods, [_asked("both", model, there)], 64),
            ],
        )
        cost_us = _cost_us(one)
        note = f"{_DEAR_MODEL}, {cost_us:,.0f} µs of the pod's processor time each; {_answered(one):,.0f}/s on one"
        if cost_us < _DEAR_US:
            bench.skip("two pods against one, requests a second", f"a request is cheaper than it should be: {note}")
            return
        ratio = _answered(two) / _answered(one)
        bench.figure("two pods against one, requests a second", ratio, "times", bar=TWICE_MIN, at_least=True, note=note)


def _four_pods(bench: Reporter) -> None:
    model = read_models(bench.cache_dir)[_MODEL]
    with _pool(bench, 4, "native") as pool, Client(pool.endpoints, timeout_s=120.0) as client:
        owners = _register(client, pool, model, [f"model-{number}" for number in range(_SPREAD_MODELS)])
        asked = [_asked(name, model, owner) for name, owner in owners.items()]
        counts = [sum(owner is pod for owner in owners.values()) for pod in pool.pods]
        pids = [pod.pid for pod in pool.pods]
        before, began_s = thread_times_of(pids), time.perf_counter()
        time.sleep(_IDLE_S)
        idle_s = (thread_times_of(pids) - before).total_s
        bench.figure("4 pods that nobody asks", idle_s / (time.perf_counter() - began_s), "cores")
        for in_flight in _FOUR_PODS_IN_FLIGHT:
            before = thread_times_of(pids)
            (anywhere,) = _in_turns(bench, [(pool.pods, pool.pods, asked, in_flight)])
            taken = thread_times_of(pids) - before
            shares = ", ".join(f"{kind} {seconds / taken.total_s:.0%}" for kind, seconds in taken.cpu_s.most_common())
            rate = _report(
                bench,
                f"4 pods, {in_flight} in flight, any of them asked",
                anywhere,
                note=f"copies on each pod: {', '.join(map(str, counts))}; no TLS; of the time: "
                f"{shares}; {taken.switches / taken.total_s / 1e3:.1f} switches of threads per ms of it",
            )
            bar = PER_CORE_MIN if in_flight == _FOUR_PODS_IN_FLIGHT[0] else None
            title = f"4 pods, {in_flight} in flight, requests per processor second"
            bench.figure(title, rate, "1/s", bar=bar, at_least=True)


@contextlib.contextmanager
def _pool(bench: Reporter, pods: int, transport: str) -> Iterator[LocalPool]:
    settings = {"capacity": "1GiB", "log_level": "error", "transport": transport}
    with (
        tempfile.TemporaryDirectory(prefix="pool-", dir=bench.cache_dir) as directory,
        LocalPool(Path(directory), pods, settings=settings) as pool,
    ):
        yield pool.start()


def _registration(name: str, model: BenchModel, copies: int = 1) -> hexcomb_pb2.Registration:
    return registration(name, uri=model.artifact.as_uri(), format=model.format, copies_min=copies, copies_max=copies)


def _register(client: Client, pool: LocalPool, model: BenchModel, names: Sequence[str]) -> dict[str, LocalPod]:
    """Register, load, and say who has which."""
    client.register_many([_registration(name, model) for name in names])
    owners = {}
    for name in names:
        client.infer(name, _inputs(model))
        holder = _holder_of(client, name)
        owners[name] = next(pod for pod in pool.pods if pod.name == holder)
    return owners


def _holder_of(client: Client, name: str) -> str:
    """The pod that has the model's copy, as soon as whichever pod is asked knows. Raises LoadFailed."""
    until_s = time.perf_counter() + _KNOWN_WITHIN_S
    while time.perf_counter() < until_s:
        if copies := client.describe(name).copies:
            return copies[0].pod
    raise LoadFailed(f"{name} has answered, and no pod knows where")


def _inputs(model: BenchModel) -> dict[str, np.ndarray]:
    loaded = model.load()
    inputs = sample_inputs(loaded.metadata)
    loaded.unload()
    return inputs


def _message(name: str, model: BenchModel) -> bytes:
    return infer(name, _inputs(model), (), "", "").body


def _asked(name: str, model: BenchModel, there: LocalPod) -> _Asked:
    message = _message(name, model)
    return _Asked(message, ask_once(there.grpc_port, message))


def _in_turns(
    bench: Reporter, contestants: Sequence[tuple[Sequence[LocalPod], Sequence[LocalPod], Sequence[_Asked], int]]
) -> list[list[LoadResult]]:
    """Per contestant (who is asked, whose time counts, what is asked, how many at a time) its rounds."""
    rounds, seconds = bench.choose(5, 2), bench.choose(3.0, 1.0)
    results: list[list[LoadResult]] = [[] for _ in contestants]
    for _ in range(rounds):
        for found, (asked_pods, counted, asked, many) in zip(results, contestants, strict=True):
            found.append(_load(asked_pods, counted, asked, many, seconds))
    return results


def _load(
    asked_pods: Sequence[LocalPod], counted: Sequence[LocalPod], asked: Sequence[_Asked], many: int, seconds: float
) -> LoadResult:
    order = list(range(len(asked))) * 64
    Random(1).shuffle(order)
    addresses = [("127.0.0.1", pod.grpc_port) for pod in asked_pods]
    result = run_load(
        Load(
            address=addresses[0],
            more_addresses=tuple(addresses[1:]),
            grpc_path=messages.MODEL_INFER.path,
            requests=tuple(each.message for each in asked),
            expected=tuple(each.answer for each in asked),
            order=tuple(order),
            in_flight=many,
            rate_per_s=0.0,
            warm_up_s=_WARM_UP_S,
            duration_s=seconds,
            server_pids=tuple(pod.pid for pod in counted),
            connections_max=_CONNECTIONS,
        )
    )
    if result.wrong:
        raise LoadFailed(f"{result.wrong} answers differ from the first one")
    return result


def _cost_us(rounds: Sequence[LoadResult]) -> float:
    return 1e6 / median(result.per_server_core_s for result in rounds)


def _answered(rounds: Sequence[LoadResult]) -> float:
    """A second."""
    return median(result.answered / result.duration_s for result in rounds)


def _report(bench: Reporter, name: str, rounds: Sequence[LoadResult], note: str = "") -> float:
    """Print; the median rate per second of processor time."""
    said = (
        f"{_cost_us(rounds):.1f} µs each; p50 {median(result.latencies_ms[0] for result in rounds):.2f}, "
        f"p99 {median(result.latencies_ms[1] for result in rounds):.2f} ms; "
        f"{_answered(rounds):,.0f}/s answered"
    )
    rates = [result.per_server_core_s for result in rounds]
    bench.samples(name, rates, "1/s per core", note=f"{said}; {note}" if note else said)
    return median(rates)


def _one_at_a_time(bench: Reporter, model: BenchModel, there: LocalPod, elsewhere: LocalPod) -> None:
    """What a client waits for: at the pod that has the model, at the other one, and where answers send it."""
    once = RetryPolicy(attempts_max=1)
    times = bench.choose(4000, 600)
    inputs = _inputs(model)
    local, forwarded, followed = "answered where it came in", "forwarded", "asked where the answer before said"
    taken_ms: dict[str, list[float]] = {local: [], forwarded: [], followed: []}
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(Client(pod.grpc_endpoint, retry=once, follow_owners=name == followed))
            for name, pod in ((local, there), (forwarded, elsewhere), (followed, elsewhere))
        }
        for number in range(_WARM_UP_TIMES + times):
            for name, client in clients.items():
                began = time.perf_counter()
                client.infer("one", inputs)
                if number >= _WARM_UP_TIMES:
                    taken_ms[name].append((time.perf_counter() - began) * 1e3)
    beside = bench.samples(local, taken_ms[local], "ms")
    for name in (forwarded, followed):
        bench.samples(name, taken_ms[name], "ms", baseline=beside.value, baseline_name=local)
