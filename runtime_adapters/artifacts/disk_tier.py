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
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from runtime_adapters.artifacts.content import FILE_NAME, ContentRecord
from runtime_adapters.artifacts.download import Stop, boot_id, disk_errors, hash_file, plan_exists
from runtime_adapters.artifacts.errors import ArtifactTooLarge, BadStorageConfig, DiskFull
from runtime_adapters.artifacts.ledger import DiskLedger, NoRoom, Reservation, disk_bytes
from runtime_adapters.artifacts.shared_files import Shared, SharedFiles
from runtime_adapters.artifacts.unpack import FileRecord
from runtime_adapters.base import SHARED_FORM

T = TypeVar("T")
_META = "meta.json"
_ORIGINS = "origins"
_ORIGINS_PER_CONTENT_MAX = 64
"""Signed URLs differ each time: an unlimited list of who once asked would outgrow the content."""
_SECTIONS = ("content", "prepared", "shared", "partial", "staging", "trash")
ORIGINAL_DROP_MIN_BYTES = 1 << 20
"""Smaller originals stay: deleting them would cost each first load more than it saves."""


class InThread(Protocol):
    """Runs what blocks on a thread."""

    async def __call__(self, work: Callable[..., T], /, *arguments: object) -> T: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """What a URI gave when it was last fetched: which objects in which versions, and which content they became.

    `object_sha256` is what a spec's checksum is compared with: of the object, or of the directory's list of hashes.
    """

    key: str
    server: str
    is_directory: bool
    objects: tuple[tuple[str, int, str], ...]
    settled: bool
    etag: str | None
    object_sha256: str
    content: str


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
        self._root = root.absolute()
        self._housekeeping = housekeeping
        self._contents: dict[str, ContentRecord] = {}
        self._prepared: dict[str, bool] = {}
        self._unsynced: set[str] = set()
        """Forms made since the machine started that are not on the platter yet."""
        self._forms: dict[str, set[str]] = {}
        """The forms that were made, by the content that they stand for."""
        self._unverified: set[str] = set()
        self._hollow: set[str] = set()
        self._shared = SharedFiles(self._root / "shared")
        self._sharing = asyncio.Lock()
        """Held while files in `shared/` come and go: what one form links to must not be deleted under it."""
        self._numbers = iter(range(1, 1 << 62))
        self._making_room = asyncio.Lock()
        with disk_errors():
            for section in _SECTIONS:
                (self._root / section).mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self._root / "lock")
            self._scan(partial_age_max_s)

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.close()

    # Finding ----------------------------------------------------------------------------------------------------

    def content(self, key: str) -> ContentRecord | None:
        """What is known of a content entry that is in the tier."""
        return self._contents.get(key) if key in self.ledger else None

    def prepared(self, key: str) -> bool | None:
        """True: a form was made; False: there is none better; None: nobody has tried."""
        return self._prepared.get(key) if key in self.ledger else None

    def prepared_path(self, key: str) -> Path:
        """Where a prepared form lies."""
        return self._root / key / "form"

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
        return self._root / key

    def content_path(self, record: ContentRecord, suffix: str) -> Path:
        """The path that an adapter is given. Makes the link with this suffix if it is not there: quick."""
        if record.is_directory:
            return self._root / record.key / "tree"
        base = self._root / record.key / "data" / FILE_NAME
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
        with disk_errors():
            return all(hash_file(self._file(record, file.name), stop) == file.sha256 for file in record.files)

    def verified(self, record: ContentRecord) -> None:
        """The entry's bytes are good on this boot. Blocking, but quick."""
        self._unverified.discard(record.key)
        with disk_errors():
            _write_json(self._root / record.key / _META, _meta_of(record))

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
            leaving.append((self.ledger.begin_leaving(key), self._to_trash(self._root / key)))
            self._forget(key)
        for number, (left, path) in enumerate(leaving):
            try:
                if path is not None:
                    await self._discard(path)
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

    def stage(self) -> Path:
        """A new empty directory on the same file system. Blocking, but quick."""
        path = self._root / "staging" / f"{os.getpid()}-{next(self._numbers)}"
        with disk_errors():
            path.mkdir()
        return path

    def write_content(self, staged: Path, record: ContentRecord, origin: Origin, download: Path) -> None:
        """Put the record and the origin beside the files in `staged`; delete the rest of the download. Blocking."""
        with disk_errors():
            shutil.rmtree(download)
            _write_json(staged / _META, _meta_of(record))
            (staged / _ORIGINS).mkdir()
            _write_json(staged / _ORIGINS / f"{origin.key}.json", _origin_to_json(origin))

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
            os.rename(staged, self._root / record.key)
        self.ledger.settle(reservation, record.key, record.disk_bytes, now_s)
        self.ledger.acquire(record.key, now_s)
        self._contents[record.key] = record
        self.origins[origin.key] = origin
        return True

    def add_origin(self, origin: Origin) -> None:
        """Remember one more URI for content that is there. Blocking; the content is in use meanwhile."""
        directory = self._root / origin.content / _ORIGINS
        with disk_errors():
            others = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in others[: max(0, len(others) + 1 - _ORIGINS_PER_CONTENT_MAX)]:
                old.unlink(missing_ok=True)
            _write_json(directory / f"{origin.key}.json", _origin_to_json(origin))

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
                    os.rename(staged, self._root / key)
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
        directory = self._root / key
        with disk_errors():
            for path in _files_below(directory / "form"):
                _sync(path)
            meta = json.loads((directory / _META).read_text())
            last_used = (directory / _META).stat()
            _write_json(directory / _META, {name: value for name, value in meta.items() if name != "boot"})
            os.utime(directory / _META, ns=(last_used.st_atime_ns, last_used.st_mtime_ns))

    def synced(self, key: str) -> None:
        """`sync_prepared` has ended."""
        self._unsynced.discard(key)

    def hollow_out(self, key: str) -> Coroutine[Any, Any, None]:
        """Content that a synced form stands for loses its files, which nobody reads. Await the answer: they are gone
        from sight at once, and their bytes free when it ends."""
        record = self._contents[key]
        with disk_errors():
            # The record first: files that it does not name are deleted at the next start.
            _write_json(self._root / key / _META, _meta_of(record, hollow=True))
        self._hollow.add(key)
        self._unverified.discard(key)
        trashed = self._to_trash(self._root / key / ("tree" if record.is_directory else "data"))
        freed_bytes = self.ledger.begin_shrinking(key, disk_bytes([]))

        async def delete() -> None:
            try:
                if trashed is not None:
                    await self._discard(trashed)
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
            os.utime(self._root / key / _META)

    async def drop(self, path: Path) -> None:
        """Delete something that is not an entry (a staging directory, a partial download)."""
        trashed = self._to_trash(path)
        if trashed is not None:
            await self._discard(trashed)

    # Inside -----------------------------------------------------------------------------------------------------

    def _note_prepared(self, key: str, made: bool) -> None:
        self._prepared[key] = made
        if made:
            self._forms.setdefault(_content_of(key), set()).add(key)

    def _fill(self, reservation: Reservation, staged: Path, record: ContentRecord) -> None:
        """Hollow content was fetched again."""
        name = "tree" if record.is_directory else "data"
        with disk_errors():
            os.rename(staged / name, self._root / record.key / name)
            _write_json(self._root / record.key / _META, _meta_of(record))
        self._hollow.discard(record.key)
        self.ledger.settle_into(reservation, record.key, record.disk_bytes)

    def _form_bytes(self, staged: Path) -> int:
        with disk_errors():
            return disk_bytes([path.stat().st_size for path in _files_below(staged / "form")])

    def _write_prepared(self, staged: Path, made: bool, shared: Shared) -> int:
        """Put the record beside what an adapter wrote; the bytes that are this form's own. Blocking."""
        form = staged / "form"
        kept_elsewhere = {f"{SHARED_FORM}/{name}" for name, _ in shared}
        with disk_errors():
            sizes = {path.relative_to(form).as_posix(): path.stat().st_size for path in _files_below(form)}
            _write_json(staged / _META, {"made": made, "files": sizes, "boot": boot_id()})
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

    def _to_trash(self, path: Path) -> Path | None:
        trashed = self._root / "trash" / f"{os.getpid()}-{next(self._numbers)}"
        with disk_errors():
            try:
                os.rename(path, trashed)
            except FileNotFoundError:
                return None
        return trashed

    async def _discard(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._housekeeping, partial(shutil.rmtree, path, ignore_errors=True))
        await asyncio.shield(work)

    def _forget(self, key: str) -> None:
        if self._prepared.pop(key, False):
            content_key = _content_of(key)
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

    def _file(self, record: ContentRecord, name: str) -> Path:
        return self._root / record.key / "tree" / name if record.is_directory else self.content_path(record, "")

    def _scan(self, partial_age_max_s: float) -> None:
        for section in ("staging", "trash"):
            for path in (self._root / section).iterdir():
                _remove(path)
        for path in (self._root / "content").iterdir():
            if not self._adopt_content(path):
                _remove(path)
        for path in (self._root / "prepared").iterdir():
            if not self._adopt_prepared(path):
                _remove(path)
        self._shared.remove(tuple(name for name in self._shared.names() if not self.ledger.holds_shared(name)))
        for key in [key for key in self._hollow if self.form_of(key) is None]:
            self.ledger.end_leaving(self.ledger.begin_leaving(key).size_bytes)
            self._forget(key)
            _remove(self._root / key)
        for path in (self._root / "partial").iterdir():
            age_s = time.time() - path.stat().st_mtime
            if age_s > partial_age_max_s or not plan_exists(path):
                _remove(path)
                continue
            size_bytes = disk_bytes([file.stat().st_size for file in path.iterdir()])
            self.ledger.add(f"partial/{path.name}", size_bytes, path.stat().st_mtime)
        # The operator may have lowered the capacity since.
        room = self.ledger.plan_room(0)
        for key in room.victims if not isinstance(room, NoRoom) else ():
            left = self.ledger.begin_leaving(key)
            self._forget(key)
            _remove(self._root / key)
            self._shared.remove(left.shared)
            self.ledger.end_leaving(left.size_bytes)

    def _adopt_content(self, path: Path) -> bool:
        key = f"content/{path.name}"
        try:
            meta = json.loads((path / _META).read_text())
            files = tuple(FileRecord(str(name), int(size), str(sha256)) for name, size, sha256 in meta["files"])
            record = ContentRecord(key, files, bool(meta["directory"]))
            hollow = bool(meta.get("hollow"))
            if hollow:
                _remove(path / ("tree" if record.is_directory else "data"))
            elif any(self._file(record, file.name).stat().st_size != file.size_bytes for file in files):
                return False
            origins = [_origin_from_json(json.loads(file.read_text())) for file in (path / _ORIGINS).glob("*.json")]
            last_used_s = (path / _META).stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.ledger.add(key, disk_bytes([]) if hollow else record.disk_bytes, last_used_s)
        self._contents[key] = record
        self.origins.update({origin.key: origin for origin in origins if origin.content == key})
        if hollow:
            self._hollow.add(key)
        elif not boot_id() or meta.get("boot") != boot_id():
            self._unverified.add(key)
        return True

    def _adopt_prepared(self, path: Path) -> bool:
        key = f"prepared/{path.name}"
        try:
            meta = json.loads((path / _META).read_text())
            sizes = {str(name): int(size) for name, size in meta["files"].items()}
            if "boot" in meta and (not boot_id() or meta["boot"] != boot_id()):
                return False
            if any((path / "form" / name).stat().st_size != size for name, size in sizes.items()):
                return False
            last_used_s = (path / _META).stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if "boot" in meta:
            self._unsynced.add(key)
        shared = self._shared.adopt(path / "form")
        kept_elsewhere = {f"{SHARED_FORM}/{name}" for name, _ in shared}
        own = [size for name, size in sizes.items() if name not in kept_elsewhere]
        self.ledger.add(key, disk_bytes(own), last_used_s, shared)
        self._note_prepared(key, bool(meta.get("made")))
        return True


