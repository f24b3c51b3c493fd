"""The seam between the registry and what keeps its records: a small key-value store with revisions.

Its shape is etcd's, so that etcd fits behind it without bending, and one process with an SQLite file passes for a
small etcd:

* The store has one **revision**, which each transaction that writes raises by one. A key remembers the revision that
  created it, the one that last changed it, and how often it was written since (`version`).
* A **transaction** compares, then does one of two lists of operations, atomically. That is the only way to write, so
  every writer says what it believes; a lost race is an answer, not an error.
* A **watch** delivers every change under some prefixes from a revision on, in order, each revision whole and in one
  batch, over all its prefixes together: who applies batches sees only states that existed. What is forgotten raises
  Compacted, never a gap.
* A **lease** holds keys that vanish together when it runs out.

A write that was acknowledged is durable. A call that raised StoreUnavailable, or was cancelled, may have written.

Keys are printable ASCII (`placement.keys` encodes). The pool's prefix is the implementation's business.

Deliberately absent: values older than the present one, user management, nested transactions. `range` reads the
present; who pages through a moving store watches from the revision of the first page and applies by `mod_revision`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from placement.errors import LimitExceeded

NO_LEASE = 0


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one call may hold. The defaults are etcd's."""

    ops_per_txn_max: int = 128
    """Of compares, of success operations and of failure operations, each (etcd's --max-txn-ops)."""
    value_bytes_max: int = 1_000_000
    """Below etcd's 1.5 MiB for a whole request (--max-request-bytes)."""
    txn_bytes_max: int = 1_400_000
    """Keys and values of one transaction together."""
    key_bytes_max: int = 16_384
    """A 512-character id of four-byte characters, encoded, with tenant and pod."""
    history_events_max: int = 16_384
    """Changes kept for watchers that lag (embedded and memory; etcd has compaction)."""
    history_bytes_max: int = 4 * 1024 * 1024
    """Memory that they take. Whoever watches is on the same loop and reads on within a turn or two; who lags more lists
    again, which costs no network here."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = NO_LEASE


# Transactions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compare:
    """`field` of `key` stands in relation `op` to `operand`. A missing key has 0 in its numbers.

    It has no value, so no comparison of its value holds, `!=` neither.
    """

    key: str
    field: Literal["create_revision", "mod_revision", "version", "value"]
    op: Literal["==", "!=", "<", ">"]
    operand: int | bytes


@dataclass(frozen=True, slots=True)
class NoneUnder:
    """No key under `prefix` was written after revision `newer_than`; with 0: there is no key under it at all."""

    prefix: str
    newer_than: int = 0


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key. `lease`: the key goes when the lease does; without one, a lease it had is dropped."""

    key: str
    value: bytes
    lease: int = NO_LEASE


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key if it is there."""

    key: str


@dataclass(frozen=True, slots=True)
class DeleteUnder:
    """Delete all keys under a prefix."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key within the transaction (before its writes)."""

    key: str


Condition = Compare | NoneUnder
Operation = Put | Delete | DeleteUnder | Get


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`reads` answers the Get operations of the branch that ran, in their order.

    `revision` is that of this transaction's writes, or the store's if it wrote nothing.
    """

    succeeded: bool
    revision: int
    reads: tuple[KeyValue | None, ...] = ()
    deleted: int = 0


def absent(key: str) -> Compare:
    """The key is not there."""
    return Compare(key, "create_revision", "==", 0)


def present(key: str) -> Compare:
    """The key is there."""
    return Compare(key, "create_revision", ">", 0)


def unchanged(key: str, mod_revision: int) -> Compare:
    """The key was last written at this revision; 0: it is not there."""
    return Compare(key, "mod_revision", "==", mod_revision)


# Reading and watching -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """Keys in order, at `revision`. `next_key` begins the next page; None: this was the last."""

    items: tuple[KeyValue, ...]
    revision: int
    next_key: str | None


@dataclass(frozen=True, slots=True)
class Event:
    """A key was put, or deleted (then `kv` has an empty value, and as `mod_revision` that of the deletion)."""

    kind: Literal["put", "delete"]
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Every change under the watched prefixes up to `revision` since the batch before."""

    revision: int
    events: tuple[Event, ...]


