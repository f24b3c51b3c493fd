"""Artifacts that came with a load request: kept in a directory of this pod, under the hash of their contents.

What is written once is never written to again, so equal uploads are one. An upload stays for as long as a registration
names it, and goes with the last one: unregistered, or replaced by one of another URI. So what lies here, and whose it
is, follows from the registrations alone, after a restart, too; what none of them names is taken away at the start.

Every tenant whose registrations name an upload is charged for all of it, each file and directory with a block at least,
so that a million empty files are not free. Owned by the event loop; the disk is written to on threads, one at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import shutil
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mesh.threads import InThread
from placement.records import ModelRecord
from placement.view import Changes

log = logging.getLogger("hexcomb.uploads")

FILES_MAX = 256
_PATH_CHARACTERS_MAX = 200
_BLOCK_BYTES = 4096
"""What a file or a directory takes at least."""
_NAME = re.compile(r"[0-9a-f]{64}")


class BadUpload(ValueError):
    """Files that cannot be an artifact; the message says why."""


class UploadsFull(Exception):
    """The tenant has as much here as it may have."""


@dataclass(slots=True)
class _Upload:
    """`named`: the models whose registrations name it, by tenant and id. `wanted`: by loads that go on, by tenant."""

    size_bytes: int
    named: set[tuple[str, str]] = field(default_factory=set)
    wanted: Counter[str] = field(default_factory=Counter)

    def is_of(self, tenant: str) -> bool:
        """Whether the tenant is charged for it."""
        return self.wanted[tenant] > 0 or any(owner == tenant for owner, _ in self.named)

    @property
    def is_needed(self) -> bool:
        """Whether anybody names it or is about to."""
        return bool(self.named) or self.wanted.total() > 0


class Uploads:
    """One directory."""

    def __init__(self, directory: Path, tenant_bytes_max: int, in_thread: InThread) -> None:
        self._directory = directory.absolute()
        self._tenant_bytes_max = tenant_bytes_max
        self._in_thread = in_thread
        self._uploads: dict[str, _Upload] = {}
        self._writing = asyncio.Lock()
        self._ordinals = count()
        self._working: set[asyncio.Task[None]] = set()

    async def start(self, registered: Iterable[ModelRecord]) -> None:
        """Take stock of what lies here; what no registration names is taken away."""
        for name, size_bytes in (await self._in_thread("uploads", _take_stock, self._directory)).items():
            self._uploads[name] = _Upload(size_bytes)
        for record in registered:
            self._note(record.tenant, record.id, None, record.spec.uri)
        for name in list(self._uploads):
            self._leave_unneeded(name)

    def follow(self, changes: Changes) -> None:
        """Registrations came, changed or went."""
        for change in changes.models:
            before = None if change.before is None else change.before.spec.uri
            after = None if change.after is None else change.after.spec.uri
            if before != after:
                self._note(change.tenant, change.id, before, after)

    def used_bytes(self, tenant: str) -> int:
        """What the tenant is charged for."""
        return sum(upload.size_bytes for upload in self._uploads.values() if upload.is_of(tenant))

    @asynccontextmanager
    async def kept(self, tenant: str, files: Mapping[str, bytes]) -> AsyncGenerator[str, None]:
        """The URI of an artifact of these files, by relative path: the file itself where there is one. Whoever wants
        it to stay registers it before the end of the block.

        Raises BadUpload, UploadsFull.
        """
        relative = {_checked(path): content for path, content in files.items()}
        if not 0 < len(relative) <= FILES_MAX or len(relative) != len(files):
            raise BadUpload(f"{len(files)} files were sent; 1 to {FILES_MAX} with names that differ are allowed")
        name = await self._in_thread("uploads", _digest_of, relative)
        size_bytes = _size_of((len(content), len(path.parts)) for path, content in relative.items())
        upload = self._charged(tenant, name, size_bytes)
        upload.wanted[tenant] += 1
        try:
            target = self._directory / name
            # The caller may be cancelled; the thread that writes goes on to its end.
            await asyncio.shield(self._begin(self._put(target, relative)))
            (only, *others) = relative
            yield (target if others or len(only.parts) > 1 else target / only).as_uri()
        finally:
            upload.wanted[tenant] -= 1
            self._leave_unneeded(name)

    async def close(self) -> None:
        """What is being written or taken away has ended when it returns."""
        await asyncio.gather(*self._working, return_exceptions=True)

    def _charged(self, tenant: str, name: str, size_bytes: int) -> _Upload:
        known = self._uploads.get(name)
        if known is not None and known.is_of(tenant):
            return known
        used_bytes = self.used_bytes(tenant)
        if used_bytes + size_bytes > self._tenant_bytes_max:
            raise UploadsFull(
                f"tenant {tenant!r} keeps {used_bytes:,} bytes of uploaded models on this pod, and these files take "
                f"{size_bytes:,}; {self._tenant_bytes_max:,} are allowed: unregister models that were uploaded, "
                "register this one by its URI, or raise --uploads-max"
            )
        return self._uploads.setdefault(name, _Upload(size_bytes))

    def _note(self, tenant: str, model_id: str, before: str | None, after: str | None) -> None:
        was, now = self._name_in(before), self._name_in(after)
        if now is not None and now in self._uploads:
            self._uploads[now].named.add((tenant, model_id))
        if was is not None and was != now and was in self._uploads:
            self._uploads[was].named.discard((tenant, model_id))
            self._leave_unneeded(was)

    def _name_in(self, uri: str | None) -> str | None:
        """The upload that a URI names; None: it names something else."""
        path = PurePosixPath(unquote(urlsplit(uri or "").path))
        if not path.is_relative_to(self._directory):
            return None
        inside = path.relative_to(self._directory).parts
        return inside[0] if inside else None

    def _leave_unneeded(self, name: str) -> None:
        if not self._uploads[name].is_needed:
            self._begin(self._leave(name))

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    async def _put(self, target: Path, files: Mapping[PurePosixPath, bytes]) -> None:
        async with self._writing:  # what leaves has left by then, or stays
            await self._in_thread("uploads", self._write, target, files)

    async def _leave(self, name: str) -> None:
        async with self._writing:
            upload = self._uploads.get(name)
            if upload is None or upload.is_needed:
                return
            try:
                await self._in_thread("uploads", _remove, self._directory / name)
            except OSError as error:
                log.warning("an uploaded model that nobody needs stays until the next start: %s", error)
                return
            if not upload.is_needed:
                del self._uploads[name]

    def _write(self, target: Path, files: Mapping[PurePosixPath, bytes]) -> None:
        if target.exists():
            return
        made = self._directory / f".{target.name}-{next(self._ordinals)}"
        try:
            for path, content in files.items():
                file = made / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            made.replace(target)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            raise BadUpload(f"the files cannot be written: {error.strerror}") from error


def _checked(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text or len(text) > _PATH_CHARACTERS_MAX:
        raise BadUpload(f"{text[:80]!r} is no path within a model's directory")
    return path


def _digest_of(files: Mapping[PurePosixPath, bytes]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{len(files[path])}\0".encode())
        digest.update(files[path])
    return digest.hexdigest()


def _size_of(files: Iterable[tuple[int, int]]) -> int:
    """Of files with so many bytes, each so many directories deep."""
    return _BLOCK_BYTES + sum(max(size_bytes, _BLOCK_BYTES) + (depth - 1) * _BLOCK_BYTES for size_bytes, depth in files)


def _take_stock(directory: Path) -> dict[str, int]:
    """What lies in the directory, by name; what a writer left unfinished goes."""
    found: dict[str, int] = {}
    for entry in directory.iterdir() if directory.is_dir() else ():
        if not _NAME.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)
            continue
        files = [file for file in entry.rglob("*") if file.is_file()]
        found[entry.name] = _size_of((file.stat().st_size, len(file.relative_to(entry).parts)) for file in files)
    return found


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
