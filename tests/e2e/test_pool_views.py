"""What people see of a pool, whichever pod they ask: all pods, every copy, why a model is where it is; and draining."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest

from mesh.client import Client, NotFound, Refused
from mesh.client.connection import PING_TIMEOUT_S
from mesh.demo.local_pool import LocalPool
from mesh.transport.grpcio_channel import KEEPALIVE_AFTER_S
from mesh.wire.generated import hexcomb_pb2, mmesh_pb2
from tests.e2e.conftest import ModelFiles, StartPool
from tests.e2e.pools import SteadyLoad, check, holders, pod_named, put_by_hand, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]
STATUS = mmesh_pb2.ModelStatusInfo


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    pool = start_pool(3, zone="z", labels="cpu")
    for client in clients(pool):  # of pods that are ready together, each hears of the others a moment later
        with client:
            wait_until(pool, partial(_knows_all, client), "every pod knows of every other, and of a leader")
    return pool


def _knows_all(client: Client) -> bool:
    found = client.pod_status()
    return sum(each.ready for each in found) == 3 and any(each.leader for each in found)


def clients(pool: LocalPool) -> list[Client]:
    return [Client(pod.grpc_endpoint) for pod in pool.pods]


def hexcomb(pool: LocalPool, *arguments: str) -> tuple[int, str, str]:
    """Run a command against all endpoints: exit code, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HEXCOMB_ENDPOINT": pool.endpoints},
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def answer(pool: LocalPool, *arguments: str) -> Any:
    """Of a command with --json that must succeed."""
    code, out, errors = hexcomb(pool, *arguments, "--json")
    assert code == 0, errors
    return json.loads(out)


def test_any_pod_tells_of_all_pods(pool: LocalPool) -> None:
    names = {pod.name for pod in pool.pods}
    for pod, client in zip(pool.pods, clients(pool), strict=True):
        with client:
            found = client.pod_status()
            assert found[0].pod == pod.name, "the one that is asked comes first"
            assert {each.pod for each in found} == names
            assert all(each.reachable and each.ready and each.rss_bytes for each in found)
            assert sum(each.leader for each in found) == 1
            assert {(each.zone, *each.labels) for each in found} == {("z", "cpu")}
            (other,) = client.pod_status(next(name for name in names if name != pod.name))
            assert other.pod != pod.name
            with pytest.raises(NotFound, match="pod-0"):
                client.pod_status("nobody")


def test_every_copy_is_listed_by_whichever_pod_is_asked(pool: LocalPool, files: ModelFiles) -> None:
    example = files.scale(11)
    with Client(pool.endpoints) as client:
        client.register("seen", uri=example.uri, format="onnx")
        check(example, client.infer("seen", example.inputs).outputs)
    (holder,) = wait_until(pool, lambda: holders(pool, "seen"), "the copy is published")

    def told(client: Client) -> list[tuple[str, int]]:
        return [(copy.pod, copy.state) for copy in client.describe("seen").copies]

    for client in clients(pool):
        with client:
            wait_until(pool, lambda c=client: told(c) == [(holder, hexcomb_pb2.LOADED)], "the copy is known")
            described = client.describe("seen")
            assert described.state == hexcomb_pb2.LOADED
            assert described.copies[0].host_bytes + described.copies[0].mapped_bytes > 0
            (listed,) = client.list_models(id_prefix="seen")
            assert [copy.pod for copy in listed.copies] == [holder]
            status = client.model_status("seen")
            assert status.status == STATUS.LOADED
            assert [(info.location, info.copyStatus) for info in status.modelCopyInfos] == [(holder, STATUS.LOADED)]
            assert client.model_ready("seen")


def test_a_model_that_cannot_be_loaded_is_ready_until_pods_agree_and_all_failures_are_told(
    pool: LocalPool, files: ModelFiles
) -> None:
    path = files.directory / "broken.onnx"
    path.write_bytes(b"this is no model")
    with Client(pool.endpoints) as client:
        client.register("broken", uri=path.as_uri(), format="onnx")
        assert client.model_ready("broken")
        with pytest.raises(Refused):
            client.infer("broken", {"x": [[1.0]]})
        wait_until(pool, lambda: len(stored(pool, "failures/default/broken/")) >= 2, "two pods agree")
    for each in clients(pool):
        with each:

            def failed(client: Client = each) -> hexcomb_pb2.ModelDescription | None:
                described = client.describe("broken")
                known = len(described.failures) >= 2 and described.state == hexcomb_pb2.FAILED
                return described if known else None

            described = wait_until(pool, failed, "this pod knows of both failures")
            assert described.failure.permanent
            assert not each.model_ready("broken")
            assert each.model_status("broken").status == STATUS.LOADING_FAILED
            explained = each.explain("broken")
            assert "no pod can load it" in explained.summary
            assert "cannot be loaded" in explained.route
            assert {line.pod for line in explained.history if "permanent" in line.text} >= {
                failure.pod for failure in described.failures
            }
    code, _, _ = hexcomb(pool, "models", "release", "broken")
    assert code == 0
    wait_until(pool, lambda: not stored(pool, "failures/default/broken/"), "every pod has forgiven it")


