"""Many models at once: from a directory of artifacts, from a manifest that lists them, or from a DataFrame.

Everything is read and checked before anything is registered, and every bad entry is told, not the first: a person
fixes a list once. A manifest's fields have the names of the flags of `models register`, with dashes or underscores:

    models:
      - name: churn-2026
        uri: ./churn.onnx          # relative to the manifest
        capacity-hint: 25MiB
        labels: {team: growth}

It is YAML or JSON; or, as the file's name says, JSON lines (`.jsonl`, `.ndjson`: an entry each) or CSV (`.csv`: a
heading with the fields' names, a row each). Rows, of a DataFrame too, have a column for each label, `labels.team`, and
for each parameter; what is empty or missing in them is not said.

In a directory, each file or sub-directory whose content is a known format becomes a model named after it. A
sub-directory that is no artifact itself but holds exactly one is registered under the sub-directory's name, which is
how training jobs like to write. What is not recognised is counted and left alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesh.cli.sizes import parse_size
from placement.errors import PlacementError
from placement.keys import check_id
from placement.records import ModelSpec, spec_from_mapping

if TYPE_CHECKING:
    import pandas as pd

_OF_THE_CALL = ("name", "if_generation", "load")
_RENAMED = {"capacity_hint": "capacity_hint_bytes", "label": "labels", "parameter": "parameters"}
_FIELDS = (
    "name", "uri", "format", "capacity_hint", "storage_key", "checksum", "labels", "priority", "pinned", "isolation",
    "ttl_s", "load_timeout_s", "batch_rows_max", "batch_delay_s", "parameters", "copies_min", "copies_max",
    "if_generation", "load",
)  # fmt: skip
_WHOLE_NUMBERS = frozenset({"priority", "copies_min", "copies_max", "batch_rows_max", "if_generation"})
_NUMBERS = frozenset({"ttl_s", "load_timeout_s", "batch_delay_s"})
_YES_OR_NO = frozenset({"pinned", "load"})
"""What the text of a cell is read as; all other fields are text."""
_MAPPINGS = ("labels.", "parameters.")
_SPEC_FIELDS = frozenset({_RENAMED.get(name, name) for name in _FIELDS if name not in _OF_THE_CALL})


@dataclass(frozen=True, slots=True)
class Entry:
    """One model to register; `origin` says where it was asked for."""

    id: str
    spec: ModelSpec
    if_generation: int | None = None
    load: bool = False
    origin: str = ""


@dataclass(frozen=True, slots=True)
class BadEntry:
    """One that cannot be registered as it stands."""

    origin: str
    message: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What a directory or manifest holds. `unrecognised` names what a directory held besides."""

    entries: tuple[Entry, ...]
    bad: tuple[BadEntry, ...]
    unrecognised: tuple[str, ...] = ()


def make_entry(fields: Mapping[str, Any], base: Path, origin: str = "") -> Entry:
    """Check one entry's fields. Raises ValueError with a sentence."""
    given = {str(name).replace("-", "_"): value for name, value in fields.items() if value is not None}
    given = {_RENAMED.get(name, name): value for name, value in given.items()}
    known = _SPEC_FIELDS | set(_OF_THE_CALL)
    if unknown := sorted(set(given) - known):
        allowed = ", ".join(name.replace("_", "-") for name in _FIELDS)
        raise ValueError(f"field {unknown[0].replace('_', '-')!r} is not known; known are {allowed}")
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError("name is missing; every model needs one")
    if_generation = given.pop("if_generation", None)
    if if_generation is not None and (type(if_generation) is not int or if_generation < 0):
        raise ValueError(f"if-generation is {if_generation!r}; it must be a whole number from 0")
    load = given.pop("load", False)
    if not isinstance(load, bool):
        raise ValueError(f"load is {load!r}; it must be true or false")
    if isinstance(given.get("capacity_hint_bytes"), str):
        given["capacity_hint_bytes"] = parse_size(given["capacity_hint_bytes"])
    for field in ("labels", "parameters"):
        if isinstance(given.get(field), Mapping):
            # YAML reads `max: 3` as a number; on the wire both sides are text.
            given[field] = {str(key): _as_text(value) for key, value in given[field].items()}
    if isinstance(given.get("uri"), str):
        given["uri"] = locate(given["uri"], base)
    try:
        check_id(name)
        return Entry(name, spec_from_mapping(given), if_generation, load, origin)
    except PlacementError as error:
        raise ValueError(str(error)) from error


