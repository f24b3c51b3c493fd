"""Waiters get their answers. Each Want has exactly one: `Serve` (`cache.serving`), or a refusal from here.

A refusal of one waiter says nothing about the others; the failure of a load does, so it is remembered for a while and
told to all who wait.
"""

from __future__ import annotations

from cache.commands import Refuse
from cache.copies import Copy, Waiter
from cache.state import PodState
from cache.timers import Alarm
from cache.types import Refusal, RefusalKind


def dismiss(state: PodState, waiter: Waiter) -> None:
    """The waiter is being answered; this is the only place where waiters leave."""
    copy = state.copies[waiter.copy_id]
    del state.waiters[waiter.waiter_id]
    del copy.waiters[waiter.waiter_id]
    copy.foreground_waiters -= not waiter.background
    copy.changed()
    state.timers.cancel(Alarm("deadline", waiter.waiter_id))


def refuse(state: PodState, waiter: Waiter, refusal: Refusal) -> None:
    """This one waiter gets no copy."""
    dismiss(state, waiter)
    state.out.append(Refuse(waiter.waiter_id, refusal))


def refuse_all(state: PodState, copy: Copy, refusal: Refusal) -> None:
    """Nobody who waits for this copy gets it, and nobody is taken to come back for it."""
    for waiter in list(copy.waiters.values()):
        refuse(state, waiter, refusal)
    copy.kept = False


def fail(state: PodState, copy: Copy, kind: RefusalKind, message: str) -> None:
    """Remember a failure of this copy's model, and tell those who wait."""
    refusal = state.failures.record(copy.key, kind, message, state.now_s)
    state.note(copy.key, copy.copy_id, f"{kind.value}: {message}")
    refuse_all(state, copy, refusal)