def prepared_key(content_hash: str, variant: str) -> str:
    """The entry of a prepared form; `variant` may hold plain characters only."""
    return f"prepared/{content_hash}--{variant}"


def variant_of(key: str) -> str:
    """The variant that a prepared form is, as `prepared_key` was given it."""
    return key.split("--", 1)[1]


def _content_of(key: str) -> str:
    """The content that a prepared form was made of."""
    return f"content/{key.removeprefix('prepared/').split('--', 1)[0]}"


def _meta_of(record: ContentRecord, *, hollow: bool = False) -> dict[str, Any]:
    files = [[file.name, file.size_bytes, file.sha256] for file in record.files]
    return {"boot": boot_id(), "directory": record.is_directory, "files": files, "hollow": hollow}


def _origin_to_json(origin: Origin) -> dict[str, Any]:
    return {
        "key": origin.key,
        "server": origin.server,
        "is_directory": origin.is_directory,
        "objects": [list(item) for item in origin.objects],
        "settled": origin.settled,
        "etag": origin.etag,
        "object_sha256": origin.object_sha256,
        "content": origin.content,
    }


def _origin_from_json(data: dict[str, Any]) -> Origin:
    objects = tuple((str(name), int(size), str(version)) for name, size, version in data["objects"])
    return Origin(**{**data, "objects": objects})


def _write_json(path: Path, value: object) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value))
    os.replace(new, path)


def _files_below(directory: Path) -> list[Path]:
    return [Path(inside) / name for inside, _, names in os.walk(directory) for name in sorted(names)]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(path: Path) -> BinaryIO:
    # A record lock: unlike flock's, a forked worker process does not inherit it and keep it.
    file = path.open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BadStorageConfig(
            f"data directory {str(path.parent)!r} is in use by another process; give each pod its own --data-dir"
        ) from None
    return file
