"""Who gets in to etcd, and what those are told who do not: users and tokens, certificates, wrong addresses.

Messages are for the person who has to act: they name the address, the file or the user, and what to do; never a
password.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import grpc.aio
import pytest

from mesh.demo.etcd_server import EtcdServer, ServerTls
from placement.errors import StoreRefused, StoreUnavailable
from placement.store.base import Put
from placement.store.etcd import EtcdStore
from placement.store.etcd_options import EtcdOptions, Pem
from tests.contract.certificates import Authority, Certificate
from tests.contract.conftest import QUICK, ask_etcd
from tests.contract.tcp_proxy import TcpProxy

pytestmark = pytest.mark.etcd

PASSWORD = "s3cret/with@all:of#it?"
TOKEN_TTL_S = 1


async def refused(options: EtcdOptions) -> str:
    """What opening says."""
    with pytest.raises(StoreRefused) as caught:
        await EtcdStore.open(dataclasses.replace(options, call_timeout_s=3.0))
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


# Users and tokens ---------------------------------------------------------------------------------------------------


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def guarded(etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd with users: `pod` may do all under pool/, `reader` only look. Tokens live for a second."""
    options = (*QUICK, "--auth-token-ttl", str(TOKEN_TTL_S))
    server = EtcdServer(etcd_binary, tmp_path_factory.mktemp("guarded"), options=options).start()
    for user, permission in (("root", ""), ("pod", "READWRITE"), ("reader", "READ")):
        ask_etcd(server, "auth/user/add", name=user, password=PASSWORD)
        ask_etcd(server, "auth/role/add", name=user)
        if permission:
            grant = {"permType": permission, "key": b64("pool/"), "range_end": b64("pool0")}
            ask_etcd(server, "auth/role/grant", name=user, perm=grant)
        ask_etcd(server, "auth/user/grant", user=user, role=user)
    ask_etcd(server, "auth/enable")
    yield server
    server.kill()


def as_user(server_endpoint: str, user: str = "pod", password: str = PASSWORD, prefix: str = "pool") -> EtcdOptions:
    return EtcdOptions((server_endpoint,), prefix, user=user, password=password)


async def wait_token_forgotten() -> None:
    """A token dies of not being used; there is nothing to ask without using it."""
    await asyncio.sleep(TOKEN_TTL_S + 1.5)


async def test_a_user_with_a_password_gets_in(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint))
    revision = (await store.txn([], [Put("k", b"v")])).revision
    lease = await store.grant_lease(10)
    await store.keep_lease_alive(lease)
    await store.revoke_lease(lease)
    async with aclosing(store.watch([""], revision)) as watch:
        assert (await anext(watch)).events[0].kv.key == "k"
    await store.close()


async def test_a_user_who_may_not_compact_is_told_who_else_can(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint))
    revision = (await store.txn([], [Put("k", b"v")])).revision
    told = ""
    try:
        await store.compact(revision)  # etcd 3.4 and early 3.5 let everybody
    except StoreRefused as error:
        told = str(error)
    await store.close()
    assert not told or "--auto-compaction-retention" in told


async def test_a_token_that_has_expired_is_fetched_again_once_for_all_calls(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint))
    await wait_token_forgotten()
    before = authentications(guarded)
    results = await asyncio.gather(*(store.txn([], [Put(f"k{i}", b"")]) for i in range(50)))
    assert all(result.succeeded for result in results)
    assert authentications(guarded) == before + 1
    await wait_token_forgotten()
    assert await store.get("k0") is not None
    await store.close()


async def test_a_watch_with_an_expired_token_is_taken_up_again(guarded: EtcdServer) -> None:
    other = await EtcdStore.open(as_user(guarded.endpoint))
    async with TcpProxy(guarded.client_port) as line:
        store = await EtcdStore.open(as_user(line.endpoint))
        first = (await store.txn([], [Put("w/0", b"")])).revision
        async with aclosing(store.watch(["w/"], first)) as watch:
            await anext(watch)
            await wait_token_forgotten()
            line.cut()
            await other.txn([], [Put("w/1", b"")])
            async with asyncio.timeout(20):
                assert (await anext(watch)).events[0].kv.key == "w/1"
        await store.close()
    await other.close()


async def test_tokens_that_a_restarted_etcd_has_forgotten_are_no_error(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint))
    first = (await store.txn([], [Put("w/0", b"")])).revision
    async with aclosing(store.watch(["w/"], first)) as watch:
        await anext(watch)
        guarded.kill()
        await asyncio.to_thread(guarded.start)
        await store.txn([], [Put("w/1", b"")])
        async with asyncio.timeout(20):
            assert (await anext(watch)).events[0].kv.key == "w/1"
    await store.close()


async def test_a_wrong_password_is_told_apart_and_not_repeated(guarded: EtcdServer) -> None:
    wrong = "an0ther"
    message = await refused(as_user(guarded.endpoint, password=wrong))
    assert "does not accept the password of user 'pod'" in message
    assert wrong not in message
    assert guarded.endpoint in message


