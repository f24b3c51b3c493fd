"""Which models' artifacts lie on this pod's disk. The pool is told, so that a model comes back where it need not be
fetched.

The disk knows contents, by their hash; the pool knows models. Whoever keeps artifacts tells through one seam
(`DiskListener`): a content is on the disk for a generation of a model, a content is gone, a load from the disk took so
long. Of a model only the registered generation counts, and it is one content (`mesh.staging`).

After a restart nobody remembers which model brought which content. So all registered models are looked up on the disk
by what a fetch of them would ask for, and so is each generation that is registered later. Where the artifact was
changed under its URI meanwhile that is wrong, and a load will find out; it costs what a load from afar costs. How long
a load of such a content takes is asked of whoever keeps what was measured (`load_time_of`), one after the other and not
too fast: all pods of a pool may have restarted.

Copies say more than this: while a model has a copy here nothing is published of its artifact, which is held
(`mesh.routing.publishing`). Times are kept to one digit: they order pods, and equal values share memory in every pod.

Deliberately absent: what is evicted from the disk, and when (`runtime_adapters.artifacts`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from cache.types import ModelKey
from mesh.generations import key_of
from placement.policy.snapshot import ModelName, Parked
from placement.records import ModelRecord
from placement.registry import Registry

log = logging.getLogger("hexcomb.parking")

ENTRIES_MAX = 10_000
"""Models told of, those that were loaded or found last: every pod keeps what all pods tell."""
LOOKS_AT_ONCE = 100
"""Models looked up on the disk before others have their turn on the loop: about a millisecond."""
QUESTION_PAUSE_S = 0.02
"""Between two questions for the load time of a content: each is a read of the store."""
LOAD_LEAST_S = 0.001
"""Shorter loads are told as this."""


class DiskListener(Protocol):
    """Is told what lies on this pod's disk. Called on the event loop."""

    def on_disk(self, key: ModelKey, content: str) -> None:
        """The artifact of this generation is on the disk, as this content. May be said again."""

    def gone(self, content: str) -> None:
        """Nothing can be loaded from this content any more without a fetch. May be said of what nobody knows."""

    def loaded(self, key: ModelKey, load_s: float) -> None:
        """A load of this generation took so long, from when its artifact was on the disk."""


class Unheard:
    """A DiskListener for whom it makes no difference."""

    def on_disk(self, key: ModelKey, content: str) -> None:
        """See `DiskListener`."""

    def gone(self, content: str) -> None:
        """See `DiskListener`."""

    def loaded(self, key: ModelKey, load_s: float) -> None:
        """See `DiskListener`."""


@dataclass(slots=True)
class _Entry:
    generation: int
    content: str
    load_s: float = 0.0


