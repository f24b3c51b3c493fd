"""What the pool hears of the copies here: the state of each model, after every change of it."""

from __future__ import annotations

from typing import Any

from cache.commands import Command, StartFetch, StartLoad, StartUnload
from cache.events import Event, EvictRequest, Fetched, FetchFailed, Loaded, Unloaded, Want
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, Failure, FailureKind, ModelKey, Place, WantedModel
from mesh.routing.publishing import PARKED_PER_TURN_MAX, Publisher
from placement.policy.snapshot import Copy, LoadFailure, ModelName, Parked

CPU = Place("device", "cpu")
M = ModelName("t", "m")


class Here:
    """A cache and its publisher; the store is a few dictionaries, the disk one."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cache = CacheMachine(CacheLimits(capacity=Bytes.of(CPU, 1000)))
        self.copies: dict[ModelName, Copy | None] = {}
        self.failures: dict[ModelName, LoadFailure | None] = {}
        self.published_parked: dict[ModelName, Parked | None] = {}
        self.on_disk: dict[ModelName, Parked] = {}
        self.changed_on_disk: list[ModelName] = []
        self.intents_cleared = 0
        itself: Any = self
        self.publisher = Publisher(
            "me", self.cache, itself, itself, clock=lambda: self.now_s, wall_clock=lambda: 5000.0 + self.now_s
        )
        self.waiters = iter(range(1000))

    def set_copy(self, name: ModelName, copy: Copy | None) -> None:
        self.copies[name] = copy

    def set_parked(self, name: ModelName, parked: Parked | None) -> None:
        self.published_parked[name] = parked

    def parked(self, name: ModelName) -> Parked | None:
        return self.on_disk.get(name)

    def take_changed(self, limit: int) -> list[ModelName]:
        taken, self.changed_on_disk = self.changed_on_disk[:limit], self.changed_on_disk[limit:]
        return taken

    def set_failure(self, name: ModelName, failure: LoadFailure | None) -> None:
        self.failures[name] = failure

    def clear_intent(self, name: ModelName) -> None:
        self.intents_cleared += 1

    def send(self, event: Event) -> list[Command]:
        commands = self.cache.handle(event, self.now_s)
        self.publisher.changed(self.cache.take_changed())
        return commands

    def want(self, generation: int = 1) -> int:
        """Ask for a generation; the id of the copy that is being fetched."""
        wanted = WantedModel(ModelKey(*M, generation))
        commands = self.send(Want(next(self.waiters), wanted, background=True))
        return next(command.copy_id for command in commands if isinstance(command, StartFetch))

    def load(self, copy_id: int) -> None:
        commands = self.send(Fetched(copy_id, Bytes.of(CPU, 100)))
        assert any(isinstance(command, StartLoad) for command in commands)
        self.send(Loaded(copy_id, Bytes.of(CPU, 120)))


def test_a_copy_is_published_as_loading_then_as_servable_with_its_size() -> None:
    here = Here()
    copy_id = here.want()
    assert here.copies[M] == Copy("me", 0, 1, 0, 5100.0)
    assert here.publisher.is_loading(M, 1)
    here.now_s = 101.0
    here.load(copy_id)
    assert here.copies[M] == Copy("me", 1, 0, 120, 5101.0)
    assert here.publisher.servable_generation(M) == 1
    assert here.intents_cleared > 0


def test_a_copy_that_leaves_is_withdrawn_before_its_bytes_are_free() -> None:
    here = Here()
    here.load(here.want())
    copy = here.cache.servable(ModelKey(*M, 1))
    assert copy is not None
    here.cache.unpin(copy, here.now_s)
    commands = here.send(EvictRequest(ModelKey(*M, 1)))
    (unload,) = [command for command in commands if isinstance(command, StartUnload)]
    assert here.copies[M] is None
    here.send(Unloaded(unload.copy_id))
    assert here.copies[M] is None


def test_a_new_generation_comes_in_beside_the_old_one() -> None:
    here = Here()
    here.load(here.want(1))
    copy_id = here.want(2)
    published = here.copies[M]
    assert published is not None
    assert (published.servable, published.loading) == (1, 2)
    here.load(copy_id)
    published = here.copies[M]
    assert published is not None
    assert (published.servable, published.loading) == (2, 0)


def test_what_is_on_the_disk_is_told_when_there_is_no_copy_to_tell_of() -> None:
    here = Here()
    copy_id = here.want()
    here.on_disk[M] = Parked("me", 1)
    here.changed_on_disk = [M]
    here.publisher.review_parked()
    assert here.published_parked[M] is None, "it is being loaded"
    here.load(copy_id)
    here.on_disk[M] = Parked("me", 1, 0.2)
    copy = here.cache.servable(ModelKey(*M, 1))
    assert copy is not None
    here.cache.unpin(copy, here.now_s)
    here.send(EvictRequest(ModelKey(*M, 1)))
    assert (here.copies[M], here.published_parked[M]) == (None, Parked("me", 1, 0.2))
    del here.on_disk[M]
    here.changed_on_disk = [M]
    here.publisher.review_parked()
    assert here.published_parked[M] is None


def test_many_artifacts_are_told_of_in_several_turns() -> None:
    here = Here()
    here.changed_on_disk = [ModelName("t", f"m{number}") for number in range(PARKED_PER_TURN_MAX + 1)]
    here.on_disk = {name: Parked("me", 1) for name in here.changed_on_disk}
    here.publisher.review_parked()
    assert len(here.published_parked) == PARKED_PER_TURN_MAX
    here.publisher.review_parked()
    assert here.published_parked == here.on_disk


def test_a_failure_is_published_until_it_may_be_tried_again() -> None:
    here = Here()
    here.send(FetchFailed(here.want(), Failure(FailureKind.TRANSIENT, "storage is away")))
    assert here.copies[M] is None
    failure = here.failures[M]
    assert failure is not None
    assert (failure.generation, failure.permanent, failure.message) == (1, False, "storage is away")
    here.publisher.review_failures()
    assert here.failures[M] is failure
    here.now_s += failure.retry_after_s + 0.1
    here.publisher.review_failures()
    assert here.failures[M] is None


def test_a_failure_for_good_is_withdrawn_by_the_next_generation_only() -> None:
    here = Here()
    here.send(FetchFailed(here.want(), Failure(FailureKind.PERMANENT, "no model")))
    here.now_s += 1e6
    here.publisher.review_failures()
    failure = here.failures[M]
    assert failure is not None
    assert failure.permanent
    here.load(here.want(2))
    here.publisher.review_failures()
    published = here.copies[M]
    assert published is not None
    assert published.servable == 2


def test_a_claim_that_led_to_no_load_is_withdrawn() -> None:
    here = Here()
    here.copies[M] = Copy("me", 0, 1, 0, 0.0)
    here.publisher.publish(M)
    assert here.copies[M] is None
