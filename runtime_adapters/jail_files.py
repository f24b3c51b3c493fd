"""Which files a jailed process may touch: Landlock, which needs no privilege and no set-up of the machine.

Given paths to read and paths to write, everything else becomes unreachable: reading, listing, creating, removing,
renaming, executing. From its fourth version on Landlock also refuses TCP, from its sixth signals to and abstract
sockets of processes outside. The confinement holds for this thread and those that it starts, for ever.

What it does not stop: finding out that a path exists, and its size and times (`stat` is not guarded).

The kernel's interface is three system calls that the C library does not wrap; their numbers are the same on every
architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIRECTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIRECTORY, _REMOVE_FILE, _MAKE_DIRECTORY, _MAKE_REGULAR = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_TRUNCATE, _DEVICE_CONTROL = 1 << 14, 1 << 15
_HANDLED_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Version -> all rights on files that it knows; a version between two has those of the lower."""
_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11

_READ = _READ_FILE | _READ_DIRECTORY
_WRITE = (
    _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_REGULAR
) | _DEVICE_CONTROL
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _DEVICE_CONTROL


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION)))
    return max(version, 0)


def confine_files(readable: Sequence[Path], writable: Sequence[Path]) -> str | None:
    """Leave this thread only these paths and what lies below them. None on success, else why not.

    "No new privileges" must have been set. A path that does not exist is left out.
    """
    version = landlock_version()
    if version == 0:
        return "the kernel has no Landlock"
    handled = _HANDLED_BY_VERSION[max(known for known in _HANDLED_BY_VERSION if known <= version)]
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SIGNALS_AND_ABSTRACT_SOCKETS)
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    try:
        for paths, rights in ((readable, _READ), (writable, _WRITE)):
            for path in paths:
                problem = _allow(libc, ruleset, path, rights & handled)
                if problem is not None:
                    return problem
        if libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) != 0:
            return f"Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    return None


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> str | None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None  # not there, or out of reach already
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        if libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0)):
            return f"Landlock refused {path}: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(fd)
    return None
