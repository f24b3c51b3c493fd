"""One pod's cache: its own invariants, victims that are in use, and what it serves (for the other checkers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cache.commands import Command, StartUnload
from cache.events import Event
from cache.machine import CacheMachine
from cache.types import CopyState, ModelKey
from mesh.simulation.checking.truth import ServingTruth
from mesh.simulation.checking.violation import Violation


def watch_cache(
    cache: CacheMachine,
    machine: str,
    capacity_bytes: int,
    serving: ServingTruth,
    begins: Callable[[str, ModelKey], None],
    broke: Callable[[Violation], None],
    tell: Callable[[str], None],
) -> None:
    """Look at a cache after each event that it takes in. Replaces methods of this one instance.

    `begins` hears of each copy that enters the queue, `tell` of every change.
    """
    handle, take_changed = cache.handle, cache.take_changed

    def checked_handle(event: Event, now_s: float) -> list[Command]:
        commands = handle(event, now_s)
        try:
            _check_bytes(cache, machine, capacity_bytes)
            _check_victims(cache, machine, commands)
            _validate(cache, machine)
        except Violation as violation:
            broke(violation)
        return commands

    def noted_changes() -> Sequence[ModelKey]:
        keys = take_changed()
        for key in keys:
            current = cache.current(key)
            tell(f"{machine}: {key}: {'gone' if current is None else current.state.value}")
            if current is None:
                serving.stopped(machine, key)
            elif current.state is CopyState.SERVABLE:
                serving.is_serving(machine, key)
            elif serving.is_loading(machine, key):
                begins(machine, key)
        return keys

    cache.handle = checked_handle  # type: ignore[method-assign]
    cache.take_changed = noted_changes  # type: ignore[method-assign]


def _check_bytes(cache: CacheMachine, machine: str, capacity_bytes: int) -> None:
    used_bytes = cache.usage().used.total_bytes
    if used_bytes > capacity_bytes:
        raise Violation("memory is never oversold", f"{machine} uses {used_bytes:,} of {capacity_bytes:,} bytes")


def _check_victims(cache: CacheMachine, machine: str, commands: Sequence[Command]) -> None:
    for command in commands:
        if isinstance(command, StartUnload) and cache.copy(command.copy_id).pins:
            raise Violation("a copy in use is never a victim", f"{machine} unloads {command.key}: {command.reason}")


def _validate(cache: CacheMachine, machine: str) -> None:
    try:
        cache.validate()
    except AssertionError as error:
        raise Violation("the cache keeps its invariants", f"{machine}: {error}") from error
