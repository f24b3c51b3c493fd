"""What a pool wants to hear of, and to say about, the loads of a pod. A pod alone has hooks that do nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cache.types import ModelKey
from mesh.resident import Resident


async def _no_wait(key: ModelKey) -> None:
    """Nothing to wait for."""


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """Each is called on the event loop, and does nothing for a pod alone."""

    copies_changed: Callable[[Sequence[ModelKey]], None] = lambda keys: None
    """Copies of these models have changed their states."""
    before_load: Callable[[ModelKey], Awaitable[None]] = _no_wait
    """Awaited before a model is fetched; bounded by whoever implements it."""
    resident_changed: Callable[[Resident, bool], None] = lambda resident, here: None
    """A copy was loaded (True), or has left (False)."""
    is_elsewhere: Callable[[ModelKey], bool] = lambda key: False
    """Another pod serves or loads the model, so that it need not be brought in here before it is asked for."""
    crashed: Callable[[ModelKey], None] = lambda key: None
    """The process of a model's own died while it loaded the model or ran a request."""
