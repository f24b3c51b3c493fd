"""The pod's door to artifacts: from a URI to a path on this disk that stays while it is used.

A fetch looks at what lies at the URI; if that is what it was last time, the content on disk is the answer. Otherwise it
reserves room, downloads (resuming an interrupted try), checks the spec's checksum, opens an archive, and stores the
result under the hash of its content. Any number of requests for one URI at a time share one fetch.

With a checksum in the spec, and content on disk that this URI gave before and that has this checksum, nothing is asked
of the server at all: a pod restarts and serves without its object store. (That a tenant knows a checksum is not enough:
content is found by the tenant, the storage key and the URI together.)

References: `fetch` returns an artifact with a reference, so that its files stay until `release`. What `prepare` makes
of an artifact stays as long.

Once a prepared form is there, a large original is deleted (`disk_tier`): then `fetch` answers with the form, and only
a request for the `original` has it brought again.

Everything here is owned by one event loop. Sources are looked at on one set of threads and downloaded on another, so
that a model whose bytes are here already does not wait behind ten gigabytes that are not.

Deliberately absent: back-off between fetches of a model that keeps failing, and which models to fetch. Those are the
cache's decisions; here only a broken transfer is tried again, within the same fetch.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from runtime_adapters.artifacts.content import ContentRecord, place_as_is, place_unpacked
from runtime_adapters.artifacts.credentials import S3Key, StorageKeys
from runtime_adapters.artifacts.disk_tier import DiskTier, Origin, prepared_key, variant_of
from runtime_adapters.artifacts.download import (
    Downloaded,
    FetchStopped,
    Stop,
    disk_errors,
    download,
    plan_exists,
    tree_hash,
)
from runtime_adapters.artifacts.errand import (
    Errand,
    Seen,
    check_sha256,
    digest_of,
    known_object,
    origin_of,
    unchanged,
    understand,
    with_bucket,
)
from runtime_adapters.artifacts.errors import (
    ArtifactTooLarge,
    BadStorageConfig,
    DiskFull,
    FetchFailed,
)
from runtime_adapters.artifacts.ledger import Reservation, disk_bytes
from runtime_adapters.artifacts.locations import SourcePolicy
from runtime_adapters.artifacts.single_flight import SingleFlight, finish_despite_cancel
from runtime_adapters.artifacts.sources import Listing, Timeouts, open_source
from runtime_adapters.artifacts.unpack import OpenNew, UnpackLimits, open_new, plan_unpack
from runtime_adapters.errors import BadArtifact, LoadFailed

log = logging.getLogger("hexcomb.artifacts")

T = TypeVar("T")
_VARIANT = re.compile(r"[^A-Za-z0-9._-]+")
_PREPARED_ROOM_FACTOR = 3
"""A prepared form holds the weights about once; while it is made, an exporter may hold them twice."""
_PREPARED_ROOM_EXTRA_BYTES = 256 * 1024


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
class FetchRequest:
    """What to fetch, for whom. `checksum` is `sha256:<hex>`; `deadline_s` is when this waiter gives up (monotonic).

    `original`: the fetched files themselves, not a prepared form that stands for them.
    """

    uri: str
    storage_key: str | None = None
    checksum: str | None = None
    deadline_s: float | None = None
    tenant: str = "default"
    original: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """Content on this disk that stays until it is released.

    `content_hash` names the bytes: `sha256-...` of a file, `tree-...` of a directory. `fetched_bytes` came over the
    network (or from a local file) in the try that succeeded; 0 if all were here. `trusted`: its URI lies under
    a prefix whose artifacts may run code. `form`: the variant that `path` is, where a prepared form stands for the
    original; else empty.
    """

    path: Path
    content_hash: str
    size_bytes: int
    fetched_bytes: int
    seconds: float
    trusted: bool
    lease: int
    form: str = ""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The disk tier at a moment. `saved_bytes`: what equal files of several models would take more if each had its own,
    and `dropped_bytes`: originals that prepared forms stand for."""

    capacity_bytes: int
    used_bytes: int
    entries: int
    fetching: int
    saved_bytes: int = 0
    dropped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The outcome of one shared fetch; it holds one reference on its content."""

    record: ContentRecord
    fetched_bytes: int
    trusted: bool
    suffix: str


class ArtifactStore:
    """Fetches artifacts for one pod and keeps them on its disk, within a capacity."""

    def __init__(
        self,
        root: Path,
        *,
        capacity_bytes: int,
        limits: FetchLimits | None = None,
        storage: StorageKeys | None = None,
        policy: SourcePolicy | None = None,
        create_file: OpenNew = open_new,
        keep_originals: bool = False,
        content_gone: Callable[[str], None] = lambda content_hash: None,
    ) -> None:
        """Takes over `root` and rebuilds the ledger from what lies there: blocking, made at the pod's start.

        `content_gone` hears, on the event loop, which content has left this disk, by its hash.
        """
        self._limits = limits or FetchLimits()
        self._storage = storage or StorageKeys()
        self._policy = policy or SourcePolicy()
        self._create_file = create_file
        self._keep_originals = keep_originals
        self._dropping: set[asyncio.Task[None]] = set()
        self._syncing: set[str] = set()
        self._lookers = ThreadPoolExecutor(self._limits.concurrent_max, "artifact-look")
        self._workers = ThreadPoolExecutor(self._limits.concurrent_max, "artifact-fetch")
        self._preparers = ThreadPoolExecutor(self._limits.prepare_concurrent_max, "artifact-prepare")
        self._housekeeping = ThreadPoolExecutor(1, "artifact-disk")
        self._syncer = ThreadPoolExecutor(1, "artifact-sync")
        self._disk = DiskTier(
            root,
            capacity_bytes,
            self._housekeeping,
            self._limits.partial_age_max_s,
            lambda key: content_gone(_content_hash(key)),
        )
        self._leases: dict[int, list[str]] = {}
        self._lease_numbers = itertools.count(1)
        self._fetches: SingleFlight[str, _Fetched] = SingleFlight(self._limits.timeout_s, self._let_go)
        self._preparations: SingleFlight[str, str | None] = SingleFlight(self._limits.timeout_s, self._let_go_prepared)

    # The door ---------------------------------------------------------------------------------------------------

    async def fetch(self, request: FetchRequest) -> Artifact:
        """Bring an artifact to this disk, or find it there; it stays until `release`.

        Raises BadArtifact (for good) or LoadFailed (for now); `artifacts.errors` has the kinds.
        """
        errand = understand(request.uri, request.tenant, request.storage_key, request.checksum)
        began_s = time.monotonic()

        def take(fetched: _Fetched) -> Artifact | None:
            record, suffix = fetched.record, fetched.suffix
            if request.original and self._disk.is_hollow(record.key):
                return None  # somebody else's fetch, for whom the form would do
            artifact = Artifact(
                path=Path(),
                content_hash=record.key.removeprefix("content/"),
                size_bytes=record.size_bytes,
                fetched_bytes=fetched.fetched_bytes,
                seconds=time.monotonic() - began_s,
                trusted=fetched.trusted,
                lease=0,
            )
            return self._held(artifact, record, suffix)

        while True:
            run = partial(self._run, errand, request.original)
            artifact = await self._fetches.join(errand.partial_key, run, take, _loop_time(request.deadline_s))
            if artifact is not None:
                return artifact

    def content_on_disk(self, request: FetchRequest) -> str | None:
        """The hash of the content that this request brought here once, if this disk still has it; nothing is held.

        Whether its source still says the same is not asked: a fetch does that.
        """
        if not self._disk.origins:
            return None
        try:
            errand = understand(request.uri, request.tenant, request.storage_key, request.checksum)
        except BadArtifact:
            return None
        known = self._disk.origins.get(errand.origin_key)
        if known is None or errand.sha256 not in (None, known.object_sha256):
            return None
        return _content_hash(known.content) if self._disk.has_content(known.content) else None

    def hold_again(self, artifact: Artifact) -> Artifact | None:
        """The same content under a reference of its own, if this disk still has it; its source is not asked.

        So that a model that comes back after an eviction is the model that left, and comes back at once.
        """
        record = self._disk.content(f"content/{artifact.content_hash}")
        if record is None:
            return None
        # The content may have left and come back under another name meanwhile.
        suffix = "" if record.is_directory or artifact.form else artifact.path.suffix
        return self._held(replace(artifact, fetched_bytes=0, seconds=0.0), record, suffix)

    def _held(self, artifact: Artifact, record: ContentRecord, suffix: str) -> Artifact | None:
        """The artifact under a new lease; None if neither its files are here nor a form that stands for them."""
        form = self._disk.form_of(record.key) if self._disk.is_hollow(record.key) else None
        if form is None and self._disk.is_hollow(record.key):
            return None
        lease = next(self._lease_numbers)
        self._leases[lease] = [record.key]
        self._disk.acquire(record.key)
        if form is None:
            path = self._disk.content_path(record, suffix)
        else:
            path = self._disk.prepared_path(form)
            self._disk.acquire(form)
            self._leases[lease].append(form)
        return replace(artifact, path=path, lease=lease, form=variant_of(form) if form else "")

    def release(self, artifact: Artifact) -> None:
        """The files may go when the disk tier needs the room. Releasing twice does no harm."""
        keys = self._leases.pop(artifact.lease, ())
        for key in keys:
            self._disk.release(key)
        if keys:
            self._drop_original(keys[0])

    async def prepare(self, artifact: Artifact, variant: str, make: Callable[[Path], bool]) -> Path | None:
        """What `make` writes into an empty directory, made once per content and variant; None if there is none better.

        `variant` names format and runtime version. `make` runs on a thread, and its errors come out here. The directory
        stays as long as the artifact is held. Where the disk has no room for it, None: the original still loads.
        """
        key = _prepared_key(artifact.content_hash, variant)

        def take(made: str | None) -> Path | None:
            held = self._leases.get(artifact.lease)
            if held is None:
                raise LoadFailed("artifact was released while it was being prepared; fetch it again")
            if made is None:
                return None
            self._disk.acquire(made)
            held.append(made)
            if not self._disk.prepared(made):
                return None
            self._drop_original(held[0])
            return self._disk.prepared_path(made)

        if self._disk.prepared(key) is not None:
            return take(key)
        return await self._preparations.join(key, partial(self._prepare, artifact, key, make), take)

    def is_prepared(self, artifact: Artifact, variant: str) -> bool:
        """Whether this variant was made of the artifact, and is here."""
        return bool(self._disk.prepared(_prepared_key(artifact.content_hash, variant)))

    def use(self) -> DiskUse:
        """How full the disk tier is."""
        ledger = self._disk.ledger
        return DiskUse(
            ledger.capacity_bytes,
            ledger.used_bytes,
            len(ledger),
            len(self._fetches),
            ledger.saved_bytes,
            self._disk.dropped_bytes,
        )

    async def close(self) -> None:
        """Stop what is being fetched (it can go on at the next start) and wait until threads have let go of files."""
        await self._fetches.stop_all()
        await self._preparations.stop_all()
        while self._dropping:
            await asyncio.wait(self._dropping)
        for executor in (self._lookers, self._workers, self._preparers, self._housekeeping, self._syncer):
            await asyncio.to_thread(executor.shutdown)
        self._disk.close()

    # One shared fetch -------------------------------------------------------------------------------------------

    async def _run(self, errand: Errand, original: bool, stop: Stop) -> _Fetched:
        for attempt in itertools.count(1):
            try:
                return await self._attempt(errand, original, stop)
            except FetchFailed as error:
                delay_s = self._limits.retry_delay_s * 2 ** (attempt - 1)
                if attempt >= self._limits.attempts_max or stop.remaining_s <= delay_s or stop.wanted.is_set():
                    raise
                log.info("fetch of %s is tried again in %.1f s: %s", errand.location.shown, delay_s, error)
                await asyncio.sleep(delay_s)
        raise AssertionError("unreachable: the loop returns or raises")

    async def _attempt(self, errand: Errand, original: bool, stop: Stop) -> _Fetched:
        known = self._disk.origins.get(errand.origin_key)
        record = self._disk.content(known.content) if known else None
        if record is not None and self._disk.is_hollow(record.key) and (original or not self._disk.form_of(record.key)):
            record = None
        if known is None or record is None:
            seen = await self._in_thread(self._lookers, stop, self._look, errand, None, stop)
            return await self._download(errand, seen, stop)
        # Held while it is being compared, so that it is still there if it is the answer.
        self._disk.acquire(record.key)
        kept = False
        try:
            if self._disk.needs_verification(record.key) and not await self._still_good(record, stop):
                known = None
            seen = await self._in_thread(self._lookers, stop, self._look, errand, known, stop)
            if known is not None and unchanged(known, seen):
                check_sha256(errand, known.object_sha256)
                kept = True
                return _Fetched(record, 0, seen.trusted, errand.location.suffix)
        finally:
            if not kept:
                self._disk.release(record.key)
        await self._evict_unverified(record.key)
        return await self._download(errand, seen, stop)

    def _look(self, errand: Errand, known: Origin | None, stop: Stop) -> Seen:
        """Which key, which server, what is there. Blocking."""
        location = errand.location
        try:
            key = self._storage.find(errand.tenant, errand.storage_key, location.scheme)
        except BadStorageConfig as error:
            raise FetchFailed(f"uri {location.shown!r}: {error}") from error
        location = with_bucket(location, key)
        server = key.endpoint if isinstance(key, S3Key) else ""
        trusted = self._policy.trusts(location) and (key is None or getattr(key, "trusted_prefixes_apply", False))
        if known is not None and errand.sha256 == known.object_sha256 and location.scheme != "file":
            self._policy.check(location)
            return Seen(None, None, known.server, trusted)
        timeouts = Timeouts(max(1.0, stop.remaining_s), self._limits.stall_timeout_s, self._limits.connect_timeout_s)
        source = open_source(location, key, self._policy, timeouts, self._limits.files_max)
        listing = source.look(known_object(known) if known and known.server == server else None)
        return Seen(source, listing, server, trusted and (location.scheme != "file" or listing.trusted))

    async def _still_good(self, record: ContentRecord, stop: Stop) -> bool:
        if await self._in_thread(self._workers, stop, self._disk.verify, record, stop):
            self._disk.verified(record)
            return True
        log.warning("content %s does not have its hash after a restart; it is fetched again", record.key)
        return False

    async def _download(self, errand: Errand, seen: Seen, stop: Stop) -> _Fetched:
        assert seen.source is not None
        assert seen.listing is not None
        listing = seen.listing
        self._check_size(errand, listing)
        sizes = [item.size_bytes for item in listing.objects]
        directory = self._disk.path(errand.partial_key)
        reservation = await self._room(errand.partial_key, disk_bytes(sizes))
        staged: Path | None = None
        try:
            downloaded: Downloaded = await self._in_thread(
                self._workers, stop, download, seen.source, listing, directory, stop, self._create_file
            )
            sha256 = tree_hash(downloaded.records) if listing.is_directory else downloaded.records[0].sha256
            check_sha256(errand, sha256)
            staged = self._disk.stage()
            record, suffix = await self._place(errand, listing, downloaded, directory, staged, reservation, stop)
            origin = origin_of(errand, seen, sha256, record.key)
            await self._in_thread(self._workers, stop, self._disk.write_content, staged, record, origin, directory)
            await self._evict_unverified(record.key)
            new = self._disk.commit_content(reservation, staged, record, origin)
        except BaseException as error:
            await self._clean_up(errand, error, reservation, staged, listing)
            raise
        if not new:
            await self._join_existing(staged, reservation, origin, stop)
        return _Fetched(record, downloaded.transferred_bytes, seen.trusted, suffix)

    async def _join_existing(self, staged: Path, reservation: Reservation, origin: Origin, stop: Stop) -> None:
        """The bytes were here already, under another URI: give the room back, remember this URI too."""
        try:
            await self._disk.drop(staged)
            await self._in_thread(self._workers, stop, self._disk.add_origin, origin)
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
        kind = None if listing.is_directory else errand.location.archive_kind
        if kind is None:
            suffix = "" if listing.is_directory else errand.location.suffix
            return await self._in_thread(
                self._workers, stop, place_as_is, listing, downloaded, directory, staged
            ), suffix
        limits = UnpackLimits(self._limits.bytes_max, self._limits.files_max, self._limits.unpack_ratio_max)
        archive = directory / "0"
        plan = await self._in_thread(self._workers, stop, plan_unpack, archive, kind, limits, stop.check)
        room_bytes = disk_bytes([listing.total_bytes]) + disk_bytes([file.size_bytes for file in plan.files])
        await self._disk.grow(reservation, room_bytes)
        return await self._in_thread(
            self._workers, stop, place_unpacked, archive, kind, plan, limits, staged, stop.check, self._create_file
        )

    def _check_size(self, errand: Errand, listing: Listing) -> None:
        total_bytes = listing.total_bytes
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

    def _let_go(self, fetched: _Fetched) -> None:
        self._disk.release(fetched.record.key)

    # Prepared forms ---------------------------------------------------------------------------------------------

    async def _prepare(self, artifact: Artifact, key: str, make: Callable[[Path], bool], stop: Stop) -> str | None:
        content_key = f"content/{artifact.content_hash}"
        self._disk.acquire(content_key)
        reservation: Reservation | None = None
        staged: Path | None = None
        try:
            room_bytes = _PREPARED_ROOM_FACTOR * artifact.size_bytes + _PREPARED_ROOM_EXTRA_BYTES
            reservation = await self._disk.reserve(disk_bytes([room_bytes]))
            staged = self._disk.stage()
            made = await self._in_thread(self._preparers, stop, _make_form, make, staged)
            in_thread = partial(self._in_thread, self._preparers, stop)
            await self._disk.add_prepared(reservation, staged, key, made, in_thread)
            reservation = staged = None
            return key
        except (DiskFull, ArtifactTooLarge) as error:
            log.info("no room for %s, the fetched form is loaded: %s", key, error)
            return None
        finally:
            if staged is not None:
                await self._disk.drop(staged)
            if reservation is not None:
                self._disk.ledger.cancel(reservation)
            self._disk.release(content_key)

    def _drop_original(self, content_key: str) -> None:
        """Delete the files of this content if a form stands for them and nobody may be reading them."""
        disk = self._disk
        if self._keep_originals or not disk.may_hollow_out(content_key):
            return
        with_form = sum(
            keys[0] == content_key and any(disk.prepared(key) for key in keys[1:]) for keys in self._leases.values()
        )
        form = disk.form_of(content_key)
        if form is None or disk.ledger.references(content_key) != with_form:
            return
        if disk.needs_sync(form):
            if form not in self._syncing:
                self._syncing.add(form)
                disk.acquire(form)
                self._in_background(self._sync(form, content_key))
            return
        try:
            self._in_background(disk.hollow_out(content_key))
        except LoadFailed as error:
            log.warning("an original that a prepared form stands for stays: %s", error)

    async def _sync(self, form: str, content_key: str) -> None:
        """A form is brought to the platter before what it was made of goes."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._syncer, self._disk.sync_prepared, form)
            self._disk.synced(form)
        finally:
            self._syncing.discard(form)
            self._disk.release(form)
        self._drop_original(content_key)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._dropping.add(task)
        task.add_done_callback(self._dropped)

    def _dropped(self, task: asyncio.Task[None]) -> None:
        self._dropping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("an original that a prepared form stands for could not be deleted: %s", error)

    def _let_go_prepared(self, made: str | None) -> None:
        if made is not None:
            self._disk.release(made)

    async def _in_thread(self, executor: Executor, stop: Stop, work: Callable[..., T], *arguments: object) -> T:
        future = asyncio.get_running_loop().run_in_executor(executor, partial(work, *arguments))
        return await finish_despite_cancel(future, stop)


# Pure parts -------------------------------------------------------------------------------------------------------


def _content_hash(key: str) -> str:
    return key.removeprefix("content/")


def _prepared_key(content_hash: str, variant: str) -> str:
    plain = _VARIANT.sub("_", variant)[:80]
    # Two variants that look alike once cleaned must not share a form.
    mark = "" if plain == variant else f"-{digest_of([variant])[:16]}"
    return prepared_key(content_hash, f"{plain}{mark}")


def _make_form(make: Callable[[Path], bool], staged: Path) -> bool:
    with disk_errors():
        form = staged / "form"
        form.mkdir()
        return make(form)


def _loop_time(deadline_s: float | None) -> float | None:
    # Not every loop's clock is the monotonic clock to the digit (uvloop rounds), so the difference is what counts.
    if deadline_s is None:
        return None
    return asyncio.get_running_loop().time() + deadline_s - time.monotonic()
