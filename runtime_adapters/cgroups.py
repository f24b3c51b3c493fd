"""How much memory and how many CPUs this process may use, whatever kind of box it runs in.

A container shows the whole machine in /proc/meminfo and in `os.cpu_count()`; its limits stand in control groups. There
are two versions of those, mounted in several ways (one hierarchy per controller, or one for all; a namespace that makes
the container's own group look like the root, or the host's full path), and groups nest: a limit on any group above
this process holds for it. So: find the process's own group for a controller, go up to the mount, and take the tightest
limit on the way. What lies above the mount is invisible in a container, but for one number that version 1 passes down
(`hierarchical_memory_limit`).

`memory.high` counts as a limit: beyond it the kernel slows a process down until it has given pages back, which is as
bad as having none.

All functions read files below a root, `/` unless a test gives a recorded tree. A file that is missing means that there
is no such limit; nothing here raises.

Deliberately absent: swap (weights that are swapped out are not resident), huge pages, I/O limits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True, slots=True)
class Group:
    """One control group as this process sees it."""

    directory: Path
    name: str
    """Its path within the mount, for people."""
    version: int


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Bytes that this process and its neighbours in `group` may use. Without a group: the machine's memory."""

    limit_bytes: int
    source: str
    group: Group | None = None


@dataclass(frozen=True, slots=True)
class CpuLimit:
    """CPUs' worth of time; may be a fraction."""

    cpus: float
    source: str


def groups(controller: str, root: Path = ROOT) -> tuple[Group, ...]:
    """This process's group for `memory`, `cpu` or `cpuset`, then those around it, up to the mount; none: empty."""
    own = _own_paths(root)
    for mount in _mounts(root):
        if mount.version == 1 and controller in mount.controllers and controller in own:
            return tuple(_upwards(mount, own[controller], root))
    for mount in _mounts(root):
        # In the hybrid layout version 2 is mounted, too, and has no controllers.
        if mount.version == 2 and "" in own and controller in _controllers(mount, root):
            return tuple(_upwards(mount, own[""], root))
    return ()


def memory_limits(root: Path = ROOT) -> tuple[MemoryLimit, ...]:
    """Every limit on this process's memory, that of its own group first, the machine's last."""
    machine_bytes = machine_memory_bytes(root)
    found = []
    for group in groups("memory", root):
        names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
        limits = [(limit, name) for name in names if (limit := _number(group.directory / name)) is not None]
        if group.version == 1 and (passed_down := counters(group.directory / "memory.stat")):
            inherited = passed_down.get("hierarchical_memory_limit")
            limits += [] if inherited is None else [(inherited, "hierarchical_memory_limit")]
        tightest, name = min(limits, key=lambda found: found[0], default=(NO_LIMIT_BYTES, ""))
        if tightest < min(NO_LIMIT_BYTES, machine_bytes or NO_LIMIT_BYTES):
            source = f"{name} of control group {group.name} (version {group.version})"
            found.append(MemoryLimit(tightest, source, group))
    found.append(MemoryLimit(machine_bytes, "the machine's memory: no control group limits it"))
    return tuple(found)


def memory_limit(root: Path = ROOT) -> MemoryLimit:
    """The tightest; of equal ones the nearest."""
    return min(memory_limits(root), key=lambda limit: limit.limit_bytes)


def cpu_limit(root: Path = ROOT, affinity: int | None = None) -> CpuLimit:
    """The tightest of quotas, CPU sets and affinity (how many CPUs the scheduler lets this process run on)."""
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = [CpuLimit(float(affinity), "the CPUs that this process may run on")]
    for group in groups("cpu", root):
        quota = _quota(group)
        if quota is not None:
            found.append(CpuLimit(quota, f"the CPU quota of control group {group.name} (version {group.version})"))
    for group in groups("cpuset", root):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if count := _cpus_in(_text(group.directory / name)):
                found.append(CpuLimit(float(count), f"the CPU set of control group {group.name}"))
                break
    return min(found, key=lambda limit: limit.cpus)


def machine_memory_bytes(root: Path = ROOT) -> int:
    """All memory of the machine; 0 when it cannot be told."""
    total_bytes = counters(root / "proc/meminfo").get("MemTotal", 0) << 10
    if total_bytes or root != ROOT:
        return total_bytes
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no /proc: macOS, for development


def counters(path: Path) -> dict[str, int]:
    """`name number` or `Name: number kB` on each line, as memory.stat, memory.events, vmstat and meminfo have them."""
    found = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        number = value.split(None, 1)[0] if value.strip() else ""
        if number.isdecimal():
            found[name.rstrip(":")] = int(number)
    return found


@dataclass(frozen=True, slots=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    source: PurePosixPath
    """Which group of the hierarchy lies at the mount point."""
    point: PurePosixPath


def _own_paths(root: Path) -> dict[str, PurePosixPath]:
    """Controller -> group of this process, from /proc/self/cgroup; version 2 is the empty name."""
    found = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                found[controller] = PurePosixPath(parts[2])
    return found


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _text(root / "proc/self/mountinfo").splitlines():
        about, _, filesystem = line.partition(" - ")
        fields, kinds = about.split(), filesystem.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kinds[0] == "cgroup2" else 1
        source, point = (PurePosixPath(_unescaped(field)) for field in fields[3:5])
        yield _Mount(version, frozenset(kinds[2].split(",")) if version == 1 else frozenset(), source, point)


def _controllers(mount: _Mount, root: Path) -> list[str]:
    return _text(_below(root, mount.point) / "cgroup.controllers").split()


def _upwards(mount: _Mount, own: PurePosixPath, root: Path) -> Iterator[Group]:
    point = _below(root, mount.point)
    try:
        # A path that leads out of the namespace (`/../x`), or beside what is mounted, is not visible here: then the
        # mount point is as near as one can get, and in a container it is the container's own group.
        relative = own.relative_to(mount.source)
    except ValueError:
        relative = PurePosixPath()
    if ".." in relative.parts or not (point / relative).is_dir():
        relative = PurePosixPath()
    for inner in (relative, *relative.parents) if relative.parts else (relative,):
        yield Group(point / inner, str(mount.source / inner), mount.version)


def _quota(group: Group) -> float | None:
    if group.version == 2:
        quota, _, period = _text(group.directory / "cpu.max").partition(" ")
    else:
        quota = _text(group.directory / "cpu.cfs_quota_us").strip()
        period = _text(group.directory / "cpu.cfs_period_us")
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:  # `max`, or no such file
        return None
    share = quota_us / period_us if period_us > 0 else 0.0
    return share if share > 0 and math.isfinite(share) else None  # version 1 writes -1 for none


def _cpus_in(text: str) -> int:
    """`0-3,8` -> 5."""
    count = 0
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if first.isdecimal() and (not dash or last.isdecimal()):
            count += int(last) - int(first) + 1 if dash else 1
    return count


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # version 2 writes `max` for none


def _unescaped(field: str) -> str:
    """mountinfo writes a space as \\040."""
    return field.encode().decode("unicode_escape") if "\\" in field else field


def _below(root: Path, path: PurePosixPath) -> Path:
    return root / path.relative_to("/")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
