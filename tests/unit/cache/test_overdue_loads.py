"""Loads that take too long and cannot be stopped: their bytes count, their turn and their waiters do not."""

from __future__ import annotations

from collections.abc import Callable

from cache.events import Retire
from cache.fake_loader import FakeLoader
from cache.types import CopyState, Failure, FailureKind, RefusalKind, WantedModel

TOO_SLOW = Failure(FailureKind.TRANSIENT, "it did not load within 90 s")
Model = Callable[..., WantedModel]
Build = Callable[..., FakeLoader]


def start(loader: FakeLoader, waiter_id: int, model: WantedModel) -> int:
    """Bring a model to its load; the copy's id."""
    loader.want(waiter_id, model)
    (copy_id,) = loader.fetching
    loader.finish_fetch(copy_id)
    assert copy_id in loader.loading
    return copy_id


def test_its_waiters_are_told_and_its_bytes_stay(pod: Build, model: Model) -> None:
    loader = pod()
    copy_id = start(loader, 1, model("slow"))
    loader.overdue_load(copy_id, TOO_SLOW)
    assert loader.refused[1].kind is RefusalKind.LOAD_FAILED_TRANSIENT
    assert loader.refused[1].message == TOO_SLOW.message
    usage = loader.machine.usage()
    assert usage.copies_by_state[CopyState.OVERDUE] == 1
    assert usage.used.total_bytes == 30
    loader.machine.validate()


def test_its_turn_goes_to_another_load(pod: Build, model: Model) -> None:
    loader = pod(loads_concurrent_max=1)
    slow = start(loader, 1, model("slow"))
    loader.want(2, model("quick"))
    (quick,) = loader.fetching
    loader.finish_fetch(quick)
    assert quick not in loader.loading
    loader.overdue_load(slow, TOO_SLOW)
    assert quick in loader.loading


def test_when_it_comes_back_what_it_made_is_unloaded_and_it_goes_on_backing_off(pod: Build, model: Model) -> None:
    loader = pod()
    slow = start(loader, 1, model("slow"))
    loader.overdue_load(slow, TOO_SLOW)
    loader.finish_load(slow)
    assert slow in loader.unloading
    loader.finish_unload(slow)
    assert loader.machine.usage().used.total_bytes == 0
    loader.want(2, model("slow"))
    assert loader.refused[2].kind is RefusalKind.LOAD_FAILED_TRANSIENT


def test_when_it_fails_in_the_end_its_bytes_are_free(pod: Build, model: Model) -> None:
    loader = pod()
    slow = start(loader, 1, model("slow"))
    loader.overdue_load(slow, TOO_SLOW)
    loader.fail_load(slow)
    assert loader.machine.usage().used.total_bytes == 0


def test_its_model_is_not_loaded_a_second_time_beside_it(pod: Build, model: Model) -> None:
    loader = pod(failure_backoff_base_s=1.0)
    slow = start(loader, 1, model("slow"))
    loader.overdue_load(slow, TOO_SLOW)
    loader.pass_time(20.0)
    loader.want(2, model("slow"))
    assert loader.fetching == {}
    assert 2 in loader.waiting
    loader.fail_load(slow)
    assert len(loader.fetching) == 1
    loader.run()
    assert 2 in loader.served


def test_a_cancelled_load_can_be_overdue_too_and_is_no_failure(pod: Build, model: Model) -> None:
    loader = pod(loads_concurrent_max=1)
    gone = start(loader, 1, model("gone"))
    loader.send(Retire(model("gone").key))
    loader.want(2, model("quick"))
    (quick,) = loader.fetching
    loader.finish_fetch(quick)
    loader.overdue_load(gone, TOO_SLOW)
    assert quick in loader.loading
    assert loader.machine.failure(model("gone").key, loader.now_s) is None
    loader.finish_load(gone)
    assert gone in loader.unloading
