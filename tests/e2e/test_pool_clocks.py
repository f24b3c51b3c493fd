"""Pods whose clocks are minutes apart, as real processes: everything works as if they agreed.

The clock is moved where a pod gets it from (`mesh.world`), by a `sitecustomize` that Python imports before anything
else. `time.time` as such stays: grpc compares it with the kernel's clock.
"""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mesh.client import Client, HexcombError, Unavailable
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.local_pool import LocalPool
from mesh.demo.ports import free_ports
from tests.e2e.conftest import Example, ModelFiles
from tests.e2e.pools import LEASE_TTL_S, ONE_TRY, SETTINGS, check, holders, leader, pod_named, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

AHEAD_S = {"pod-0": -600, "pod-1": 0, "pod-2": 600}
TTL_S = 2.0
PATCH = """
import importlib.util, os, sys, time

real, ahead_s = time.time, float(os.environ["TEST_CLOCK_AHEAD_S"])


class MovesTheWorldsClock:
    def find_spec(self, name, path=None, target=None):
        if name != "mesh.world":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            time.time = lambda: real() + ahead_s
            try:
                execute(module)
            finally:
                time.time = real

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, MovesTheWorldsClock())
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    directory = tmp_path_factory.mktemp("clocks")
    (directory / "sitecustomize.py").write_text(PATCH)
    try:
        pool = LocalPool(directory, 0, settings=SETTINGS, etcd_binary=os.environ.get("HEXCOMB_TEST_ETCD"))
    except EtcdMissing as error:
        pytest.skip(str(error))
    with pool.start(), pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        for name, ahead_s in AHEAD_S.items():
            environment.setenv("TEST_CLOCK_AHEAD_S", str(ahead_s))
            pool.add(name).launch()
        for pod in pool.pods:
            pod.wait_ready()
        yield pool


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    models = {f"m-{number}": files.scale(number + 2) for number in range(6)}
    for number, (name, example) in enumerate(models.items()):
        with Client(pool.pods[number % 3].grpc_endpoint) as client:
            client.register(name, uri=example.uri)
    ask_all(pool, models)
    return models


def ask_all(pool: LocalPool, models: dict[str, Example]) -> None:
    for pod in pool.pods:
        if pod.is_running:
            with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
                for name, example in models.items():
                    check(example, client.infer(name, example.inputs).outputs)


def test_the_clocks_are_apart(pool: LocalPool) -> None:
    started_at_s = {name.removeprefix("pods/"): pod["started_at_s"] for name, pod in stored(pool, "pods/").items()}
    assert started_at_s["pod-2"] - started_at_s["pod-0"] > 1000


def test_every_pod_serves_what_any_pod_registered_and_each_model_has_one_copy(
    pool: LocalPool, models: dict[str, Example]
) -> None:
    ask_all(pool, models)
    assert {name: len(holders(pool, name)) for name in models} == dict.fromkeys(models, 1)


def test_what_is_not_used_leaves_after_its_time_and_not_before_on_every_pod(
    pool: LocalPool, models: dict[str, Example], files: ModelFiles
) -> None:
    example = files.scale(40)
    with Client(pool.pods[0].grpc_endpoint) as client:
        for number in range(6):
            client.register(f"brief-{number}", uri=example.uri, ttl_s=TTL_S)
            check(example, client.infer(f"brief-{number}", example.inputs).outputs)
        brief = [f"brief-{number}" for number in range(6)]
        wait_until(pool, lambda: not any(holders(pool, name) for name in brief), "all of them have left")
    assert all(holders(pool, name) for name in models), "and none of the others"


def test_a_load_that_failed_is_tried_again_after_the_wait_that_was_meant(
    pool: LocalPool, models: dict[str, Example], files: ModelFiles
) -> None:
    example = files.scale(41)
    path = Path(example.uri.removeprefix("file://"))
    (port,) = free_ports(1)
    with Client(pool.endpoints) as client:
        client.register("late", uri=f"http://127.0.0.1:{port}/{path.name}", format="onnx")
        with Client(pool.pods[0].grpc_endpoint, retry=ONE_TRY) as own, pytest.raises(Unavailable):
            own.infer("late", example.inputs)
        with serving(path.parent, port):
            wait_until(pool, lambda: answers(client, example), "it serves")


@contextmanager
def serving(directory: Path, port: int) -> Iterator[None]:
    """Its files over HTTP."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def answers(client: Client, example: Example) -> bool:
    try:
        check(example, client.infer("late", example.inputs).outputs)
    except HexcombError:
        return False
    return True


def test_the_leaders_death_is_noticed_by_leases_and_not_by_clocks(pool: LocalPool, models: dict[str, Example]) -> None:
    wait_until(pool, lambda: leader(pool), "somebody leads")
    dead = leader(pool)
    pod_named(pool, dead).kill()
    wait_until(pool, lambda: leader(pool) not in ("", dead), "another leads", 2 * LEASE_TTL_S + 20)
    ask_all(pool, models)
    assert not any("Traceback" in pod.log_text() for pod in pool.pods)
