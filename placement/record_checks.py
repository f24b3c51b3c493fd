"""Checks of single fields of records: each raises InvalidSpec, naming the field, what was found and what is allowed.

They are plain code and not a schema library, since every registration and every start of a pod runs them for every
model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from placement.errors import InvalidSpec

URI_LENGTH_MAX = 4096
WORD_LENGTH_MAX = 256
"""Of formats, storage keys, owners, and the names of labels and parameters."""
VALUE_LENGTH_MAX = 4096
"""Of the values of labels and parameters, and of failure messages."""
ENTRIES_MAX = 128
"""Of labels and parameters, each."""
SECONDS_MAX = 10 * 365 * 86_400.0

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_URI_PASSWORD = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]*:[^/?#]*@")


def check_uri(uri: str) -> None:
    """An address without control characters, and without a password."""
    if not isinstance(uri, str) or not uri:
        raise InvalidSpec(
            "uri is empty; say where the artifact lies (file://, http(s):// or s3://)"
            if uri == ""
            else f"uri is {type(uri).__name__}; it must be text"
        )
    if len(uri) > URI_LENGTH_MAX:
        raise InvalidSpec(f"uri has {len(uri)} characters; at most {URI_LENGTH_MAX} are allowed: shorten the path")
    if bad := _CONTROL.search(uri):
        raise InvalidSpec(f"uri holds {bad[0]!a} at position {bad.start()}; percent-encode or remove it")
    if "@" in uri and _URI_PASSWORD.match(uri):
        raise InvalidSpec("uri holds a password before the @; put credentials under a storage key and name that key")


def check_word(name: str, value: str) -> None:
    """A short text of one line."""
    if not isinstance(value, str):
        raise InvalidSpec(f"{name} is {type(value).__name__}; it must be text")
    if not value or len(value) > WORD_LENGTH_MAX:
        raise InvalidSpec(f"{name} has {len(value)} characters; 1 to {WORD_LENGTH_MAX} are allowed, or leave it out")
    if bad := _CONTROL.search(value):
        raise InvalidSpec(f"{name} holds {bad[0]!a} at position {bad.start()}; remove it")


def check_int(name: str, value: int, low: int, high: int) -> None:
    """A whole number from `low` to `high`."""
    if type(value) is not int:
        raise InvalidSpec(f"{name} is {str(value)[:40]!r}; it must be a whole number from {low} to {high}")
    if not low <= value <= high:
        raise InvalidSpec(f"{name} is {value}; allowed is {low} to {high}")


def check_seconds(name: str, value: float, seconds_max: float = SECONDS_MAX) -> None:
    """A positive number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidSpec(f"{name} is {str(value)[:40]!r}; it must be a number of seconds")
    if not 0 < value <= seconds_max:
        raise InvalidSpec(f"{name} is {value}; allowed is above 0 up to {seconds_max:.0f} seconds, or leave it out")


def check_texts(name: str, entries: Mapping[str, str]) -> None:
    """Names with texts; `name` is the field's."""
    if not isinstance(entries, Mapping):
        raise InvalidSpec(f"{name} is {str(entries)[:40]!r}; it must map names to texts")
    if len(entries) > ENTRIES_MAX:
        raise InvalidSpec(f"{name} has {len(entries)} entries; at most {ENTRIES_MAX} are allowed")
    for key, value in entries.items():
        check_word(f"a name in {name}", key)
        if not isinstance(value, str):
            raise InvalidSpec(f"{name}[{key!r}] is {type(value).__name__}; it must be text: put it in quotes")
        if len(value) > VALUE_LENGTH_MAX:
            raise InvalidSpec(f"{name}[{key!r}] has {len(value)} characters; at most {VALUE_LENGTH_MAX} are allowed")
        if not value.isascii() and (bad := _SURROGATE.search(value)):
            raise InvalidSpec(f"{name}[{key!r}] holds {bad[0]!a} at position {bad.start()}, which is no character")
