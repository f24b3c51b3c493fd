"""The servers of a demo: one pod alone, or a pool; and what they count.

Everything here is done for each server alike, so that the steps of the demo (`mesh.demo.run`) need not know how many
there are.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.demo.local_pool import LocalPool, SettingValue
from mesh.demo.server import Server, start_server

DRAIN_GRACE_S = 20
"""A client that does not watch the health of pods stays to the end of it."""
_EVICTIONS = re.compile(r'^hexcomb_eviction_idle_seconds_count\{format="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kept:
    """What was left running."""

    grpc_endpoints: str
    """As HEXCOMB_ENDPOINT takes them."""
    http_endpoint: str
    pids: tuple[int, ...]
    """Of the pods, and of etcd if there is one."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The servers that are asked."""

    servers: Sequence[Server]
    pool: LocalPool | None

    @property
    def endpoints(self) -> str:
        """Of all, as our client takes them."""
        return ",".join(server.grpc_endpoint for server in self.servers)

    def running(self) -> list[Server]:
        """Those whose process is there."""
        return [server for server in self.servers if server.is_running]

    def keep(self) -> Kept:
        """Leave them running when this process ends."""
        left = self.running()
        pids = [server.pid for server in left]
        if self.pool is not None:
            self.pool.leave_running()
            pids += [member.pid for member in self.pool.etcd_members if member.pid is not None]
        endpoints = ",".join(server.grpc_endpoint for server in left)
        return Kept(endpoints, left[0].http_endpoint, tuple(pids))


def pod_names(pods: int) -> list[str]:
    """Of a fleet of so many; one alone has none."""
    return [f"pod-{number}" for number in range(pods)] if pods > 1 else [""]


def start_fleet(
    directory: Path,
    pods: int,
    capacity_bytes: int,
    trusted: Path,
    access_logs: Sequence[Path],
    stack: contextlib.ExitStack,
    more: Mapping[str, SettingValue] | None = None,
) -> Fleet:
    """Start as many pods, each with this capacity, and wait until they are ready; `stack` ends them.

    `access_logs`: a file for each pod, or none; `more`: settings of each pod.

    Raises ServerFailed, EtcdMissing, EtcdFailed.
    """
    if pods == 1:
        given = [f"--access-log={path}" for path in access_logs]
        given += [f"--{name.replace('_', '-')}={value}" for name, value in (more or {}).items()]
        server = start_server(directory, capacity_bytes=capacity_bytes, trusted_prefix=trusted, settings=given)
        stack.callback(server.stop)
        return Fleet([server], None)
    settings: dict[str, SettingValue] = {
        "capacity": capacity_bytes,
        "trusted_prefixes": f"{trusted.as_uri()}/",
        "drain_grace_s": DRAIN_GRACE_S,
        **(more or {}),
    }
    pool = LocalPool(directory, 0, settings=settings)
    logs: list[Path | None] = [*access_logs] or [None] * pods
    for name, log in zip(pod_names(pods), logs, strict=True):
        pool.add(name, labels=name, **({} if log is None else {"access_log": log}))
    stack.callback(pool.stop)
    return Fleet(pool.start().pods, pool)


class Evictions:
    """Evictions by format since it was made, over all servers and their lives. Of a killed server's last moments
    nothing is known."""

    def __init__(self, servers: Iterable[Server]) -> None:
        self.counts: Counter[str] = Counter()
        self.begin(servers)

    def begin(self, servers: Iterable[Server]) -> None:
        """These count from now on."""
        for server in servers:
            self.counts.subtract(read_evictions(server))

    def take(self, servers: Iterable[Server]) -> None:
        """These count no more."""
        for server in servers:
            self.counts.update(read_evictions(server))


def read_evictions(server: Server) -> Counter[str]:
    """By format, from the server's metrics page."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    with direct.open(f"http://{server.http_endpoint}/metrics", timeout=10) as page:
        text = page.read().decode()
    return Counter({name: int(float(count)) for name, count in _EVICTIONS.findall(text)})