def test_an_explanation_asks_every_pod(pool: LocalPool, files: ModelFiles) -> None:
    example = files.scale(12)
    with Client(pool.endpoints) as client:
        client.register("why", uri=example.uri, format="onnx")
        cold = client.explain("why")
        assert "loaded nowhere" in cold.summary
        (chosen,) = [place.pod for place in cold.candidates if place.chosen]
        assert {place.pod for place in cold.candidates} == {pod.name for pod in pool.pods}
        check(example, client.infer("why", example.inputs).outputs)
    assert wait_until(pool, lambda: holders(pool, "why"), "the copy is published") == [chosen], "as it was said"
    for pod, each in zip(pool.pods, clients(pool), strict=True):
        with each:
            wait_until(pool, lambda c=each: c.explain("why").summary == f"Served by 1 pod ({chosen}).", "it is served")
            explained = each.explain("why")
            (copy,) = explained.model.copies
            assert (copy.pod, copy.device, copy.measured) == (chosen, "cpu", True), "in its own pod's words"
            assert copy.load_s > 0
            says = "from its own copy" if pod.name == chosen else f"forwards to pod {chosen}"
            assert says in explained.route
            assert not explained.unanswered
    code, out, _ = hexcomb(pool, "explain", "why")
    assert code == 0
    assert f"Served by 1 pod ({chosen})." in out


def test_a_quarantined_model_says_so_everywhere_until_it_is_released(pool: LocalPool, files: ModelFiles) -> None:
    example = files.scale(13)
    with Client(pool.endpoints) as client:
        client.register("feared", uri=example.uri, format="onnx")
        deaths = [["pod-8", "x1", "loading", 1.7e9], ["pod-9", "x2", "loading", 1.7e9]]
        suspicion = {"v": 1, "generation": 1, "verdict": "quarantined", "deaths": deaths}
        put_by_hand(pool, "suspicions/default/feared", json.dumps(suspicion).encode())
        wait_until(pool, lambda: not client.model_ready("feared"), "it is known to be quarantined")
    for each in clients(pool):
        with each:
            wait_until(pool, lambda c=each: c.describe("feared").suspicion, "this pod knows it too")
            assert not each.model_ready("feared")
            with pytest.raises(Refused, match="quarantined"):
                each.infer("feared", example.inputs)
            explained = each.explain("feared")
            assert "No pod loads it: quarantined: 2 pods died while loading it (pod-8, pod-9)" in explained.summary
            assert "pod pod-8 died while loading it" in explained.suspicion
    code, out, _ = hexcomb(pool, "models", "release", "feared")
    assert (code, out) == (0, "feared: released\n")
    with Client(pool.endpoints) as client:
        wait_until(pool, lambda: client.model_ready("feared"), "it is trusted again")
        wait_until(pool, lambda: not client.describe("feared").suspicion, "nothing is held against it")
        for _ in range(3):
            check(example, client.infer("feared", example.inputs).outputs)


def test_a_canary_takes_its_share_and_is_promoted_and_rolled_back(pool: LocalPool, files: ModelFiles) -> None:
    old, new = files.scale(14), files.scale(15)
    with Client(pool.endpoints) as client:
        client.register("v1", uri=old.uri, format="onnx")
        client.register("v2", uri=new.uri, format="onnx")

        def answers(count: int) -> Counter[float]:
            outputs = (client.infer("churn", old.inputs).outputs["y"] for _ in range(count))
            return Counter(float(values.flat[1]) for values in outputs)

        assert answer(pool, "aliases", "set", "churn", "v1")["active"] == "v1"
        assert set(answers(10)) == {14.0}
        split = answer(pool, "aliases", "set", "churn", "--weights", "v1=70,v2=30")
        assert split["weights"] == {"v1": 70, "v2": 30}
        seen = answers(300)
        assert set(seen) == {14.0, 15.0}
        assert 40 <= seen[15.0] <= 150, f"of 300 requests 90 were to go to the canary: {seen}"
        listed = answer(pool, "aliases", "list")["aliases"]
        assert [(alias["id"], alias["state"]) for alias in listed] == [("churn", "DEFINED")]
        promoted = answer(pool, "aliases", "set", "churn", "v2", "--wait")
        assert (promoted["active"], promoted["weights"]) == ("v2", {})
        assert set(answers(20)) == {15.0}
        assert answer(pool, "aliases", "set", "churn", "v1", "--wait")["active"] == "v1"
        assert set(answers(20)) == {14.0}
        assert answer(pool, "aliases", "delete", "churn")["existed"]


