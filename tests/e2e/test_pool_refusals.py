"""What a pool refuses, and how it says so: wrong settings, pods that are not fit, specs that no pod can satisfy,
records that somebody wrote by hand."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from mesh.client import Client, HexcombError, InvalidRequest, Refused
from mesh.demo.local_pool import LocalPod, LocalPool
from mesh.demo.ports import free_ports
from mesh.routing import hop
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.tensors import encode_request
from tests.e2e.conftest import Example, ModelFiles, Refusal, StartPool
from tests.e2e.pools import LEASE_TTL_S, ONE_TRY, check, holders, put_by_hand, stored, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

CAPACITY_BYTES = 32 << 20

_numbers = itertools.count()
"""Of further pods: what one of them left in the store says nothing of the next."""


@pytest.fixture(scope="module")
def pool(start_pool: StartPool) -> LocalPool:
    return start_pool(2, capacity=CAPACITY_BYTES)


@pytest.fixture(scope="module")
def models(pool: LocalPool, files: ModelFiles) -> dict[str, Example]:
    """Models that serve."""
    models = {f"m-{number}": files.scale(number + 2) for number in range(6)}
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            client.register(name, uri=example.uri)
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)
    return models


@pytest.fixture
def add(pool: LocalPool, request: pytest.FixtureRequest) -> Callable[..., LocalPod]:
    """One more pod, launched, and taken away at the end."""

    def start(**settings: object) -> LocalPod:
        pod = pool.add(f"extra-{next(_numbers)}", **settings)  # type: ignore[arg-type]
        request.addfinalizer(lambda: (pod.kill(), pool.pods.remove(pod)))
        pod.launch()
        return pod

    return start


def said_at_its_end(pod: LocalPod) -> str:
    assert pod.wait_ended(60) != 0
    assert "Traceback" not in pod.log_text(), pod.log_text()
    return next(line for line in reversed(pod.log_text().splitlines()) if line.startswith("error"))


# A pod that does not come so far -------------------------------------------------------------------------------------


def test_a_wrong_address_of_etcd_is_named(add: Callable[..., LocalPod]) -> None:
    (port,) = free_ports(1)
    assert f"127.0.0.1:{port}" in said_at_its_end(add(store=f"etcd://127.0.0.1:{port}/hexcomb"))


def test_a_password_for_an_etcd_without_users_is_refused_and_not_shown(
    pool: LocalPool, add: Callable[..., LocalPod]
) -> None:
    pod = add(store=pool.store_url.replace("etcd://", "etcd://somebody:hunter2@"))
    said = said_at_its_end(pod)
    assert "authentication" in said or "password" in said, said
    assert "hunter2" not in pod.log_text()


def test_a_prefix_of_another_version_is_refused_with_both_versions(
    pool: LocalPool, add: Callable[..., LocalPod]
) -> None:
    marker = stored(pool, "format")["format"]
    put_by_hand(pool, "other/format", json.dumps({**marker, "v": 999}).encode())
    said = said_at_its_end(add(store=f"{pool.store_url}/other"))
    assert "999" in said, said
    assert str(marker["v"]) in said, said


def test_a_second_pod_with_one_id_gives_up_and_names_the_first(pool: LocalPool, add: Callable[..., LocalPod]) -> None:
    first = pool.pods[0]
    said = said_at_its_end(add(pod_name=first.name))
    assert first.name in said
    assert first.grpc_endpoint in said
    with Client(first.grpc_endpoint, retry=ONE_TRY) as client:
        assert client.server_ready()


# A pod that is not fit -----------------------------------------------------------------------------------------------


def why_unready(pool: LocalPool, pod: LocalPod) -> str:
    with Client(pool.pods[0].grpc_endpoint) as client:
        return next((each.why_unready for each in client.pod_status() if each.pod == pod.name), "")


def test_a_pod_that_others_do_not_reach_never_becomes_ready_and_says_why(
    pool: LocalPool, models: dict[str, Example], add: Callable[..., LocalPod]
) -> None:
    (port,) = free_ports(1)
    pod = add(advertise_address=f"127.0.0.1:{port}")
    said = wait_until(pool, lambda: "reach" in (told := why_unready(pool, pod)) and told, "it says why")
    assert f"127.0.0.1:{port}" in said
    assert "--advertise-address" in said
    assert not pod.is_ready
    ask_all(pool, models)


def test_a_pod_whose_loads_fail_where_others_succeed_never_becomes_ready(
    pool: LocalPool, models: dict[str, Example], add: Callable[..., LocalPod], tmp_path: Path
) -> None:
    pod = add(file_prefixes=str(tmp_path))  # as a release that cannot load
    said = wait_until(
        pool,
        lambda: (told := why_unready(pool, pod)) not in ("", "starting") and told,
        "it says why",
    )
    assert "load" in said, said
    assert not pod.is_ready
    ask_all(pool, models)
    assert not pod.is_ready
    assert pod.name not in {holder for name in models for holder in holders(pool, name)}


def ask_all(pool: LocalPool, models: dict[str, Example]) -> None:
    for pod in pool.pods:
        if not pod.is_ready:
            continue
        with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
            for name, example in models.items():
                check(example, client.infer(name, example.inputs).outputs)


# What is asked of the pool -------------------------------------------------------------------------------------------


def test_a_spec_that_no_pod_can_satisfy_names_the_constraint_and_the_closest_pods(
    pool: LocalPool, files: ModelFiles
) -> None:
    example = files.scale(30)
    with Client(pool.pods[0].grpc_endpoint, retry=ONE_TRY) as client:
        client.register("gpu-only", uri=example.uri, labels={"hexcomb/required-labels": "gpu"})
        with pytest.raises(HexcombError, match="gpu") as labels:
            client.infer("gpu-only", example.inputs)
        huge = files.scale(31, weight_bytes=CAPACITY_BYTES + (8 << 20))
        client.register("huge", uri=huge.uri)
        with pytest.raises(HexcombError, match="MiB") as size:
            client.infer("huge", huge.inputs)
    print(f"\nno pod can: {labels.value}\n            {size.value}")
    assert "pod-0" in str(labels.value) or "pod-1" in str(labels.value)
    assert "pod-0" in str(size.value) or "pod-1" in str(size.value)


def test_aliases_of_aliases_and_weights_that_do_not_add_up_are_refused(
    pool: LocalPool, models: dict[str, Example]
) -> None:
    with Client(pool.pods[0].grpc_endpoint, retry=ONE_TRY) as client:
        client.set_alias("one", "m-0")
        with pytest.raises(HexcombError, match="alias"):
            client.set_alias("two", "one")
        with pytest.raises(HexcombError):
            client.set_alias("one", "one")
        for weights in ({"m-0": 0}, {"m-1": 100}, {"m-0": 50, "absent": 50}):
            with pytest.raises((InvalidRequest, Refused, HexcombError)) as refusal:
                set_weights(client, "split", "m-0", weights)
            assert str(refusal.value)


def set_weights(client: Client, alias: str, target: str, weights: dict[str, int]) -> None:
    from mesh.client.operations import Operation
    from mesh.wire import messages

    request = hexcomb_pb2.SetAliasRequest(id=alias, target=target, weights=weights)
    client.call(Operation(messages.SET_ALIAS.path, request.SerializeToString(), lambda body: body))


# Records that somebody wrote by hand ---------------------------------------------------------------------------------


def test_records_that_were_damaged_by_hand_are_logged_and_ignored(
    pool: LocalPool, models: dict[str, Example], files: ModelFiles
) -> None:
    keys = [
        "pods/ghost",
        "copies/default/m-0/ghost",
        "failures/default/m-0/ghost",
        "intents/default/m-0/ghost",
        "suspicions/default/m-0",
        "hot",
        "models/default/broken",
        "aliases/default/broken-alias",
        "models/default/%",
    ]
    for value in (b"\xff\xfe no JSON", b'{"v": 999}', b"[]", b'{"v": 1, "servable": "many"}', b""):
        for key in keys:
            put_by_hand(pool, key, value)
    with Client(pool.endpoints) as client:
        client.register("after-damage", uri=files.scale(31).uri)
        check(files.scale(31), client.infer("after-damage", files.scale(31).inputs).outputs)
    ask_all(pool, models)
    victim = pool.pods[1]
    victim.kill()
    victim.start()  # reads all of it from the beginning
    ask_all(pool, models)
    log = victim.log_text()
    for key in ("pods/ghost", "copies/default/m-0/ghost", "suspicions/default/m-0", "model 'broken'", "alias 'broken"):
        assert key in log, f"{key} is not named in the log:\n{log[-3000:]}"
    assert "Traceback" not in log


def test_a_leaders_record_that_was_damaged_by_hand_is_replaced(pool: LocalPool, models: dict[str, Example]) -> None:
    put_by_hand(pool, "leader", b"nobody can read this")
    wait_until(
        pool,
        lambda: (stored(pool, "leader").get("leader") or {}).get("pod", "").startswith("pod-"),
        "a pod leads again",
        4 * LEASE_TTL_S + 30,
    )
    ask_all(pool, models)


# Callers that say they are pods --------------------------------------------------------------------------------------


def peer_key_of(pool: LocalPool, pod: LocalPod) -> str:
    return str(stored(pool, f"pods/{pod.name}")[f"pods/{pod.name}"]["peer_key"])


def test_who_claims_to_be_a_pod_without_its_key_is_a_client_like_any_other(
    pool: LocalPool, models: dict[str, Example], raw_call: Callable[..., bytes | Refusal]
) -> None:
    pod, other = pool.pods
    body = encode_request("m-0", models["m-0"].inputs)
    forged = (hop.FORWARD_METADATA, hop.encode_hop(hop.Hop(other.name, "m-1", 1, 1, load=True)))

    def factor(*metadata: tuple[str, str]) -> float:
        """Which model answered: m-N multiplies by N + 2."""
        answer = raw_call(pod.grpc_endpoint, messages.MODEL_INFER.path, body, metadata)
        assert isinstance(answer, bytes), answer
        outputs = np.frombuffer(inference_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0], np.float32)
        return float(outputs[1] / models["m-0"].inputs["x"].flat[1])

    assert factor((messages.PEER_KEY_METADATA, peer_key_of(pool, pod)), forged) == 3, "a pod's word is heeded"
    for claim in ((), (("hexcomb-peer-key", "guessed"),), ((messages.PEER_KEY_METADATA, peer_key_of(pool, other)),)):
        assert factor(*claim, forged) == 2
        assert factor(*claim, (hop.FORWARD_METADATA, "no pod would write this")) == 2
        for method in (messages.ORDER, messages.EXPORT_NAMES, messages.DIAL_BACK):
            refused = raw_call(pod.grpc_endpoint, method.path, b"", claim)
            assert isinstance(refused, Refusal), method.path
            assert refused.code is grpc.StatusCode.PERMISSION_DENIED


def test_random_bytes_to_what_pods_ask_of_one_another_are_refused_without_a_defect(
    pool: LocalPool, models: dict[str, Example], raw_call: Callable[..., bytes | Refusal]
) -> None:
    pod = pool.pods[0]
    before = pod.log_text().count("incident")
    methods = [messages.PROBE, messages.ORDER, messages.EXPORT_NAMES, messages.DIAL_BACK]
    as_pod = ((messages.PEER_KEY_METADATA, peer_key_of(pool, pod)),)
    seeds = random.Random(11)
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
    for method in methods:
        for _ in range(12):
            answer = raw_call(pod.grpc_endpoint, method.path, seeds.randbytes(seeds.randrange(1, 80)), as_pod)
            assert isinstance(answer, bytes) or answer.code in allowed, (method.path, answer)
    assert pod.log_text().count("incident") == before
    with Client(pool.endpoints) as client:
        for name, example in models.items():
            check(example, client.infer(name, example.inputs).outputs)
