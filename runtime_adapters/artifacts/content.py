"""From downloaded files to the files of a content entry: as they are, or out of their archive. Blocking.

An entry is one file (`data/model`) or a directory (`tree/`), and is named by a hash: of the file's bytes, or over the
hashes of the directory's files. The same directory has the same name whether it came as a prefix, a zip or a tar.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from runtime_adapters.artifacts.download import Downloaded, disk_errors, tree_hash
from runtime_adapters.artifacts.ledger import disk_bytes
from runtime_adapters.artifacts.listing import Listing
from runtime_adapters.artifacts.locations import parse_location
from runtime_adapters.artifacts.unpack import FileRecord, OpenNew, UnpackLimits, UnpackPlan, unpack

FILE_NAME = "model"


@dataclass(frozen=True, slots=True)
class ContentRecord:
    """What an entry of fetched content consists of."""

    key: str
    files: tuple[FileRecord, ...]
    is_directory: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def disk_bytes(self) -> int:
        """Bytes that the ledger counts for it."""
        return disk_bytes([file.size_bytes for file in self.files])


def file_record(file: FileRecord) -> ContentRecord:
    """The entry of one file."""
    return ContentRecord(f"content/sha256-{file.sha256}", (replace(file, name=""),), is_directory=False)


def tree_record(files: tuple[FileRecord, ...]) -> ContentRecord:
    """The entry of a directory."""
    return ContentRecord(f"content/tree-{tree_hash(files)}", files, is_directory=True)


def place_as_is(listing: Listing, downloaded: Downloaded, directory: Path, staged: Path) -> ContentRecord:
    """Move what was downloaded into `directory` to where an entry in `staged` has it."""
    if not listing.is_directory:
        _place_file(directory / "0", staged)
        return file_record(downloaded.records[0])
    sources = {item.name: directory / str(number) for number, item in enumerate(listing.objects)}
    _place_tree(sources, staged)
    return tree_record(downloaded.records)


def place_unpacked(
    archive: Path,
    kind: str,
    plan: UnpackPlan,
    limits: UnpackLimits,
    staged: Path,
    check: Callable[[], None],
    create: OpenNew,
) -> tuple[ContentRecord, str]:
    """Unpack an accepted archive into an entry in `staged`: the record, and the suffix to show it under."""
    with disk_errors():
        (staged / "tree").mkdir()
        records = unpack(archive, kind, plan, staged / "tree", limits, check, create)
    if len(records) == 1 and "/" not in records[0].name:
        # An archive around one file is that file: `zip model.zip model.json` is how people upload one.
        _place_file(staged / "tree" / records[0].name, staged)
        with disk_errors():
            (staged / "tree").rmdir()
        return file_record(records[0]), parse_location(f"/{records[0].name}").suffix
    return tree_record(records), ""


def _place_file(source: Path, staged: Path) -> None:
    """Move a downloaded file to where a content entry has its file. Blocking."""
    with disk_errors():
        (staged / "data").mkdir()
        os.rename(source, staged / "data" / FILE_NAME)


def _place_tree(sources: dict[str, Path], staged: Path) -> None:
    """Move downloaded files to where a content entry has its tree. The names have been checked. Blocking."""
    with disk_errors():
        tree = staged / "tree"
        tree.mkdir()
        for name, source in sources.items():
            target = tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(source, target)
