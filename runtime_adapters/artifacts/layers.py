"""The layers of an image or an artifact, put together into the files of a content entry. Blocking.

Later layers win over earlier ones, and a whiteout in a layer (`.wh.name`, or `.wh..wh..opq` for a whole directory)
takes away what earlier layers put there, as in every container. All names are judged together before the first byte is
written, and a file that a later layer replaces is never written at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.artifacts.content import ContentRecord, tree_record
from runtime_adapters.artifacts.download import Downloaded, disk_errors
from runtime_adapters.artifacts.errors import ArtifactTooLarge
from runtime_adapters.artifacts.listing import Listing
from runtime_adapters.artifacts.names import Parts, check_distinct, safe_parts
from runtime_adapters.artifacts.unpack import (
    OPAQUE,
    WHITEOUT,
    FileRecord,
    OpenNew,
    PlannedFile,
    UnpackLimits,
    UnpackPlan,
    plan_unpack,
    unpack,
)
from runtime_adapters.errors import BadArtifact


@dataclass(frozen=True, slots=True)
class LayersPlan:
    """What is taken of each layer, by the layer's number; and the layers that are files themselves."""

    archives: dict[int, UnpackPlan]
    files: dict[int, Parts]
    size_bytes: tuple[int, ...]
    """Of each file that is written."""


def plan_layers(listing: Listing, directory: Path, limits: UnpackLimits, check: Callable[[], None]) -> LayersPlan:
    """Accept the layers as a whole. Raises BadArtifact (no file in them) and what `plan_unpack` raises."""
    chosen: dict[Parts, tuple[int, PlannedFile | None, int]] = {}
    for number, item in enumerate(listing.objects):
        if not item.archive:
            chosen[safe_parts(item.name)] = (number, None, item.size_bytes)
            continue
        found = plan_unpack(directory / str(number), item.archive, limits, check, below=item.below).files
        for file in found:
            _apply_whiteout(chosen, file.parts, number)
        chosen |= {
            file.parts: (number, file, file.size_bytes) for file in found if not file.parts[-1].startswith(WHITEOUT)
        }
    sizes = tuple(size_bytes for _, _, size_bytes in chosen.values())
    if not chosen:
        where = next((item.below for item in listing.objects if item.below), "")
        raise BadArtifact(
            f"no file lies below /{where} in the image; put the model there" if where else "no file in it"
        )
    if len(sizes) > limits.files_max or sum(sizes) > limits.bytes_max:
        raise ArtifactTooLarge(
            f"its layers hold {len(sizes)} files of {sum(sizes)} bytes; {limits.files_max} files and "
            f"{limits.bytes_max} bytes are allowed; raise --fetch-size-max, or push less"
        )
    check_distinct(chosen)
    archives: dict[int, list[PlannedFile]] = {}
    for number, planned, _ in chosen.values():
        if planned is not None:
            archives.setdefault(number, []).append(planned)
    return LayersPlan(
        {number: UnpackPlan(tuple(files)) for number, files in archives.items()},
        {number: parts for parts, (number, planned, _) in chosen.items() if planned is None},
        sizes,
    )


def place_layers(
    listing: Listing,
    downloaded: Downloaded,
    directory: Path,
    plan: LayersPlan,
    limits: UnpackLimits,
    staged: Path,
    check: Callable[[], None],
    create: OpenNew,
) -> ContentRecord:
    """Write what was planned into an entry in `staged`."""
    tree = staged / "tree"
    records: list[FileRecord] = []
    with disk_errors():
        tree.mkdir()
        for number, parts in plan.files.items():
            target = tree.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            (directory / str(number)).rename(target)
            record = downloaded.records[number]
            records.append(FileRecord("/".join(parts), record.size_bytes, record.sha256))
        for number, files in plan.archives.items():
            kind = listing.objects[number].archive
            records += unpack(directory / str(number), kind, files, tree, limits, check, create)
    return tree_record(tuple(records))


def _apply_whiteout(chosen: dict[Parts, tuple[int, PlannedFile | None, int]], parts: Parts, number: int) -> None:
    *inside, name = parts
    if not name.startswith(WHITEOUT):
        return
    gone = tuple(inside) if name == OPAQUE else (*inside, name.removeprefix(WHITEOUT))
    for other in [other for other, (of, _, _) in chosen.items() if of < number and other[: len(gone)] == gone]:
        del chosen[other]
