"""The embedded store's keys as SQL statements: within the writer's open transaction, and as snapshots for reads.

A prefix becomes a range of the primary key, so every statement here is one search of one tree.
"""

from __future__ import annotations

import contextlib
import sqlite3

from placement.store.base import KeyValue, Page, prefix_end

_COLUMNS = "key, value, create_revision, mod_revision, version, lease"


class SqliteSpace:
    """The present keys, within the writer's open transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._committed_revision = 0
        self.revision = 0

    def begin(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        (self.revision,) = self._connection.execute("SELECT revision FROM state").fetchone()
        self._committed_revision = self.revision

    def commit(self) -> None:
        if self.revision != self._committed_revision:
            self._connection.execute("UPDATE state SET revision = ?", (self.revision,))
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._connection.execute("ROLLBACK")

    def get(self, key: str) -> KeyValue | None:
        return get_key(self._connection, key)

    def put(self, kv: KeyValue) -> None:
        self._connection.execute(
            f"INSERT OR REPLACE INTO kv ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
            (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        )

    def delete(self, key: str) -> None:
        self._connection.execute("DELETE FROM kv WHERE key = ?", (key,))

    def keys_under(self, prefix: str) -> list[str]:
        rows = self._connection.execute(
            "SELECT key FROM kv WHERE key >= ? AND key < ? ORDER BY key", (prefix, prefix_end(prefix))
        )
        return [key for (key,) in rows]

    def has_newer(self, prefix: str, newer_than: int) -> bool:
        row = self._connection.execute(
            "SELECT 1 FROM kv WHERE key >= ? AND key < ? AND mod_revision > ? LIMIT 1",
            (prefix, prefix_end(prefix), newer_than),
        ).fetchone()
        return row is not None

    def has_lease(self, lease: int) -> bool:
        return self._connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone() is not None

    def keys_of_lease(self, lease: int) -> list[str]:
        rows = self._connection.execute("SELECT key FROM kv WHERE lease = ? AND lease != 0 ORDER BY key", (lease,))
        return [key for (key,) in rows]

    def add_lease(self, ttl_s: float) -> int:
        lease = self._connection.execute("INSERT INTO leases (ttl_s) VALUES (?)", (ttl_s,)).lastrowid
        assert lease is not None
        return lease

    def remove_lease(self, lease: int) -> None:
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))


def get_key(connection: sqlite3.Connection, key: str) -> KeyValue | None:
    row = connection.execute(f"SELECT {_COLUMNS} FROM kv WHERE key = ?", (key,)).fetchone()
    return KeyValue(*row) if row is not None else None


def get_range(connection: sqlite3.Connection, prefix: str, limit: int, from_key: str) -> Page:
    connection.execute("BEGIN")  # one snapshot for the keys and the revision
    try:
        (revision,) = connection.execute("SELECT revision FROM state").fetchone()
        rows = connection.execute(
            f"SELECT {_COLUMNS} FROM kv WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (max(prefix, from_key), prefix_end(prefix), limit + 1),
        ).fetchall()
    finally:
        connection.execute("COMMIT")
    items = tuple(KeyValue(*row) for row in rows[:limit])
    return Page(items, revision, rows[limit][0] if len(rows) > limit else None)
