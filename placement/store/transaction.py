"""What a transaction does, written once for every store that runs in this process.

`run_txn` decides and changes a `KeySpace`: a dictionary in the fake, an SQLite connection in the embedded store. All
that can be refused (a lease that is gone) is refused before the first write, so a transaction that raises has
changed nothing and its neighbours in the same commit need no savepoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from placement.errors import LeaseNotFound
from placement.store.base import (
    NO_LEASE,
    Compare,
    Condition,
    Delete,
    DeleteUnder,
    Event,
    Get,
    KeyValue,
    NoneUnder,
    Operation,
    Put,
    TxnResult,
)


class KeySpace(Protocol):
    """The present keys, to be changed within one transaction."""

    def get(self, key: str) -> KeyValue | None:
        """One key."""

    def put(self, kv: KeyValue) -> None:
        """Write one key."""

    def delete(self, key: str) -> None:
        """Delete a key that is there."""

    def keys_under(self, prefix: str) -> list[str]:
        """Keys under a prefix, in order."""

    def has_newer(self, prefix: str, newer_than: int) -> bool:
        """Whether a key under the prefix was written after that revision."""

    def has_lease(self, lease: int) -> bool:
        """Whether the lease exists."""

    def keys_of_lease(self, lease: int) -> list[str]:
        """Keys that the lease holds, in order."""


def run_txn(
    space: KeySpace,
    revision: int,
    compares: Sequence[Condition],
    success: Sequence[Operation],
    failure: Sequence[Operation],
) -> tuple[TxnResult, tuple[Event, ...]]:
    """Do the branch that the conditions choose; the store was at `revision`. Raises LeaseNotFound."""
    succeeded = all(_holds(space, condition) for condition in compares)
    branch = success if succeeded else failure
    for operation in branch:
        if isinstance(operation, Put) and operation.lease != NO_LEASE and not space.has_lease(operation.lease):
            raise LeaseNotFound(operation.lease)
    reads = tuple(space.get(operation.key) for operation in branch if isinstance(operation, Get))
    events: list[Event] = []
    deleted = 0
    new_revision = revision + 1
    for operation in branch:
        if isinstance(operation, Put):
            events.append(_put(space, operation, new_revision))
            continue
        if isinstance(operation, Delete):
            keys = [operation.key] if space.get(operation.key) is not None else []
        elif isinstance(operation, DeleteUnder):
            keys = space.keys_under(operation.prefix)
        else:
            continue
        events.extend(_delete(space, keys, new_revision))
        deleted += len(keys)
    return TxnResult(succeeded, new_revision if events else revision, reads, deleted), tuple(events)


def run_revoke(space: KeySpace, revision: int, lease: int) -> tuple[Event, ...]:
    """Delete the keys of a lease, all in one revision."""
    return tuple(_delete(space, space.keys_of_lease(lease), revision + 1))


def _put(space: KeySpace, operation: Put, revision: int) -> Event:
    before = space.get(operation.key)
    kv = KeyValue(
        operation.key,
        operation.value,
        before.create_revision if before is not None else revision,
        revision,
        before.version + 1 if before is not None else 1,
        operation.lease,
    )
    space.put(kv)
    return Event("put", kv)


def _delete(space: KeySpace, keys: Sequence[str], revision: int) -> list[Event]:
    for key in keys:
        space.delete(key)
    return [Event("delete", KeyValue(key, b"", 0, revision, 0)) for key in keys]


def _holds(space: KeySpace, condition: Condition) -> bool:
    if isinstance(condition, NoneUnder):
        return not space.has_newer(condition.prefix, condition.newer_than)
    kv = space.get(condition.key)
    if condition.field == "value":
        return kv is not None and _relation(condition, kv.value)
    return _relation(condition, 0 if kv is None else getattr(kv, condition.field))


def _relation(condition: Compare, found: int | bytes) -> bool:
    operand = condition.operand
    if condition.op == "==":
        return found == operand
    if condition.op == "!=":
        return found != operand
    if condition.op == "<":
        return found < operand  # type: ignore[operator]  # check_txn saw to equal types
    return found > operand  # type: ignore[operator]
