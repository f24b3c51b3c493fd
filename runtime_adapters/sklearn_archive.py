"""A skops file before anything in it is built: is it whole, of bearable size, and made of allowed types only?

A skops file is a zip: `schema.json` describes the objects, arrays lie beside it as `.npy`. skops builds the objects in
the order of the schema. Three things must be known before it starts, because afterwards is too late:

* the types, with the code that skops would build them with (`sklearn_allowlist`);
* that no archive unpacks into far more than it weighs;
* that each `sklearn.tree.Tree` is told the truth about its arrays: its constructor copies `n_outputs` numbers out of
  `n_classes`, and it believes `node_count`, without looking at how long the arrays are.

skops takes an object with a known `__id__` from its memory instead of from the schema, so what is checked here might
not be what is built. Types are checked at every entry; within a tree, entries with one id must be equal.

The estimate comes from here too. Measured with scikit-learn 1.9 and skops 0.16 in a fresh process: arrays count once,
as in the file (a Tree copies its own); the objects around them take 0.15 to 0.5 bytes per byte of schema.

Deliberately absent: anything that imports scikit-learn. This file is JSON, zip and array headers.
"""

from __future__ import annotations

import json
import tokenize
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from runtime_adapters.errors import BadArtifact, LoadFailed
from runtime_adapters.sklearn_allowlist import ALLOWED

SCHEMA_NAME = "schema.json"
SCHEMA_BYTES_MAX = 256 << 20
MEMBERS_MAX = 200_000
"""A forest of 10,000 trees has 30,000 arrays."""
RATIO_MAX = 200
RATIO_FREE_BYTES = 64 << 20
"""Below this an archive may unpack as it likes: an array of zeros does compress a thousandfold."""
OUTPUTS_MAX = 1 << 16
SCHEMA_SHARE_RESIDENT = 0.4
ESTIMATOR_BYTES = 4 << 10
PROTOCOL_MIN = 1
"""skops 0.10; protocol 0 described functions in a place of its own."""

_NPY_HEADER_BYTES = 128
_WHAT_NEXT = "save the model again with skops.io.dump"
_HOW_ELSE = (
    "convert the model to ONNX, or save it with joblib and either set isolation: process or store it under a prefix "
    "that the operator marked trusted"
)


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """What a checked file holds."""

    array_bytes: int
    schema_bytes: int
    sklearn_version: str | None
    """The version of scikit-learn that the estimator was fitted with."""

    @property
    def resident_bytes(self) -> int:
        return ESTIMATOR_BYTES + self.array_bytes + int(self.schema_bytes * SCHEMA_SHARE_RESIDENT)


def is_skops(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            return SCHEMA_NAME in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def check_archive(path: Path) -> ArchiveFacts:
    """Everything above. Raises BadArtifact; LoadFailed when the disk cannot be read."""
    try:
        if path.stat().st_size == 0:
            raise BadArtifact(f"sklearn: artifact {path.name!r} is empty; upload the model file again")
        with zipfile.ZipFile(path) as archive:
            return _check(archive, path.stat().st_size)
    except FileNotFoundError as error:
        raise BadArtifact(f"sklearn: artifact {path.name!r} is not there; check the URI") from error
    except OSError as error:
        raise LoadFailed(f"sklearn: artifact {path.name!r} cannot be read: {error.strerror}; try again") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: an encrypted member, or a schema nested too deep (RecursionError).
        raise BadArtifact(f"sklearn: no readable skops file: {error}; {_WHAT_NEXT}") from error
    except KeyError as error:
        raise BadArtifact(f"sklearn: the skops file lacks {error}; {_WHAT_NEXT}") from error
    except (ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError) as error:
        # The last two: NumPy parses an array's header as Python.
        raise BadArtifact(f"sklearn: the skops file is damaged: {error}; {_WHAT_NEXT}") from error


def _check(archive: zipfile.ZipFile, archive_bytes: int) -> ArchiveFacts:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) != len(members) or len(members) > MEMBERS_MAX:
        _refuse(
            f"the archive has {len(members):,} members, {len(names):,} names; allowed are {MEMBERS_MAX:,}, once each"
        )
    unpacked_bytes = sum(member.file_size for member in members)
    if unpacked_bytes > max(RATIO_FREE_BYTES, archive_bytes * RATIO_MAX):
        _refuse(f"the archive unpacks from {archive_bytes:,} to {unpacked_bytes:,} bytes, over {RATIO_MAX} times")
    schema_bytes = archive.getinfo(SCHEMA_NAME).file_size
    if schema_bytes > SCHEMA_BYTES_MAX:
        _refuse(f"{SCHEMA_NAME} has {schema_bytes:,} bytes; allowed are {SCHEMA_BYTES_MAX:,}")
    schema = json.loads(archive.read(SCHEMA_NAME))
    if not isinstance(schema, dict) or type(schema["protocol"]) is not int or schema["protocol"] < PROTOCOL_MIN:
        _refuse("the skops protocol is too old or missing")
    nodes = list(_nodes(schema))
    by_id: dict[Any, list[dict[str, Any]]] = {}
    for node in nodes:
        _check_type(node)
        if node["__loader__"] != "CachedNode" and node.get("__id__"):
            by_id.setdefault(node["__id__"], []).append(node)
    for node in nodes:
        if node["__loader__"] == "TreeNode":
            _check_tree(archive, node, by_id)
    arrays = [member for member in members if member.filename != SCHEMA_NAME]
    return ArchiveFacts(
        array_bytes=sum(max(0, member.file_size - _NPY_HEADER_BYTES) for member in arrays),
        schema_bytes=schema_bytes,
        sklearn_version=_version_of(schema),
    )


