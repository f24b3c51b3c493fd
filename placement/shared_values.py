"""Equal small values as one object in memory.

A pool's view has 100,000 records, and each is read from JSON of its own: `"onnx"`, the key `"team"`, a set of labels
that a thousand models have, would be there a thousand times; that was half of the view's memory. What recurs is found
again in caches of bounded size; what does not recur, or is long, passes by.

Mappings that come from here belong to many: nobody may change them, as nobody may change any record.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from placement.policy.snapshot import Parked

TEXTS_KEPT_MAX = 8192
TEXT_LENGTH_MAX = 128
"""Characters. Longer ones seldom recur, and the cache would hold megabytes."""
MAPPINGS_KEPT_MAX = 4096
ENTRIES_MAX = 8
PARKED_KEPT_MAX = 4096
"""A hundred pods, a few generations, times to one digit: few that differ."""

NO_TEXTS: Mapping[str, str] = {}


def shared_text(text: str) -> str:
    """An equal text."""
    return _kept_text(text) if len(text) <= TEXT_LENGTH_MAX else text


def shared_texts(entries: Mapping[str, str]) -> Mapping[str, str]:
    """An equal mapping. Raises TypeError when what it holds is not text."""
    if not entries:
        return NO_TEXTS
    items = tuple(entries.items())
    if len(items) > ENTRIES_MAX or max(len(text) for item in items for text in item) > TEXT_LENGTH_MAX:
        return entries
    return _kept_texts(items)


@lru_cache(maxsize=PARKED_KEPT_MAX)
def shared_parked(parked: Parked) -> Parked:
    """An equal one."""
    return parked


def shared_parked_of_model(entries: tuple[Parked, ...]) -> tuple[Parked, ...]:
    """Equal ones, where the model is parked on one pod; there are too many pairs to find one again."""
    return _kept_single(entries) if len(entries) == 1 else entries


@lru_cache(maxsize=PARKED_KEPT_MAX)
def _kept_single(entries: tuple[Parked]) -> tuple[Parked]:
    return entries


@lru_cache(maxsize=TEXTS_KEPT_MAX)
def _kept_text(text: str) -> str:
    return text


@lru_cache(maxsize=MAPPINGS_KEPT_MAX)
def _kept_texts(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {shared_text(key): shared_text(value) for key, value in items}