def test_top_shows_the_pods_and_what_is_hot(pool: LocalPool, files: ModelFiles) -> None:
    example = files.scale(16)
    with Client(pool.endpoints) as client:
        client.register("hot", uri=example.uri, format="onnx")
        check(example, client.infer("hot", example.inputs).outputs)
        with SteadyLoad({"all": lambda model: check(example, client.infer(model, example.inputs).outputs)}, ["hot"]):
            shown = wait_until(
                pool,
                lambda: (taken := answer(pool, "top", "--once")) and taken["models"] and taken,
                "the model is among the hottest",
            )
            code, out, _ = hexcomb(pool, "top", "--once")
    assert code == 0
    assert "3 of 3 pods ready" in out
    assert shown["models"][0]["id"] == "hot"
    assert {pod["pod"] for pod in shown["pods"]} == {pod.name for pod in pool.pods}


def test_a_frozen_pod_costs_its_line_and_not_the_table(start_pool: StartPool, files: ModelFiles) -> None:
    pool = start_pool(2, lease_ttl_s=30)  # so that it is frozen, and not yet gone
    frozen, other = pool.pods
    everywhere = Client(pool.endpoints, timeout_s=30)
    assert all(everywhere.server_live() for _ in range(4))
    frozen.freeze()
    try:
        # The line to it stands, and says nothing: the first call waits for that to be found out, the others do not.
        began_s = time.monotonic()
        assert all(everywhere.server_live() for _ in range(10))
        assert time.monotonic() - began_s < 2 * (KEEPALIVE_AFTER_S + PING_TIMEOUT_S)
        with Client(other.grpc_endpoint, timeout_s=10) as client:
            client.register("seen", uri=files.scale(18).uri, format="onnx")

            def unreachable() -> hexcomb_pb2.PodDescription | None:
                found = {pod.pod: pod for pod in client.pod_status()}
                return None if found[frozen.name].reachable else found[frozen.name]

            described = wait_until(pool, unreachable, "the frozen pod is shown as unreachable")
            assert described.why_unreachable
            assert described.tiers[0].capacity_bytes > 0, "it is shown as it was last"
            assert any(line.startswith(frozen.name) for line in client.explain("seen").unanswered)
        code, out, _ = hexcomb(pool, "pods")
        assert code == 0
        assert f"{frozen.name} is unreachable" in out
    finally:
        frozen.thaw()
        everywhere.close()
    with Client(other.grpc_endpoint) as client:
        wait_until(pool, lambda: all(pod.reachable for pod in client.pod_status()), "it is back")
    pool.stop()


def test_a_drain_by_name_through_any_pod_costs_no_request(pool: LocalPool, files: ModelFiles) -> None:
    example = files.scale(17)
    leaving = pool.pods[2]
    with Client(pool.endpoints, timeout_s=30) as client:
        models = [f"drained-{number}" for number in range(6)]
        for model in models:
            client.register(model, uri=example.uri, format="onnx")
        askers = {"everywhere": lambda model: check(example, client.infer(model, example.inputs).outputs)}
        with SteadyLoad(askers, models, per_s=40, threads=6) as load:
            load.wait_for(60)
            with Client(pool.pods[0].grpc_endpoint) as asked, pytest.raises(NotFound, match="pod-0"):
                asked.drain_pod("nobody")
            # Nobody else orders the drain before: the pod may have gone when a second order comes.
            code, out, errors = hexcomb(pool, "pods", "drain", leaving.name, "--wait")
            assert (code, out.splitlines()) == (0, [f"{leaving.name}: draining", f"{leaving.name}: stopped"]), errors
            load.wait_for(60)
        assert load.errors() == []
    assert leaving.wait_ended(20) == 0
    assert {pod["pod"] for pod in answer(pool, "pods")["pods"]} == {pod.name for pod in pool.pods[:2]}
    leaving.start()
    assert pod_named(pool, leaving.name).is_ready
