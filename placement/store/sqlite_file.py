"""Opening the embedded store's file: its lock, its format, its health; and SQLite's errors in our words.

What is damaged, newer, or somebody else's is refused with the step that helps, and never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from placement.errors import StoreBusy, StoreCorrupt, StoreIncompatible, StoreUnavailable

FILE_NAME = "registry.sqlite"
LOCK_NAME = "registry.lock"
APPLICATION_ID = 0x48584342  # "HXCB"
FORMAT_VERSION = 1
SYNCHRONOUS = "FULL"

BUSY_TIMEOUT_S = 5.0
"""How long to wait while a person has the file open in the sqlite3 shell."""
_SCHEMA = """
CREATE TABLE kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX kv_of_lease ON kv (lease) WHERE lease != 0;
CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL);
CREATE TABLE state (revision INTEGER NOT NULL);
INSERT INTO state VALUES (1);
"""


@dataclass(slots=True)
class OpenedFile:
    lock: int
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    revision: int
    leases: list[tuple[int, float]]


def open_file(directory: Path) -> OpenedFile:
    path = directory / FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(directory / LOCK_NAME)
    except OSError as error:
        raise StoreUnavailable(
            f"the data directory {directory} cannot be used: {error.strerror or error}; give one that this user may "
            "write, with --data-dir"
        ) from error
    connections: list[sqlite3.Connection] = []
    try:
        with errors_named(path):
            writer = _connect(path)
            connections.append(writer)
            _check_or_make(writer, path)
            _use_write_ahead_log(writer, path)
            _sync_directory(directory)
            reader = _connect(path)
            connections.append(reader)
            reader.execute("PRAGMA query_only = 1")
            (revision,) = writer.execute("SELECT revision FROM state").fetchone()
            leases = writer.execute("SELECT id, ttl_s FROM leases").fetchall()
        return OpenedFile(lock, writer, reader, revision, leases)
    except BaseException:
        for connection in connections:
            connection.close()
        os.close(lock)
        raise


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise StoreBusy(
            f"the data directory {path.parent} is in use by another hexcomb process"
            f"{f' (pid {holder})' if holder else ''}; stop that one, or give this one its own --data-dir"
        ) from error
    except BaseException:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    # Each connection is used by one thread, but not by the thread that opens it here.
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _check_or_make(connection: sqlite3.Connection, path: Path) -> None:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (format_version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id == 0 and tables == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
            f"PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
        )
        return
    if application_id != APPLICATION_ID:
        raise StoreIncompatible(
            f"{path} is an SQLite database, but not a hexcomb store; move it away, or give another --data-dir"
        )
    if format_version != FORMAT_VERSION:
        raise StoreIncompatible(
            f"{path} has format {format_version}, and this hexcomb reads format {FORMAT_VERSION}; run the version of "
            "hexcomb that wrote it, or give another --data-dir"
        )
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreCorrupt(_corrupt_message(path, str(verdict)))


def _use_write_ahead_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnavailable(
            f"{path} lies on a file system where SQLite cannot keep a write-ahead log (mode {mode!r}); give a "
            "--data-dir on a local disk"
        )
    connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
    connection.execute(f"PRAGMA journal_size_limit = {64 * 1024 * 1024}")


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """SQLite's errors become ours, in this one place."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
            # A damaged schema shows as a missing table.
            primary == sqlite3.SQLITE_ERROR and "no such table" in str(error)
        ):
            raise StoreCorrupt(_corrupt_message(path, str(error))) from error
        if primary == sqlite3.SQLITE_FULL:
            raise StoreUnavailable(
                f"the disk of {path} is full, so the registry takes no writes; free some space and try again. What "
                "was acknowledged before is safe"
            ) from error
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreUnavailable(
                f"{path} is locked by another program (an open sqlite3 shell?); close it and try again"
            ) from error
        if primary == sqlite3.SQLITE_CANTOPEN:
            raise StoreUnavailable(
                f"{path} cannot be opened: {error}; check that this user may write there, or give another --data-dir"
            ) from error
        raise StoreUnavailable(f"{path} cannot be used now: {error}; check the disk, and try again") from error


def _corrupt_message(path: Path, found: str) -> str:
    return (
        f"{path} is damaged ({found}); stop hexcomb, then restore the file from a backup, or move it away together "
        f"with {path.name}-wal and {path.name}-shm and register the models again"
    )