def _nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object of the schema: each dict that skops could take for one."""
    waiting: list[Any] = [schema]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "__loader__" in item:
                yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _check_type(node: dict[str, Any]) -> None:
    name, loader = f"{node['__module__']}.{node['__class__']}", node["__loader__"]
    if loader == "CachedNode":
        return  # stands for an object that is described, and checked, elsewhere in the file
    if (name, loader) not in ALLOWED:
        raise BadArtifact(f"sklearn: the skops file holds {name} ({loader}), which is not allowed here; {_HOW_ELSE}")


def _check_tree(archive: zipfile.ZipFile, node: dict[str, Any], by_id: dict[Any, list[dict[str, Any]]]) -> None:
    arguments = _resolved(node["__reduce__"]["args"], by_id)
    if arguments["__loader__"] != "TupleNode":
        _refuse("a tree's arguments are no tuple")
    _, classes, outputs = (_resolved(item, by_id) for item in arguments["content"])
    outputs_count = _integer(outputs)
    if not 1 <= outputs_count <= OUTPUTS_MAX:
        _refuse(f"a tree has {outputs_count:,} outputs; allowed are 1 to {OUTPUTS_MAX:,}")
    shape, dtype = _array_header(archive, classes)
    if shape != (outputs_count,) or dtype != np.dtype(np.intp):
        _refuse(f"a tree of {outputs_count:,} outputs has class counts of shape {shape} and type {dtype}")
    counts = np.frombuffer(archive.read(classes["file"])[-8 * outputs_count :], np.intp)
    if counts.min() < 1 or counts.max() > OUTPUTS_MAX:
        _refuse("a tree has a class count out of range")
    state = _resolved(node["content"], by_id)
    if state["__loader__"] != "DictNode":
        _refuse("a tree's state is no dict")
    content = state["content"]
    count = _integer(_resolved(content["node_count"], by_id))
    shape, _ = _array_header(archive, _resolved(content["nodes"], by_id))
    if count < 1 or shape != (count,):
        _refuse(f"a tree claims {count:,} nodes and holds an array of shape {shape}")


def _resolved(node: dict[str, Any], by_id: dict[Any, list[dict[str, Any]]]) -> dict[str, Any]:
    """What skops will build for this entry, whichever entry of the same id it meets first."""
    described = by_id.get(node.get("__id__"))
    if described is None:
        return node
    if any(other != described[0] for other in described[1:]):
        _refuse("two different objects within a tree have one id")
    return described[0]


def _integer(node: dict[str, Any]) -> int:
    if node["__loader__"] == "NdArrayNode":
        _refuse("a count is an array, not a number")
    value = json.loads(node["content"])
    if type(value) is not int:
        _refuse(f"a count is {str(value)[:20]!r}, not an integer")
    return int(value)


def _array_header(archive: zipfile.ZipFile, node: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if node["__loader__"] != "NdArrayNode" or node["type"] != "numpy":
        _refuse("a tree holds something else where an array is due")
    with archive.open(node["file"]) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype


def _version_of(schema: dict[str, Any]) -> str | None:
    try:
        version = json.loads(schema["content"]["content"]["_sklearn_version"]["content"])
    except (KeyError, TypeError, ValueError):
        return None
    return version if isinstance(version, str) else None


def _refuse(why: str) -> NoReturn:
    raise BadArtifact(f"sklearn: {why}; {_WHAT_NEXT}")
