"""Where a process keeps unix sockets that only its own user may reach: a directory of its own, under a short path.

A socket's path has some 100 characters at most, so it is not the data directory. A process that is killed leaves its
directory behind; the next one that makes such a directory clears up.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

_PREFIX = "hexcomb-sockets-"


def make_socket_directory() -> Path:
    """A new one. Whoever made it removes it (`shutil.rmtree`)."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        pid_text = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid_text.isdecimal() and not psutil.pid_exists(int(pid_text)):
            shutil.rmtree(directory, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
