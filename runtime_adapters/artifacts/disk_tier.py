"""The disk tier's directory: what lies where, how something becomes part of it, and how it leaves.

    content/<hash>/      meta.json, origins/<uri>.json, data/model[.suffix] or tree/...   fetched artifacts
    prepared/<name>/     meta.json, form/...                                              what adapters made of them
    shared/<sha256>      files that prepared forms have in common                         `shared_files`
    partial/<name>/      an interrupted download
    staging/  trash/     on their way in and out

**By content.** An artifact is stored under the hash of its bytes (a directory's is a hash over its files' hashes), so
equal bytes under many URIs are stored once. A file keeps the suffix of the name that asked for it, as one more link to
the same bytes.

**A copy, never a link.** Local files are copied too. A hard link would follow the user's later edits, under a hash that
no longer holds, and under a model that has the file mapped. A reflink would be immune and save space where the file
system has it, but every byte must be read for its hash anyway.

**Originals need not stay.** A prepared form loads without the artifact that it was made of. From
`ORIGINAL_DROP_MIN_BYTES` on, that artifact's files are deleted once nobody reads them; its entry stays, *hollow*, and
says what the form stands for and which URIs gave it. Whoever needs the original itself (a copy in a process of its own,
another version of the framework) has it fetched again, and its hash tells whether it is the same.

**Whole or absent.** What is made, is made in `staging/` and becomes visible by one rename; what leaves is renamed into
`trash/` and deleted there. A pod that dies in between finds both at its next start and empties them.

**At the start** the ledger is rebuilt from what is there. An entry whose files do not have the sizes that its record
names is deleted. Nothing is synced to the platter when it is written, since somebody waits for it. After a reboot the
hashes of content are checked once, at its first use, and it is fetched again if they do not hold. Prepared forms have
no hashes: one that was not synced is made anew after a reboot. A form is synced, while it is in use already, before the
original that it stands for is deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from runtime_adapters.artifacts.content import FILE_NAME, ContentRecord
from runtime_adapters.artifacts.disk_directory import DiskDirectory, files_below, remove, sync_file
from runtime_adapters.artifacts.disk_records import (
    META,
    Origin,
    content_of,
    file_of,
    files_of,
    form_is_synced,
    found_content,
    found_form,
    write_content_record,
    write_form_record,
    write_origin,
)
from runtime_adapters.artifacts.download import Stop, disk_errors, hash_file, plan_exists
from runtime_adapters.artifacts.errors import ArtifactTooLarge, DiskFull
from runtime_adapters.artifacts.ledger import DiskLedger, NoRoom, Reservation, disk_bytes
from runtime_adapters.artifacts.shared_files import Shared, SharedFiles
from runtime_adapters.base import SHARED_FORM

T = TypeVar("T")
ORIGINAL_DROP_MIN_BYTES = 1 << 20
"""Smaller originals stay: deleting them would cost each first load more than it saves."""


class InThread(Protocol):
    """Runs what blocks on a thread."""

    async def __call__(self, work: Callable[..., T], /, *arguments: object) -> T: ...


class DiskTier:
    """One directory, one process, one event loop. Methods that wait are coroutines; the rest are quick file calls."""

    def __init__(
        self,
        root: Path,
        capacity_bytes: int,
        housekeeping: Executor,
        partial_age_max_s: float,
        content_gone: Callable[[str], None] = lambda key: None,
    ) -> None:
        """Takes the directory over and rebuilds the ledger from it: a blocking call, made before the loop is busy.

        `content_gone` hears of each content whose files leave, and of which no form stays either.
        """
        self.ledger = DiskLedger(capacity_bytes)
        self.origins: dict[str, Origin] = {}
        self._content_gone = content_gone
        self._housekeeping = housekeeping
        self._directory = DiskDirectory(root, housekeeping)
        self._contents: dict[str, ContentRecord] = {}
        self._prepared: dict[str, bool] = {}
        self._unsynced: set[str] = set()
        """Forms made since the machine started that are not on the platter yet."""
        self._forms: dict[str, set[str]] = {}
        """The forms that were made, by the content that they stand for."""
        self._unverified: set[str] = set()
        self._hollow: set[str] = set()
        self._shared = SharedFiles(self._directory.path("shared"))
        self._sharing = asyncio.Lock()
        """Held while files in `shared/` come and go: what one form links to must not be deleted under it."""
        self._making_room = asyncio.Lock()
        with disk_errors():
            self._scan(partial_age_max_s)

    def close(self) -> None:
        """Let another process have the directory."""
        self._directory.close()

    # Finding ----------------------------------------------------------------------------------------------------

    def content(self, key: str) -> ContentRecord | None:
        """What is known of a content entry that is in the tier."""
        return self._contents.get(key) if key in self.ledger else None

    def prepared(self, key: str) -> bool | None:
        """True: a form was made; False: there is none better; None: nobody has tried."""
        return self._prepared.get(key) if key in self.ledger else None

    def prepared_path(self, key: str) -> Path:
        """Where a prepared form lies."""
        return self._directory.path(key) / "form"

    def is_hollow(self, key: str) -> bool:
        """Whether only the record of this content is here, and not its files."""
        return key in self._hollow

    def has_content(self, key: str) -> bool:
        """Whether a load finds what it needs of this content here: its files, or a form that stands for them."""
        return self.content(key) is not None and (not self.is_hollow(key) or self.form_of(key) is not None)

    def form_of(self, content_key: str) -> str | None:
        """A prepared form that stands for this content. The last by name, where versions of a framework differ."""
        return max(self._forms.get(content_key, ()), default=None)

    def may_hollow_out(self, content_key: str) -> bool:
        """Whether a form stands for this content, and its files are here and large."""
        record = self.content(content_key)
        return (
            record is not None
            and record.size_bytes >= ORIGINAL_DROP_MIN_BYTES
            and content_key in self._forms
            and not self.is_hollow(content_key)
        )

    @property
    def dropped_bytes(self) -> int:
        """Bytes of originals that were deleted because a prepared form stands for them."""
        return sum(self._contents[key].size_bytes for key in self._hollow)

    def path(self, key: str) -> Path:
        """The directory of an entry."""
        return self._directory.path(key)

    def content_path(self, record: ContentRecord, suffix: str) -> Path:
        """The path that an adapter is given. Makes the link with this suffix if it is not there: quick."""
        if record.is_directory:
            return self._directory.path(record.key) / "tree"
        base = self._directory.path(record.key) / "data" / FILE_NAME
        if not suffix:
            return base
        named = base.with_suffix(suffix)
        with disk_errors():
            if not named.exists():
                with contextlib.suppress(FileExistsError):
                    os.link(base, named)
        return named

    def needs_verification(self, key: str) -> bool:
        """Whether the machine was restarted since this content was written, and nobody has checked it."""
        return key in self._unverified

    def verify(self, record: ContentRecord, stop: Stop) -> bool:
        """Hash the files of an entry again. Blocking."""
        path = self._directory.path(record.key)
        with disk_errors():
            return all(hash_file(file_of(path, record, file.name), stop) == file.sha256 for file in record.files)

    def verified(self, record: ContentRecord) -> None:
        """The entry's bytes are good on this boot. Blocking, but quick."""
        self._unverified.discard(record.key)
        with disk_errors():
            write_content_record(self._directory.path(record.key), record)

    # Room -------------------------------------------------------------------------------------------------------

    async def reserve(self, needed_bytes: int) -> Reservation:
        """Make room, evicting what is least recently used and not in use. Raises DiskFull, ArtifactTooLarge."""
        # One at a time: room that one caller has made must not be taken by the next while files are being deleted.
        async with self._making_room:
            plan = self.ledger.plan_room(needed_bytes)
            if isinstance(plan, NoRoom):
                raise self._no_room(plan)
            await self.evict(plan.victims)
            return self.ledger.reserve(needed_bytes)

    async def grow(self, reservation: Reservation, to_bytes: int) -> None:
        """Make a reservation larger. Raises DiskFull, ArtifactTooLarge; the reservation then stays as it was."""
        more_bytes = to_bytes - self.ledger.reserved(reservation)
        if more_bytes > 0:
            self.ledger.merge(reservation, await self.reserve(more_bytes))

    async def evict(self, keys: tuple[str, ...]) -> None:
        """Delete entries that nobody uses; their bytes are free when this returns."""
        leaving = []
        for key in keys:
            leaving.append((self.ledger.begin_leaving(key), self._directory.to_trash(self._directory.path(key))))
            self._forget(key)
        for number, (left, path) in enumerate(leaving):
            try:
                if path is not None:
                    await self._directory.discard(path)
                if left.shared:
                    await self._remove_shared(left.shared)
            except BaseException:
                # The rest is in the trash, which the next start empties.
                for later, _ in leaving[number + 1 :]:
                    self.ledger.end_leaving(later.size_bytes)
                raise
            finally:
                self.ledger.end_leaving(left.size_bytes)

    async def _remove_shared(self, names: tuple[str, ...]) -> None:
        async with self._sharing:
            # A form that came meanwhile may hold some of them again.
            gone = tuple(name for name in names if not self.ledger.holds_shared(name))
            work = asyncio.get_running_loop().run_in_executor(self._housekeeping, self._shared.remove, gone)
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait({work})
                raise

    # In and out -------------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """Where things are made; what lies there goes at the next start."""
        return self._directory.staging

    def stage(self) -> Path:
        """A new empty directory on the same file system. Blocking, but quick."""
        return self._directory.stage()

    def write_content(self, staged: Path, record: ContentRecord, origin: Origin, download: Path) -> None:
        """Put the record and the origin beside the files in `staged`; delete the rest of the download. Blocking."""
        with disk_errors():
            shutil.rmtree(download)
            write_content_record(staged, record)
            write_origin(staged, origin)

    def commit_content(self, reservation: Reservation, staged: Path, record: ContentRecord, origin: Origin) -> bool:
        """Make staged content visible, with one reference for the caller; False if equal content is there already."""
        now_s = time.time()
        if record.key in self.ledger:
            if self.is_hollow(record.key):
                self._fill(reservation, staged, record)
            self.ledger.acquire(record.key, now_s)
            self.origins[origin.key] = origin
            return False
        with disk_errors():
            os.rename(staged, self._directory.path(record.key))
        self.ledger.settle(reservation, record.key, record.disk_bytes, now_s)
        self.ledger.acquire(record.key, now_s)
        self._contents[record.key] = record
        self.origins[origin.key] = origin
        return True

    def add_origin(self, origin: Origin) -> None:
        """Remember one more URI for content that is there. Blocking; the content is in use meanwhile."""
        with disk_errors():
            write_origin(self._directory.path(origin.content), origin)

    async def add_prepared(
        self, reservation: Reservation, staged: Path, key: str, made: bool, in_thread: InThread
    ) -> None:
        """Make a prepared form visible, with one reference for the caller. `in_thread` runs what blocks."""
        own_bytes = await in_thread(self._form_bytes, staged)
        await self.grow(reservation, own_bytes)
        async with self._sharing:
            try:
                shared = await in_thread(self._shared.take_in, staged / "form")
                own_bytes = await in_thread(self._write_prepared, staged, made, shared)
                now_s = time.time()
                with disk_errors():
                    os.rename(staged, self._directory.path(key))
                self.ledger.settle(reservation, key, own_bytes, now_s, shared)
            except BaseException:
                names = self._shared.names_in(staged / "form")
                self._shared.remove(tuple(name for name in names if not self.ledger.holds_shared(name)))
                raise
        self.ledger.acquire(key, now_s)
        self._unsynced.add(key)
        self._note_prepared(key, made)

    def needs_sync(self, key: str) -> bool:
        """Whether a power loss could still damage this form."""
        return key in self._unsynced and key in self.ledger

    def sync_prepared(self, key: str) -> None:
        """Bring a form to the platter. Blocking, and slow on a busy disk; the form is in use meanwhile."""
        directory = self._directory.path(key)
        with disk_errors():
            for path in files_below(directory / "form"):
                sync_file(path)
            form_is_synced(directory)

    def synced(self, key: str) -> None:
        """`sync_prepared` has ended."""
        self._unsynced.discard(key)

    def hollow_out(self, key: str) -> Coroutine[Any, Any, None]:
        """Content that a synced form stands for loses its files, which nobody reads. Await the answer: they are gone
        from sight at once, and their bytes free when it ends."""
        record = self._contents[key]
        with disk_errors():
            # The record first: files that it does not name are deleted at the next start.
            write_content_record(self._directory.path(key), record, hollow=True)
        self._hollow.add(key)
        self._unverified.discard(key)
        trashed = self._directory.to_trash(files_of(self._directory.path(key), record))
        freed_bytes = self.ledger.begin_shrinking(key, disk_bytes([]))

        async def delete() -> None:
            try:
                if trashed is not None:
                    await self._directory.discard(trashed)
            finally:
                self.ledger.end_leaving(freed_bytes)

        return delete()

    def acquire(self, key: str) -> None:
        """One more user of an entry."""
        self.ledger.acquire(key, time.time())

    def release(self, key: str) -> None:
        """One user fewer; remembers on disk when that was, for the order of eviction after a restart."""
        self.ledger.release(key, time.time())
        with contextlib.suppress(OSError):
            os.utime(self._directory.path(key) / META)

    async def drop(self, path: Path) -> None:
        """Delete something that is not an entry (a staging directory, a partial download)."""
        await self._directory.drop(path)

    # Inside -----------------------------------------------------------------------------------------------------

    def _note_prepared(self, key: str, made: bool) -> None:
        self._prepared[key] = made
        if made:
            self._forms.setdefault(content_of(key), set()).add(key)

    def _fill(self, reservation: Reservation, staged: Path, record: ContentRecord) -> None:
        """Hollow content was fetched again."""
        name = "tree" if record.is_directory else "data"
        with disk_errors():
            os.rename(staged / name, self._directory.path(record.key) / name)
            write_content_record(self._directory.path(record.key), record)
        self._hollow.discard(record.key)
        self.ledger.settle_into(reservation, record.key, record.disk_bytes)

    def _form_bytes(self, staged: Path) -> int:
        with disk_errors():
            return disk_bytes([path.stat().st_size for path in files_below(staged / "form")])

    def _write_prepared(self, staged: Path, made: bool, shared: Shared) -> int:
        """Put the record beside what an adapter wrote; the bytes that are this form's own. Blocking."""
        form = staged / "form"
        kept_elsewhere = {f"{SHARED_FORM}/{name}" for name, _ in shared}
        with disk_errors():
            sizes = {path.relative_to(form).as_posix(): path.stat().st_size for path in files_below(form)}
            write_form_record(staged, sizes, made=made)
            return disk_bytes([size for name, size in sizes.items() if name not in kept_elsewhere])

    def _no_room(self, plan: NoRoom) -> DiskFull | ArtifactTooLarge:
        capacity_bytes = self.ledger.capacity_bytes
        if plan.needed_bytes > capacity_bytes:
            return ArtifactTooLarge(
                f"artifact needs {plan.needed_bytes} bytes on disk, and the disk tier has {capacity_bytes}; "
                "raise --disk-capacity"
            )
        return DiskFull(
            f"artifact needs {plan.needed_bytes} bytes on disk; of {capacity_bytes}, {plan.in_use_bytes} are in use by "
            f"loaded models and {plan.reserved_bytes} by other fetches; it is tried again later, "
            "or raise --disk-capacity"
        )

    def _forget(self, key: str) -> None:
        if self._prepared.pop(key, False):
            content_key = content_of(key)
            self._forms[content_key].discard(key)
            if not self._forms[content_key]:
                del self._forms[content_key]
                if self.is_hollow(content_key):
                    self._content_gone(content_key)
        self._unverified.discard(key)
        self._unsynced.discard(key)
        self._hollow.discard(key)
        if self._contents.pop(key, None) is not None:
            for origin in [origin for origin in self.origins.values() if origin.content == key]:
                del self.origins[origin.key]
            self._content_gone(key)

    def _scan(self, partial_age_max_s: float) -> None:
        for section in ("staging", "trash"):
            for path in self._directory.section(section):
                remove(path)
        for path in self._directory.section("content"):
            if not self._adopt_content(path):
                remove(path)
        for path in self._directory.section("prepared"):
            if not self._adopt_prepared(path):
                remove(path)
        self._shared.remove(tuple(name for name in self._shared.names() if not self.ledger.holds_shared(name)))
        for key in [key for key in self._hollow if self.form_of(key) is None]:
            self.ledger.end_leaving(self.ledger.begin_leaving(key).size_bytes)
            self._forget(key)
            remove(self._directory.path(key))
        for path in self._directory.section("partial"):
            age_s = time.time() - path.stat().st_mtime
            if age_s > partial_age_max_s or not plan_exists(path):
                remove(path)
                continue
            size_bytes = disk_bytes([file.stat().st_size for file in path.iterdir()])
            self.ledger.add(f"partial/{path.name}", size_bytes, path.stat().st_mtime)
        # The operator may have lowered the capacity since.
        room = self.ledger.plan_room(0)
        for key in room.victims if not isinstance(room, NoRoom) else ():
            left = self.ledger.begin_leaving(key)
            self._forget(key)
            remove(self._directory.path(key))
            self._shared.remove(left.shared)
            self.ledger.end_leaving(left.size_bytes)

    def _adopt_content(self, path: Path) -> bool:
        found = found_content(path)
        if found is None:
            return False
        record = found.record
        if found.hollow:
            remove(files_of(path, record))
            self._hollow.add(record.key)
        elif found.unverified:
            self._unverified.add(record.key)
        self.ledger.add(record.key, disk_bytes([]) if found.hollow else record.disk_bytes, found.last_used_s)
        self._contents[record.key] = record
        self.origins.update({origin.key: origin for origin in found.origins})
        return True

    def _adopt_prepared(self, path: Path) -> bool:
        key, found = f"prepared/{path.name}", found_form(path)
        if found is None:
            return False
        if found.unsynced:
            self._unsynced.add(key)
        shared = self._shared.adopt(path / "form")
        kept_elsewhere = {f"{SHARED_FORM}/{name}" for name, _ in shared}
        own = [size for name, size in found.sizes.items() if name not in kept_elsewhere]
        self.ledger.add(key, disk_bytes(own), found.last_used_s, shared)
        self._note_prepared(key, found.made)
        return True
