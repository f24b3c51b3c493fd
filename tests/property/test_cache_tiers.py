"""Tiers under random traffic: never oversold in any of them, everybody answered, and only idle copies are moved."""

from __future__ import annotations

import random

import pytest

from cache.events import Cancel, EvictRequest, Forgive, Resized, Retire
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.tenancy import TenantShare
from cache.types import Bytes, CopyState, ModelKey, Place, WantedModel

CPU, GPU, HOST = Place("device", "cpu"), Place("device", "cuda:0"), Place("host")
CAPACITY = Bytes.from_mapping({CPU: 60, GPU: 100, HOST: 90})
KEYS = [ModelKey(tenant, f"m{number}") for tenant in ("blue", "red") for number in range(8)]
STEPS = 400
SEEDS = 24
SHARES = {
    "blue": TenantShare(Bytes.from_mapping({GPU: 40, HOST: 30}), Bytes.from_mapping({GPU: 70, HOST: 60})),
    "red": TenantShare(Bytes.from_mapping({GPU: 30, HOST: 20})),
}


def size_of(key: ModelKey) -> Bytes:
    number = int(key.model_id[1:])
    return Bytes.from_mapping({GPU: 12 + 4 * number, CPU: number % 3})


def parks_of(key: ModelKey) -> Bytes | None:
    number = int(key.model_id[1:])
    return None if number == 3 else Bytes.of(HOST, 10 + 4 * number)


class Walk:
    """One random history."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        limits = CacheLimits(
            capacity=CAPACITY,
            residency_min_s=self.chance.choice([0.0, 2.0]),
            tenants=self.chance.choice([{}, SHARES]),
            loads_concurrent_max=self.chance.choice([1, 3]),
            thrash_control=self.chance.choice([True, False]),
            wait_max_s=30.0,
        )
        self.machine = CacheMachine(limits)
        may_run_on_cpu = self.chance.random() < 0.3
        self.loader = FakeLoader(
            self.machine,
            size_of,
            parks_of=parks_of,
            otherwise_of=lambda key: Bytes.of(CPU, size_of(key)[GPU]) if may_run_on_cpu else None,
        )
        self.waiters = 0
        self.returns_seen = 0

    def step(self) -> None:
        loader, chance = self.loader, self.chance
        works = chance.random() < 0.85
        choices = [self.want, self.want, self.want, self.pass_time]
        choices += [self.release] * 3 if loader.served else []
        if loader.fetching:
            choices += [lambda: (loader.finish_fetch if works else loader.fail_fetch)(self.one(loader.fetching))] * 3
        if loader.loading:
            choices += [lambda: (loader.finish_load if works else loader.fail_load)(self.one(loader.loading))] * 3
        if loader.parking:
            choices += [self.end_park] * 3
        if loader.unloading:
            choices += [lambda: (loader.finish_unload if works else loader.fail_unload)(self.one(loader.unloading))] * 3
        if loader.waiting:
            choices += [lambda: loader.send(Cancel(self.one(loader.waiting)))]
        if chance.random() < 0.1:
            choices += [self.manage]
        chance.choice(choices)()
        self.machine.validate()
        usage = self.machine.usage()
        assert usage.used <= usage.capacity
        assert usage.waiters == len(loader.waiting)
        self.returns_seen += any(
            view.state is CopyState.LOADING and view.charged[HOST] for view in self.machine.copies()
        )

    def one(self, of: object) -> int:
        return self.chance.choice(sorted(of))  # type: ignore[call-overload]

    def want(self) -> None:
        self.waiters += 1
        deadline_s = self.loader.now_s + self.chance.uniform(0, 10) if self.chance.random() < 0.3 else None
        background = self.chance.random() < 0.1
        model = WantedModel(self.chance.choice(KEYS), priority=self.chance.choice([0, 0, 1]))
        self.loader.want(self.waiters, model, deadline_s, background=background)

    def release(self) -> None:
        self.loader.release(self.one(self.loader.served))

    def end_park(self) -> None:
        copy_id = self.one(self.loader.parking)
        match self.chance.randrange(6):
            case 0:
                self.loader.fail_park(copy_id)
            case 1:
                self.loader.finish_park(copy_id, Bytes.of(HOST, self.chance.randrange(1, 60)))
            case _:
                self.loader.finish_park(copy_id)

    def manage(self) -> None:
        key = self.chance.choice(KEYS)
        match self.chance.randrange(3):
            case 0:
                self.loader.send(Retire(key))
                self.loader.send(Forgive(key))
            case 1:
                self.loader.send(EvictRequest(key))
            case _ if self.loader.loaded:
                size = Bytes.from_mapping({GPU: self.chance.randrange(60), CPU: self.chance.randrange(10)})
                self.loader.send(Resized(self.one(self.loader.loaded), size))

    def pass_time(self) -> None:
        self.loader.pass_time(self.loader.now_s + self.chance.choice([0.01, 0.5, 5.0]))

    def come_to_rest(self) -> None:
        """Traffic stops and everything works: everybody is answered."""
        loader = self.loader
        for _ in range(200):
            loader.run()
            for waiter_id in list(loader.served):
                loader.release(waiter_id)
            loader.run()
            self.machine.validate()
            if not loader.waiting:
                break
            loader.pass_time(loader.now_s + 1.0)
        assert not loader.waiting


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_tier_is_oversold_and_everybody_is_answered(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.come_to_rest()
    assert walk.machine.usage().parkings_total > 0
    assert walk.returns_seen > 0
