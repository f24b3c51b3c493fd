"""Archives, opened without trusting them.

Two passes over the archive. The first reads every header and decides: which members there are, how many bytes they
take, whether all of it is acceptable. It writes nothing, so a refused archive leaves nothing behind, and the caller can
reserve the exact room. The second pass writes what the first accepted, and nothing else.

What is refused, always as a whole: names that climb or collide (`names`), links of both kinds, devices, pipes, sparse
files, encrypted members, unusual compression, too many members, too many bytes, and more output than the archive's
size explains. Permissions of the archive are not applied (no setuid, no execute bit), archives inside are not opened.

Python's `tarfile` and `zipfile` read some headers into memory at whatever size the header claims; `_Measured` refuses
such a read, and counts what decompression really produces.

The root: an archive that holds one directory and nothing beside it is that directory, because `tar czf model.tgz model`
is how people pack one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from runtime_adapters.artifacts.errors import ArtifactTooLarge, UnsafeArchive
from runtime_adapters.artifacts.names import Parts, check_distinct, safe_parts, shown
from runtime_adapters.errors import BadArtifact

_CHUNK_BYTES = 1024 * 1024
_HEADER_READ_BYTES_MAX = 4 * 1024 * 1024
"""A zip directory of 4 MiB names tens of thousands of members; a tar header of that size is an attack."""
WHITEOUT = ".wh."
"""Before a name in a layer of an image: that name is gone."""
OPAQUE = ".wh..wh..opq"
"""In a directory of a layer: what earlier layers put there is gone."""
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
"""The others need memory that the archive chooses (LZMA) or are rare (bzip2)."""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How far an archive may expand."""

    bytes_max: int = 10 * 1024**3
    files_max: int = 10_000
    ratio_max: float = 100.0
    """Output divided by archive size. Weights compress by a few times; 1,000 is a bomb of zeros."""
    ratio_free_bytes: int = 64 * 1024**2
    """Below this output the ratio is not looked at: small files of zeros are harmless."""

    def output_bytes_max(self, archive_bytes: int) -> int:
        """The most bytes that an archive of this size may become."""
        return int(min(self.bytes_max, max(self.ratio_free_bytes, self.ratio_max * archive_bytes)))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to be written: the `position`-th member of the archive, to `parts` below the root."""

    position: int
    parts: Parts
    size_bytes: int


@dataclass(frozen=True, slots=True)
class UnpackPlan:
    """What an acceptable archive becomes."""

    files: tuple[PlannedFile, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it lies on disk: its name relative to the artifact's root, its size, the SHA-256 of its bytes."""

    name: str
    size_bytes: int
    sha256: str


OpenNew = Callable[[Path], BinaryIO]
"""Creates a file that must not exist yet. A seam: tests let the disk fill up."""


