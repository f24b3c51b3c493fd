"""Lines of a CSV file, and their fields: what each may hold, and what is said of one that holds something else.

Every refusal names the file, the line, the field, what was found and what is allowed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TextIO

from mesh.cli.sizes import parse_size

TENANT_UNNAMED = "default"
"""The tenant whose models go by their bare names."""
_FOUND_SHOWN_CHARACTERS = 60


class UnreadableLog(Exception):
    """A file is no request log; the message names the file, the line, what was found and what is allowed."""


def read_rows(path: Path, columns: Sequence[str], *, known: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, fields by column) of each line; `columns` where the file does not name its own."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows_of(path, file, columns, known)
    except UnicodeDecodeError as error:
        raise UnreadableLog(
            f"{path}: no text (byte {error.start} of a part of it is not UTF-8); a CSV file is"
        ) from error
    except csv.Error as error:
        raise UnreadableLog(f"{path}: no CSV: {error}") from error
    except OSError as error:
        raise UnreadableLog(f"{path}: cannot be read: {error.strerror or error}") from error


def _rows_of(path: Path, file: TextIO, columns: Sequence[str], known: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    rows = csv.reader(file)
    header: Sequence[str] | None = None
    for row in rows:
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        fields = [cell.strip() for cell in row]
        where = f"{path}, line {rows.line_num}"
        if header is None:
            named = [cell.lower() for cell in fields]
            header = named if known & set(named) else columns
            if header is named:
                if twice := {name for name in named if named.count(name) > 1}:
                    raise UnreadableLog(f"{where}: the column {sorted(twice)[0]} is named twice")
                continue
        if len(fields) > len(header):
            raise UnreadableLog(
                f"{where}: found {len(fields)} fields, the columns are {len(header)}: {','.join(header)}"
            )
        yield where, dict(zip(header, fields, strict=False))


def parse_time_s(text: str, where: str) -> float:
    try:
        return _finite(float(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UnreadableLog(
            f"{where}: found {shown(text)}; allowed are seconds, as in 1795280947.633, and ISO 8601, as in "
            "2026-11-21T18:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_model(row: Mapping[str, str], where: str) -> str:
    name, tenant = row.get("model", ""), row.get("tenant", "")
    if not name:
        raise UnreadableLog(f"{where}, field model: found nothing; needed is the model's name")
    return name if tenant in ("", TENANT_UNNAMED) else f"{tenant}/{name}"


def parse_size_bytes(row: Mapping[str, str], where: str) -> int | None:
    text = row.get("size_bytes")
    if not text:
        return None
    try:
        size_bytes = parse_size(text)
    except ValueError:
        size_bytes = 0
    if size_bytes <= 0:
        raise UnreadableLog(
            f"{where}, field size_bytes: found {shown(text)}; allowed are bytes above zero, as in 182304 or 25MiB"
        )
    return size_bytes


def parse_seconds(row: Mapping[str, str], column: str, where: str) -> float | None:
    return _parse_duration(row, column, where, "seconds, as 0.024")


def parse_milliseconds(row: Mapping[str, str], column: str, where: str) -> float | None:
    return _parse_duration(row, column, where, "milliseconds, as 31.207")


def _parse_duration(row: Mapping[str, str], column: str, where: str, allowed: str) -> float | None:
    text = row.get(column)
    if not text:
        return None
    try:
        value = _finite(float(text))
    except ValueError:
        value = -1.0
    if value < 0:
        raise UnreadableLog(f"{where}, field {column}: found {shown(text)}; allowed are {allowed}, zero or more")
    return value


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(value)
    return value


def shown(text: str) -> str:
    return repr(text if len(text) <= _FOUND_SHOWN_CHARACTERS else text[:_FOUND_SHOWN_CHARACTERS] + "...")
