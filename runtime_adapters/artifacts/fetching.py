"""One fetch, whoever waits for it: look, reserve, download, check, place, commit; and what is kept when that fails.

What the look finds decides: the content on disk, if for sure it is what lies at the URI; else a download, which goes on
where an earlier one stopped. A broken transfer is tried again, a few times.

Sources are looked at on one set of threads and downloaded on another, so that a model whose bytes are here already does
not wait behind ten gigabytes that are not. Owned by the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.content import ContentRecord, place_as_is, place_unpacked
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.disk_records import Origin
from runtime_adapters.artifacts.disk_tier import DiskTier
from runtime_adapters.artifacts.download import (
    Downloaded,
    FetchStopped,
    Hear,
    Stop,
    download,
    plan_exists,
    tree_hash,
)
from runtime_adapters.artifacts.errand import (
    Errand,
    Seen,
    check_sha256,
    known_object,
    origin_of,
    unchanged,
    with_bucket,
)
from runtime_adapters.artifacts.errors import ArtifactTooLarge, BadStorageConfig, FetchFailed
from runtime_adapters.artifacts.layers import place_layers, plan_layers
from runtime_adapters.artifacts.ledger import Reservation, disk_bytes
from runtime_adapters.artifacts.listing import Listing
from runtime_adapters.artifacts.look_room import LookRoom, room_for_looks
from runtime_adapters.artifacts.single_flight import in_thread
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.sources import open_source
from runtime_adapters.artifacts.unpack import OpenNew, UnpackLimits, plan_unpack
from runtime_adapters.errors import BadArtifact, LoadFailed

log = logging.getLogger("hexcomb.artifacts")

_OF_THIS_MACHINE = ("file", "pvc")
"""Where links decide what is read: a name alone tells neither whether it is trusted nor whether it is allowed."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How much, how long, how often."""

    bytes_max: int = 10 * 1024**3
    """Largest artifact, fetched or unpacked: beyond it the fetch is refused for good."""
    files_max: int = 10_000
    """Most files in a directory or an archive: each costs a request or an inode."""
    timeout_s: float = 600.0
    """Longest fetch, however many wait for it; it goes on where it stopped at the next try."""
    stall_timeout_s: float = 10.0
    """Longest silence of a server before the transfer is tried again. Also bounds how long a stop can take."""
    connect_timeout_s: float = 5.0
    """Longest wait for a connection."""
    attempts_max: int = 4
    """Tries of a broken transfer within one fetch."""
    retry_delay_s: float = 0.2
    """Wait before the second try; doubles with each further one."""
    concurrent_max: int = 8
    """Downloads at a time: one object-store stream does not fill a network card."""
    prepare_concurrent_max: int = 2
    """Preparations at a time: each takes a core and the model's memory."""
    unpack_ratio_max: float = 100.0
    """Bytes unpacked per byte of archive: weights compress by a few times, bombs by a thousand."""
    partial_age_max_s: float = 24 * 3600.0
    """Interrupted downloads older than this are deleted at the next start."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of one shared fetch; it holds one reference on its content."""

    record: ContentRecord
    fetched_bytes: int
    trusted: bool
    suffix: str


