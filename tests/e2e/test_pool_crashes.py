"""Models that take their pod along: one that ends the process when it runs, one that does when it is loaded.

Both are pickles from a trusted prefix, which run in the pod's own process: `os.abort` there is what a fault in native
code is. Pods that ended are started again, as Kubernetes does.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

from mesh.client import Client, HexcombError
from mesh.demo.local_pool import LocalPod, LocalPool
from placement.policy.snapshot import Death, Suspicion, Verdict
from placement.pool_records import suspicion_to_json
from tests.e2e.conftest import Example, ModelFiles, StartPool
from tests.e2e.pools import SteadyLoad, check, ends_of_logs, plain_channel, put_by_hand, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

DEADLY = 666.0
_RUNS = """
import os, numpy

class Killer:
    n_features_in_ = 2

    def predict(self, rows):
        if len(rows) and rows[0, 0] == 666.0:
            os.abort()
        return rows.sum(axis=1)

made = Killer()
"""
_LOADS = """
import os, numpy

class Late:
    n_features_in_ = 2

    def predict(self, rows):
        return rows.sum(axis=1)

if os.path.exists({flag!r}):
    os.abort()
made = Late()
"""


class Code:
    """Pickled, it is what this source makes when it is loaded."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"(lambda names: (exec({self.source!r}, names), names['made'])[1])({{}})",)


def rows(first: float) -> dict[str, np.ndarray]:
    return {"input": np.array([[first, 1.0]])}


@pytest.fixture(scope="module")
def pool(start_pool: StartPool, files: ModelFiles) -> LocalPool:
    return start_pool(3, trusted_prefixes=f"{files.directory.as_uri()}/")


class Restarts:
    """Starts pods again that have ended, and counts them."""

    def __init__(self, pool: LocalPool) -> None:
        self.lost: list[str] = []
        self._pool = pool
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            for pod in self._pool.pods:
                if not pod.is_running:
                    self.lost.append(pod.name)
                    pod.launch()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for pod in self._pool.pods:
            pod.wait_ready()


@pytest.fixture
def bystanders(pool: LocalPool, files: ModelFiles) -> Iterator[dict[str, Example]]:
    models = {f"bystander-{number}": files.scale(number + 2) for number in range(9)}
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
            check(example, client.infer(name, example.inputs).outputs)
        yield models
        client.unregister_many(models)


def test_a_request_that_kills_its_pod_costs_two_pods_and_then_its_model_runs_apart(
    pool: LocalPool, files: ModelFiles, bystanders: dict[str, Example]
) -> None:
    path = files.directory / "killer.pkl"
    path.write_bytes(pickle.dumps(Code(_RUNS)))
    answers: list[str] = []
    with Client(pool.endpoints) as client, plain_channel(pool) as ask_plainly:
        client.register("killer", uri=path.as_uri(), format="pickle")
        assert client.infer("killer", rows(2)).outputs["predict"][0] == 3.0
        askers = {
            "mesh.client": lambda name: check(bystanders[name], client.infer(name, bystanders[name].inputs).outputs),
            "channel": lambda name: ask_plainly(name, bystanders[name]),
        }
        with SteadyLoad(askers, list(bystanders), per_s=40) as load, Restarts(pool) as restarts:
            load.wait_for(40)
            for number in range(15):
                due_s = time.monotonic() + 1.0
                try:
                    client.infer("killer", rows(DEADLY), timeout_s=20)
                    answers.append("answered")
                except HexcombError as error:
                    answers.append(f"{type(error).__name__}: {error}")
                if number < 14:
                    wait_until(pool, lambda due_s=due_s: time.monotonic() >= due_s, "a second has passed", 5)
            load.wait_for(100)
        described = client.describe("killer")
    # Others may have been in use at the same moment: one such death has no consequence for them.
    suspicion = stored(pool, "suspicions/")["suspicions/default/killer"]
    print(
        f"\na request that kills, once a second, 15 times: {len(restarts.lost)} pods lost, then "
        f"{suspicion['verdict']}; {len(load.asked)} requests to other models, "
        f"{len(load.errors())} errors; the last answer: {answers[-1][:160]}"
    )
    assert len(restarts.lost) <= 2, answers
    assert load.errors() == [], ends_of_logs(pool)
    assert "answered" not in answers
    assert described.suspicion


