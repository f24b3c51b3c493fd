"""What the disk tier writes beside the files that it keeps, and what it finds of that at the next start.

    content/<hash>/meta.json             the files with sizes and hashes, since which boot, whether they are gone
    content/<hash>/origins/<uri>.json    what a URI gave when it was last fetched
    prepared/<name>/meta.json            the files with sizes; since which boot, until they are on the platter

An entry whose files do not have the sizes that its record names is none: `found_content` and `found_form` answer None.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_adapters.artifacts.content import FILE_NAME, ContentRecord
from runtime_adapters.artifacts.download import boot_id
from runtime_adapters.artifacts.unpack import FileRecord

META = "meta.json"
ORIGINS = "origins"
_ORIGINS_PER_CONTENT_MAX = 64
"""Signed URLs differ each time: an unlimited list of who once asked would outgrow the content."""


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


@dataclass(frozen=True, slots=True)
class FoundContent:
    """A content entry that was there at the start."""

    record: ContentRecord
    origins: tuple[Origin, ...]
    hollow: bool
    unverified: bool
    """Its bytes were written before the machine was restarted, and nobody has checked them since."""
    last_used_s: float


@dataclass(frozen=True, slots=True)
class FoundForm:
    """A prepared form that was there at the start."""

    sizes: dict[str, int]
    made: bool
    unsynced: bool
    last_used_s: float


def found_content(path: Path) -> FoundContent | None:
    """What lies in the directory of a content entry; None: nothing that could be used."""
    key = f"content/{path.name}"
    try:
        meta = json.loads((path / META).read_text())
        files = tuple(FileRecord(str(name), int(size), str(sha256)) for name, size, sha256 in meta["files"])
        record = ContentRecord(key, files, bool(meta["directory"]))
        hollow = bool(meta.get("hollow"))
        if not hollow and any(file_of(path, record, file.name).stat().st_size != file.size_bytes for file in files):
            return None
        origins = [_origin_from_json(json.loads(file.read_text())) for file in (path / ORIGINS).glob("*.json")]
        last_used_s = (path / META).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return FoundContent(
        record,
        tuple(origin for origin in origins if origin.content == key),
        hollow,
        unverified=not hollow and not _of_this_boot(meta),
        last_used_s=last_used_s,
    )


def found_form(path: Path) -> FoundForm | None:
    """What lies in the directory of a prepared form; None: nothing that could be used."""
    try:
        meta = json.loads((path / META).read_text())
        sizes = {str(name): int(size) for name, size in meta["files"].items()}
        if "boot" in meta and not _of_this_boot(meta):
            return None
        if any((path / "form" / name).stat().st_size != size for name, size in sizes.items()):
            return None
        last_used_s = (path / META).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return FoundForm(sizes, bool(meta.get("made")), "boot" in meta, last_used_s)


def write_content_record(path: Path, record: ContentRecord, *, hollow: bool = False) -> None:
    """`hollow`: its files are gone, or will be in a moment: those that are left are deleted at the next start."""
    files = [[file.name, file.size_bytes, file.sha256] for file in record.files]
    _write_json(path / META, {"boot": boot_id(), "directory": record.is_directory, "files": files, "hollow": hollow})


def write_form_record(path: Path, sizes: dict[str, int], *, made: bool) -> None:
    """A form that is not on the platter yet."""
    _write_json(path / META, {"made": made, "files": sizes, "boot": boot_id()})


def form_is_synced(path: Path) -> None:
    """It is on the platter: no reboot harms it any more. When it was last used stays."""
    meta = json.loads((path / META).read_text())
    last_used = (path / META).stat()
    _write_json(path / META, {name: value for name, value in meta.items() if name != "boot"})
    os.utime(path / META, ns=(last_used.st_atime_ns, last_used.st_mtime_ns))


def write_origin(path: Path, origin: Origin) -> None:
    """One more URI in the directory of its content."""
    directory = path / ORIGINS
    directory.mkdir(exist_ok=True)
    others = sorted(directory.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for old in others[: max(0, len(others) + 1 - _ORIGINS_PER_CONTENT_MAX)]:
        old.unlink(missing_ok=True)
    _write_json(directory / f"{origin.key}.json", _origin_to_json(origin))


def prepared_key(content_hash: str, variant: str) -> str:
    """The entry of a prepared form; `variant` may hold plain characters only."""
    return f"prepared/{content_hash}--{variant}"


def variant_of(key: str) -> str:
    """The variant that a prepared form is, as `prepared_key` was given it."""
    return key.split("--", 1)[1]


def content_of(key: str) -> str:
    """The content that a prepared form was made of."""
    return f"content/{key.removeprefix('prepared/').split('--', 1)[0]}"


def files_of(path: Path, record: ContentRecord) -> Path:
    """What in the directory of a content entry holds its files."""
    return path / ("tree" if record.is_directory else "data")


def file_of(path: Path, record: ContentRecord, name: str) -> Path:
    """One of its files, by the name that the record has for it."""
    return files_of(path, record) / (name if record.is_directory else FILE_NAME)


def _of_this_boot(meta: dict[str, Any]) -> bool:
    return bool(boot_id()) and meta.get("boot") == boot_id()


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