async def test_an_etcd_with_users_asks_who_has_none_for_one(guarded: EtcdServer) -> None:
    message = await refused(EtcdOptions((guarded.endpoint,), "pool"))
    assert "asks for a user" in message
    assert "etcd://USER:PASSWORD@" in message


async def test_a_user_for_an_etcd_without_users_is_told_so(etcd: EtcdServer) -> None:
    assert "has no authentication enabled" in await refused(as_user(etcd.endpoint))


async def test_a_prefix_that_is_not_the_users_is_refused_with_the_command_that_grants_it(guarded: EtcdServer) -> None:
    message = await refused(as_user(guarded.endpoint, prefix="others"))
    assert "user 'pod'" in message
    assert "--prefix=true others/" in message


async def test_who_may_only_read_cannot_write_and_is_told_at_once(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint, user="reader"))
    with pytest.raises(StoreRefused, match="user 'reader'"):
        await store.txn([], [Put("k", b"")])
    await store.close()


async def test_a_watch_that_is_not_allowed_ends_with_the_reason(guarded: EtcdServer) -> None:
    store = await EtcdStore.open(as_user(guarded.endpoint))
    ask = {"permType": "READWRITE", "key": b64("pool/"), "range_end": b64("pool0")}
    token = ask_etcd(guarded, "auth/authenticate", name="root", password=PASSWORD)["token"]
    revoke = {"role": "pod", "key": ask["key"], "range_end": ask["range_end"]}
    try:
        ask_etcd(guarded, "auth/role/revoke", token, **revoke)
        with pytest.raises(StoreRefused, match="does not allow"):
            async with asyncio.timeout(20), aclosing(store.watch(["w/"], 1)) as watch:
                await anext(watch)
    finally:
        ask_etcd(guarded, "auth/role/grant", token, name="pod", perm=ask)
        await store.close()


async def test_a_password_is_in_no_repr_and_no_log(guarded: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    options = as_user(guarded.endpoint)
    with caplog.at_level(logging.DEBUG):
        store = await EtcdStore.open(options)
        await store.txn([], [Put("k", b"")])
        await store.close()
    assert PASSWORD not in caplog.text
    assert PASSWORD not in repr(options) + options.shown


def authentications(server: EtcdServer) -> int:
    """How many tokens etcd has given out."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=20
    ) as answer:
        lines = answer.read().decode().splitlines()
    return int(
        sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("grpc_server_handled_total") and '"Authenticate"' in line and 'grpc_code="OK"' in line
        )
    )


# Certificates -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other-ca"), "somebody else's authority")


@pytest.fixture(scope="module")
def secured(etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[EtcdServer]:
    """An etcd that speaks TLS and asks clients for a certificate."""
    own = authority.issue("etcd")
    tls = ServerTls(own.certificate, own.key, authority.certificate)
    server = EtcdServer(etcd_binary, tmp_path_factory.mktemp("secured"), options=QUICK, tls=tls).start()
    yield server
    server.kill()


def secure(endpoint: str, ca: Path | None, own: Certificate | None = None, server_name: str = "") -> EtcdOptions:
    return EtcdOptions(
        (endpoint,),
        "pool",
        tls=True,
        ca=Pem(ca) if ca is not None else None,
        certificate=Pem(own.certificate) if own is not None else None,
        key=Pem(own.key) if own is not None else None,
        server_name=server_name,
    )


def with_certificate(etcd_binary: Path, directory: Path, certificate: Certificate) -> EtcdServer:
    tls = ServerTls(certificate.certificate, certificate.key)
    return EtcdServer(etcd_binary, directory / "etcd", options=QUICK, tls=tls).start()


async def test_a_pod_with_a_certificate_of_the_authority_gets_in(secured: EtcdServer, authority: Authority) -> None:
    store = await EtcdStore.open(secure(secured.endpoint, authority.certificate, authority.issue("pod")))
    revision = (await store.txn([], [Put("k", b"v")])).revision
    async with aclosing(store.watch([""], revision)) as watch:
        assert (await anext(watch)).events[0].kv.key == "k"
    await store.close()


async def test_an_address_with_files_in_its_query_gets_in(secured: EtcdServer, authority: Authority) -> None:
    own = authority.issue("pod")
    files = f"ca={authority.certificate}&cert={own.certificate}&key={own.key}"
    store = await EtcdStore.open(EtcdOptions.from_url(f"etcds://{secured.endpoint}/pool?{files}"))
    await store.close()


async def test_modelmeshs_connection_with_certificates_inside_gets_in(
    secured: EtcdServer, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("pod")
    text = {
        "endpoints": f"https://{secured.endpoint}",
        "root_prefix": "/modelmesh",
        "certificate": authority.certificate.read_text(),
        "client_key": own.key.read_text(),
        "client_certificate": own.certificate.read_text(),
    }
    options = EtcdOptions.from_connection_json(json.dumps(text), tmp_path)
    assert "PRIVATE KEY" not in repr(options)
    store = await EtcdStore.open(options)
    await store.close()


async def test_a_server_of_an_unknown_authority_is_not_trusted_and_the_file_is_named(
    secured: EtcdServer, stranger: Authority, authority: Authority
) -> None:
    message = await refused(secure(secured.endpoint, stranger.certificate, authority.issue("pod")))
    assert f"not signed by {stranger.certificate}" in message
    assert secured.endpoint in message


async def test_without_a_ca_file_the_public_authorities_decide(secured: EtcdServer, authority: Authority) -> None:
    assert "gRPC's own list" in await refused(secure(secured.endpoint, None, authority.issue("pod")))


async def test_a_servers_certificate_that_has_expired_is_told_apart(
    etcd_binary: Path, tmp_path: Path, authority: Authority
) -> None:
    server = with_certificate(etcd_binary, tmp_path, authority.issue("expired", valid_days=-1))
    try:
        assert "certificate is not valid now" in await refused(secure(server.endpoint, authority.certificate))
    finally:
        server.kill()


async def test_a_certificate_for_another_name_is_refused_unless_that_name_is_given(
    etcd_binary: Path, tmp_path: Path, authority: Authority
) -> None:
    server = with_certificate(etcd_binary, tmp_path, authority.issue("elsewhere", host="10.0.0.1"))
    try:
        assert "for another name" in await refused(secure(server.endpoint, authority.certificate))
        store = await EtcdStore.open(secure(server.endpoint, authority.certificate, server_name="10.0.0.1"))
        await store.close()
    finally:
        server.kill()


@pytest.mark.parametrize("kind", ["none", "expired", "stranger's"])
async def test_a_pods_certificate_that_etcd_does_not_take_is_named(
    secured: EtcdServer, authority: Authority, stranger: Authority, kind: str
) -> None:
    own = {
        "none": lambda: None,
        "expired": lambda: authority.issue("old-pod", valid_days=-1),
        "stranger's": lambda: stranger.issue("pod"),
    }[kind]()
    message = await refused(secure(secured.endpoint, authority.certificate, own))
    assert "the server refuses the pod's certificate" in message
    assert (str(own.certificate) if own is not None else "none") in message


async def test_certificates_renewed_on_disk_are_taken_up_without_a_restart(
    etcd_binary: Path, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """etcd comes back under another authority; some time later the pod's files are replaced too."""
    server = with_certificate(etcd_binary, tmp_path, authority.issue("etcd"))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.certificate.read_bytes())
    store = await EtcdStore.open(secure(server.endpoint, ca))
    try:
        first = (await store.txn([], [Put("w/0", b"")])).revision
        async with aclosing(store.watch(["w/"], first)) as watch:
            await anext(watch)
            server.kill()
            own = stranger.issue("etcd")
            server.tls = ServerTls(own.certificate, own.key)
            await asyncio.to_thread(server.start)
            with pytest.raises(StoreRefused, match="not signed by"):
                await store.get("w/0")
            ca.write_bytes(stranger.certificate.read_bytes())
            await store.txn([], [Put("w/1", b"")])
            async with asyncio.timeout(20):
                assert (await anext(watch)).events[0].kv.key == "w/1"
    finally:
        await store.close()
        server.kill()


