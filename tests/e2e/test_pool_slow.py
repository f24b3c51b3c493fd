"""Pods that answer late or not at all: one that is frozen leaves the routes, one that is ten times slower too, and one
whose network stalls now and then stays. What was well again is asked again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from mesh.client import Client
from mesh.demo.local_pool import LocalPod, LocalPool
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import (
    ONE_TRY,
    SteadyLoad,
    check,
    ends_of_logs,
    holders,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

MODELS = 12
PER_S = 80
QUIET_TRIES = 3
"""For a machine that stands still as a whole, which shows on pods whose network has nothing."""
OUT_BAR_S = 2.0
HEADROOM_S = 2.0
"""For a machine on which other tests run."""


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(3, with_lines=True)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    models = {f"m-{number}": files.scale(number + 2) for number in range(MODELS)}
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)
    return models


@pytest.fixture
def victim(pool: LocalPool, models: dict[str, Example]) -> LocalPod:
    """The pod with the most models that only it has."""
    return max(pool.pods, key=lambda pod: sum(holders(pool, name) == [pod.name] for name in models))


@pytest.fixture
def askers(pool: LocalPool, models: dict[str, Example], victim: LocalPod) -> Iterator[dict[str, Callable[[str], None]]]:
    """Clients of the other pods, which try once."""
    clients = {pod.name: Client(pod.grpc_endpoint, retry=ONE_TRY) for pod in pool.pods if pod is not victim}

    def asks(client: Client) -> Callable[[str], None]:
        return lambda name: check(models[name], client.infer(name, models[name].inputs, timeout_s=20).outputs)

    yield {name: asks(client) for name, client in clients.items()}
    for client in clients.values():
        client.close()


def avoided(seen_from: LocalPod, pod: LocalPod) -> str:
    """Why a pod keeps its requests from another one; empty: it does not."""
    with Client(seen_from.grpc_endpoint, retry=ONE_TRY) as client:
        return next((each.why_unreachable for each in client.pod_status() if each.pod == pod.name), "unknown")


def test_a_frozen_pod_is_out_within_two_seconds_and_comes_back_by_itself(
    pool: LocalPool, models: dict[str, Example], victim: LocalPod, askers: dict[str, Callable[[str], None]]
) -> None:
    with SteadyLoad(askers, list(models), per_s=PER_S) as load:
        load.wait_for(200)
        frozen_s = time.monotonic()
        victim.freeze()
        others = [pod for pod in pool.pods if pod is not victim]
        wait_until(pool, lambda: all("out of the routes" in pod.log_text() for pod in others), "it is out", 10)
        out_s = time.monotonic() - frozen_s
        load.wait_for(400)
        slowest_s = load.slowest_s(frozen_s)
        victim.thaw()
        thawed_s = time.monotonic()
        wait_until(pool, lambda: not any(avoided(pod, victim) for pod in others), "it is back in the routes")
        back_s = time.monotonic() - thawed_s
        load.wait_for(200)
    print(
        f"\na frozen pod: out of the routes after {out_s:.2f} s, the slowest answer took {slowest_s:.2f} s, "
        f"{len(load.asked)} requests to the others, {len(load.errors())} errors; back {back_s:.1f} s after its thaw"
    )
    assert load.errors() == [], ends_of_logs(pool)
    assert out_s <= OUT_BAR_S + HEADROOM_S
    assert slowest_s <= OUT_BAR_S + HEADROOM_S
    with Client(victim.grpc_endpoint, retry=ONE_TRY) as client:
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)


def test_a_pod_that_is_ten_times_slower_is_out_and_comes_back_when_it_is_well(
    pool: LocalPool, models: dict[str, Example], victim: LocalPod, askers: dict[str, Callable[[str], None]]
) -> None:
    others = [pod for pod in pool.pods if pod is not victim]

    def is_avoided_by_all() -> bool:
        return all("slow" in avoided(pod, victim) for pod in others)

    with SteadyLoad(askers, list(models), per_s=PER_S) as load:
        load.wait_for(300)
        usual_s = load.slowest_s(share=0.99)
        with victim.slow_down(10):
            slowed_s = time.monotonic()
            wait_until(pool, is_avoided_by_all, "it is out")
            out_s = time.monotonic() - slowed_s
            load.wait_for(200)
        wait_until(pool, lambda: not any(avoided(pod, victim) for pod in others), "it is back", 60)
        load.wait_for(200)
    print(
        f"\na pod ten times slower: out of the routes after {out_s:.1f} s; p99 {1e3 * usual_s:.0f} ms before; "
        f"{len(load.asked)} requests, {len(load.errors())} errors"
    )
    assert load.errors() == [], ends_of_logs(pool)


def test_a_pod_whose_network_stalls_now_and_then_stays(
    pool: LocalPool, models: dict[str, Example], victim: LocalPod, askers: dict[str, Callable[[str], None]]
) -> None:
    assert victim.peer_line is not None
    for _ in range(QUIET_TRIES):
        lengths = {pod.name: len(pod.log_text()) for pod in pool.pods}
        with SteadyLoad(askers, list(models), per_s=PER_S) as load:
            load.wait_for(100)
            victim.peer_line.stall_s, victim.peer_line.stall_share = 0.2, 0.01
            stalls_s = time.monotonic()
            load.wait_for(800)
            slowest_s = load.slowest_s(stalls_s)
            victim.peer_line.stall_share = 0.0
        words = {pod.name: pod.log_text()[lengths[pod.name] :] for pod in pool.pods}
        out = {
            name: re.findall(r"pod (\S+) is out of the routes(?: for \d+ s)?: (.*)", text)
            for name, text in words.items()
        }
        others_out = {peer for events in out.values() for peer, _ in events} - {victim.name}
        print(
            f"\n200 ms stalls on 1 % of writes to {victim.name}: {len(load.asked)} requests, {len(load.errors())} "
            f"errors, the slowest answer took {1e3 * slowest_s:.0f} ms; out of the routes: {out}"
        )
        assert load.errors() == [], ends_of_logs(pool)
        assert slowest_s > 0.15, "the stalls were there"
        # Pods on lines that do not stall, or etcd, were silent too: it was the machine that stood still.
        if not others_out and not any("the store is away" in text for text in words.values()):
            break
        wait_until(pool, lambda: not any(avoided(a, b) for a in pool.pods for b in pool.pods if a is not b), "all back")
    assert not any(out.values()), f"out of the routes: {out}\n{ends_of_logs(pool)}"
