"""A real pod for a bench, started as a user starts one, and what the kernel says of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mesh.client.client import Client
from mesh.demo.server import DemoServer, start_server
from tests.bench.figures import Reporter

_PREPARED_WAIT_S = 60.0


@contextlib.contextmanager
def running_pod(
    bench: Reporter, *, capacity_bytes: int = 4 << 30, settings: tuple[str, ...] = ()
) -> Iterator[DemoServer]:
    """A pod with empty directories that trusts the bench's models."""
    with tempfile.TemporaryDirectory(prefix="pod-", dir=bench.cache_dir) as data_dir:
        server = start_server(
            Path(data_dir),
            capacity_bytes=capacity_bytes,
            trusted_prefix=bench.cache_dir.resolve(),
            settings=("--log-level", "error", *settings),
        )
        try:
            yield server
        finally:
            server.stop()


def wait_prepared(client: Client, name: str) -> float:
    """Seconds until the copy of a model no longer answers from what was fetched; 0: it does not."""
    began_s = time.monotonic()
    for wait in itertools.count():
        if all(copy.form != "fetched" for copy in client.describe(name).copies):
            return time.monotonic() - began_s if wait else 0.0
        if time.monotonic() - began_s > _PREPARED_WAIT_S:
            raise TimeoutError(f"{name} did not become its prepared form")
        time.sleep(0.005)
    raise AssertionError("unreachable: the loop returns or raises")


def pin_process(pid: int, core: int) -> None:
    """All threads of a process; those that it starts later go where their makers are."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), {core})


def private_dirty_bytes_of(pid: int) -> int:
    """Pages that only this process holds and that the kernel cannot drop."""
    return _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Private_Dirty")


def processor_s_of(pid: int) -> float:
    """Seconds of processor time that a process and its descendants have taken."""
    ticks, parents = dict[int, int](), dict[int, int]()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
                parents[int(directory.name)] = int(fields[1])
                ticks[int(directory.name)] = int(fields[11]) + int(fields[12])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(each, 0) for each in family) / os.sysconf("SC_CLK_TCK")


def resident_bytes_of(pid: int) -> int:
    """The resident set."""
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS")


def threads_of(pid: int | str) -> int:
    """How many threads a process has; `self` is this one."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _kilobytes(file: Path, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{file}: no {field}")
    return int(found[1]) * 1024