def open_new(path: Path) -> BinaryIO:
    """Create a file for writing; a link or an existing file in its place is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    return os.fdopen(descriptor, "wb", buffering=0)


def plan_unpack(
    archive: Path, kind: str, limits: UnpackLimits, check: Callable[[], None] = lambda: None, below: str | None = None
) -> UnpackPlan:
    """Read every header and accept the archive as a whole, or raise UnsafeArchive, ArtifactTooLarge or BadArtifact.

    `below`: it is a layer. Names are kept as they are, and of a directory that is named only what lies below it is
    looked at; that may be nothing.
    """
    output_max = limits.output_bytes_max(archive.stat().st_size)
    files: list[PlannedFile] = []
    directories: list[Parts] = []
    total_bytes = 0
    with _opened(archive, kind, output_max) as members:
        for position, member in enumerate(members):
            check()
            if position >= limits.files_max:
                raise ArtifactTooLarge(f"archive has more than {limits.files_max} members; pack fewer, larger files")
            name = member.name if below is None else _name_below(member.name, below)
            if name is None:
                continue
            parts = safe_parts(name)
            if member.refused is not None:
                raise UnsafeArchive(
                    f"member {shown(member.name)} is {member.refused}; pack plain files and directories"
                )
            if member.is_directory:
                directories.append(parts)
                continue
            if not parts or member.name.endswith("/"):
                raise UnsafeArchive(f"member {shown(member.name)} is a file without a name")
            total_bytes += member.size_bytes
            if total_bytes > output_max:
                raise UnsafeArchive(
                    f"archive of {archive.stat().st_size} bytes unpacks to {total_bytes} or more; at most {output_max} "
                    f"are allowed ({limits.ratio_max:g} times its size, {limits.bytes_max} in all)"
                )
            files.append(PlannedFile(position, parts, member.size_bytes))
    check_distinct((file.parts for file in files), directories)
    if below is not None:
        return UnpackPlan(tuple(files))
    if not files:
        raise BadArtifact("archive holds no file; pack the model again")
    return UnpackPlan(_without_common_root(files))


def unpack(
    archive: Path,
    kind: str,
    plan: UnpackPlan,
    into: Path,
    limits: UnpackLimits,
    check: Callable[[], None] = lambda: None,
    create: OpenNew = open_new,
) -> tuple[FileRecord, ...]:
    """Write the planned files into the empty directory `into`; what they are and hash to, in the order of names."""
    wanted = {file.position: file for file in plan.files}
    records: list[FileRecord] = []
    with _opened(archive, kind, limits.output_bytes_max(archive.stat().st_size)) as members:
        for position, member in enumerate(members):
            file = wanted.get(position)
            if file is None:
                continue
            target = into.joinpath(*file.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            written = 0
            with member.open() as source, create(target) as sink:
                while chunk := source.read(_CHUNK_BYTES):
                    check()
                    written += len(chunk)
                    if written > file.size_bytes:
                        break
                    digest.update(chunk)
                    write_all(sink, chunk)
            if written != file.size_bytes:
                raise BadArtifact(
                    f"member {shown(member.name)} does not have the {file.size_bytes} bytes that it claims"
                )
            records.append(FileRecord("/".join(file.parts), written, digest.hexdigest()))
    if len(records) != len(wanted):
        raise BadArtifact("archive changed while it was being unpacked")
    return tuple(sorted(records, key=lambda record: record.name.encode()))


def write_all(sink: BinaryIO, data: bytes | memoryview) -> None:
    """Write everything to an unbuffered file, which may take less than it was offered."""
    view = memoryview(data)
    while view:
        view = view[sink.write(view) :]


def _name_below(name: str, directory: str) -> str | None:
    """The name as seen from the directory; None for what lies elsewhere, and for the directory itself."""
    plain = name.removeprefix("./") if directory else name
    if not directory:
        return None if plain in (".", "./") else plain
    if plain in (f"{WHITEOUT}{directory}", OPAQUE):
        return OPAQUE
    return plain.removeprefix(f"{directory}/") or None if plain.startswith(f"{directory}/") else None


def _without_common_root(files: list[PlannedFile]) -> tuple[PlannedFile, ...]:
    roots = {file.parts[0] for file in files}
    if len(roots) > 1 or any(len(file.parts) == 1 for file in files):
        return tuple(files)
    return tuple(PlannedFile(file.position, file.parts[1:], file.size_bytes) for file in files)


# One view of both kinds of archive ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size_bytes: int
    is_directory: bool
    refused: str | None
    """What it is, if that is something that is never unpacked."""
    open: Callable[[], BinaryIO]


@contextmanager
def _opened(archive: Path, kind: str, output_max: int) -> Iterator[Iterator[_Member]]:
    """The members in archive order. What the libraries raise on broken archives becomes BadArtifact here."""
    try:
        with archive.open("rb") as raw:
            yield _zip_members(raw) if kind == "zip" else _tar_members(raw, kind, output_max)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise BadArtifact(f"archive is corrupt or not a {kind} file: {error}; upload it again") from error
    except (ValueError, NotImplementedError, RuntimeError, OverflowError, LookupError, struct.error) as error:
        raise BadArtifact(f"archive cannot be read as {kind}: {error}; pack it with standard tools") from error


def _zip_members(raw: BinaryIO) -> Iterator[_Member]:
    with zipfile.ZipFile(cast(BinaryIO, _Measured(raw))) as opened:
        for info in opened.infolist():
            yield _Member(
                name=info.orig_filename,
                size_bytes=info.file_size,
                is_directory=info.orig_filename.endswith("/"),
                refused=_refused_zip(info),
                open=lambda info=info: cast(BinaryIO, opened.open(info)),  # type: ignore[misc]
            )


def _refused_zip(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in _ZIP_METHODS:
        return f"compressed by method {info.compress_type}, where stored and deflate are known"
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a special file"
    return None


def _tar_members(raw: BinaryIO, kind: str, output_max: int) -> Iterator[_Member]:
    if kind == "tar.gz":
        unzipped = gzip.GzipFile(fileobj=raw, mode="rb")
        # Headers and padding come on top of the files' own bytes: a block or two for each.
        stream = _Measured(cast(BinaryIO, unzipped), bytes_max=2 * output_max + 64 * 1024 * 1024)
    else:
        stream = _Measured(raw)
    # tarfile is told the stream is plain: it must not guess another compression from the content.
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:", errorlevel=2, ignore_zeros=False) as opened:
        for info in opened:
            yield _Member(
                name=info.name + ("/" if info.isdir() else ""),
                size_bytes=info.size,
                is_directory=info.isdir(),
                refused=_refused_tar(info),
                open=lambda info=info: cast(BinaryIO, opened.extractfile(info)),  # type: ignore[misc]
            )
        _check_tar_end(stream, opened.offset)


def _check_tar_end(stream: _Measured, offset: int) -> None:
    # tarfile takes a broken header, or the end of the data, for the end of the archive: a truncated upload would
    # unpack without a word. A whole archive ends with a block of zeros; reading on checks gzip's own sum.
    stream.seek(offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise BadArtifact("archive is cut short or has a broken header; upload it again")
    while stream.read(_CHUNK_BYTES):
        pass


def _refused_tar(info: tarfile.TarInfo) -> str | None:
    if info.issym():
        return "a symbolic link"
    if info.islnk():
        return "a hard link"
    if info.issparse():
        return "a sparse file"
    if info.size < 0:
        return "of negative size"
    if not (info.isreg() or info.isdir()):
        return "a device, a pipe or of unknown kind"
    return None


class _Measured(io.RawIOBase):
    """A stream that refuses to be read in huge pieces, or beyond what decompression may produce."""

    def __init__(self, raw: BinaryIO, bytes_max: int | None = None) -> None:
        self._raw = raw
        self._bytes_max = bytes_max
        self._furthest = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = size if size is not None and size >= 0 else _HEADER_READ_BYTES_MAX + 1
        data = self._raw.read(min(wanted, _HEADER_READ_BYTES_MAX + 1))
        if len(data) > _HEADER_READ_BYTES_MAX:
            raise UnsafeArchive(f"archive claims a header of more than {_HEADER_READ_BYTES_MAX} bytes")
        self._note(self._raw.tell())
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = self._raw.tell() if whence == os.SEEK_CUR else 0
        if self._bytes_max is not None and whence != os.SEEK_END and position + offset > self._bytes_max:
            self._note(position + offset)
        try:
            return self._raw.seek(offset, whence)
        except OSError as error:
            # Both an OSError, which zipfile expects of a file too short, and a ValueError, as `_opened` does.
            raise io.UnsupportedOperation("a header points outside of the archive") from error

    def tell(self) -> int:
        return self._raw.tell()

    def _note(self, position: int) -> None:
        self._furthest = max(self._furthest, position)
        if self._bytes_max is not None and self._furthest > self._bytes_max:
            raise UnsafeArchive(f"archive unpacks to more than {self._bytes_max} bytes")