def test_what_runs_apart_serves_and_is_released_by_a_new_spec(pool: LocalPool, files: ModelFiles) -> None:
    path = files.directory / "killer-2.pkl"
    path.write_bytes(pickle.dumps(Code(_RUNS.replace("666.0", "-1.0"))))
    with Client(pool.endpoints) as client:
        client.register("killer", uri=path.as_uri(), format="pickle", if_generation=1)
        assert client.infer("killer", rows(DEADLY)).outputs["predict"][0] == 667.0
        assert client.describe("killer").suspicion == ""


def test_a_model_that_kills_two_pods_in_its_load_is_quarantined_until_it_is_released(
    pool: LocalPool, files: ModelFiles, bystanders: dict[str, Example], tmp_path: Path
) -> None:
    flag = tmp_path / "deadly"
    flag.touch()
    path = files.directory / "late.pkl"
    path.write_bytes(pickle.dumps(Code(_LOADS.format(flag=str(flag)))))
    with Client(pool.endpoints) as client:
        client.register("late", uri=path.as_uri(), format="pickle")
        asks = {
            "mesh.client": lambda name: check(bystanders[name], client.infer(name, bystanders[name].inputs).outputs)
        }
        with SteadyLoad(asks, list(bystanders), per_s=40) as load, Restarts(pool) as restarts:

            def verdict() -> str:
                try:
                    client.infer("late", rows(2), timeout_s=20)
                except HexcombError as error:
                    return str(error)
                return ""

            said = wait_until(pool, lambda: "quarantined" in (told := verdict()) and told, "it is quarantined", 60)
            load.wait_for(100)
        print(
            f"\na load that kills: {len(restarts.lost)} pods lost, then: {said}; {len(load.asked)} requests to other "
            f"models, {len(load.errors())} errors"
        )
        assert len(restarts.lost) <= 2
        assert load.errors() == [], ends_of_logs(pool)
        flag.unlink()
        with pytest.raises(HexcombError, match="quarantined"):
            client.infer("late", rows(2))
        release(pool.pods[0], "late")
        answer = wait_until(pool, lambda: not verdict() and client.infer("late", rows(2)), "it serves again", 20)
        assert answer.outputs["predict"][0] == 3.0
        assert client.describe("late").suspicion == ""


def test_a_model_that_runs_apart_and_kills_its_own_process_in_its_load_is_quarantined(
    pool: LocalPool, files: ModelFiles, tmp_path: Path
) -> None:
    flag = tmp_path / "deadly"
    flag.touch()
    path = files.directory / "apart.pkl"
    path.write_bytes(pickle.dumps(Code(_LOADS.format(flag=str(flag)))))
    with Client(pool.endpoints) as client, Restarts(pool) as restarts:
        client.register("apart", uri=path.as_uri(), format="pickle")
        # As it is when nobody has seen that the pods that died were loading it.
        deaths = tuple(Death(f"gone-{number}", "1", "running", 0.0) for number in range(2))
        seen_twice = Suspicion(1, Verdict.SUSPECT, deaths)
        put_by_hand(pool, "suspicions/default/apart", suspicion_to_json(seen_twice))
        wait_until(pool, lambda: client.describe("apart").suspicion, "the pods have heard of it")

        def verdict() -> str:
            with pytest.raises(HexcombError) as raised:
                client.infer("apart", rows(2), timeout_s=20)
            return str(raised.value)

        said = wait_until(pool, lambda: "quarantined" in (told := verdict()) and told, "it is quarantined", 60)
    assert "its own process crashed again and again" in said
    assert restarts.lost == []


def release(pod: LocalPod, name: str) -> None:
    """By hand, as an operator does it."""
    command = [sys.executable, "-m", "mesh.cli.main", "models", "release", name, "--endpoint", pod.grpc_endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
