"""What copies of a content were measured to take, kept in the store so that the next pod need not guess.

A profile belongs to a content and to what loads it (framework, version, CPU, device), not to a model's name: a model
that is registered anew, under another name or for another tenant, is known already. Any pod writes what it measured,
by compare-and-set, and only when it differs by more than `CHANGE_SHARE` from what is there: the same model measured by
a hundred pods is written once. A pod reads a profile when it first stages a content, never for a request.

Nobody depends on it. With the store away there is no profile, and the adapter's estimate counts; a write that fails is
dropped, and made up for by the next measurement. Profiles lie on leases of a month, which a pod that uses one begins
anew when half of it is over, so that what is used nowhere any more goes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

from cachetools import LRUCache

from placement.errors import LeaseNotFound, StoreError
from placement.keys import profile_key, profiles_of, split_key
from placement.store.base import KeyValueStore, Put, unchanged

log = logging.getLogger(__name__)

CHANGE_SHARE = 0.1
"""Smaller differences are the noise of measuring."""
KEPT_FOR_S = 30 * 86400.0
LEASE_SHARED_FOR_S = 86400.0
"""Profiles that a pod writes on one day share a lease."""
READ_WAIT_S = 0.3
"""A cold load waits no longer for a profile: estimates are nearly as good."""
REMEMBERED_MAX = 10_000
"""Profiles that a pod has seen in the store, about 0.5 KB each."""
RUNTIMES_MAX = 50
"""Of one content that are looked at: a pool has a few."""
PENDING_MAX = 1_000
"""Writes that wait; beyond it new ones are dropped."""
WRITE_TRIES_MAX = 3
"""Against other pods that write the same profile."""
TIMES_CHANGE_SHARE = 0.5
"""Load and run times vary with what else a pod does; they are worth a write only when they are far off."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What one copy takes, by place, and how long things last. Zero: not measured."""

    host_bytes: int
    mapped_bytes: int = 0
    device_bytes: int = 0
    workspace_bytes: int = 0
    """What a run takes on top, for requests of up to `request_bytes`."""
    request_bytes: int = 0
    peak_bytes: int = 0
    """What a load takes at its highest; a kernel built from a file may take a dozen times what stays."""
    load_s: float = 0.0
    """From the disk to being servable."""
    fetch_s: float = 0.0
    """From its storage to the disk, prepared."""
    run_s: float = 0.0
    """One run on one row."""
    measured_at_s: float = 0.0
    """Unix time."""

    @property
    def total_bytes(self) -> int:
        """Without runs."""
        return self.host_bytes + self.mapped_bytes + self.device_bytes

    def differs(self, other: Profile) -> bool:
        """Whether it is worth writing over the other: sizes, far-off times, larger requests that were seen."""
        sizes = ("host_bytes", "mapped_bytes", "device_bytes", "workspace_bytes")
        least_bytes = 0.01 * max(self.total_bytes, other.total_bytes)  # a small part of the whole may vary as it likes
        for name in sizes:
            if _far(getattr(self, name), getattr(other, name), CHANGE_SHARE, least_bytes):
                return True
        if _far(self.peak_bytes, other.peak_bytes, TIMES_CHANGE_SHARE, least_bytes):
            return True
        if self.request_bytes > other.request_bytes * (1 + CHANGE_SHARE):
            return True
        times = ("load_s", "fetch_s", "run_s")
        return any(_far(getattr(self, name), getattr(other, name), TIMES_CHANGE_SHARE, 1e-3) for name in times)

    def with_what_it_lacks(self, other: Profile) -> Profile:
        """Where this pod has measured nothing, what was known before stays."""
        lacking = {
            name: getattr(other, name)
            for name in ("peak_bytes", "load_s", "fetch_s", "run_s")
            if not getattr(self, name)
        }
        if self.request_bytes < other.request_bytes:
            lacking |= {"workspace_bytes": other.workspace_bytes, "request_bytes": other.request_bytes}
        return replace(self, **lacking)


def profile_to_json(profile: Profile) -> bytes:
    """The stored form."""
    return json.dumps({"version": 1, **asdict(profile)}, separators=(",", ":")).encode()


