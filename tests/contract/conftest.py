"""Servers for the tests of what talks to servers.

etcd is $HEXCOMB_TEST_ETCD, the one on PATH, or Debian's (`mesh.demo.etcd_server`).
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mesh.demo.etcd_server import EtcdMissing, EtcdServer, find_etcd
from tests.contract.faulty_server import FaultyServer, faulty_server

QUICK = ("--heartbeat-interval", "50", "--election-timeout", "500")
"""Ten times etcd's pace: members of these tests are on one machine, and its shortest lease shrinks to 1 s."""


@pytest.fixture(scope="session")
def etcd_binary() -> Path:
    try:
        return find_etcd(os.environ.get("HEXCOMB_TEST_ETCD"))
    except EtcdMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def etcd(etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One for all tests that break nothing; each takes a prefix of its own."""
    server = EtcdServer(etcd_binary, tmp_path_factory.mktemp("etcd"), options=QUICK).start()
    yield server
    server.stop()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A web server that misbehaves on request."""
    with faulty_server() as world:
        yield world


def ask_etcd(server: EtcdServer, path: str, token: str = "", **fields: Any) -> dict[str, Any]:
    """A call over etcd's own HTTP gateway: what a test knows of etcd without our client."""
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(f"http://{server.endpoint}/v3/{path}", json.dumps(fields).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Ask until it holds. For threads: the event loop would stand still."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, f"waited {timeout_s:.0f} s in vain for: {what}"
        time.sleep(0.02)


def wait_leases_gone(server: EtcdServer, leases: Sequence[int]) -> None:
    def are_gone() -> bool:
        return all(ask_etcd(server, "lease/timetolive", ID=lease).get("TTL") == "-1" for lease in leases)

    wait_until(are_gone, f"the end of the leases {leases}")