def locate(uri: str, base: Path) -> str:
    """A URI as it is; a path as a file:// URI."""
    if "://" in uri or not uri:
        return uri
    return (base / Path(uri).expanduser()).resolve().as_uri()


def collect(source: Path) -> Collected:
    """From a directory or a manifest file. Raises ValueError when there is nothing to read."""
    if source.is_dir():
        return _scan_directory(source)
    if source.is_file():
        return _read_manifest(source)
    raise ValueError(f"{str(source)!r} is neither a directory nor a file")


def of_frame(frame: pd.DataFrame, base: Path) -> Collected:
    """From rows; `base`: where relative URIs start from. Raises ValueError for columns of one name."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ValueError(f"the DataFrame has a column twice; its columns are {', '.join(names)[:200]}")

    def read() -> Iterator[Read]:
        cells = frame.itertuples(index=False, name=None)
        for row, (found, given) in enumerate(zip(cells, frame.notna().to_numpy(), strict=True)):
            said = {name: _plain(cell) for name, cell, is_given in zip(names, found, given, strict=True) if is_given}
            yield f"row {row}", _of_cells(said)

    return _collected(read(), base)


def _plain(cell: Any) -> Any:
    """NumPy's numbers as Python's."""
    return cell.item() if isinstance(cell, np.generic) else cell


def _read_manifest(path: Path) -> Collected:
    kind = path.suffix.lower()
    if kind == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return _collected(_csv_entries(path, lines), path.parent)
    if kind in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8-sig") as lines:
            return _collected(_json_entries(path, lines), path.parent)
    return _collected(_yaml_entries(path), path.parent)


Read = tuple[str, Mapping[str, Any] | ValueError]
"""Where an entry stands, and its fields, or why they cannot be read."""


def _collected(read: Iterable[Read], base: Path) -> Collected:
    entries: list[Entry] = []
    bad: list[BadEntry] = []
    origins: dict[str, str] = {}
    for origin, fields in read:
        try:
            if isinstance(fields, ValueError):
                raise fields
            entry = make_entry(fields, base, origin)
            if entry.id in origins:
                raise ValueError(f"name {entry.id!r} was given in {origins[entry.id]} already")
        except (ValueError, TypeError) as error:
            bad.append(BadEntry(origin, _one_line(error)))
            continue
        origins[entry.id] = origin
        entries.append(entry)
    return Collected(tuple(entries), tuple(bad))


def _yaml_entries(path: Path) -> Iterator[Read]:
    import yaml

    loader = yaml.SafeLoader(path.read_text())
    try:
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            listed = [value for key, value in root.value if key.value == "models"]
            root = listed[0] if listed else None
        if not isinstance(root, yaml.SequenceNode):
            raise ValueError(f"{path}: expected a list of models, or `models:` with one below it")
        for node in root.value:
            origin = f"{path.name}:{node.start_mark.line + 1}"
            try:
                yield origin, _fields(loader.construct_object(node, deep=True))
            except yaml.YAMLError as error:
                yield origin, ValueError(_one_line(error))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {_one_line(error)}") from error
    finally:
        loader.dispose()


def _json_entries(path: Path, lines: Iterable[str]) -> Iterator[Read]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield f"{path.name}:{number}", _fields(json.loads(line))
        except (ValueError, RecursionError) as error:
            yield f"{path.name}:{number}", ValueError(f"not a line of JSON: {_one_line(error)}")


def _csv_entries(path: Path, lines: Iterable[str]) -> Iterator[Read]:
    rows = csv.reader(lines, strict=True)
    try:
        heading = [name.strip() for name in next(rows, [])]
        if "name" not in heading or len(set(heading)) < len(heading):
            raise ValueError(f"{path}: its first line must name the columns, `name` among them, each once")
        for row in rows:
            origin = f"{path.name}:{rows.line_num}"
            if not row:
                continue
            if len(row) != len(heading):
                yield origin, ValueError(f"{len(row)} cells stand below {len(heading)} columns")
                continue
            yield origin, _of_cells({name: cell for name, cell in zip(heading, row, strict=True) if cell.strip()})
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: line {rows.line_num}: {error}") from error


def _of_cells(row: Mapping[str, Any]) -> Mapping[str, Any] | ValueError:
    """A row's fields: `labels.team` becomes one of the labels, and text what its field is of."""
    fields: dict[str, Any] = {}
    try:
        for heading, cell in row.items():
            prefix = next((prefix for prefix in _MAPPINGS if heading.startswith(prefix)), "")
            if prefix:
                fields.setdefault(prefix[:-1], {})[heading.removeprefix(prefix)] = cell
            else:
                fields[heading] = _of_cell(heading, cell)
    except ValueError as error:
        return error
    return fields


