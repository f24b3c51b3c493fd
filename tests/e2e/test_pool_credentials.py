"""Pods of an etcd that has users: who gets in, what those are told who do not, and what running pods do when they are
shut out."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.client import Client, HexcombError
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.local_pool import PREFIX, LocalPod, LocalPool
from tests.e2e.conftest import ModelFiles
from tests.e2e.pools import ONE_TRY, SETTINGS, check, etcd_call, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

PASSWORD = "s3cret/with@all:of#it?"
WRONG = "an0ther"


@dataclass
class GuardedPool:
    """A pool whose etcd lets `pod` read and write under the pool's prefix, and nobody else."""

    pool: LocalPool
    directory: Path

    def add(self, name: str, password: str) -> LocalPod:
        """A pod that brings this password in a file; not started."""
        password_file = self.directory / f"{name}.password"
        password_file.write_text(f"{password}\n")
        store = self.pool.store_url.replace("etcd://", "etcd://pod@")
        return self.pool.add(name, store=store, store_password_file=password_file)

    def as_root(self, path: str, **fields: object) -> None:
        """An administrator's call."""
        token = etcd_call(self.pool.etcd, "auth/authenticate", name="root", password=PASSWORD)["token"]
        etcd_call(self.pool.etcd, path, token, **fields)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedPool]:
    directory = tmp_path_factory.mktemp("guarded")
    try:
        pool = LocalPool(directory, 0, settings=SETTINGS, etcd_binary=os.environ.get("HEXCOMB_TEST_ETCD"))
    except EtcdMissing as error:
        pytest.skip(str(error))
    with pool.start():
        etcd = pool.etcd
        for user in ("root", "pod"):
            etcd_call(etcd, "auth/user/add", name=user, password=PASSWORD)
            etcd_call(etcd, "auth/role/add", name=user)
            etcd_call(etcd, "auth/user/grant", user=user, role=user)
        etcd_call(etcd, "auth/role/grant", name="pod", perm=whole_prefix())
        etcd_call(etcd, "auth/enable")
        yield GuardedPool(pool, directory)


def whole_prefix() -> dict[str, str]:
    begin, end = f"{PREFIX}/".encode(), f"{PREFIX}0".encode()
    return {
        "permType": "READWRITE",
        "key": base64.b64encode(begin).decode(),
        "range_end": base64.b64encode(end).decode(),
    }


def test_a_pod_with_a_wrong_password_ends_with_one_sentence_that_names_user_and_address(guarded: GuardedPool) -> None:
    pod = guarded.add("mistaken", WRONG)
    pod.launch()
    assert pod.wait_ended(60) == 1
    log = pod.log_text()
    said = [line for line in log.splitlines() if line.startswith("error")]
    assert len(said) == 1, log
    assert "does not accept the password of user 'pod'" in said[0]
    assert guarded.pool.etcd.endpoint in said[0]
    assert WRONG not in log
    assert "Traceback" not in log


def test_pods_with_the_password_serve_and_go_on_serving_when_it_is_changed_under_them(
    guarded: GuardedPool, files: ModelFiles
) -> None:
    pods = [guarded.add(f"guarded-{number}", PASSWORD) for number in range(2)]
    for pod in pods:
        pod.launch()
    for pod in pods:
        pod.wait_ready()
    example, later = files.scale(3), files.scale(4)
    with Client(pods[0].grpc_endpoint) as client:
        client.register("m", uri=example.uri)
        client.register("cold", uri=later.uri)
    for pod in pods:
        with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
            check(example, client.infer("m", example.inputs).outputs)
    guarded.as_root("auth/user/changepw", name="pod", password=WRONG)
    guarded.pool.etcd.kill()  # and the tokens that were given for the old one
    guarded.pool.etcd.start()
    for pod in pods:
        wait_until(
            guarded.pool,
            lambda pod=pod: "does not accept the password of user 'pod'" in pod.log_text(),
            f"{pod.name} says why its store is away",
        )
        with Client(pod.grpc_endpoint, retry=ONE_TRY) as client:
            check(example, client.infer("m", example.inputs).outputs)
            check(later, client.infer("cold", later.inputs).outputs)
    guarded.as_root("auth/user/changepw", name="pod", password=PASSWORD)
    new = files.scale(5)
    with Client(pods[0].grpc_endpoint) as client:
        wait_until(guarded.pool, lambda: registers(client, "new", new.uri), "the pods are let in again")
        check(new, client.infer("new", new.inputs).outputs)
    for pod in pods:
        assert PASSWORD not in pod.log_text()
        assert "Traceback" not in pod.log_text()


def registers(client: Client, name: str, uri: str) -> bool:
    try:
        client.register(name, uri=uri)
    except HexcombError:
        return False
    return True
