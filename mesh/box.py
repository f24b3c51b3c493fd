"""What a pod takes of the box it runs in, unless its settings say otherwise, and why that much.

**Memory.** In a box with a limit of its own (a container, a systemd slice) all of it is the pod's, so

    capacity = limit - base - a fifth of the limit

The *base* is the process without models: 80 MiB idle, 230 MiB once onnxruntime, XGBoost, LightGBM and scikit-learn
have been imported (`make bench`, idle). The *fifth* is for what the ledger does not hold: messages in flight, runs'
workspace before it is known, loads' scratch, page cache that files are fetched through, and some safety, since the
kernel kills at the limit and not near it. A box so small that hardly anything would be left gives a quarter to models
all the same. (torch brings 650 MiB of its own: say `--capacity` where it is used in less than 4 GiB.)

On a machine without a limit others run too, whom nobody has asked: there 60 % of its memory.

**CPUs.** A worker thread for each CPU that the quota allows, rounded up, and at least two, so that one long run does
not hold up all others.

Each answer says where it comes from; `hexcomb serve --help`, the log and the status repeat that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

from runtime_adapters.cgroups import ROOT, cpu_limit, memory_limit

MIB = 1 << 20
BASE_BYTES = 256 * MIB
SAFETY_SHARE = 0.2
CAPACITY_SHARE_MIN = 0.25
UNLIMITED_SHARE = 0.6
WORKERS_MIN = 2
WORKERS_MAX = 256


@dataclass(frozen=True, slots=True)
class BoxDefaults:
    """Defaults, each with a sentence that says what it was made from."""

    capacity_bytes: int
    capacity_why: str
    workers: int
    workers_why: str
    memory_limit_bytes: int
    cpus: float


@dataclass(frozen=True, slots=True)
class BoxLimit:
    """A setting that depends on the box, its value (bytes, or a count), and where it comes from."""

    name: str
    value: float
    origin: str


def box_defaults(root: Path = ROOT, affinity: int | None = None) -> BoxDefaults:
    """What the settings default to in this box."""
    memory, cpu = memory_limit(root), cpu_limit(root, affinity)
    capacity_bytes, share = _capacity(memory.limit_bytes, limited=memory.group is not None)
    return BoxDefaults(
        capacity_bytes=capacity_bytes,
        capacity_why=f"{share} of {_gib(memory.limit_bytes)} ({memory.source})",
        workers=min(WORKERS_MAX, max(WORKERS_MIN, ceil(cpu.cpus))),
        workers_why=f"{cpu.cpus:g} CPUs ({cpu.source}), at least {WORKERS_MIN}",
        memory_limit_bytes=memory.limit_bytes,
        cpus=cpu.cpus,
    )


@cache
def this_box() -> BoxDefaults:
    """The box of this process, looked at once: limits that change while it runs are `mesh.memory_watch`'s."""
    return box_defaults()


def _capacity(limit_bytes: int, *, limited: bool) -> tuple[int, str]:
    if not limited:
        return int(limit_bytes * UNLIMITED_SHARE), f"{UNLIMITED_SHARE:.0%}"
    left_bytes = int(limit_bytes * (1 - SAFETY_SHARE)) - BASE_BYTES
    least_bytes = int(limit_bytes * CAPACITY_SHARE_MIN)
    if left_bytes < least_bytes:
        return least_bytes, f"{CAPACITY_SHARE_MIN:.0%}"
    return left_bytes, f"{1 - SAFETY_SHARE:.0%} less {BASE_BYTES // MIB} MiB"


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / 2**30:.2f} GiB"
