"""Where a process keeps unix sockets that only its own user may reach: a directory of its own, under a short path.

A socket's path has some 100 characters at most, so it is not the data directory. A process that is killed leaves its
directory behind; the next one that makes such a directory clears up.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

import psutil

_PREFIX = "hexcomb-sockets-"


def is_own_socket(path: str) -> bool:
    """Whether this is a socket in a directory that this user has made, and nobody else can put one into."""
    try:
        directory, socket = os.stat(os.path.dirname(path)), os.stat(path)
    except (OSError, ValueError):
        return False
    others_may_write = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISSOCK(socket.st_mode) and directory.st_uid == os.geteuid() and not others_may_write


def make_socket_directory() -> Path:
    """A new one. Whoever made it removes it (`shutil.rmtree`)."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid_text = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid_text.isdecimal() and not psutil.pid_exists(int(pid_text)):
            shutil.rmtree(directory, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
