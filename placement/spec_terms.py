"""How a model's spec lies in memory: what it has in common with others once, what is its own as bytes.

A pod's view has every spec of the pool, and most requests look at none. A spec that is an object with sixteen fields,
a dictionary of labels, and a text for each of URI, checksum and label takes 700 bytes. But specs are written by
templates: a few sets of terms (format, priority, which labels there are) serve 100,000 models, which differ in URI,
checksum and the labels' values. So equal terms are one object, found again in a cache of bounded size; what is a
model's own is packed into one `bytes`: the checksum's digest, then the texts in UTF-8, between them a byte that UTF-8
never has.

Terms are at hand as quickly as before, and decisions over all models read only those. What is packed costs half a
microsecond when it is read: at a load, and by people.

Label values are packed even where many models have the same: which ones recur is not known when the first spec comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Isolation = Literal["none", "process"]

CHECKSUM_PREFIX = "sha256:"
TERMS_KEPT_MAX = 4096
LABELS_KEPT_MAX = 8
NAME_LENGTH_KEPT_MAX = 128
"""Terms with more labels, or longer names, seldom recur, and the cache would hold megabytes."""

_DIGEST_BYTES = 32
_BETWEEN = b"\xff"
"""In no text: UTF-8 does not use it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What many specs have in common; the fields are ModelSpec's."""

    format: str | None
    storage_key: str | None
    priority: int
    pinned: bool
    copies_min: int
    copies_max: int | None
    ttl_s: float | None
    isolation: Isolation | None
    load_timeout_s: float | None
    batch_rows_max: int | None
    batch_delay_s: float | None
    has_checksum: bool
    label_names: tuple[str, ...]
    """In order."""


def shared_terms(terms: Terms) -> Terms:
    """Equal terms."""
    names = terms.label_names
    if len(names) > LABELS_KEPT_MAX or any(len(name) > NAME_LENGTH_KEPT_MAX for name in names):
        return terms
    return _kept(terms)


@lru_cache(maxsize=TERMS_KEPT_MAX)
def _kept(terms: Terms) -> Terms:
    return terms


def pack(checksum: str | None, texts: Sequence[str]) -> bytes:
    """What is a spec's own. The checksum is well formed, and the texts have no surrogates."""
    packed = _BETWEEN.join([text.encode() for text in texts])
    return packed if checksum is None else bytes.fromhex(checksum[len(CHECKSUM_PREFIX) :]) + packed


def checksum_in(own: bytes) -> str:
    """Of terms with a checksum."""
    return CHECKSUM_PREFIX + own[:_DIGEST_BYTES].hex()


def texts_in(own: bytes, terms: Terms, count_max: int = -1) -> list[str]:
    """The texts that were packed; the first ones, if only so many are asked for."""
    packed = own[_DIGEST_BYTES:] if terms.has_checksum else own
    if count_max < 0:
        return [text.decode() for text in packed.split(_BETWEEN)]
    return [text.decode() for text in packed.split(_BETWEEN, count_max)[:count_max]]
