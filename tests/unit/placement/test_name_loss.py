"""A store that lost its data: registrations come back from what the pods knew, and nobody forgets before they do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from placement import keys
from placement.records import ModelSpec
from tests.unit.placement.pools import Pods, T, name

OLD = [f"m{number}" for number in range(60)]


@pytest.fixture
async def pool() -> AsyncIterator[Pods]:
    pool = Pods(restore_gathers_s=10.0, restore_look_every_s=1.0)
    await pool.start("p1", "p2", "p3")
    await pool.register(*OLD)
    await pool.registry.register(T, "m0", ModelSpec("file:///newer"), if_generation=1)
    await pool.registry.set_alias(T, "best", "m0")
    await pool.hold("p2", "m0")
    await pool.turn(2)
    yield pool
    await pool.close()


def all_know(pool: Pods) -> bool:
    return all(
        not member.registry.detached
        and {record.id for record in member.registry.view.every_model()} >= set(OLD)
        and member.registry.view.revision <= pool.store.revision
        for member in pool.members.values()
    )


async def stored_models(pool: Pods) -> int:
    return len((await pool.store.range(keys.MODELS)).items)


async def test_registrations_come_back_with_their_highest_generation(
    pool: Pods, caplog: pytest.LogCaptureFixture
) -> None:
    await pool.store.wipe()
    await pool.quiet()
    assert await stored_models(pool) == 0
    assert all(member.registry.detached for member in pool.members.values())
    assert pool.registry.resolve(T, "best").record.generation == 2
    with caplog.at_level(logging.ERROR):
        turns = await pool.turn_until(lambda: all_know(pool))
    assert turns <= 5
    assert await stored_models(pool) == len(OLD)
    resolved = pool.registry.resolve(T, "best").record
    assert (resolved.id, resolved.generation, resolved.spec.uri) == ("m0", 2, "file:///newer")
    assert "60 models and 1 aliases were written back" in caplog.text
    assert "60 models" in pool.leader.service.status().notice
    assert pool.serving("m0") == ["p2"]
    await pool.turn(3)
    assert (await pool.store.range(keys.DETACHED)).items == ()


async def test_a_leader_that_was_started_after_the_loss_restores_what_others_knew(pool: Pods) -> None:
    for pod_id in ("p1", "p3"):
        await pool.kill(pod_id)
    await pool.store.wipe()
    await pool.start("p0")
    survivor = pool.members.pop("p2")
    await pool.turn()
    assert pool.leader.pod.id == "p0"
    assert not pool.leader.registry.detached
    pool.members["p2"] = survivor
    await pool.turn_until(lambda: all_know(pool))
    assert pool.leader.pod.id == "p0"


async def test_a_pod_that_cannot_be_asked_yet_keeps_its_view_until_it_was_heard(pool: Pods) -> None:
    pool.peers.unreachable.add("p3")
    member = pool.members["p3"]
    await pool.store.wipe()
    await pool.quiet()
    # The same history, some revisions further.
    member.registry._view = replace(member.registry.view, revision=member.registry.view.revision + 5)
    await pool.turn_until(lambda: not pool.members["p1"].registry.detached, 30)
    assert member.registry.detached
    assert member.registry.resolve(T, "m1").record.id == "m1"
    pool.peers.unreachable.clear()
    await pool.turn_until(lambda: not member.registry.detached, 10)
    assert all_know(pool)


async def test_a_store_that_is_lost_again_while_it_is_restored_is_restored_all_the_same(pool: Pods) -> None:
    await pool.store.wipe()
    await pool.quiet()
    await pool.turn()
    await pool.store.wipe()
    await pool.quiet()
    await pool.turn_until(lambda: all_know(pool), 60)
    assert await stored_models(pool) == len(OLD)


async def test_what_is_registered_after_the_loss_stays_and_is_not_written_over(pool: Pods) -> None:
    await pool.store.wipe()
    await pool.start("p4")
    await pool.members["p4"].registry.register(T, "m1", ModelSpec("file:///since"))
    await pool.quiet()
    await pool.turn_until(lambda: all_know(pool), 60)
    assert pool.registry.resolve(T, "m1").record.spec.uri == "file:///since"


async def test_suspicions_come_back_too(pool: Pods) -> None:
    await pool.members["p3"].membership.record_intent(name("m5"), 1, "loading")
    await pool.kill("p3")
    await pool.turn(4)
    assert name("m5") in pool.view.suspicions
    await pool.store.wipe()
    await pool.quiet()
    await pool.turn_until(lambda: all_know(pool))
    await pool.turn(2)
    assert len((await pool.store.range(keys.SUSPICIONS)).items) == 1


async def test_keys_of_pods_that_are_gone_are_cleaned_up(pool: Pods) -> None:
    await pool.store.wipe()
    await pool.quiet()
    await pool.members["p3"].service.turn()
    await pool.members["p3"].service.settled()
    await pool.kill("p3")
    await pool.turn_until(lambda: all_know(pool), 60)
    await pool.turn(4)
    assert (await pool.store.range(keys.DETACHED)).items == ()
