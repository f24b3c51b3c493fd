"""Which names that others chose may become paths on this disk.

Names come from archives and from object stores, where `../../etc/passwd` is as good a name as any. A name is turned
into parts, and the parts are joined below a private directory that holds no links; so it is enough that no part can
climb, and that no two names can mean one file. All names of an artifact are judged together, before the first byte is
written.

Two names that differ only in case or in Unicode form are refused too: on some file systems they are one file, and
then the content of a model would depend on where it was unpacked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from runtime_adapters.artifacts.errors import UnsafeArchive

PART_BYTES_MAX = 255
"""The limit of common file systems for one part."""
NAME_BYTES_MAX = 1024
"""Leaves room below PATH_MAX (4096) for the directory that it is joined to."""
DEPTH_MAX = 32
_SHOWN_CHARACTERS = 80

Parts = tuple[str, ...]


def safe_parts(name: str) -> Parts:
    """The parts of a relative name with `/` between them; `.` parts fall away. Raises UnsafeArchive."""
    problem = _problem_with(name)
    if problem is not None:
        raise UnsafeArchive(f"member name {shown(name)} {problem}; pack the files again with plain relative names")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if len(parts) > DEPTH_MAX:
        raise UnsafeArchive(f"member name {shown(name)} is {len(parts)} directories deep; {DEPTH_MAX} are allowed")
    return parts


def check_distinct(files: Iterable[Parts], directories: Iterable[Parts] = ()) -> None:
    """No file may be named twice, and none may stand where a directory must be. Raises UnsafeArchive."""
    folded_files: dict[Parts, Parts] = {}
    needed: dict[Parts, Parts] = {}
    for parts in directories:
        _need(needed, parts, parts)
    for parts in files:
        key = _folded(parts)
        if key in folded_files:
            first = "/".join(folded_files[key])
            raise UnsafeArchive(f"member names {shown(first)} and {shown('/'.join(parts))} mean one file; keep one")
        folded_files[key] = parts
        _need(needed, parts[:-1], parts)
    for key, parts in folded_files.items():
        if key in needed:
            raise UnsafeArchive(f"member name {shown('/'.join(parts))} is both a file and a directory; rename one")


def shown(name: str) -> str:
    """The name as an error may show it: quoted, escaped, cut."""
    return ascii(name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "...")


def _problem_with(name: str) -> str | None:
    if not name:
        return "is empty"
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if len(encoded) > NAME_BYTES_MAX:
        return f"has {len(encoded)} bytes, more than {NAME_BYTES_MAX}"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "holds a control character"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/"):
        return "is absolute"
    if len(name) >= 2 and name[1] == ":" and name[0].isascii() and name[0].isalpha():
        return "begins with a drive letter"
    parts = name.split("/")
    if ".." in parts:
        return "climbs with `..`"
    if all(part in ("", ".") for part in parts):
        return None if name.endswith("/") or name == "." else "names no file"
    if any(len(part.encode()) > PART_BYTES_MAX for part in parts):
        return f"has a part of more than {PART_BYTES_MAX} bytes"
    return None


def _need(needed: dict[Parts, Parts], directory: Parts, because_of: Parts) -> None:
    for depth in range(1, len(directory) + 1):
        needed.setdefault(_folded(directory[:depth]), because_of)


def _folded(parts: Parts) -> Parts:
    return tuple(unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold()) for part in parts)
