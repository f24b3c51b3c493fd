"""Equal small values as one object in memory.

A pool's view has 100,000 records, and each is read from JSON of its own: `"onnx"`, the key `"team"`, a set of labels
that a thousand models have, would be there a thousand times; that was half of the view's memory. What recurs is found
again in caches of bounded size; what does not recur, or is long, passes by.

Mappings that come from here belong to many: nobody may change them, as nobody may change any record.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

TEXTS_KEPT_MAX = 8192
TEXT_LENGTH_MAX = 128
"""Characters. Longer ones seldom recur, and the cache would hold megabytes."""
MAPPINGS_KEPT_MAX = 4096
ENTRIES_MAX = 8

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


@lru_cache(maxsize=TEXTS_KEPT_MAX)
def _kept_text(text: str) -> str:
    return text


@lru_cache(maxsize=MAPPINGS_KEPT_MAX)
def _kept_texts(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {shared_text(key): shared_text(value) for key, value in items}
