"""How the memory of this box is used at a moment, and what the kernel had to do for it.

Two questions are kept apart. *How near is the end?* What the kernel cannot take back (anonymous pages, tensors in
shared memory, its own) against the limit: when the two meet, the kernel kills. *Is reclaim hurting?* Pages of mapped
files, weights among them, can be taken back at any time, and are, since page cache fills a box to its limit as a
matter of course. It hurts when pages come back soon after they went: major faults of this process, refaults of its
group, and the time that tasks stood still for memory (PSI).

Of all limits that hold for this process (`runtime_adapters.cgroups`), the reading is about the one with the least room:
its own group's, one around it, or the machine's.

Counters only grow; whoever wants rates keeps the reading before. A reading costs about a tenth of a millisecond of file
reads, so it is made on a thread. Figures that this kernel does not give are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime_adapters.cgroups import ROOT, Group, MemoryLimit, counters, groups, memory_limits

_STAT_FAULTS_FIELD = 9
"""`majflt` of /proc/self/stat, counted behind the parenthesis that ends the process's name."""


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """The memory behind the limit that leaves the least room. Counts and microseconds are since boot."""

    limit_bytes: int
    source: str
    """Which limit it is."""
    used_bytes: int
    """As the kernel counts against the limit, page cache included."""
    working_set_bytes: int
    """Without file pages that nobody has touched lately: what Kubernetes calls the working set."""
    unreclaimable_bytes: int
    """Without any file page: what only an unload gives back."""
    major_faults: int
    """Of this process: each waited for a disk."""
    refaults: int
    """Pages that came back after they had been taken."""
    stalled_us: int
    """Some task waited for memory (PSI `some`)."""
    stopped_us: int
    """All tasks did (PSI `full`)."""
    oom_kills: int

    @property
    def headroom_bytes(self) -> int:
        """What can still be allocated, if need be by dropping file pages."""
        return max(0, self.limit_bytes - self.unreclaimable_bytes)


def read_memory(root: Path = ROOT) -> MemoryReading:
    """The reading now."""
    readings = [_of_limit(limit, root) for limit in memory_limits(root)]
    return min(readings, key=lambda reading: reading.headroom_bytes)


def _of_limit(limit: MemoryLimit, root: Path) -> MemoryReading:
    faults = _major_faults(root)
    if limit.group is None:
        return _of_machine(limit, faults, root)
    group = limit.group
    prefix, usage = ("total_", "memory.usage_in_bytes") if group.version == 1 else ("", "memory.current")
    stat = counters(group.directory / "memory.stat")
    events = counters(group.directory / ("memory.oom_control" if group.version == 1 else "memory.events"))
    inactive_bytes = stat.get(f"{prefix}inactive_file", 0)
    file_bytes = inactive_bytes + stat.get(f"{prefix}active_file", 0)
    used_bytes = _count(group.directory / usage)
    stalled_us, stopped_us = _stalls(_pressure_file(group, root))
    return MemoryReading(
        limit_bytes=limit.limit_bytes,
        source=limit.source,
        used_bytes=used_bytes,
        working_set_bytes=max(0, used_bytes - inactive_bytes),
        unreclaimable_bytes=max(0, used_bytes - file_bytes),
        major_faults=faults,
        refaults=stat.get(f"{prefix}workingset_refault_file", stat.get(f"{prefix}workingset_refault", 0)),
        stalled_us=stalled_us,
        stopped_us=stopped_us,
        oom_kills=events.get("oom_kill", 0),
    )


def _of_machine(limit: MemoryLimit, faults: int, root: Path) -> MemoryReading:
    meminfo = {name: count << 10 for name, count in counters(root / "proc/meminfo").items()}
    vmstat = counters(root / "proc/vmstat")
    inactive_bytes = meminfo.get("Inactive(file)", 0)
    used_bytes = max(0, limit.limit_bytes - meminfo.get("MemFree", limit.limit_bytes))
    # The kernel's own estimate of what can be had knows of watermarks and of slabs that can shrink.
    available_bytes = meminfo.get("MemAvailable", limit.limit_bytes)
    # Where each controller has a hierarchy of its own, pressure is known for the machine only.
    own = groups("memory", root)
    stalled_us, stopped_us = _stalls(_pressure_file(own[0], root) if own else root / "proc/pressure/memory")
    return MemoryReading(
        limit_bytes=limit.limit_bytes,
        source=limit.source,
        used_bytes=used_bytes,
        working_set_bytes=max(0, used_bytes - inactive_bytes),
        unreclaimable_bytes=max(0, limit.limit_bytes - available_bytes),
        major_faults=faults,
        refaults=vmstat.get("workingset_refault_file", vmstat.get("workingset_refault", 0)),
        stalled_us=stalled_us,
        stopped_us=stopped_us,
        oom_kills=vmstat.get("oom_kill", 0),
    )


def _pressure_file(group: Group, root: Path) -> Path:
    own = group.directory / "memory.pressure"
    return own if own.exists() else root / "proc/pressure/memory"


def _stalls(path: Path) -> tuple[int, int]:
    """(some, full) in microseconds, from lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`."""
    totals = {"some": 0, "full": 0}
    try:
        text = path.read_text()
    except OSError:
        return 0, 0
    for line in text.splitlines():
        kind, _, figures = line.partition(" ")
        total = figures.rpartition("total=")[2]
        if kind in totals and total.isdecimal():
            totals[kind] = int(total)
    return totals["some"], totals["full"]


def _major_faults(root: Path) -> int:
    try:
        fields = (root / "proc/self/stat").read_text().rpartition(")")[2].split()
        return int(fields[_STAT_FAULTS_FIELD])
    except (OSError, IndexError, ValueError):
        return 0


def _count(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
