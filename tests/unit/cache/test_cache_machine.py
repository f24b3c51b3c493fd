"""The machine, one behaviour at a time."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest

from cache.commands import CancelLoad, Serve, StartFetch, StartLoad
from cache.events import (
    Cancel,
    Crashed,
    Drain,
    EvictRequest,
    Fetched,
    Forgive,
    Resized,
    Retire,
    SetPinned,
    SetPriority,
    Tick,
    Unloaded,
)
from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.transitions import InvalidTransition
from cache.types import Bytes, CopyState, Failure, FailureKind, ModelKey, Place, RefusalKind, WantedModel

CPU = Place("device", "cpu")
PERMANENT = Failure(FailureKind.PERMANENT, "the file is corrupt")
TRANSIENT = Failure(FailureKind.TRANSIENT, "the storage did not answer")
Pod = Callable[..., FakeLoader]
Model = Callable[..., WantedModel]


def resident(pod: FakeLoader) -> set[str]:
    return {view.key.model_id for view in pod.machine.copies() if view.state is CopyState.SERVABLE}


def only(copies: dict[int, ModelKey]) -> int:
    (copy_id,) = copies
    return copy_id


# -- a miss and a hit -------------------------------------------------------------------------------------------------


def test_a_miss_fetches_then_loads_then_serves_and_the_next_request_is_a_hit(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.run()
    assert [type(command) for command in loader.log if not hasattr(command, "at_s")] == [StartFetch, StartLoad, Serve]
    copy = loader.machine.servable(model("a").key)
    assert copy is not None
    assert copy.pins == 1
    loader.release(1)
    loader.want(2, model("a"))
    assert loader.served == {2: copy.copy_id}
    loader.machine.validate()


def test_five_hundred_requests_at_once_for_one_cold_model_cause_one_load(pod: Pod, model: Model) -> None:
    loader = pod()
    for waiter_id in range(500):
        loader.want(waiter_id, model("a"))
    loader.run()
    assert sum(isinstance(command, StartFetch) for command in loader.log) == 1
    assert sum(isinstance(command, StartLoad) for command in loader.log) == 1
    assert len(loader.served) == 500
    copy = loader.machine.servable(model("a").key)
    assert copy is not None
    assert copy.pins == 500


def test_the_least_recently_used_copy_leaves_and_its_bytes_count_until_the_runtime_confirms(
    pod: Pod, model: Model
) -> None:
    loader = pod()
    for waiter_id, name in enumerate("abc"):
        loader.now_s += 1
        loader.use(waiter_id, model(name))
    loader.now_s += 1
    loader.use(10, model("a"))
    loader.want(11, model("d"))
    loader.finish_fetch(only(loader.fetching))
    assert [key.model_id for key in loader.unloading.values()] == ["b"]
    assert not loader.loading
    assert loader.machine.usage().used.total_bytes == 90
    loader.finish_unload(only(loader.unloading))
    assert [key.model_id for key in loader.loading.values()] == ["d"]
    loader.run()
    assert resident(loader) == {"a", "c", "d"}
    assert "evicted for default/d@1" in loader.machine.explain(model("b").key).summary


def test_all_victims_are_chosen_before_the_first_unload_and_none_when_they_do_not_suffice(
    pod: Pod, model: Model
) -> None:
    loader = pod({"big": 80})
    for waiter_id, name in enumerate("abc"):
        loader.use(waiter_id, model(name))
    loader.want(10, model("a"))  # in use
    loader.want(11, model("big"))
    loader.finish_fetch(only(loader.fetching))
    assert not loader.unloading, "60 bytes are evictable, 70 are missing: nothing may be unloaded in vain"
    loader.release(10)
    assert len(loader.unloading) == 3
    loader.run()
    assert 11 in loader.served


def test_a_copy_in_use_is_never_a_victim(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80})
    loader.want(1, model("a"))
    loader.run()
    loader.want(2, model("b"))
    loader.run()
    assert not loader.unloading
    assert resident(loader) == {"a"}
    loader.release(1)
    loader.run()
    assert 2 in loader.served


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_larger_than_the_pod_is_refused_and_not_fetched_twice(pod: Pod, model: Model) -> None:
    loader = pod({"huge": 101})
    assert loader.use(1, model("huge")) is RefusalKind.TOO_BIG
    assert "101 B on device:cpu" in loader.refused[1].message
    assert loader.use(2, model("huge")) is RefusalKind.TOO_BIG
    assert sum(isinstance(command, StartFetch) for command in loader.log) == 1
    assert loader.refused[2].retry_after_s is None


def test_a_declared_size_is_believed_up_to_twice_the_estimate_and_never_turns_a_model_away(
    pod: Pod, model: Model
) -> None:
    loader = pod()
    loader.want(1, model("a", size_hint=Bytes.of(CPU, 500)))
    loader.finish_fetch(only(loader.fetching))
    assert loader.machine.usage().used.total_bytes == 60
    loader.run()
    assert loader.machine.usage().used.total_bytes == 30, "then it was measured"
    assert loader.use(2, model("b", size_hint=Bytes.of(CPU, 6))) is None
    assert loader.machine.usage().used.total_bytes == 60, "a declaration below the estimate counts for nothing"


def test_where_an_estimate_cannot_know_what_is_declared_counts_in_full(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("code", size_hint=Bytes.of(CPU, 90)))
    copy_id = only(loader.fetching)
    del loader.fetching[copy_id]
    loader.send(Fetched(copy_id, Bytes.of(CPU, 30), estimate_knows=False))
    assert loader.machine.usage().used.total_bytes == 90
    loader.want(2, model("more-code", size_hint=Bytes.of(CPU, 500)))
    other_id = only(loader.fetching)
    del loader.fetching[other_id]
    loader.send(Fetched(other_id, Bytes.of(CPU, 30), estimate_knows=False))
    assert loader.refused[2].kind is RefusalKind.TOO_BIG


def test_a_place_that_the_pod_does_not_have_is_too_big(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.finish_fetch(only(loader.fetching), Bytes.of(Place("device", "cuda:0"), 1))
    assert loader.refused[1].kind is RefusalKind.TOO_BIG
    assert "cuda:0" in loader.refused[1].message


def test_who_has_waited_for_room_elsewhere_waits_less_here(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, space_wait_max_s=10.0)
    loader.want(1, model("a"))
    loader.run()
    loader.want(2, model("b"), space_wait_s=1.5)
    loader.run()
    loader.pass_time(1.4)
    assert 2 in loader.waiting
    loader.pass_time(1.5)
    assert loader.refused[2].kind is RefusalKind.FULL
    assert "found no room in 1.5 s" in loader.refused[2].message


def test_of_those_who_wait_for_one_model_the_most_patient_counts(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, space_wait_max_s=10.0)
    loader.want(1, model("a"))
    loader.run()
    loader.want(2, model("b"), space_wait_s=1.5)
    loader.want(3, model("b"))
    loader.run()
    loader.pass_time(9.9)
    assert loader.waiting >= {2, 3}
    loader.pass_time(10.0)
    assert loader.refused.keys() == {2, 3}


def test_when_everything_stays_in_use_the_claim_ends_as_full_with_a_hint(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, space_wait_max_s=10.0)
    loader.want(1, model("a"))
    loader.run()
    loader.want(2, model("b"))
    loader.run()
    loader.pass_time(9.9)
    assert 2 in loader.waiting
    loader.pass_time(10.0)
    assert loader.refused[2].kind is RefusalKind.FULL
    assert loader.refused[2].retry_after_s == 1.0
    loader.want(3, model("b"))
    assert loader.refused[3].kind is RefusalKind.FULL, "the back-off keeps it from holding up the line again at once"
    loader.machine.validate()


def test_bytes_that_are_pinned_are_not_waited_for(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, pinned_bytes_per_tenant_max=100)
    loader.use(1, model("a", pinned=True))
    assert loader.use(2, model("b")) is RefusalKind.FULL
    assert "pinned" in loader.refused[2].message


def test_waiters_are_bounded_per_model_and_in_all(pod: Pod, model: Model) -> None:
    loader = pod(waiters_per_model_max=2, waiters_total_max=3, loads_pending_max=3)
    for waiter_id, name in enumerate(["a", "a", "a", "b", "b"]):
        loader.want(waiter_id, model(name))
    assert {waiter_id: refusal.kind for waiter_id, refusal in loader.refused.items()} == {
        2: RefusalKind.OVERLOADED,
        4: RefusalKind.OVERLOADED,
    }
    assert loader.refused[2].retry_after_s is not None


def test_models_on_their_way_in_are_bounded(pod: Pod, model: Model) -> None:
    loader = pod(loads_pending_max=1)
    loader.want(1, model("a"))
    loader.want(2, model("b"))
    assert loader.refused[2].kind is RefusalKind.OVERLOADED


def test_a_deadline_shorter_than_the_predicted_load_fails_at_once_and_the_retry_finds_the_copy(
    pod: Pod, model: Model
) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.now_s = 2.0
    loader.finish_fetch(only(loader.fetching))
    loader.now_s = 3.0
    loader.run()
    loader.release(1)
    loader.send(EvictRequest(model("a").key))
    loader.run()
    loader.want(2, model("a"), deadline_s=loader.now_s + 1.0)
    assert loader.refused[2].kind is RefusalKind.DEADLINE
    assert loader.refused[2].retry_after_s == pytest.approx(3.0)
    loader.run()
    loader.want(3, model("a"), deadline_s=loader.now_s + 1.0)
    assert 3 in loader.served
    loader.machine.validate()


def test_a_waiter_is_refused_when_its_deadline_passes_and_the_load_goes_on(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"), deadline_s=1.0)
    loader.pass_time(1.0)
    assert loader.refused[1].kind is RefusalKind.DEADLINE
    assert "fetching" in loader.refused[1].message
    loader.run()
    assert resident(loader) == {"a"}


def test_a_waiter_without_a_deadline_is_answered_in_the_end(pod: Pod, model: Model) -> None:
    loader = pod(wait_max_s=300.0)
    loader.want(1, model("a"))
    loader.pass_time(300.0)
    assert loader.refused[1].kind is RefusalKind.DEADLINE


def test_an_expired_request_loads_nothing(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.now_s = 5.0
    loader.want(1, model("a"), deadline_s=5.0)
    assert loader.refused[1].kind is RefusalKind.DEADLINE
    assert not loader.fetching


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_a_fetch_that_nobody_waits_for_is_cancelled_and_the_next_one_waits_for_its_end(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    first = only(loader.fetching)
    loader.send(Cancel(1))
    assert loader.refused[1].kind is RefusalKind.CANCELLED
    assert loader.cancelled == {first}
    loader.want(2, model("a"))
    assert list(loader.fetching) == [first]
    loader.fail_fetch(first)
    assert only(loader.fetching) != first
    loader.run()
    assert 2 in loader.served
    loader.machine.validate()


def test_a_load_that_nobody_waits_for_any_more_is_finished(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.finish_fetch(only(loader.fetching))
    loader.send(Cancel(1))
    assert not any(isinstance(command, CancelLoad) for command in loader.log)
    loader.run()
    assert resident(loader) == {"a"}


def test_one_of_many_waiters_may_leave(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.want(2, model("a"))
    loader.send(Cancel(1))
    loader.send(Cancel(1))
    loader.send(Cancel(99))
    loader.run()
    assert set(loader.served) == {2}
    assert not loader.cancelled


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_permanent_failure_is_not_tried_again_until_the_generation_changes(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.fail_fetch(only(loader.fetching), PERMANENT)
    assert loader.refused[1].kind is RefusalKind.LOAD_FAILED_PERMANENT
    loader.now_s = 1e9
    loader.want(2, model("a"))
    assert loader.refused[2].kind is RefusalKind.LOAD_FAILED_PERMANENT
    assert "corrupt" in loader.machine.explain(model("a").key).summary
    loader.want(3, model("a", generation=2))
    assert 3 in loader.waiting


def test_transient_failures_back_off_and_the_pause_doubles(pod: Pod, model: Model) -> None:
    loader = pod(failure_backoff_base_s=1.0, failure_backoff_max_s=3.0)
    pauses = []
    for attempt in range(4):
        loader.want(attempt, model("a"))
        loader.finish_fetch(only(loader.fetching))
        loader.fail_load(only(loader.loading), TRANSIENT)
        refusal = loader.refused[attempt]
        assert refusal.kind is RefusalKind.LOAD_FAILED_TRANSIENT
        assert refusal.retry_after_s is not None
        pauses.append(refusal.retry_after_s)
        loader.now_s += refusal.retry_after_s
    assert pauses == [1.0, 2.0, 3.0, 3.0]
    assert loader.use(10, model("a")) is None
    assert loader.machine.usage().used.total_bytes == 30


def test_a_forgiven_model_is_tried_at_once(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.fail_fetch(only(loader.fetching), PERMANENT)
    loader.send(Forgive(model("a").key))
    assert loader.use(2, model("a")) is None


def test_a_failing_unload_keeps_its_bytes_and_is_tried_again(pod: Pod, model: Model) -> None:
    loader = pod({"a": 60, "b": 60})
    loader.use(1, model("a"))
    loader.want(2, model("b"))
    loader.finish_fetch(only(loader.fetching))
    loader.fail_unload(only(loader.unloading))
    assert loader.machine.usage().used.total_bytes == 60
    assert loader.refused[2].kind is RefusalKind.FULL
    loader.machine.validate()
    loader.pass_time(loader.now_s + 1.0)
    loader.run()
    assert loader.machine.usage().used.total_bytes == 0
    assert loader.use(3, model("b")) is None


def test_a_crashed_copy_admits_nobody_and_leaves_with_its_last_holder(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.run()
    loader.send(Crashed(loader.served[1], "the worker process died"))
    assert loader.machine.servable(model("a").key) is None
    assert not loader.unloading
    loader.want(2, model("a"))
    assert 2 in loader.waiting
    loader.release(1)
    loader.run()
    assert 2 in loader.served
    loader.machine.validate()


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_reserved_next_time(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.finish_fetch(only(loader.fetching), Bytes.of(CPU, 90))
    loader.finish_load(only(loader.loading), Bytes.of(CPU, 40))
    assert loader.machine.usage().used.total_bytes == 40
    loader.release(1)
    loader.send(EvictRequest(model("a").key))
    loader.run()
    loader.want(2, model("a"))
    loader.finish_fetch(only(loader.fetching), Bytes.of(CPU, 90))
    assert loader.machine.usage().used.total_bytes == 40


def test_a_copy_that_grew_evicts_others_before_it_serves(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.use(1, model("a"))
    loader.use(2, model("b"))
    loader.want(3, model("c"))
    loader.finish_fetch(only(loader.fetching))
    loader.finish_load(only(loader.loading), Bytes.of(CPU, 60))
    assert 3 in loader.waiting
    assert loader.machine.usage().used.total_bytes == 100
    assert loader.machine.usage().overdraft.total_bytes == 20
    loader.machine.validate()
    loader.finish_unload(only(loader.unloading))
    assert 3 in loader.served
    assert loader.machine.usage().used.total_bytes == 90


def test_a_copy_that_grew_beyond_the_pod_is_unloaded_and_refused_for_good(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.finish_fetch(only(loader.fetching))
    loader.finish_load(only(loader.loading), Bytes.of(CPU, 101))
    assert loader.refused[1].kind is RefusalKind.TOO_BIG
    loader.run()
    assert loader.machine.usage().used.total_bytes == 0
    assert loader.use(2, model("a")) is RefusalKind.TOO_BIG
    loader.machine.validate()


def test_a_servable_copy_may_grow_and_shrink(pod: Pod, model: Model) -> None:
    loader = pod()
    for waiter_id, name in enumerate("abc"):
        loader.now_s += 1
        loader.use(waiter_id, model(name))
    copy = loader.machine.servable(model("c").key)
    assert copy is not None
    loader.send(Resized(copy.copy_id, Bytes.of(CPU, 50)))
    assert [key.model_id for key in loader.unloading.values()] == ["a"]
    loader.run()
    assert loader.machine.usage().used.total_bytes == 80
    loader.send(Resized(copy.copy_id, Bytes.of(CPU, 10)))
    assert loader.machine.usage().used.total_bytes == 40
    loader.machine.validate()


def test_a_late_measurement_of_a_copy_that_left_is_ignored(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.use(1, model("a"))
    copy = loader.machine.servable(model("a").key)
    assert copy is not None
    loader.send(EvictRequest(model("a").key))
    loader.run()
    loader.send(Resized(copy.copy_id, Bytes.of(CPU, 50)))
    assert loader.machine.usage().used.total_bytes == 0


# -- order ------------------------------------------------------------------------------------------------------------


def test_loads_go_by_foreground_then_priority_then_urgency_then_arrival(pod: Pod, model: Model) -> None:
    loader = pod({}, 1000, loads_concurrent_max=1, fetches_concurrent_max=1, patience_s=5.0)
    loader.want(0, model("first"))
    loader.want(1, model("guess", priority=9), background=True)
    loader.want(2, model("patient"))
    loader.want(3, model("urgent"), deadline_s=2.0)
    loader.want(4, model("important", priority=1), deadline_s=100.0)
    loader.want(5, model("patient too"))
    assert [entry.key.model_id for entry in loader.machine.queue()] == [
        "important", "urgent", "first", "patient", "patient too", "guess",
    ]  # fmt: skip
    loader.run()
    started = [command.key.model_id for command in loader.log if isinstance(command, StartLoad)]
    assert started == ["first", "important", "urgent", "patient", "patient too", "guess"]


def test_bytes_that_come_free_are_not_given_to_those_behind_a_large_model(pod: Pod, model: Model) -> None:
    loader = pod({"big": 90, "small": 10})
    loader.want(1, model("a"))
    loader.want(2, model("b"))
    loader.want(3, model("c"))
    loader.run()
    loader.want(4, model("big"))
    loader.now_s = 0.1
    loader.want(5, model("small"))
    for copy_id in list(loader.fetching):
        loader.finish_fetch(copy_id)
    assert not loader.loading, "10 bytes are free, but the large one is first in the line"
    for waiter_id in (1, 2, 3):
        loader.release(waiter_id)
    loader.run()
    assert {4, 5} <= set(loader.served)


def test_what_the_first_in_line_does_not_need_is_given_on(pod: Pod, model: Model) -> None:
    loader = pod({"big": 70, "small": 10, "a": 60})
    loader.use(1, model("a"))
    loader.want(4, model("big"))
    loader.now_s = 0.1
    loader.want(5, model("small"))
    for copy_id in list(loader.fetching):
        loader.finish_fetch(copy_id)
    assert [key.model_id for key in loader.unloading.values()] == ["a"]
    assert [key.model_id for key in loader.loading.values()] == ["small"]


def test_loads_and_fetches_are_bounded(pod: Pod, model: Model) -> None:
    loader = pod({}, 1000, loads_concurrent_max=2, fetches_concurrent_max=3)
    for waiter_id in range(10):
        loader.want(waiter_id, model(f"m{waiter_id}"))
    assert len(loader.fetching) == 3
    for copy_id in list(loader.fetching):
        loader.finish_fetch(copy_id)
    assert len(loader.loading) == 2
    assert len(loader.fetching) == 3


def test_a_background_load_takes_free_bytes_and_evicts_nobody(pod: Pod, model: Model) -> None:
    loader = pod()
    for waiter_id, name in enumerate("abc"):
        loader.want(waiter_id, model(name), background=True)
        loader.run()
        loader.release(waiter_id)
    loader.want(9, model("d"), background=True)
    loader.run()
    assert loader.refused[9].kind is RefusalKind.FULL
    assert resident(loader) == {"a", "b", "c"}
    assert loader.use(10, model("d")) is None, "a request is not held back by a guess that found no room"


def test_a_background_load_may_evict_when_the_limits_say_so(pod: Pod, model: Model) -> None:
    loader = pod(background_may_evict=True)
    for waiter_id, name in enumerate("abc"):
        loader.use(waiter_id, model(name))
    loader.want(9, model("d"), background=True)
    loader.run()
    assert 9 in loader.served


# -- residency, pins, ttl ---------------------------------------------------------------------------------------------


def test_a_copy_of_higher_priority_outlives_one_that_was_used_later(pod: Pod, model: Model) -> None:
    loader = pod({"c": 60})
    loader.use(1, model("a", priority=5))
    loader.use(2, model("b"))
    loader.want(3, model("c"))
    loader.run()
    assert resident(loader) == {"a", "c"}


def test_a_copy_that_loads_in_no_time_is_not_protected_for_long(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, residency_min_s=3.0, residency_load_times=10.0)
    loader.use(1, model("a"))
    loader.want(2, model("b"))
    loader.run()
    assert 2 in loader.served


def test_a_young_copy_is_evicted_only_after_the_request_has_waited(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, residency_min_s=3.0, residency_load_times=inf, residency_override_wait_s=1.0)
    loader.use(1, model("a"))
    loader.want(2, model("b"))
    loader.run()
    assert resident(loader) == {"a"}
    loader.pass_time(0.99)
    assert not loader.unloading
    loader.pass_time(1.0)
    assert [key.model_id for key in loader.unloading.values()] == ["a"]
    loader.run()
    assert 2 in loader.served


def test_a_copy_past_its_residency_goes_before_the_override(pod: Pod, model: Model) -> None:
    loader = pod({"b": 80}, residency_min_s=0.5, residency_override_wait_s=100.0)
    loader.use(1, model("a"))
    loader.want(2, model("b"))
    loader.run()
    loader.pass_time(0.5)
    loader.run()
    assert 2 in loader.served


def test_what_would_be_loaded_again_at_once_leaves_only_when_no_other_does(pod: Pod, model: Model) -> None:
    loader = pod({"big": 80})
    loader.use(1, model("kept", comes_back=True))
    for waiter_id, name in enumerate("bcde", start=2):
        loader.now_s += 1
        loader.use(waiter_id, model(name, priority=9))
    assert resident(loader) == {"kept", "d", "e"}
    loader.use(9, model("big"))
    assert resident(loader) == {"big"}, "it is no pin"


def test_pinned_copies_are_never_evicted_and_unpinning_frees_them(pod: Pod, model: Model) -> None:
    loader = pod(pinned_bytes_per_tenant_max=60)
    loader.use(1, model("a", pinned=True))
    for waiter_id, name in enumerate("bcde", start=2):
        loader.now_s += 1
        loader.use(waiter_id, model(name))
    assert "a" in resident(loader)
    loader.send(SetPinned(model("a").key, False))
    loader.use(10, model("f"))
    assert "a" not in resident(loader)


def test_pins_beyond_the_tenants_limit_are_loaded_unpinned_with_the_reason(pod: Pod, model: Model) -> None:
    loader = pod(pinned_bytes_per_tenant_max=50)
    loader.use(1, model("a", pinned=True))
    loader.use(2, model("b", pinned=True))
    loader.use(3, model("c", tenant="other", pinned=True))
    views = {view.key.model_id: view.pinned for view in loader.machine.copies()}
    assert views == {"a": True, "b": False, "c": True}
    explanation = loader.machine.explain(model("b").key)
    assert "not pinned although" in explanation.summary
    assert any("30 of 50 bytes" in note.text for note in explanation.notes)
    assert loader.machine.usage().pinned_bytes_by_tenant == {"default": 30, "other": 30}
    loader.machine.validate()


def test_an_idle_copy_leaves_after_its_time_to_live_and_one_in_use_stays(pod: Pod, model: Model) -> None:
    loader = pod(ttl_s=10.0)
    loader.want(1, model("a"))
    loader.want(2, model("b", ttl_s=0.0))
    loader.run()
    loader.release(2)
    loader.pass_time(50.0)
    assert resident(loader) == {"a", "b"}
    loader.release(1)
    loader.pass_time(59.9)
    assert resident(loader) == {"a", "b"}
    loader.pass_time(70.0)
    loader.run()
    assert resident(loader) == {"b"}


def test_priority_and_pins_of_unknown_models_are_ignored(pod: Pod, model: Model) -> None:
    loader = pod()
    assert loader.send(SetPriority(model("a").key, 3)) == []
    assert loader.send(SetPinned(model("a").key, True)) == []
    assert loader.send(EvictRequest(model("a").key)) == []
    assert loader.send(Tick()) == []


# -- retiring and draining --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1])
def test_a_retired_model_refuses_its_waiters_and_cancels_its_load(pod: Pod, model: Model, steps: int) -> None:
    loader = pod()
    loader.want(1, model("a"))
    if steps:
        loader.finish_fetch(only(loader.fetching))
    loader.send(Retire(model("a").key))
    assert loader.refused[1].kind is RefusalKind.GONE
    assert loader.cancelled
    loader.want(2, model("a"))
    assert loader.refused[2].kind is RefusalKind.GONE
    loader.run()
    assert loader.machine.usage().used.total_bytes == 0
    assert not loader.machine.copies()


def test_a_retired_copy_serves_those_who_hold_it_and_leaves_with_the_last(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.want(2, model("a"))
    loader.run()
    loader.send(Retire(model("a").key))
    assert loader.machine.servable(model("a").key) is None
    loader.release(1)
    assert not loader.unloading
    loader.release(2)
    assert len(loader.unloading) == 1
    loader.machine.validate()


def test_a_load_that_ends_after_its_model_was_retired_teaches_nothing(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.finish_fetch(only(loader.fetching))
    loader.send(Retire(model("a").key))
    loader.finish_load(only(loader.loading), Bytes.of(CPU, 99))
    assert loader.machine.explain(model("a").key).known_size is None
    loader.run()
    assert loader.machine.usage().used.total_bytes == 0


def test_retirement_is_forgotten_after_a_while_or_on_request(pod: Pod, model: Model) -> None:
    loader = pod(retired_remembered_s=10.0)
    loader.send(Retire(model("a").key))
    loader.send(Forgive(model("a").key))
    assert loader.use(1, model("a")) is None
    loader.send(Retire(model("b").key))
    loader.now_s = 11.0
    assert loader.use(2, model("b")) is None


def test_an_operator_may_evict_a_pinned_copy(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.use(1, model("a", pinned=True))
    loader.send(EvictRequest(model("a").key))
    loader.run()
    assert resident(loader) == set()


def test_a_draining_pod_finishes_what_waits_and_takes_nothing_new(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    loader.send(Drain())
    loader.want(2, model("a"))
    assert loader.refused[2].kind is RefusalKind.DRAINING
    loader.run()
    assert 1 in loader.served


# -- mistakes of the caller -------------------------------------------------------------------------------------------


def test_an_impossible_event_prints_the_story_of_the_copy(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.use(1, model("a"))
    copy = loader.machine.servable(model("a").key)
    assert copy is not None
    with pytest.raises(InvalidTransition, match=r"Unloaded does not fit its state 'servable'(.|\n)*loaded -> servable"):
        loader.machine.handle(Unloaded(copy.copy_id), 0.0)
    loader.send(EvictRequest(model("a").key))
    loader.run()
    with pytest.raises(InvalidTransition, match=r"gone or never was(.|\n)*unloaded -> gone"):
        loader.machine.handle(Unloaded(copy.copy_id), 0.0)
    with pytest.raises(InvalidTransition, match="an unknown model"):
        loader.machine.handle(Fetched(999, Bytes()), 0.0)


def test_an_unpin_too_many_is_an_error(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.use(1, model("a"))
    copy = loader.machine.servable(model("a").key)
    assert copy is not None
    with pytest.raises(InvalidTransition, match="more often than pinned"):
        loader.machine.unpin(copy, 0.0)
    assert copy.pins == 0


def test_a_waiter_id_is_used_once(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    with pytest.raises(AssertionError):
        loader.want(1, model("a"))


def test_a_negative_size_is_refused(pod: Pod, model: Model) -> None:
    loader = pod()
    loader.want(1, model("a"))
    with pytest.raises(ValueError, match="zero or more"):
        loader.machine.handle(Fetched(only(loader.fetching), Bytes.of(CPU, -1)), 0.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"loads_concurrent_max": 0},
        {"residency_min_s": -1.0},
        {"load_time_weight": 0.0},
        {"capacity": Bytes.of(CPU, -1)},
        {"wait_max_s": float("nan")},
    ],
)
def test_limits_that_would_stop_the_machine_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CacheLimits(**({"capacity": Bytes.of(CPU, 1)} | bad))  # type: ignore[arg-type]


def test_a_pod_without_capacity_refuses_everything_and_works(model: Model) -> None:
    loader = FakeLoader(CacheMachine(CacheLimits(capacity=Bytes())), lambda key: Bytes.of(CPU, 1))
    assert loader.use(1, model("a")) is RefusalKind.TOO_BIG
