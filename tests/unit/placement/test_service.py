"""The placement service over several pods: who leads, what the leader orders, and what it leaves alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from placement import keys, term
from placement.constraints import parse_constraints
from placement.errors import StoreUnavailable
from placement.orders import OrderLimits
from placement.policy.snapshot import Verdict
from placement.pool_records import HotModel
from placement.records import ModelSpec
from tests.unit.placement.pools import MODEL_BYTES, Pods, T, name


@pytest.fixture
async def pool() -> AsyncIterator[Pods]:
    pool = Pods()
    await pool.start("p1", "p2", "p3")
    yield pool
    await pool.close()


# Leading ------------------------------------------------------------------------------------------------------------


async def test_one_pod_leads_and_all_know_it(pool: Pods) -> None:
    await pool.turn()
    assert [member.service.is_leader for member in pool.members.values()] == [True, False, False]
    assert {member.service.status().leader for member in pool.members.values()} == {"p1"}


async def test_another_pod_leads_when_the_leader_is_gone_and_keeps_what_it_kept(pool: Pods) -> None:
    await pool.register("m", pinned=True)
    await pool.turn(2)
    (holder,) = pool.serving("m")
    leader = pool.leader.pod.id
    await pool.kill(leader)
    await pool.turn(3)
    assert pool.leader.pod.id != leader
    assert len(pool.serving("m")) == 1
    assert pool.peers.loads().count((holder, name("m"))) == 1


async def test_a_pod_that_drains_hands_leadership_over_at_once(pool: Pods) -> None:
    await pool.turn()
    pool.leader.say(draining=True)
    await pool.quiet()
    await pool.turn()
    assert pool.leader.pod.id == "p2"


async def test_a_resignation_that_did_not_reach_the_store_is_made_up_for(pool: Pods) -> None:
    await pool.turn()
    pool.leader.say(draining=True)
    await pool.quiet()
    pool.store.outage = "away"
    with pytest.raises(StoreUnavailable):
        await pool.turn()
    pool.store.outage = None
    await pool.turn(2)
    assert pool.leader.pod.id == "p2"


async def test_the_last_pod_leads_even_while_it_drains() -> None:
    pool = Pods()
    await pool.start("p1", draining=True)
    await pool.turn()
    assert pool.leader.pod.id == "p1"
    await pool.close()


async def test_a_closed_service_lets_another_lead_at_once(pool: Pods) -> None:
    await pool.turn()
    closed = pool.members.pop("p1")
    await closed.service.close()
    await pool.quiet()
    await pool.turn()
    await pool.stop_tasks(closed)
    assert pool.members["p2"].service.is_leader


async def test_the_loop_of_the_service_leads_by_itself() -> None:
    pool = Pods(turn_every_s=0.01, debounce_s=0.001)
    await pool.start("p1")
    member = pool.members["p1"]
    served = asyncio.Event()
    member.membership.on_change(lambda changes: served.set() if pool.serving("m") else None)
    await member.service.start()
    await member.registry.register(T, "m", ModelSpec("file:///m", pinned=True))
    async with asyncio.timeout(10):
        await served.wait()
    await pool.close()


async def test_a_store_that_is_away_stops_no_turn(pool: Pods) -> None:
    await pool.register("m", pinned=True)
    await pool.turn()
    pool.store.outage = "away"
    await pool.turn(3)
    pool.store.outage = None
    await pool.turn(2)
    assert len(pool.serving("m")) == 1


# Copies that must be there ------------------------------------------------------------------------------------------


async def test_pinned_models_and_least_numbers_of_copies_are_kept(pool: Pods) -> None:
    await pool.register("pinned", pinned=True)
    await pool.register("two", copies_min=2)
    await pool.register("cold")
    await pool.turn(3)
    assert len(pool.serving("pinned")) == 1
    assert len(pool.serving("two")) == 2
    assert pool.serving("cold") == []


async def test_a_least_number_of_copies_is_made_up_for_when_a_pod_dies(pool: Pods) -> None:
    await pool.register("two", copies_min=2)
    await pool.turn(2)
    await pool.kill(next(pod for pod in pool.serving("two") if pod != pool.leader.pod.id))
    await pool.turn(2)
    assert sorted(pool.serving("two")) == sorted(pool.members)


async def test_an_unpinned_model_is_left_where_it_is(pool: Pods) -> None:
    await pool.register("m", pinned=True)
    await pool.turn(2)
    await pool.registry.set_pinned(T, "m", False)
    await pool.turn(100)
    assert len(pool.serving("m")) == 1


async def test_a_model_without_a_place_is_told_of_and_placed_when_a_pod_joins() -> None:
    pool = Pods(constraints=parse_constraints('{"_default": {"required": ["gpu"]}}'))
    await pool.start("p1", "p2")
    await pool.register("m", pinned=True)
    report = await pool.turn()
    assert report is not None
    assert [unplaced.name for unplaced in report.unplaced] == [name("m")]
    (decision,) = pool.leader.service.recent_decisions(name("m"))
    assert "gpu" in decision.reason
    assert len(decision.details) == 2
    assert pool.leader.service.status().models_unplaced == 1
    await pool.start("p3", labels=frozenset({"gpu"}))
    await pool.turn(2)
    assert pool.serving("m") == ["p3"]
    assert pool.leader.service.status().models_unplaced == 0


async def test_a_pods_room_is_not_given_away_twice_in_one_turn() -> None:
    pool = Pods(at_once=False)
    await pool.start("p1", "p2", capacity_bytes=250, free_bytes=250)
    await pool.register(*(f"m{number}" for number in range(6)), pinned=True, capacity_hint_bytes=MODEL_BYTES)
    report = await pool.turn()
    assert report is not None
    by_pod = [pod for pod, _ in pool.peers.loads()]
    assert (by_pod.count("p1"), by_pod.count("p2")) == (2, 2)
    assert len(report.unplaced) == 2
    await pool.close()


# Copies by demand ---------------------------------------------------------------------------------------------------


async def test_a_model_whose_requests_wait_has_more_copies_within_five_seconds(pool: Pods) -> None:
    await pool.register("hot")
    await pool.hold("p1", "hot")
    await pool.turn()
    await pool.overload("p1", "hot")
    turns = await pool.turn_until(lambda: len(pool.serving("hot")) > 1)
    assert turns <= 5


async def test_copies_that_are_not_needed_any_more_go_and_the_last_one_stays(pool: Pods) -> None:
    await pool.register("hot")
    await pool.hold("p1", "hot")
    await pool.overload("p1", "hot")
    await pool.turn_until(lambda: len(pool.serving("hot")) == 3)
    pool.members["p1"].say(busy=())
    await pool.quiet()
    await pool.turn_until(lambda: len(pool.serving("hot")) == 1)
    await pool.turn(200)
    assert len(pool.serving("hot")) == 1


async def test_most_copies_are_respected(pool: Pods) -> None:
    await pool.register("hot", copies_max=2)
    await pool.hold("p1", "hot")
    await pool.overload("p1", "hot")
    await pool.turn(30)
    assert len(pool.serving("hot")) == 2


# Orders -------------------------------------------------------------------------------------------------------------


async def test_an_order_is_not_repeated_while_it_is_under_way() -> None:
    pool = Pods(at_once=False)
    await pool.start("p1", "p2")
    await pool.register("m", pinned=True)
    await pool.turn(5)
    assert len(pool.peers.orders) == 1
    assert pool.leader.service.status().orders_in_flight == 1
    await pool.peers.carry_out()
    await pool.turn(60)
    await pool.peers.carry_out()
    await pool.turn(5)
    assert len(pool.peers.orders) == 1
    assert pool.leader.service.status().orders_in_flight == 0
    await pool.close()


async def test_an_order_that_shows_nothing_is_given_to_another_pod() -> None:
    pool = Pods(at_once=False, orders=OrderLimits(accepted_within_s=3.0))
    await pool.start("p1", "p2")
    await pool.register("m", pinned=True)
    await pool.turn(6)
    assert sorted(pod for pod, _ in pool.peers.loads()) == ["p1", "p2"]
    await pool.close()


async def test_a_pod_that_takes_no_orders_is_passed_over(pool: Pods) -> None:
    await pool.turn()
    pool.peers.unreachable |= {"p1", "p2"}
    await pool.register("m", pinned=True)
    await pool.turn(4)
    assert pool.serving("m") == ["p3"]


async def test_a_pod_that_does_not_answer_probes_gets_no_orders(pool: Pods) -> None:
    pool.down |= {"p1", "p2"}
    await pool.register(*(f"m{number}" for number in range(5)), pinned=True)
    await pool.turn(2)
    assert {pod for pod, _ in pool.peers.loads()} == {"p3"}


async def test_a_turn_gives_so_many_orders_and_the_next_ones_give_the_rest() -> None:
    pool = Pods(orders_per_turn_max=2)
    await pool.start("p1", "p2")
    await pool.register(*(f"m{number}" for number in range(5)), pinned=True)
    await pool.turn()
    assert len(pool.peers.orders) == 2
    await pool.turn(2)
    assert len(pool.peers.orders) == 5
    await pool.close()


async def test_decisions_say_why(pool: Pods) -> None:
    await pool.register("m", pinned=True)
    await pool.turn(2)
    (decision,) = pool.leader.service.recent_decisions(name("m"))
    assert (decision.action, [decision.pod]) == ("load", pool.serving("m"))
    assert decision.details[0].startswith("chosen")


# Losses -------------------------------------------------------------------------------------------------------------


async def test_hot_models_that_died_with_their_pod_come_back_hottest_first_and_cold_ones_do_not() -> None:
    pool = Pods(at_once=False, restoring_per_pod_max=2)
    await pool.start("p1", "p2", "p3")
    models = [f"m{number}" for number in range(8)]
    await pool.register(*models, "cold")
    await pool.hold("p3", *models, "cold")
    await pool.busy("p3", **{model_id: 10.0 + number for number, model_id in enumerate(models)})
    await pool.turn(2)
    await pool.kill("p3")
    await pool.turn()
    assert sorted(model.id for _, model in pool.peers.loads()) == ["m4", "m5", "m6", "m7"]
    assert sorted(pod for pod, _ in pool.peers.loads()) == ["p1", "p1", "p2", "p2"]
    for _ in range(8):
        await pool.peers.carry_out()
        await pool.turn(1)
    assert all(len(pool.serving(model_id)) == 1 for model_id in models)
    assert pool.serving("cold") == []
    assert pool.leader.service.status().models_lost == 0
    await pool.close()


@pytest.mark.parametrize("at_pause", range(4))
async def test_what_is_lost_while_a_turn_is_under_way_is_not_forgotten(
    pool: Pods, monkeypatch: pytest.MonkeyPatch, at_pause: int
) -> None:
    await pool.register("hot")
    await pool.register("pinned", pinned=True)
    await pool.hold("p3", "hot", "pinned")
    await pool.busy("p3", hot=10.0)
    await pool.turn(2)
    pauses = itertools.count()

    async def pause() -> None:
        if next(pauses) == at_pause:
            await pool.kill("p3")

    monkeypatch.setattr(term, "_breathe", pause)
    await pool.turn(4)
    assert next(pauses) > at_pause
    assert len(pool.serving("hot")) == 1
    assert len(pool.serving("pinned")) == 1


async def test_what_a_pod_lets_go_of_by_itself_is_not_brought_back(pool: Pods) -> None:
    await pool.register("m")
    await pool.hold("p2", "m")
    await pool.busy("p2", m=10.0)
    await pool.turn(2)
    pool.peers.let_go("p2", name("m"))
    await pool.quiet()
    await pool.turn(10)
    assert pool.serving("m") == []


async def test_a_pod_that_restarts_at_once_has_lost_what_it_had(pool: Pods) -> None:
    await pool.register("m")
    await pool.hold("p3", "m")
    await pool.busy("p3", m=10.0)
    await pool.turn(2)
    await pool.kill("p3")
    await pool.start("p3")
    await pool.turn(2)
    assert len(pool.serving("m")) == 1


async def test_a_new_leader_knows_what_was_hot_from_the_store() -> None:
    pool = Pods(hot_written_every_s=5.0, pods_join_quiet_s=2.0)
    await pool.start("p1", "p2")
    await pool.register("hot", "cold")
    await pool.hold("p1", "hot", "cold")
    await pool.busy("p1", hot=20.0)
    await pool.turn(8)
    assert [hot.name for hot in pool.members["p2"].membership.hot] == [name("hot")]
    await pool.start("p3", ready=False)
    await pool.kill("p1")
    await pool.kill("p2")
    await pool.start("p4", "p5")
    await pool.turn(5)
    assert len(pool.serving("hot")) == 1
    assert pool.serving("cold") == []
    await pool.close()


async def test_a_cold_pool_gathers_before_its_hot_models_are_spread() -> None:
    pool = Pods(pods_join_quiet_s=3.0, pods_join_within_s=15.0)
    await pool.start("p1")
    models = [f"m{number}" for number in range(6)]
    await pool.register(*models)
    await pool.members["p1"].membership.write_hot(HotModel(name(model_id), 5.0) for model_id in models)
    await pool.quiet()
    await pool.turn()
    await pool.start("p2")
    await pool.turn()
    assert pool.peers.orders == []
    await pool.turn(6)
    assert {pod for pod, _ in pool.peers.loads()} == {"p1", "p2"}
    await pool.close()


# Too many copies ----------------------------------------------------------------------------------------------------


async def test_a_second_first_copy_that_nobody_ordered_goes_soon(pool: Pods) -> None:
    await pool.register("m")
    await pool.turn()
    await pool.hold("p1", "m")
    await pool.hold("p2", "m")
    turns = await pool.turn_until(lambda: len(pool.serving("m")) == 1)
    assert turns <= 6
    await pool.turn(30)
    assert len(pool.serving("m")) == 1


async def test_a_new_leader_finds_copies_too_many_within_two_leases(pool: Pods) -> None:
    await pool.register("m")
    await pool.hold("p2", "m")
    await pool.hold("p3", "m")
    turns = await pool.turn_until(lambda: len(pool.serving("m")) == 1)
    assert turns <= 20


async def test_a_copy_beside_one_on_a_pod_that_drains_is_no_surplus(pool: Pods) -> None:
    await pool.register("m")
    await pool.turn()
    await pool.hold("p3", "m")
    pool.members["p3"].say(draining=True)
    await pool.hold("p2", "m")
    await pool.turn(20)
    assert pool.peers.unloads() == []


# Deaths -------------------------------------------------------------------------------------------------------------


async def test_a_model_that_was_loading_when_two_pods_died_is_tried_on_no_third(pool: Pods) -> None:
    await pool.start("p4")
    await pool.register("deadly", pinned=True)
    pool.peers.deaf |= {"p1", "p2", "p3", "p4"}
    for _ in range(2):
        await pool.turn()
        pod_id = pool.peers.loads()[-1][0]
        member = pool.members[pod_id]
        await member.membership.record_intent(name("deadly"), 1, "loading")
        await pool.quiet()
        await pool.kill(pod_id)
        await pool.turn(3)
    suspicion = pool.view.suspicions[name("deadly")]
    assert suspicion.verdict is Verdict.QUARANTINED
    assert (await pool.store.range(keys.INTENTS)).items == ()
    orders = len(pool.peers.orders)
    await pool.turn(60)
    assert len(pool.peers.orders) == orders
    assert any("quarantined" in str(decision) for decision in pool.leader.service.recent_decisions(name("deadly")))


async def test_a_new_spec_is_tried_again(pool: Pods) -> None:
    await pool.register("deadly", pinned=True)
    for pod_id in ("p2", "p3"):
        await pool.members[pod_id].membership.record_intent(name("deadly"), 1, "loading")
        await pool.kill(pod_id)
    await pool.turn(4)
    assert pool.view.suspicions[name("deadly")].verdict is Verdict.QUARANTINED
    await pool.registry.register(T, "deadly", ModelSpec("file:///mended", pinned=True), if_generation=1)
    await pool.turn(4)
    assert name("deadly") not in pool.view.suspicions
    assert pool.serving("deadly") == ["p1"]


# Housekeeping -------------------------------------------------------------------------------------------------------


async def test_the_store_is_told_to_forget_old_history() -> None:
    pool = Pods(kept_history_s=10.0, compacted_every_s=5.0)
    await pool.start("p1")
    await pool.register("m")
    await pool.turn(30)
    batches = pool.store.watch([keys.MODELS], 1)
    with pytest.raises(Exception, match="forgotten"):
        await anext(batches)
    await pool.close()


async def test_a_quiet_turn_looks_at_nothing(pool: Pods) -> None:
    await pool.register(*(f"m{number}" for number in range(50)))
    await pool.hold("p1", *(f"m{number}" for number in range(50)))
    await pool.turn(3)
    report = await pool.turn()
    assert report is not None
    assert report.looked_at == 0
    assert pool.peers.orders == []


async def test_a_periodic_check_finds_what_no_event_told(pool: Pods) -> None:
    await pool.register("m", pinned=True)
    await pool.turn(2)
    pool.leader.service._term.attention.due.clear()  # type: ignore[union-attr]
    pool.peers.let_go(pool.serving("m")[0], name("m"))
    await pool.quiet()
    pool.leader.service._term.attention.due.clear()  # type: ignore[union-attr]
    turns = await pool.turn_until(lambda: len(pool.serving("m")) == 1)
    assert turns <= 31
