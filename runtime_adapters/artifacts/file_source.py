"""Files and directories of this machine, and of the claims that are mounted on it.

Links to files are followed as far as the operator's prefixes allow; links to directories are refused.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from runtime_adapters.artifacts.errors import ArtifactChanged, ArtifactNotFound
from runtime_adapters.artifacts.foreign import raise_for_file
from runtime_adapters.artifacts.listing import Listing, RemoteObject, check_count
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.names import check_distinct, safe_parts, shown
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.errors import BadArtifact

_CHUNK_BYTES = 1024 * 1024
_FILE_GRAIN_S = 2.0
"""Coarsest timestamps of common file systems."""


class FileSource:
    """The file or directory at `path`, read under the rules of `policy`."""

    def __init__(self, location: Location, path: Path, policy: SourcePolicy, files_max: int) -> None:
        self._location = location
        self._path = path
        self._policy = policy
        self._files_max = files_max

    def look(self, known: RemoteObject | None = None) -> Listing:
        try:
            base = self._path.resolve(strict=True)
            if not base.is_dir():
                return Listing((self._object("", base),), is_directory=False, trusted=self._policy.trusts_file(base))
            objects = tuple(self._object(name, base / name) for name in self._names_below(base))
            trusted = all(self._policy.trusts_file((base / item.name).resolve()) for item in objects)
        except OSError as error:
            raise_for_file(error, self._location)
        if not objects:
            raise ArtifactNotFound(f"uri {self._location.shown!r}: the directory holds no file")
        return Listing(objects, is_directory=True, trusted=trusted)

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        try:
            descriptor = os.open(item.key, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                self._policy.check_file(_path_of(descriptor, item.key), self._location.shown)
                self._check_version(item, os.fstat(descriptor))
                file.seek(offset)
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                self._check_version(item, os.fstat(descriptor))
        except OSError as error:
            raise_for_file(error, self._location)

    def _names_below(self, base: Path) -> list[str]:
        names: list[str] = []
        for directory, below, files in os.walk(base, onerror=_raise, followlinks=False):
            inside = Path(directory)
            for child in below:
                if (inside / child).is_symlink():
                    raise BadArtifact(
                        f"uri {self._location.shown!r}: {shown(child)} is a link to a directory; put the files there"
                    )
            names += [(inside / file).relative_to(base).as_posix() for file in files]
            check_count(len(names), self._files_max, self._location)
        check_distinct([safe_parts(name) for name in names])
        return sorted(names)

    def _object(self, name: str, path: Path) -> RemoteObject:
        self._policy.check_file(path, self._location.shown)
        found = path.stat()
        self._check_regular(found, name)
        written_s = max(found.st_mtime, found.st_ctime)
        return RemoteObject(
            name=name,
            key=str(path),
            size_bytes=found.st_size,
            version=_file_version(found),
            settled=time.time() - written_s > _FILE_GRAIN_S,
        )

    def _check_version(self, item: RemoteObject, found: os.stat_result) -> None:
        self._check_regular(found, item.name)
        if _file_version(found) != item.version:
            raise ArtifactChanged(f"uri {self._location.shown!r}: the file changed while it was read; it is read again")

    def _check_regular(self, found: os.stat_result, name: str) -> None:
        if not stat.S_ISREG(found.st_mode):
            where = f", {shown(name)}," if name else ""
            raise BadArtifact(f"uri {self._location.shown!r}{where} is neither a file nor a directory")


def _file_version(found: os.stat_result) -> str:
    return f"file:{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _path_of(descriptor: int, fallback: str) -> Path:
    # What was really opened, whatever links were swapped since the path was checked.
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return Path(fallback)


def _raise(error: OSError) -> NoReturn:
    raise error
