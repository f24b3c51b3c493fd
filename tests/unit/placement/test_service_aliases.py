"""The leader and aliases: the target has the active model's copies before the switch, or the active model serves on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest

from placement import term
from placement.policy.snapshot import LoadFailure
from placement.records import AliasRecord, AliasState, ModelSpec
from tests.unit.placement.pools import Pods, T, name


@pytest.fixture
async def pool() -> AsyncIterator[Pods]:
    pool = Pods(at_once=False)
    await pool.start("p1", "p2", "p3")
    await pool.register("old", "new")
    await pool.registry.set_alias(T, "best", "old")
    await pool.turn()
    yield pool
    await pool.close()


def alias(pool: Pods) -> AliasRecord:
    found = pool.registry.alias(T, "best")
    assert found is not None
    return found


async def move(pool: Pods) -> None:
    await pool.registry.set_alias(T, "best", "new")
    await pool.quiet()


async def step(pool: Pods) -> None:
    await pool.turn()
    await pool.peers.carry_out()
    await pool.quiet()


async def test_the_switch_waits_for_as_many_copies_as_the_active_model_has(pool: Pods) -> None:
    await pool.hold("p1", "old")
    await pool.hold("p2", "old")
    await move(pool)
    seen: list[tuple[str, int]] = []
    for _ in range(6):
        await step(pool)
        seen.append((alias(pool).active, len(pool.serving("new"))))
    assert ("new", 2) in seen
    assert all(active == "old" or copies == 2 for active, copies in seen), seen
    assert alias(pool).state is AliasState.DEFINED


async def test_an_active_model_that_serves_nowhere_is_left_at_once(pool: Pods) -> None:
    await move(pool)
    await pool.turn()
    assert alias(pool).active == "new"


async def test_the_targets_own_maximum_is_enough(pool: Pods) -> None:
    await pool.register("small", copies_max=1)
    await pool.hold("p1", "old")
    await pool.hold("p2", "old")
    await pool.registry.set_alias(T, "best", "small")
    for _ in range(4):
        await step(pool)
    assert alias(pool).active == "small"
    assert len(pool.serving("small")) == 1


async def test_a_target_that_fails_leaves_the_active_model_and_is_tried_again_later(pool: Pods) -> None:
    await pool.hold("p1", "old")
    pool.peers.failing[name("new")] = "the file is broken"
    await move(pool)
    for _ in range(8):
        await step(pool)
    failed = alias(pool)
    assert (failed.state, failed.active) == (AliasState.TRANSITION_FAILED, "old")
    assert "the file is broken" in (failed.failure or "")
    orders = len(pool.peers.orders)
    assert orders <= 3
    assert pool.serving("old") == ["p1"]

    pool.peers.mend(name("new"))
    await pool.quiet()
    await pool.turn_until(lambda: len(pool.peers.orders) > orders)
    for _ in range(3):
        await step(pool)
    assert (alias(pool).active, alias(pool).state) == ("new", AliasState.DEFINED)


async def test_a_new_spec_of_a_failed_target_is_tried_at_once(pool: Pods) -> None:
    await pool.hold("p1", "old")
    pool.peers.failing[name("new")] = "the file is broken"
    await move(pool)
    for _ in range(8):
        await step(pool)
    pool.peers.failing.clear()
    await pool.registry.register(T, "new", ModelSpec("file:///mended"), if_generation=1)
    await pool.quiet()
    for _ in range(3):
        await step(pool)
    assert (alias(pool).active, alias(pool).state) == ("new", AliasState.DEFINED)


async def test_a_failure_that_may_pass_on_one_pod_sends_the_target_to_another(pool: Pods) -> None:
    await pool.hold("p1", "old")
    await move(pool)
    await pool.turn()
    first = pool.peers.loads()[-1][0]
    pool.peers.forget_pending()
    failure = LoadFailure(first, 1, False, "no route to storage", 0.0, 30.0)
    pool.members[first].membership.set_failure(name("new"), failure)
    await pool.quiet()
    for _ in range(4):
        await step(pool)
    assert alias(pool).active == "new"
    assert pool.serving("new") != [first]


async def test_an_alias_that_is_moved_while_a_turn_is_under_way_is_not_forgotten(
    pool: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.hold("p1", "old")
    pauses = itertools.count()

    async def pause() -> None:
        if next(pauses) == 0:
            await move(pool)

    monkeypatch.setattr(term, "_breathe", pause)
    for _ in range(4):
        await step(pool)
    assert alias(pool).active == "new"


async def test_a_new_leader_goes_on_with_a_transition(pool: Pods) -> None:
    await pool.hold("p2", "old")
    await move(pool)
    await pool.turn()
    pool.peers.forget_pending()
    await pool.kill("p1")
    for _ in range(20):
        await step(pool)
    assert alias(pool).active == "new"


async def test_a_target_that_is_unregistered_fails_the_transition_only_in_words(pool: Pods) -> None:
    await pool.hold("p1", "old")
    await move(pool)
    await pool.turn()
    assert pool.leader.service.recent_decisions(name("best"))[-1].action == "prepare alias"
    await pool.registry.set_alias(T, "best", "old")
    await pool.quiet()
    for _ in range(3):
        await step(pool)
    assert (alias(pool).active, alias(pool).state) == ("old", AliasState.DEFINED)


async def test_an_alias_that_is_forced_is_not_the_leaders_to_move(pool: Pods) -> None:
    await pool.hold("p1", "old")
    await pool.registry.set_alias(T, "best", "new", force=True)
    await pool.quiet()
    await pool.turn(3)
    assert alias(pool).active == "new"


async def test_each_model_with_a_share_is_made_servable_once(pool: Pods) -> None:
    await pool.hold("p1", "old")
    await pool.registry.set_alias(T, "best", "old", weights={"old": 90, "new": 10})
    await pool.quiet()
    for _ in range(4):
        await step(pool)
    (holder,) = pool.serving("new")
    pool.peers.let_go(holder, name("new"))
    await pool.quiet()
    for _ in range(4):
        await step(pool)
    assert pool.serving("new") == []
