"""Where a process keeps unix sockets that only its own user may reach: a directory of its own, under a short path.

A socket's path has some 100 characters at most, so it is not the data directory. A process that is killed leaves its
directory behind; the next one that makes such a directory clears up. Whether a process is alive is told by a lock on a
file beside its directory, which ends with the process; its number would not do: two containers that share a directory
for temporary files know nothing of each other's processes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX, _LOCK = "hexcomb-sockets-", ".lock"


def is_own_socket(path: str) -> bool:
    """Whether this is a socket in a directory that this user has made, and nobody else can put one into."""
    try:
        directory, socket = os.stat(os.path.dirname(path)), os.stat(path)
    except (OSError, ValueError):
        return False
    others_may_write = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISSOCK(socket.st_mode) and directory.st_uid == os.geteuid() and not others_may_write


class SocketDirectory:
    """A new one, this process's own until `remove`, or its end."""

    def __init__(self) -> None:
        """Raises OSError where there is no directory to be had."""
        _clear_up(Path(tempfile.gettempdir()))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = _locked(_lock_of(self.path), os.O_CREAT)
            if self._lock is not None:
                return
            shutil.rmtree(self.path, ignore_errors=True)  # somebody cleared it up before it was locked

    def remove(self) -> None:
        """It goes, with what is in it."""
        if self._lock is not None:
            _remove(self.path, self._lock)
            self._lock = None


def _clear_up(parent: Path) -> None:
    """Take away what processes have left that live no more."""
    for lock_path in parent.glob(f"{_PREFIX}*{_LOCK}"):
        lock = _locked(lock_path, 0)
        if lock is not None:
            _remove(lock_path.with_name(lock_path.name.removesuffix(_LOCK)), lock)


def _locked(path: Path, how: int) -> int | None:
    """The open file of a lock that is this process's now; None: another process has it, or it is gone."""
    try:
        opened = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | how, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(opened)
        if found.st_uid == os.geteuid() and found.st_ino == os.stat(path, follow_symlinks=False).st_ino:
            return opened
    except OSError:
        pass
    os.close(opened)
    return None


def _remove(directory: Path, lock: int) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    _lock_of(directory).unlink(missing_ok=True)
    os.close(lock)


def _lock_of(directory: Path) -> Path:
    return directory.with_name(directory.name + _LOCK)