def _of_cell(heading: str, cell: Any) -> Any:
    field = heading.replace("-", "_")
    if isinstance(cell, float) and cell.is_integer() and field in _WHOLE_NUMBERS:
        return int(cell)  # so a DataFrame holds whole numbers where one is missing
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if text and f"{field}." in _MAPPINGS:
        raise ValueError(f"{heading} is {text[:40]!r}; write a column for each, for instance {heading}.team")
    try:
        if field in _WHOLE_NUMBERS:
            return int(text)
        if field in _NUMBERS:
            return float(text)
    except ValueError:
        raise ValueError(f"{heading} is {text!r}; it must be a number") from None
    if field in _YES_OR_NO:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{heading} is {text!r}; it must be true or false")
        return text.lower() == "true"
    return text


def _fields(found: Any) -> Mapping[str, Any] | ValueError:
    if isinstance(found, dict):
        return found
    return ValueError(f"expected a model's fields, found {type(found).__name__}")


def _scan_directory(directory: Path) -> Collected:
    from runtime_adapters.errors import BadArtifact

    found: list[Entry] = []
    bad: list[BadEntry] = []
    unrecognised: list[str] = []
    owners: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        name = path.name if path.is_dir() else path.stem
        try:
            artifact, format_name = _recognise(path)
            if artifact is None or format_name is None:
                unrecognised.append(path.name)
                continue
            if name in owners:
                raise ValueError(f"name {name!r} is taken by {owners[name]}; rename one of the two")
            fields = {"name": name, "uri": artifact.resolve().as_uri(), "format": format_name}
            found.append(make_entry(fields, directory, path.name))
        except (ValueError, BadArtifact) as error:
            bad.append(BadEntry(path.name, _one_line(error)))
            continue
        owners[name] = path.name
    return Collected(tuple(found), tuple(bad), tuple(unrecognised))


def _recognise(path: Path) -> tuple[Path | None, str | None]:
    formats = _formats_of(path)
    if not formats and path.is_dir():
        inside = [(child, _formats_of(child)) for child in sorted(path.iterdir()) if child.is_file()]
        fitting = [(child, names) for child, names in inside if names]
        if len(fitting) > 1:
            raise ValueError(
                f"{len(fitting)} artifacts in it ({', '.join(child.name for child, _ in fitting[:3])}); "
                "give each a directory of its own, or list them in a manifest"
            )
        if fitting:
            path, formats = fitting[0]
    if len(formats) > 1:
        raise ValueError(f"fits {len(formats)} formats: {' and '.join(formats)}; name one in a manifest")
    return (path, formats[0]) if formats else (None, None)


def _formats_of(artifact: Path) -> list[str]:
    from runtime_adapters.registry import adapters

    return [name for name, adapter in adapters().items() if adapter.detect(artifact)]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