class Fetching:
    """Carries out fetches into one disk tier."""

    def __init__(
        self,
        disk: DiskTier,
        limits: FetchLimits,
        storage: StorageKeys,
        policy: SourcePolicy,
        create_file: OpenNew,
    ) -> None:
        self._disk = disk
        self._limits = limits
        self._storage = storage
        self._policy = policy
        self._create_file = create_file
        self._lookers = ThreadPoolExecutor(limits.concurrent_max, "artifact-look")
        self._workers = ThreadPoolExecutor(limits.concurrent_max, "artifact-fetch")

    async def close(self) -> None:
        """Wait until threads have let go of files; no fetch runs any more."""
        for executor in (self._lookers, self._workers):
            await asyncio.to_thread(executor.shutdown)

    async def run(self, errand: Errand, original: bool, hear: Hear | None, stop: Stop) -> Fetched:
        """One fetch, tried again while its transfer breaks; it holds a reference on its content. `original`: a prepared
        form that stands for the content is not enough. `hear`: what comes, if it is a single file. Raises BadArtifact
        (for good) or LoadFailed (for now)."""
        for attempt in itertools.count(1):
            try:
                async with room_for_looks(self._disk) as room:
                    return await self._attempt(errand, original, hear, stop, room)
            except FetchFailed as error:
                delay_s = self._limits.retry_delay_s * 2 ** (attempt - 1)
                if attempt >= self._limits.attempts_max or stop.remaining_s <= delay_s or stop.wanted.is_set():
                    raise
                log.info("fetch of %s is tried again in %.1f s: %s", errand.location.shown, delay_s, error)
                await asyncio.sleep(delay_s)
        raise AssertionError("unreachable: the loop returns or raises")

    async def _attempt(self, errand: Errand, original: bool, hear: Hear | None, stop: Stop, room: LookRoom) -> Fetched:
        known = self._disk.origins.get(errand.origin_key)
        record = self._disk.content(known.content) if known else None
        if record is not None and self._disk.is_hollow(record.key) and (original or not self._disk.form_of(record.key)):
            record = None
        if known is None or record is None:
            seen = await in_thread(self._lookers, stop, self._look, errand, None, stop, room)
            return await self._download(errand, seen, hear, stop)
        # Held while it is being compared, so that it is still there if it is the answer.
        self._disk.acquire(record.key)
        kept = False
        try:
            if self._disk.needs_verification(record.key) and not await self._still_good(record, stop):
                known = None
            seen = await in_thread(self._lookers, stop, self._look, errand, known, stop, room)
            if known is not None and unchanged(known, seen):
                check_sha256(errand, known.object_sha256)
                kept = True
                return Fetched(record, 0, seen.trusted, errand.location.suffix)
        finally:
            if not kept:
                self._disk.release(record.key)
        await self._evict_unverified(record.key)
        return await self._download(errand, seen, hear, stop)

    def _look(self, errand: Errand, known: Origin | None, stop: Stop, room: LookRoom) -> Seen:
        """Which key, which server, what is there. Blocking."""
        location = errand.location
        try:
            key = self._storage.find(errand.tenant, errand.storage_key, location)
        except BadStorageConfig as error:
            raise FetchFailed(f"uri {location.shown!r}: {error}") from error
        location = with_bucket(location, key)
        server = key.server if key else ""
        trusted = self._policy.trusts(location) and (key is None or key.trusted_prefixes_apply)
        if known is not None and errand.sha256 == known.object_sha256 and location.scheme not in _OF_THIS_MACHINE:
            self._policy.check(location)
            return Seen(None, None, known.server, trusted)
        timeouts = Timeouts(self._limits.timeout_s, self._limits.stall_timeout_s, self._limits.connect_timeout_s)
        limits = self._limits
        source = open_source(
            location,
            key,
            self._policy,
            timeouts,
            limits.files_max,
            limits.bytes_max,
            stop.check,
            self._disk.staging,
            room.grow_to,
        )
        listing = source.look(known_object(known) if known and known.server == server else None)
        return Seen(source, listing, server, trusted and (location.scheme not in _OF_THIS_MACHINE or listing.trusted))

    async def _still_good(self, record: ContentRecord, stop: Stop) -> bool:
        if await in_thread(self._workers, stop, self._disk.verify, record, stop):
            self._disk.verified(record)
            return True
        log.warning("content %s does not have its hash after a restart; it is fetched again", record.key)
        return False

    async def _download(self, errand: Errand, seen: Seen, hear: Hear | None, stop: Stop) -> Fetched:
        assert seen.source is not None
        assert seen.listing is not None
        listing = seen.listing
        if listing.is_directory or errand.location.archive_kind is not None:
            hear = None
        self._check_size(errand, listing)
        sizes = [item.size_bytes for item in listing.objects]
        directory = self._disk.path(errand.partial_key)
        reservation = await self._room(errand.partial_key, disk_bytes(sizes))
        staged: Path | None = None
        try:
            downloaded: Downloaded = await in_thread(
                self._workers, stop, download, seen.source, listing, directory, stop, self._create_file, hear
            )
            sha256 = tree_hash(downloaded.records) if listing.is_directory else downloaded.records[0].sha256
            check_sha256(errand, sha256)
            staged = self._disk.stage()
            record, suffix = await self._place(errand, listing, downloaded, directory, staged, reservation, stop)
            origin = origin_of(errand, seen, sha256, record.key)
            await in_thread(self._workers, stop, self._disk.write_content, staged, record, origin, directory)
            await self._evict_unverified(record.key)
            new = self._disk.commit_content(reservation, staged, record, origin)
        except BaseException as error:
            await self._clean_up(errand, error, reservation, staged, listing)
            raise
        if not new:
            await self._join_existing(staged, reservation, origin, stop)
        return Fetched(record, downloaded.transferred_bytes, seen.trusted, suffix)

    async def _join_existing(self, staged: Path, reservation: Reservation, origin: Origin, stop: Stop) -> None:
        """The bytes were here already, under another URI: give the room back, remember this URI too."""
        try:
            await self._disk.drop(staged)
            await in_thread(self._workers, stop, self._disk.add_origin, origin)
        except LoadFailed as error:
            log.warning("the next pod will fetch %s again: %s", origin.content, error)
        except BaseException:
            self._disk.release(origin.content)
            raise
        finally:
            self._disk.ledger.cancel(reservation)

    async def _place(
        self,
        errand: Errand,
        listing: Listing,
        downloaded: Downloaded,
        directory: Path,
        staged: Path,
        reservation: Reservation,
        stop: Stop,
    ) -> tuple[ContentRecord, str]:
        """Turn what was downloaded into the files of a content entry: the record, and the suffix to show it under."""
        if any(item.archive for item in listing.objects):
            return await self._place_layers(listing, downloaded, directory, staged, reservation, stop), ""
        kind = None if listing.is_directory else errand.location.archive_kind
        if kind is None:
            suffix = "" if listing.is_directory else errand.location.suffix
            return await in_thread(self._workers, stop, place_as_is, listing, downloaded, directory, staged), suffix
        limits = self._unpack_limits
        archive = directory / "0"
        plan = await in_thread(self._workers, stop, plan_unpack, archive, kind, limits, stop.check)
        room_bytes = disk_bytes([listing.total_bytes]) + disk_bytes([file.size_bytes for file in plan.files])
        await self._disk.grow(reservation, room_bytes)
        return await in_thread(
            self._workers, stop, place_unpacked, archive, kind, plan, limits, staged, stop.check, self._create_file
        )

    async def _place_layers(
        self,
        listing: Listing,
        downloaded: Downloaded,
        directory: Path,
        staged: Path,
        reservation: Reservation,
        stop: Stop,
    ) -> ContentRecord:
        limits = self._unpack_limits
        plan = await in_thread(self._workers, stop, plan_layers, listing, directory, limits, stop.check)
        layers_bytes = disk_bytes([item.size_bytes for item in listing.objects])
        await self._disk.grow(reservation, layers_bytes + disk_bytes(list(plan.size_bytes)))
        return await in_thread(
            self._workers,
            stop,
            place_layers,
            *(listing, downloaded, directory, plan, limits, staged, stop.check, self._create_file),
        )

    @property
    def _unpack_limits(self) -> UnpackLimits:
        return UnpackLimits(self._limits.bytes_max, self._limits.files_max, self._limits.unpack_ratio_max)

    def _check_size(self, errand: Errand, listing: Listing) -> None:
        total_bytes = listing.total_bytes
        if any(item.size_bytes < 0 for item in listing.objects):
            # With it, others could be larger than their sum.
            raise BadArtifact(f"uri {errand.location.shown!r}: its store names a size below 0; push it again")
        if total_bytes == 0:
            raise BadArtifact(f"uri {errand.location.shown!r}: the artifact is empty (0 bytes); upload it again")
        if total_bytes > self._limits.bytes_max:
            raise ArtifactTooLarge(
                f"uri {errand.location.shown!r}: the artifact has {total_bytes} bytes; at most "
                f"{self._limits.bytes_max} are fetched; raise --fetch-size-max"
            )

    async def _room(self, partial_key: str, needed_bytes: int) -> Reservation:
        """Room for a download; what an earlier try left counts towards it."""
        ledger = self._disk.ledger
        if partial_key not in ledger:
            return await self._disk.reserve(needed_bytes)
        reservation = ledger.claim(partial_key)
        try:
            await self._disk.grow(reservation, needed_bytes)
        except BaseException:
            ledger.settle(reservation, partial_key, ledger.reserved(reservation), time.time())
            raise
        return reservation

    async def _evict_unverified(self, key: str) -> None:
        """Content from before a reboot that nobody has checked must not stand in for good bytes."""
        disk = self._disk
        if disk.needs_verification(key) and disk.content(key) is not None and disk.ledger.references(key) == 0:
            await disk.evict((key,))

    async def _clean_up(
        self, errand: Errand, error: BaseException, reservation: Reservation, staged: Path | None, listing: Listing
    ) -> None:
        """After a failure: keep what the next try can go on from, delete the rest."""
        ledger = self._disk.ledger
        kept_bytes: int | None = None
        try:
            if staged is not None:
                await self._disk.drop(staged)
            directory = self._disk.path(errand.partial_key)
            goes_on = isinstance(error, FetchFailed | FetchStopped | asyncio.CancelledError)
            if goes_on and all(item.etag for item in listing.objects) and plan_exists(directory):
                kept_bytes = disk_bytes([path.stat().st_size for path in directory.iterdir()])
            if kept_bytes is None or kept_bytes > ledger.reserved(reservation):
                kept_bytes = None
                await self._disk.drop(directory)
        finally:
            if kept_bytes is None:
                ledger.cancel(reservation)
            else:
                ledger.settle(reservation, errand.partial_key, kept_bytes, time.time())