def profile_from_json(text: bytes) -> Profile | None:
    """None for what is not a profile that this version can read: it is only a guess that is lost."""
    try:
        data = json.loads(text)
        found = {field.name: data[field.name] for field in fields(Profile) if field.name in data}
        numbers = {name: float(value) if name.endswith("_s") else int(value) for name, value in found.items()}
        if any(not math.isfinite(value) or value < 0 for value in numbers.values()):
            return None
        return Profile(**numbers)  # type: ignore[arg-type]  # floats for seconds, ints for bytes
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


class ProfileStore:
    """Profiles of the pool, or of a pod alone. Belongs to the event loop."""

    def __init__(self, store: KeyValueStore, *, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time."""
        self._store = store
        self._clock = clock
        self._seen: LRUCache[str, Profile] = LRUCache(maxsize=REMEMBERED_MAX)
        self._pending: dict[str, Profile] = {}
        self._writing: asyncio.Task[None] | None = None
        self._lease = 0
        self._lease_granted_at_s = 0.0
        self.reads = 0
        self.found = 0
        self.writes = 0

    async def read(self, content_hash: str, runtime: str) -> Profile | None:
        """What is known of this content; None when nothing is, or the store does not say so in time."""
        key = profile_key(content_hash, runtime)
        if (seen := self._seen.get(key)) is not None:
            return seen
        self.reads += 1
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(READ_WAIT_S):
                found = await self._store.get(key)
            profile = None if found is None else profile_from_json(found.value)
            if profile is not None:
                self._seen[key] = profile
                self.found += 1
            return profile
        return None

    async def of_content(self, content_hash: str) -> dict[str, Profile]:
        """What is known of this content by what loads it, where it is not known what will; nothing where the store does
        not say so in time."""
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(READ_WAIT_S):
                page = await self._store.range(profiles_of(content_hash), limit=RUNTIMES_MAX)
            read = {split_key(item.key, 2)[1]: profile_from_json(item.value) for item in page.items}
            return {runtime: profile for runtime, profile in read.items() if profile is not None}
        return {}

    def note(self, content_hash: str, runtime: str, profile: Profile) -> None:
        """A copy was measured. Written by and by, if it tells others anything new."""
        key = profile_key(content_hash, runtime)
        seen = self._seen.get(key)
        if seen is not None and not _worth_writing(profile.with_what_it_lacks(seen), seen, self._clock()):
            return
        if key not in self._pending and len(self._pending) >= PENDING_MAX:
            return
        self._pending[key] = replace(profile, measured_at_s=self._clock())
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_pending())

    async def close(self) -> None:
        """Stop writing; what was not written is measured again some day."""
        self._pending.clear()
        if self._writing is not None:
            self._writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writing

    async def wait_written(self) -> None:
        """Until what was noted so far is written, or was given up."""
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def _write_pending(self) -> None:
        while self._pending:
            key, profile = next(iter(self._pending.items()))
            del self._pending[key]
            try:
                await self._write(key, profile)
            except StoreError as error:
                self._lease = 0
                log.debug("a profile was not written: %s", error)

    async def _write(self, key: str, profile: Profile) -> None:
        for _ in range(WRITE_TRIES_MAX):
            present = await self._store.get(key)
            before = None if present is None else profile_from_json(present.value)
            if before is not None:
                profile = profile.with_what_it_lacks(before)
                if not _worth_writing(profile, before, self._clock()):
                    self._seen[key] = before
                    return
            compare = unchanged(key, 0 if present is None else present.mod_revision)
            try:
                put = Put(key, profile_to_json(profile), lease=await self._current_lease())
                result = await self._store.txn([compare], [put])
            except LeaseNotFound:
                self._lease = 0
                continue
            if result.succeeded:
                self._seen[key] = profile
                self.writes += 1
                return

    async def _current_lease(self) -> int:
        now_s = self._clock()
        if not self._lease or not 0 <= now_s - self._lease_granted_at_s < LEASE_SHARED_FOR_S:
            self._lease = await self._store.grant_lease(KEPT_FOR_S + LEASE_SHARED_FOR_S)
            self._lease_granted_at_s = now_s
        return self._lease


def _worth_writing(profile: Profile, before: Profile, now_s: float) -> bool:
    return profile.differs(before) or now_s - before.measured_at_s > KEPT_FOR_S / 2


def _far(one: float, other: float, share: float, least: float) -> bool:
    return abs(one - other) > max(least, share * max(one, other))
