"""Between the store's words and etcd's: transactions, keys and events, under the pool's prefix. Pure.

The two models fit without bending, but for three corners:

* Reads of a transaction see what was there before its writes; etcd runs operations in their order, so reads go first.
* `NoneUnder` is one comparison over a range: no key in it has a `mod_revision` beyond the one given.
* A list of prefixes becomes the one range that covers them all, for the watch; what lies between them is left out
  again here. Keys and their prefixes are ASCII, so text and bytes are ordered alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from placement.store.base import (
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
    prefix_end,
)
from placement.store.etcd_api.generated import etcd_pb2

_TARGETS = {
    "version": etcd_pb2.Compare.VERSION,
    "create_revision": etcd_pb2.Compare.CREATE,
    "mod_revision": etcd_pb2.Compare.MOD,
    "value": etcd_pb2.Compare.VALUE,
}
_RESULTS = {
    "==": etcd_pb2.Compare.EQUAL,
    "!=": etcd_pb2.Compare.NOT_EQUAL,
    "<": etcd_pb2.Compare.LESS,
    ">": etcd_pb2.Compare.GREATER,
}


class Keyspace:
    """The keys of one pool in etcd: everything that begins with `<prefix>/`."""

    def __init__(self, prefix: str) -> None:
        self._root = prefix.encode("ascii") + b"/"

    def key(self, key: str) -> bytes:
        """A key as etcd knows it."""
        return self._root + key.encode("ascii")

    def range_of(self, prefix: str) -> tuple[bytes, bytes]:
        """First key under a prefix, and the first one after it."""
        return self.key(prefix), self.key(prefix_end(prefix))

    def range_over(self, prefixes: Sequence[str]) -> tuple[bytes, bytes]:
        """The smallest range that holds all keys under all prefixes."""
        return self.key(min(prefixes)), self.key(max(prefix_end(prefix) for prefix in prefixes))

    def kv(self, found: etcd_pb2.KeyValue) -> KeyValue:
        """A key and its value as the store knows them."""
        return KeyValue(
            self._own(found.key),
            found.value,
            found.create_revision,
            found.mod_revision,
            found.version,
            found.lease,
        )

    def events(self, events: Iterable[etcd_pb2.Event], prefixes: tuple[str, ...], from_revision: int) -> list[Event]:
        """What was asked for of a range's events."""
        wanted: list[Event] = []
        for event in events:
            kv = event.kv
            if kv.mod_revision < from_revision or not self._own(kv.key).startswith(prefixes):
                continue
            if event.type == etcd_pb2.Event.DELETE:
                wanted.append(Event("delete", KeyValue(self._own(kv.key), b"", 0, kv.mod_revision, 0)))
            else:
                wanted.append(Event("put", self.kv(kv)))
        return wanted

    def txn(
        self, compares: Sequence[Condition], success: Sequence[Operation], failure: Sequence[Operation]
    ) -> etcd_pb2.TxnRequest:
        """A transaction as etcd is asked for it."""
        return etcd_pb2.TxnRequest(
            compare=[self._compare(condition) for condition in compares],
            success=[self._operation(operation) for operation in _reads_first(success)],
            failure=[self._operation(operation) for operation in _reads_first(failure)],
        )

    def txn_result(self, answer: etcd_pb2.TxnResponse) -> TxnResult:
        """Its answer."""
        reads: list[KeyValue | None] = []
        deleted = 0
        for response in answer.responses:
            kind = response.WhichOneof("response")
            if kind == "response_range":
                kvs = response.response_range.kvs
                reads.append(self.kv(kvs[0]) if kvs else None)
            elif kind == "response_delete_range":
                deleted += response.response_delete_range.deleted
        return TxnResult(answer.succeeded, answer.header.revision, tuple(reads), deleted)

    def _own(self, key: bytes) -> str:
        return key[len(self._root) :].decode("ascii", errors="replace")

    def _compare(self, condition: Condition) -> etcd_pb2.Compare:
        if isinstance(condition, NoneUnder):
            first, end = self.range_of(condition.prefix)
            return etcd_pb2.Compare(
                key=first,
                range_end=end,
                target=etcd_pb2.Compare.MOD,
                result=etcd_pb2.Compare.LESS,
                mod_revision=condition.newer_than + 1,
            )
        return _compare_of(self.key(condition.key), condition)

    def _operation(self, operation: Operation) -> etcd_pb2.RequestOp:
        match operation:
            case Get(key):
                return etcd_pb2.RequestOp(request_range=etcd_pb2.RangeRequest(key=self.key(key)))
            case Put(key, value, lease):
                put = etcd_pb2.PutRequest(key=self.key(key), value=value, lease=lease)
                return etcd_pb2.RequestOp(request_put=put)
            case Delete(key):
                return etcd_pb2.RequestOp(request_delete_range=etcd_pb2.DeleteRangeRequest(key=self.key(key)))
            case DeleteUnder(prefix):
                first, end = self.range_of(prefix)
                delete = etcd_pb2.DeleteRangeRequest(key=first, range_end=end)
                return etcd_pb2.RequestOp(request_delete_range=delete)


def is_read_only(operations: Iterable[Operation]) -> bool:
    """Whether doing them twice is the same as once: nothing is written."""
    return all(isinstance(operation, Get) for operation in operations)


def leases_of(operations: Iterable[Operation]) -> list[int]:
    """The leases that they would put keys on, each once."""
    return list(dict.fromkeys(op.lease for op in operations if isinstance(op, Put) and op.lease))


def _reads_first(operations: Sequence[Operation]) -> list[Operation]:
    return sorted(operations, key=lambda operation: not isinstance(operation, Get))


def _compare_of(key: bytes, condition: Compare) -> etcd_pb2.Compare:
    compare = etcd_pb2.Compare(key=key, target=_TARGETS[condition.field], result=_RESULTS[condition.op])
    if isinstance(condition.operand, bytes):
        compare.value = condition.operand
    elif condition.field == "version":
        compare.version = condition.operand
    elif condition.field == "create_revision":
        compare.create_revision = condition.operand
    else:
        compare.mod_revision = condition.operand
    return compare