class KeyValueStore(Protocol):
    """A store. All calls may raise StoreUnavailable and StoreClosed; see the module's text for what they mean."""

    @property
    def limits(self) -> StoreLimits:
        """What one call may hold."""

    async def get(self, key: str) -> KeyValue | None:
        """One key; None if it is not there."""

    async def range(self, prefix: str, *, limit: int = 1000, from_key: str = "") -> Page:
        """Keys under `prefix`, from `from_key` on, at most `limit`."""

    async def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> TxnResult:
        """If all conditions hold do `success`, else `failure`; atomically, and durably once this returns.

        No key may be written twice in one branch. Raises LimitExceeded, LeaseNotFound (then nothing was written).
        """

    def watch(self, prefixes: Sequence[str], from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """Every change at `from_revision` or later. Raises Compacted when those are forgotten."""

    async def grant_lease(self, ttl_s: float) -> int:
        """A lease that runs out unless it is kept alive within each `ttl_s`."""

    async def keep_lease_alive(self, lease: int) -> None:
        """Begin its time anew. Raises LeaseNotFound."""

    async def revoke_lease(self, lease: int) -> None:
        """End the lease and its keys now. A lease that is gone is no error."""

    async def compact(self, revision: int) -> None:
        """Forget the history up to and including `revision`; present values stay."""

    async def close(self) -> None:
        """Finish what was accepted, then refuse. Idempotent."""


# What every implementation checks before it does anything -----------------------------------------------------------


def prefix_end(prefix: str) -> str:
    """The first key after all keys under a prefix (keys are ASCII, so the last character has a successor)."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "\x7f"


def check_key(key: str, limits: StoreLimits) -> None:
    """Raise LimitExceeded unless `key` can be a key."""
    if not key or not key.isascii() or not key.isprintable():
        raise LimitExceeded(f"key {key[:80]!r} is empty or not printable ASCII; encode its parts (placement.keys)")
    if len(key) > limits.key_bytes_max:
        raise LimitExceeded(f"key {key[:80]!r}... has {len(key)} bytes; at most {limits.key_bytes_max} are allowed")


def check_txn(
    compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation], limits: StoreLimits
) -> None:
    """Raise LimitExceeded unless every store would take this transaction."""
    for name, items in (("compares", compares), ("success operations", success), ("failure operations", failure)):
        if len(items) > limits.ops_per_txn_max:
            raise LimitExceeded(
                f"the transaction has {len(items)} {name}; at most {limits.ops_per_txn_max} are allowed: split it"
            )
    total_bytes = 0
    for compare in compares:
        if isinstance(compare, Compare):
            check_key(compare.key, limits)
            if isinstance(compare.operand, bytes) != (compare.field == "value"):
                raise LimitExceeded(f"{compare.field} of {compare.key[:80]!r} is compared with {compare.operand!r:.40}")
            total_bytes += len(compare.key)
    for branch in (success, failure):
        written: set[str] = set()
        prefixes: list[str] = []
        for operation in branch:
            if isinstance(operation, DeleteUnder):
                prefixes.append(operation.prefix)
                continue
            check_key(operation.key, limits)
            total_bytes += len(operation.key)
            if isinstance(operation, Get):
                continue
            if operation.key in written:
                raise LimitExceeded(f"the transaction writes key {operation.key[:80]!r} twice; once is allowed")
            written.add(operation.key)
            if isinstance(operation, Put):
                if len(operation.value) > limits.value_bytes_max:
                    raise LimitExceeded(
                        f"the value of key {operation.key[:80]!r} has {len(operation.value)} bytes; at most "
                        f"{limits.value_bytes_max} are allowed: shorten the record"
                    )
                total_bytes += len(operation.value)
        for prefix in prefixes:
            if clash := next((key for key in written if key.startswith(prefix)), None):
                raise LimitExceeded(f"the transaction writes key {clash[:80]!r} twice; once is allowed")
    if total_bytes > limits.txn_bytes_max:
        raise LimitExceeded(
            f"the transaction has {total_bytes} bytes; at most {limits.txn_bytes_max} are allowed: split it"
        )
