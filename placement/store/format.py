"""The pool's mark: which format its keys have, and which pool this is.

The key `format` is written by whoever opens an empty pool first, and read by everyone who opens it. A pod whose
version cannot read the pool does not start: it would take records for missing, or write ones that its neighbours
cannot read. It is the same on every store, though the embedded store's file has a version of its own besides.

The mark also holds a random id. A store whose data was wiped and written anew may reach the same revisions with other
content, and etcd tells the two apart by nothing else (its cluster id is a hash of its flags); a pool id that is gone or
has changed says that what was seen before is lost. `placement.store.etcd_watch` looks at each reconnection.

`FORMAT_VERSION` is raised only when an older version would misunderstand what lies in the pool. New fields need no new
version: records carry their own (`placement.records`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from placement.errors import StoreIncompatible
from placement.store.base import Get, KeyValueStore, Put, absent

FORMAT_KEY = "format"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class PoolFormat:
    """The mark as it stands in the pool."""

    version: int
    pool_id: str
    written_by: str
    """The program and version that opened the pool first."""


async def open_format(
    store: KeyValueStore, written_by: str, *, make_id: Callable[[], str] = lambda: uuid.uuid4().hex
) -> PoolFormat:
    """Read the pool's mark, or write it when there is none. Raises StoreIncompatible, StoreUnavailable."""
    ours = PoolFormat(FORMAT_VERSION, make_id(), written_by)
    result = await store.txn([absent(FORMAT_KEY)], [Put(FORMAT_KEY, format_to_json(ours))], [Get(FORMAT_KEY)])
    if result.succeeded:
        return ours
    (found,) = result.reads
    assert found is not None  # read in the transaction that found it there
    mark = format_from_json(found.value)
    if mark is None:
        raise StoreIncompatible(
            f"the key {FORMAT_KEY!r} of this pool is not hexcomb's ({written_by} reads format {FORMAT_VERSION}): "
            "another program uses this prefix; give the pool one of its own"
        )
    if mark.version != FORMAT_VERSION:
        newer = mark.version > FORMAT_VERSION
        remedy = "upgrade this pod" if newer else "upgrade the pool as the release notes say"
        raise StoreIncompatible(
            f"the pool has format {mark.version} (written by {mark.written_by}), and {written_by} reads and writes "
            f"format {FORMAT_VERSION}: {remedy}, or give this pod a pool of its own"
        )
    return mark


def format_to_json(mark: PoolFormat) -> bytes:
    """The mark as it is stored."""
    return json.dumps({"v": mark.version, "id": mark.pool_id, "by": mark.written_by}).encode()


def format_from_json(value: bytes) -> PoolFormat | None:
    """The mark that is stored; None when this is none."""
    try:
        fields = json.loads(value)
        return PoolFormat(int(fields["v"]), str(fields["id"]), str(fields.get("by", "an unknown version")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
