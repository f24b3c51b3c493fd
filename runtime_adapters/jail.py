"""The jail of a process that is about to run code which came with a model.

Applied by the child to itself, once, while it has one thread and before it reads anything of the model. Each wall is
something that Linux gives to an unprivileged process, so the pod needs no capability, and a root pod's child loses
its capabilities on the way:

1. resource limits: no core dumps, few descriptors, a largest file;
2. an own user, network and IPC namespace where the machine lets one have them: no network interface at all;
3. "no new privileges", and every capability dropped;
4. Landlock: of the file system the artifact, the Python installation and the system's libraries may be read, and one
   private directory may be written (`runtime_adapters.jail_files`);
5. a seccomp filter: no sockets, no processes, no reach into others (`runtime_adapters.jail_syscalls`).

The network is confined by 2 or by 5 (usually both), the files by 4. Which walls stand is reported as a `JailReport`;
who wants untrusted code confined must refuse the model unless `confined` is true. Walls 4 and 5 are tried after they
were built: a report never rests on a return code alone.

What it stops: reading other models, credentials and the pod's data; the network, containers' and agents' sockets;
signals to, tracing of and starting processes; surviving the pod.
On a CUDA device the driver's files are opened to it, which is a large surface; that has not been tried on a machine
with a GPU yet, so treat a jailed copy on CUDA as an experiment.
What it does not stop: a bug in the kernel or the GPU driver; use of the CPU, which only the pod's own limits bound;
filling the disk through many files in the private directory (each file is bounded, their number is not); finding
out that a path exists; timing attacks on what else runs on the machine; and wrong answers.

Standard library only: this runs before NumPy, whose threads would escape walls 2 and 4.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_adapters.jail_files import confine_files, landlock_version
from runtime_adapters.jail_syscalls import apply_filter

OPEN_FILES_MAX = 256
PROCESSES_MAX = 256
"""Threads of the jailed process, where it has its own user namespace to count them in."""

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000

_LIBRARY_PATHS = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
_CUDA_READ_PATHS = ("/usr/local/cuda", "/proc/driver/nvidia", "/proc/devices", "/sys/bus/pci", "/sys/module/nvidia")
_CUDA_DEVICE_FILES = "nvidia*"


@dataclass(frozen=True, slots=True)
class JailPlan:
    """What the jailed process may still do."""

    artifact: Path
    scratch: Path
    file_bytes_max: int
    cuda: bool = False


@dataclass(frozen=True, slots=True)
class JailReport:
    """Which walls stand, and why the others do not."""

    network: tuple[str, ...] = ()
    """What keeps it from the network; empty: nothing does."""
    files: tuple[str, ...] = ()
    """What keeps it from the file system; empty: nothing does."""
    processes: tuple[str, ...] = ()
    """What keeps it from starting, signalling and reading other processes; empty: nothing does."""
    gaps: tuple[str, ...] = ()
    """Each wall that could not be built, and why."""

    @property
    def confined(self) -> bool:
        """Network and files are both out of reach."""
        return bool(self.network) and bool(self.files)

    def missing(self) -> str:
        """For an error: what is not confined and why."""
        open_to = [what for what, walls in (("network", self.network), ("files", self.files)) if not walls]
        return f"{' and '.join(open_to)} could not be confined ({'; '.join(self.gaps) or 'no reason known'})"

    def as_json(self) -> dict[str, list[str]]:
        return {
            "network": list(self.network),
            "files": list(self.files),
            "processes": list(self.processes),
            "gaps": list(self.gaps),
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> JailReport:
        def strings(key: str) -> tuple[str, ...]:
            return tuple(str(item) for item in given.get(key, ()))

        return cls(strings("network"), strings("files"), strings("processes"), strings("gaps"))


def enter_jail(plan: JailPlan) -> JailReport:
    """Build every wall that this machine allows around this process, for ever. Call with one thread."""
    gaps: list[str] = []
    _limit_resources(plan.file_bytes_max)
    namespaces = _enter_namespaces(gaps)
    _drop_privileges(gaps)

    files: list[str] = []
    problem = confine_files(_readable_paths(plan), _writable_paths(plan))
    if problem is not None:
        gaps.append(problem)
    elif _can_list_the_root():
        gaps.append("Landlock was applied, yet the root directory can be listed")
    else:
        files.append(f"landlock-{landlock_version()}")

    network = ["network namespace"] if "network" in namespaces else []
    processes: list[str] = []
    problem = apply_filter()
    if problem is not None:
        gaps.append(problem)
    elif _can_open_a_socket():
        gaps.append("the seccomp filter was applied, yet a socket can be opened")
    else:
        network.append("seccomp")
        processes.append("seccomp")
    return JailReport(tuple(network), tuple(files), tuple(processes), tuple(gaps))


def _limit_resources(file_bytes_max: int) -> None:
    _lower_limit(resource.RLIMIT_CORE, 0)
    _lower_limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    _lower_limit(resource.RLIMIT_FSIZE, file_bytes_max)


def _lower_limit(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(which, (limit, limit))


def _enter_namespaces(gaps: list[str]) -> frozenset[str]:
    """An own user namespace carries the others for an unprivileged pod; root can do without."""
    libc = ctypes.CDLL(None, use_errno=True)
    user_id, group_id = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        with contextlib.suppress(OSError):  # unmapped ids work too, they only look odd
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/gid_map").write_text(f"{group_id} {group_id} 1")
            Path("/proc/self/uid_map").write_text(f"{user_id} {user_id} 1")
        # The count starts at this process in a new namespace; outside it would count all of the pod's threads.
        _lower_limit(resource.RLIMIT_NPROC, PROCESSES_MAX)
        return frozenset({"user", "network", "ipc"})
    problem = os.strerror(ctypes.get_errno())
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        return frozenset({"network", "ipc"})
    gaps.append(f"no network namespace: {problem}")
    return frozenset()


def _drop_privileges(gaps: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        gaps.append(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        gaps.append(f"capabilities: {os.strerror(ctypes.get_errno())}")


def _readable_paths(plan: JailPlan) -> list[Path]:
    installations = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), Path(sys.base_exec_prefix)}
    paths = [plan.artifact, Path(__file__).parent, Path(f"/proc/{os.getpid()}")]
    paths += [root / lib for root in sorted(installations) for lib in ("lib", "lib64")]
    paths += [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    paths += [Path(path) for path in _LIBRARY_PATHS]
    if plan.cuda:
        paths += [Path(path) for path in _CUDA_READ_PATHS]
    return paths


def _writable_paths(plan: JailPlan) -> list[Path]:
    paths = [plan.scratch, Path("/dev/null")]
    if plan.cuda:
        paths += sorted(Path("/dev").glob(_CUDA_DEVICE_FILES))
    return paths


def _can_list_the_root() -> bool:
    try:
        os.listdir("/")
    except PermissionError:
        return False
    return True


def _can_open_a_socket() -> bool:
    for family in (socket.AF_INET, socket.AF_UNIX):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except PermissionError:
            continue
        return True
    return False