class Parking:
    """A `DiskListener` that remembers, for this pod. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        registry: Registry,
        content_of: Callable[[ModelRecord], str | None],
        entries_max: int = ENTRIES_MAX,
        load_time_of: Callable[[str, str], Awaitable[float]] | None = None,
    ) -> None:
        """`content_of`: what the disk has of what a fetch of this model would bring, from earlier; None: nothing.
        `load_time_of`: what a load of this content of this format was measured to take, 0 if it was not; None: nobody
        knows."""
        self._own_pod = own_pod
        self._registry = registry
        self._content_of = content_of
        self._entries_max = entries_max
        self._entries: dict[ModelName, _Entry] = {}
        """Told of longest ago first."""
        self._models_of: dict[str, dict[ModelName, None]] = {}
        """By content."""
        self._changed: dict[ModelName, None] = {}
        self._looking: asyncio.Task[None] | None = None
        self._load_time_of = load_time_of
        self._untimed: dict[ModelName, None] = {}
        """Found on the disk, with nothing known of their loads."""
        self._asking: asyncio.Task[None] | None = None

    # What the disk tells --------------------------------------------------------------------------------------------

    def on_disk(self, key: ModelKey, content: str) -> None:
        """See `DiskListener`."""
        record = self._registry.model(key.tenant, key.model_id)
        if record is None or record.generation != key.generation:
            return
        name = ModelName(key.tenant, key.model_id)
        known = self._entries.pop(name, None)
        if known is not None and (known.generation, known.content) == (key.generation, content):
            self._entries[name] = known
            return
        if known is not None:
            self._unlink(name, known)
        self._entries[name] = _Entry(key.generation, content)
        self._models_of.setdefault(content, {})[name] = None
        self._changed[name] = None
        if len(self._entries) > self._entries_max:
            self._drop(next(iter(self._entries)))

    def gone(self, content: str) -> None:
        """See `DiskListener`."""
        for name in tuple(self._models_of.get(content, ())):
            self._drop(name)

    def loaded(self, key: ModelKey, load_s: float) -> None:
        """See `DiskListener`."""
        entry = self._entries.get(ModelName(key.tenant, key.model_id))
        if entry is not None and entry.generation == key.generation:
            entry.load_s = _told(load_s)

    # What the registry tells ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look for what is left from before this process."""
        self._looking = asyncio.get_running_loop().create_task(self._look_for_all())

    async def close(self) -> None:
        """Stop looking, and asking."""
        tasks = [task for task in (self._looking, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def registered(self, name: ModelName, record: ModelRecord | None) -> None:
        """This generation is new to this pod; None: there is no such model any more."""
        known = self._entries.get(name)
        if known is not None:
            self._drop(name)
        if record is not None:
            self._look_for(record)

    async def _look_for_all(self) -> None:
        found_before = len(self._entries)
        for number, record in enumerate(self._registry.view.every_model()):
            if number % LOOKS_AT_ONCE == 0:
                await asyncio.sleep(0)
            self._look_for(record)
        log.info("artifacts of %d models were on the disk from before", len(self._entries) - found_before)

    def _look_for(self, record: ModelRecord) -> None:
        content = self._content_of(record)
        if content is None:
            return
        self.on_disk(key_of(record), content)
        if self._load_time_of is not None:
            self._untimed[ModelName(record.tenant, record.id)] = None
            if self._asking is None or self._asking.done():
                self._asking = asyncio.get_running_loop().create_task(self._ask_times(self._load_time_of))

    async def _ask_times(self, load_time_of: Callable[[str, str], Awaitable[float]]) -> None:
        while self._untimed:
            name = next(iter(self._untimed))
            del self._untimed[name]
            entry, record = self._entries.get(name), self._registry.model(name.tenant, name.id)
            if entry is None or entry.load_s or record is None:
                continue
            load_s = await load_time_of(entry.content, record.spec.format or "")
            if load_s > 0 and not entry.load_s and self._entries.get(name) is entry:
                entry.load_s = _told(load_s)
                self._changed[name] = None
            await asyncio.sleep(QUESTION_PAUSE_S)

    # What there is --------------------------------------------------------------------------------------------------

    def parked(self, name: ModelName) -> Parked | None:
        """What this pod's disk has of a model, as the pool may know it."""
        entry = self._entries.get(name)
        return None if entry is None else Parked(self._own_pod, entry.generation, entry.load_s)

    def take_changed(self, limit: int) -> list[ModelName]:
        """Models whose artifact came or went since it was asked last, at most so many; the others next time."""
        taken = [name for name, _ in zip(self._changed, range(limit), strict=False)]
        for name in taken:
            del self._changed[name]
        return taken

    def _drop(self, name: ModelName) -> None:
        self._unlink(name, self._entries.pop(name))
        self._changed[name] = None

    def _unlink(self, name: ModelName, entry: _Entry) -> None:
        sharing = self._models_of[entry.content]
        del sharing[name]
        if not sharing:
            del self._models_of[entry.content]


def _told(load_s: float) -> float:
    """To one digit."""
    return float(f"{max(load_s, LOAD_LEAST_S):.1g}")