@pytest.mark.parametrize("tls", [True, False])
async def test_one_side_with_tls_and_the_other_without_is_suspected_aloud(
    etcd: EtcdServer, secured: EtcdServer, authority: Authority, tls: bool
) -> None:
    options = secure(etcd.endpoint, authority.certificate) if tls else EtcdOptions((secured.endpoint,), "pool")
    with pytest.raises(StoreUnavailable, match="does it speak TLS" if tls else "does it want TLS"):
        await EtcdStore.open(dataclasses.replace(options, call_timeout_s=5.0))


async def test_a_missing_file_and_one_that_is_no_certificate_are_named(
    secured: EtcdServer, authority: Authority, tmp_path: Path
) -> None:
    missing = tmp_path / "nowhere.crt"
    assert f"{missing}, cannot be read" in await refused(secure(secured.endpoint, missing))
    garbage = tmp_path / "garbage.crt"
    garbage.write_text("not a certificate")
    assert str(garbage) in await refused(secure(secured.endpoint, garbage))
    mixed = Certificate(authority.issue("one").certificate, authority.issue("two").key)
    assert str(mixed.key) in await refused(secure(secured.endpoint, authority.certificate, mixed))


# Wrong addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "reason"), [("127.0.0.1:1", "Connection refused"), ("etcd.nowhere.invalid:2379", "nowhere.invalid")]
)
async def test_a_wrong_address_is_named_with_what_was_tried(endpoint: str, reason: str) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached") as caught:
        await EtcdStore.open(EtcdOptions((endpoint,), "pool", call_timeout_s=0.5))
    assert endpoint in str(caught.value)
    assert reason in str(caught.value)
    assert "tried for 0." in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_server_that_is_not_etcd_is_recognised() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        assert "what answers there is not etcd" in await refused(EtcdOptions((f"127.0.0.1:{port}",), "pool"))
    finally:
        await server.stop(None)
