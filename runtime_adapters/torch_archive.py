"""What a PyTorch file is and how much it weighs, told from its zip directory alone.

torch.export (.pt2) and TorchScript (.pt) both write zip archives whose entries are not compressed, so the directory
says exactly how many bytes of weights there are, without torch and without running anything. A file of `torch.save`
(a state dict, or a pickled module) is a zip as well; it holds no program and is refused with what to do instead.

Deliberately absent: AOTInductor packages, which hold machine code for one GPU and one version of torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from runtime_adapters.errors import BadArtifact

SUFFIXES = (".pt2", ".pt")
PREFERRED_NAMES = ("model.pt2", "model.pt")

_ENTRIES_MAX = 1_000_000

_PROGRAM_BASE_BYTES = 64 << 10
_BYTES_PER_GRAPH_BYTE = 5.5
"""Python objects of an exported graph, per byte of its JSON (measured: 100 kB for 2 layers, 1.6 MB for 100)."""
_BYTES_PER_MODULE_BYTE = 310
"""TorchScript's modules and its executor's plans, per byte of data.pkl (measured: 0.2 MB for 2 layers, 5 for 100)."""

_HOW_TO_EXPORT = "export it with torch.export.export(...) and torch.export.save(...)"


class ProgramKind(Enum):
    EXPORTED = "torch.export"
    SCRIPT = "TorchScript"


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A file that holds a program."""

    path: Path
    kind: ProgramKind
    weight_bytes: int
    program_bytes: int
    """What the loaded program takes beside its weights, on the host."""


def find_program(artifact: Path) -> ProgramFile:
    """The one program of an artifact: the file itself, or the one in the directory. Raises BadArtifact."""
    path = artifact if not artifact.is_dir() else _only_program_in(artifact)
    if not path.is_file():
        raise BadArtifact(f"{path.name}: no such file; check the URI")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, MemoryError) as error:
        raise BadArtifact(
            f"{path.name} ({path.stat().st_size:,} bytes) is no whole PyTorch archive: {error}; fetch it again, or "
            f"{_HOW_TO_EXPORT}"
        ) from error
    if len(entries) > _ENTRIES_MAX:
        raise BadArtifact(f"{path.name} has {len(entries):,} entries; allowed are {_ENTRIES_MAX:,}")
    # Writers put everything below one directory of any name; before torch 2.8, .pt2 had none.
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.filename] = entry.file_size
        sizes[entry.filename.partition("/")[2]] = entry.file_size
    kind = _kind_of(path.name, sizes)
    return ProgramFile(path, kind, _weight_bytes(kind, entries), _program_bytes(kind, sizes))


def looks_like_program(artifact: Path) -> bool:
    """Whether `find_program` finds one."""
    try:
        find_program(artifact)
    except BadArtifact:
        return False
    return True


def _only_program_in(directory: Path) -> Path:
    for name in PREFERRED_NAMES:
        if (directory / name).is_file():
            return directory / name
    found = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        raise BadArtifact(f"a PyTorch artifact is one .pt2 or .pt file, or a directory with one; found {names}")
    return found[0]


def _kind_of(name: str, sizes: dict[str, int]) -> ProgramKind:
    if "serialized_exported_program.json" in sizes:
        return ProgramKind.EXPORTED
    if "archive_format" in sizes:
        if any(entry.startswith("models/") and entry.endswith(".json") for entry in sizes):
            return ProgramKind.EXPORTED
        raise BadArtifact(f"{name}: an AOTInductor package without its program; {_HOW_TO_EXPORT}")
    if "constants.pkl" in sizes and any(entry.startswith("code/") for entry in sizes):
        return ProgramKind.SCRIPT
    if "data.pkl" in sizes:
        raise BadArtifact(f"{name}: written by torch.save, which holds weights but no program; {_HOW_TO_EXPORT}")
    raise BadArtifact(f"{name}: a zip archive, but not PyTorch's; {_HOW_TO_EXPORT}")


def _weight_bytes(kind: ProgramKind, entries: Sequence[zipfile.ZipInfo]) -> int:
    total = 0
    for entry in entries:
        name = entry.filename
        below = name.partition("/")[2]
        if kind is ProgramKind.EXPORTED:
            weighs = name in ("serialized_state_dict.pt", "serialized_constants.pt")
            weighs = weighs or (below.startswith(("data/weights/", "data/constants/")) and not name.endswith(".json"))
        else:
            weighs = below.startswith(("data/", "constants/"))
        total += entry.file_size if weighs else 0
    return total


def _program_bytes(kind: ProgramKind, sizes: dict[str, int]) -> int:
    if kind is ProgramKind.SCRIPT:
        return _PROGRAM_BASE_BYTES + _BYTES_PER_MODULE_BYTE * sizes.get("data.pkl", 0)
    in_models = (size for name, size in sizes.items() if name.startswith("models/") and name.endswith(".json"))
    graph_bytes = sizes.get("serialized_exported_program.json", 0) + sum(in_models)
    return _PROGRAM_BASE_BYTES + int(_BYTES_PER_GRAPH_BYTE * graph_bytes)
