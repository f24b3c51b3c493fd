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


_Chosen = tuple[int, PlannedFile | None, int]
"""Of a file: its layer's number, where it lies in the archive (None: the layer is the file), its bytes."""


def plan_layers(listing: Listing, directory: Path, limits: UnpackLimits, check: Callable[[], None]) -> LayersPlan:
    """Accept the layers as a whole. Raises BadArtifact (no file in them) and what `plan_unpack` raises."""
    chosen: dict[Parts, _Chosen] = {}
    for number, item in enumerate(listing.objects):
        if not item.archive:
            chosen[safe_parts(item.name)] = (number, None, item.size_bytes)
            continue
        found = plan_unpack(directory / str(number), item.archive, limits, check, below=item.below).files
        chosen = _without(chosen, found)
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


def _without(chosen: dict[Parts, _Chosen], layer: tuple[PlannedFile, ...]) -> dict[Parts, _Chosen]:
    """What the whiteouts of a layer leave of the layers before it: one look at each file, however many they are."""
    gone: set[Parts] = set()
    for *inside, name in (file.parts for file in layer):
        if name.startswith(WHITEOUT):
            gone.add(tuple(inside) if name == OPAQUE else (*inside, name.removeprefix(WHITEOUT)))
    if not gone:
        return chosen
    return {parts: of for parts, of in chosen.items() if not any(parts[:end] in gone for end in range(len(parts) + 1))}
