"""A loader that loads nothing: the other side of CacheMachine, for tests and simulators.

It takes the machine's commands, remembers what is running, and answers only when it is told to, so that a test
chooses the order, the sizes and the failures. It is strict where the real loader is: a command that does not fit what
is running, or a second answer to one waiter, raises at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

from cache.commands import (
    CancelLoad,
    Command,
    Prefetch,
    Refuse,
    Serve,
    StartFetch,
    StartLoad,
    StartPark,
    StartReturn,
    StartUnload,
    WakeAt,
)
from cache.events import (
    Event,
    Fetched,
    FetchFailed,
    Loaded,
    LoadFailed,
    LoadOutOfMemory,
    LoadOverdue,
    Parked,
    ParkFailed,
    Tick,
    Unloaded,
    UnloadFailed,
    Want,
)
from cache.machine import CacheMachine
from cache.types import Bytes, Failure, FailureKind, ModelKey, Refusal, RefusalKind, Shared, WantedModel

CANCELLED = Failure(FailureKind.TRANSIENT, "the load was cancelled")


@dataclass(slots=True)
class FakeLoader:
    """Drives one machine in virtual time."""

    machine: CacheMachine
    size_of: Callable[[ModelKey], Bytes]
    """What a copy is estimated and measured to take, unless an answer says otherwise."""
    shared_of: Callable[[ModelKey], Shared] = lambda key: ()
    """The parts of that which other copies may hold, too."""
    otherwise_of: Callable[[ModelKey], Bytes | None] = lambda key: None
    """What a copy takes where it may run when its device is full."""
    peers_of: Callable[[ModelKey], tuple[Bytes, ...]] = lambda key: ()
    """What it takes on other devices than its first."""
    parks_of: Callable[[ModelKey], Bytes | None] = lambda key: None
    """What a copy takes parked; None: it cannot be."""
    now_s: float = 0.0
    fetching: dict[int, ModelKey] = field(default_factory=dict)
    loading: dict[int, ModelKey] = field(default_factory=dict)
    unloading: dict[int, ModelKey] = field(default_factory=dict)
    loaded: dict[int, ModelKey] = field(default_factory=dict)
    parking: dict[int, ModelKey] = field(default_factory=dict)
    parked: dict[int, ModelKey] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    served: dict[int, int] = field(default_factory=dict)
    """waiter -> the copy that is pinned for it."""
    refused: dict[int, Refusal] = field(default_factory=dict)
    prefetches: list[Prefetch] = field(default_factory=list)
    """What the machine thinks worth bringing in; nothing is done about it unless a test does."""
    wake_at_s: float | None = None
    log: list[Command] = field(default_factory=list)

    def want(
        self,
        waiter_id: int,
        model: WantedModel,
        deadline_s: float | None = None,
        *,
        background: bool = False,
        space_wait_s: float = inf,
    ) -> None:
        """Someone wants this model."""
        if waiter_id in self.waiting or waiter_id in self.served or waiter_id in self.refused:
            raise AssertionError(f"waiter {waiter_id} was used before")
        self.waiting.add(waiter_id)
        self.send(Want(waiter_id, model, deadline_s, background, space_wait_s=space_wait_s))

    def send(self, event: Event) -> list[Command]:
        """Tell the machine, and take in what it commands."""
        commands = self.machine.handle(event, self.now_s)
        self.take(commands)
        return commands

    def take(self, commands: Iterable[Command]) -> None:
        """Begin what is commanded."""
        for command in commands:
            self.log.append(command)
            match command:
                case StartFetch(key, copy_id):
                    assert key not in self.fetching.values(), f"{key} is being fetched twice"
                    self.fetching[copy_id] = key
                case StartLoad(key, copy_id):
                    assert key not in self.loading.values(), f"{key} is being loaded twice"
                    assert copy_id not in self.loaded, f"copy {copy_id} is loaded twice"
                    self.loading[copy_id] = key
                case StartUnload(key, copy_id):
                    assert copy_id in self.loaded or copy_id in self.parked, f"{key}: nothing to unload"
                    assert copy_id not in self.unloading, f"{key} is being unloaded twice"
                    assert copy_id not in self.served.values(), f"{key} is unloaded while in use"
                    self.unloading[copy_id] = key
                case StartPark(key, copy_id):
                    assert copy_id in self.loaded, f"{key}: nothing to park"
                    assert copy_id not in self.served.values(), f"{key} is parked while in use"
                    self.parking[copy_id] = self.loaded.pop(copy_id)
                case StartReturn(key, copy_id):
                    assert copy_id in self.parked, f"{key}: nothing is parked"
                    self.loading[copy_id] = self.parked.pop(copy_id)
                case CancelLoad(copy_id):
                    assert copy_id in self.fetching or copy_id in self.loading, f"copy {copy_id} is not on its way"
                    self.cancelled.add(copy_id)
                case Serve(waiter_id, copy_id):
                    self.waiting.remove(waiter_id)
                    assert copy_id in self.loaded, f"waiter {waiter_id} is served from a copy that is not loaded"
                    self.served[waiter_id] = copy_id
                case Refuse(waiter_id, refusal):
                    self.waiting.remove(waiter_id)
                    self.refused[waiter_id] = refusal
                case Prefetch():
                    self.prefetches.append(command)
                case WakeAt(at_s):
                    self.wake_at_s = at_s

    def finish_fetch(self, copy_id: int, size: Bytes | None = None, shared: Shared | None = None) -> None:
        """The fetch succeeds."""
        key = self.fetching.pop(copy_id)
        self.send(
            Fetched(
                copy_id,
                self.size_of(key) if size is None else size,
                shared=self._shared(key, size, shared),
                otherwise=self.otherwise_of(key) if size is None else None,
                peers=self.peers_of(key) if size is None else (),
            )
        )

    def fail_fetch(self, copy_id: int, failure: Failure = CANCELLED) -> None:
        """The fetch fails."""
        del self.fetching[copy_id]
        self.send(FetchFailed(copy_id, failure))

    def finish_load(self, copy_id: int, size: Bytes | None = None, shared: Shared | None = None) -> None:
        """The load succeeds."""
        key = self.loaded[copy_id] = self.loading.pop(copy_id)
        self.send(
            Loaded(
                copy_id,
                self._measured(copy_id, key) if size is None else size,
                shared=self._shared(key, size, shared),
                parks=self.parks_of(key),
            )
        )

    def _measured(self, copy_id: int, key: ModelKey) -> Bytes:
        copy, otherwise = self.machine.copy(copy_id), self.otherwise_of(key)
        if copy.parked:
            return copy.returns
        if otherwise is not None and copy.elsewhere:
            return otherwise
        return (self.size_of(key), *self.peers_of(key))[copy.device_index]

    def _shared(self, key: ModelKey, size: Bytes | None, shared: Shared | None) -> Shared:
        if shared is not None:
            return shared
        return self.shared_of(key) if size is None else ()

    def fail_load(self, copy_id: int, failure: Failure = CANCELLED) -> None:
        """The load fails."""
        del self.loading[copy_id]
        self.send(LoadFailed(copy_id, failure))

    def run_out(self, copy_id: int, needed: Bytes) -> None:
        """The load finds no memory; so much is to be reserved instead."""
        del self.loading[copy_id]
        self.send(LoadOutOfMemory(copy_id, needed, "the load found no memory"))

    def overdue_load(self, copy_id: int, failure: Failure = CANCELLED) -> None:
        """The load takes too long, and goes on."""
        assert copy_id in self.loading
        self.send(LoadOverdue(copy_id, failure))

    def finish_park(self, copy_id: int, size: Bytes | None = None) -> None:
        """The copy lies in RAM."""
        key = self.parked[copy_id] = self.parking.pop(copy_id)
        measured = self.parks_of(key) if size is None else size
        assert measured is not None
        self.send(Parked(copy_id, measured))

    def fail_park(self, copy_id: int, message: str = "there is no pinned memory") -> None:
        """The copy stays where it is, to be unloaded."""
        self.loaded[copy_id] = self.parking.pop(copy_id)
        self.send(ParkFailed(copy_id, message))

    def finish_unload(self, copy_id: int) -> None:
        """The runtime confirms."""
        del self.unloading[copy_id]
        self.loaded.pop(copy_id, None)
        self.parked.pop(copy_id, None)
        self.send(Unloaded(copy_id))

    def fail_unload(self, copy_id: int, message: str = "the runtime did not answer") -> None:
        """The runtime does not confirm."""
        del self.unloading[copy_id]
        self.send(UnloadFailed(copy_id, message))

    def release(self, waiter_id: int) -> None:
        """The request that was served is done with its copy."""
        copy = self.machine.copy(self.served.pop(waiter_id))
        self.take(self.machine.unpin(copy, self.now_s))

    def run(self) -> None:
        """Answer all that runs, with success, oldest first, until nothing runs."""
        while self.fetching or self.loading or self.unloading or self.parking:
            for copy_id in list(self.parking):
                self.finish_park(copy_id)
            for copy_id in list(self.unloading):
                self.finish_unload(copy_id)
            for copy_id in list(self.loading):
                self.finish_load(copy_id)
            for copy_id in list(self.fetching):
                self.finish_fetch(copy_id)

    def pass_time(self, until_s: float) -> None:
        """Let time pass, with a Tick whenever the machine asked for one."""
        while self.wake_at_s is not None and self.wake_at_s <= until_s:
            self.now_s = max(self.now_s, self.wake_at_s)
            self.wake_at_s = None
            self.send(Tick())
        self.now_s = max(self.now_s, until_s)

    def use(self, waiter_id: int, model: WantedModel) -> RefusalKind | None:
        """One request from beginning to end, everything succeeding; the kind of its refusal, or None."""
        self.want(waiter_id, model)
        self.run()
        if waiter_id in self.served:
            self.release(waiter_id)
            self.run()
            return None
        return self.refused[waiter_id].kind
