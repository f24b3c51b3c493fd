"""Who may send what to whom: no store is asked with the process's own credentials, or with another tenant's."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from runtime_adapters.artifacts import file_source
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.errors import ArtifactDenied, BadLocation
from runtime_adapters.artifacts.fetch import FetchRequest
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import AzureKey, GcsKey, GitKey, HfKey, OciKey, PvcKey, S3Key, StorageKey
from runtime_adapters.errors import AdapterError, BadArtifact
from tests.contract.artifact_stores import SECRET, content_of, opened
from tests.contract.faulty_server import FaultyServer, Served

BODY = b"a model" * 1000
POISON = "RU5WSVJPTk1FTlQ="
"""`ENVIRONMENT` in base64, where a key must be that."""
AMBIENT = {
    "AWS_ACCESS_KEY_ID": "ENVIRONMENT",
    "AWS_SECRET_ACCESS_KEY": "ENVIRONMENT",
    "AWS_SESSION_TOKEN": "ENVIRONMENT",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "GOOGLE_APPLICATION_CREDENTIALS": "/ENVIRONMENT.json",
    "GOOGLE_BASE_URL": "http://127.0.0.1:9",
    "GOOGLE_BEARER_TOKEN": "ENVIRONMENT",
    "GOOGLE_BUCKET": "ENVIRONMENT",
    "GOOGLE_SERVICE_ACCOUNT": "/ENVIRONMENT.json",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "ENVIRONMENT",
    "GOOGLE_SERVICE_ACCOUNT_PATH": "/ENVIRONMENT.json",
    "AZURE_CLIENT_ID": "ENVIRONMENT",
    "AZURE_CLIENT_SECRET": "ENVIRONMENT",
    "AZURE_CONTAINER_NAME": "ENVIRONMENT",
    "AZURE_CREDENTIAL_TYPE": "managed_identity",
    "AZURE_ENCRYPTION_KEY": base64.b64encode(b"E" * 32).decode(),
    "AZURE_FEDERATED_TOKEN_FILE": "/ENVIRONMENT",
    "AZURE_MSI_ENDPOINT": "http://127.0.0.1:9",
    "AZURE_STORAGE_ACCOUNT_KEY": POISON,
    "AZURE_STORAGE_ACCOUNT_NAME": "environment",
    "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9",
    "AZURE_STORAGE_SAS_KEY": "sig=ENVIRONMENT",
    "AZURE_STORAGE_TOKEN": "ENVIRONMENT",
    "AZURE_STORAGE_USE_EMULATOR": "true",
    "AZURE_TENANT_ID": "ENVIRONMENT",
    "AZURE_USE_FABRIC_ENDPOINT": "true",
    "HF_TOKEN": "ENVIRONMENT",
    "HF_ENDPOINT": "http://127.0.0.1:9",
}


def service_account() -> str:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps({"private_key": pem.decode(), "client_email": "me@x", "private_key_id": "7"})


def put_into_bucket(server: FaultyServer) -> None:
    # Google's clients write the dot in another way, and want to know the time.
    for path in ("/bucket/m.bin", "/bucket/m%2Ebin"):
        server.files[path] = Served(BODY, '"1"', modified="Sat, 21 Nov 2026 08:00:00 GMT")


def key_of(kind: str, base: str) -> StorageKey:
    access_key = base64.b64encode(b"k" * 32).decode()
    match kind:
        case "s3":
            return S3Key(base, access_key_id="KEY", secret_access_key=SECRET)
        case "s3, nobody":
            return S3Key(base)
        case "gs":
            return GcsKey(base, service_account=service_account())
        case "gs, nobody":
            return GcsKey(base)
        case "azure":
            return AzureKey("acct1", endpoint_url=base, access_key=access_key)
        case "azure, signature":
            return AzureKey("acct1", endpoint_url=base, sas_token="sv=1&sig=mine")
        case _:
            return AzureKey("acct1", endpoint_url=base)


@pytest.mark.parametrize(
    ("kind", "uri", "signs"),
    [
        ("s3", "s3://bucket/m.bin", "AWS4-HMAC"),
        ("s3, nobody", "s3://bucket/m.bin", None),
        ("gs", "gs://bucket/m.bin", "Bearer "),
        ("gs, nobody", "gs://bucket/m.bin", None),
        ("azure", "az://bucket/m.bin", "SharedKey acct1:"),
        ("azure, signature", "az://bucket/m.bin", None),
        ("azure, nobody", "az://bucket/m.bin", None),
    ],
)
async def test_nothing_of_the_processs_environment_reaches_a_store(
    kind: str,
    uri: str,
    signs: str | None,
    server: FaultyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    put_into_bucket(server)
    keys = StorageKeys({("default", "k"): key_of(kind, server.base)})
    async with opened(tmp_path, storage=keys) as store:
        assert content_of(await store.fetch(FetchRequest(uri, storage_key="k"))) == BODY
    for seen in server.seen:
        said = f"{seen.path} {seen.headers}"
        assert "ENVIRONMENT" not in said
        assert POISON not in said
        assert "environment" not in said
        assert SECRET not in said
        authorization = seen.headers.get("authorization")
        assert authorization is None if signs is None else (authorization or "").startswith(signs)
        assert not any(name.startswith("x-ms-encryption") for name in seen.headers)


@pytest.mark.parametrize(
    ("kind", "uri"), [("s3", "s3://bucket/m.bin"), ("gs", "gs://bucket/m.bin"), ("azure", "az://bucket/m.bin")]
)
async def test_a_tenants_key_is_no_other_tenants(kind: str, uri: str, server: FaultyServer, tmp_path: Path) -> None:
    put_into_bucket(server)
    keys = StorageKeys({("a", "k"): key_of(kind, server.base)})
    async with opened(tmp_path, storage=keys) as store:
        await store.fetch(FetchRequest(uri, storage_key="k", tenant="a"))
        server.seen.clear()
        with pytest.raises(ArtifactDenied, match="no such key") as caught:
            await store.fetch(FetchRequest(uri, storage_key="k", tenant="b"))
        assert not server.seen
        assert SECRET not in repr(caught.value)


async def test_an_azure_key_is_for_its_own_account(server: FaultyServer, tmp_path: Path) -> None:
    keys = StorageKeys({("default", "k"): key_of("azure", server.base), ("default", "any"): AzureKey()})
    async with opened(tmp_path, storage=keys) as store:
        with pytest.raises(ArtifactDenied, match="for account 'acct1' only"):
            await store.fetch(FetchRequest("az://bucket@other1/m.bin", storage_key="k"))
        with pytest.raises(BadLocation, match="names no account"):
            await store.fetch(FetchRequest("az://bucket/m.bin", storage_key="any"))
        with pytest.raises(BadLocation, match="names no bucket"):
            await store.fetch(FetchRequest("az:///m.bin", storage_key="k"))
    assert not server.seen


async def test_a_key_names_the_bucket_that_a_uri_leaves_out(server: FaultyServer, tmp_path: Path) -> None:
    put_into_bucket(server)
    keys = StorageKeys(
        {
            ("default", "google"): GcsKey(server.base, "bucket"),
            ("default", "microsoft"): AzureKey("acct1", "bucket", server.base),
            ("default", "amazon"): S3Key(server.base, bucket="bucket"),
        }
    )
    async with opened(tmp_path, storage=keys) as store:
        for uri, name in (("gs:///m.bin", "google"), ("az:///m.bin", "microsoft"), ("s3:///m.bin", "amazon")):
            assert content_of(await store.fetch(FetchRequest(uri, storage_key=name))) == BODY


@pytest.mark.parametrize("fault", ["status:403", "status:500", "reset"])
async def test_no_store_that_fails_has_a_secret_said_or_logged(
    fault: str, server: FaultyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    host = server.base.removeprefix("http://")
    encoded = base64.b64encode(SECRET.encode()).decode()
    account = json.loads(service_account())
    keys: dict[str, tuple[StorageKey, str]] = {
        "s3": (key_of("s3", server.base), "s3://bucket/m.bin"),
        "gs": (GcsKey(server.base, service_account=json.dumps(account)), "gs://bucket/m.bin"),
        "azure": (AzureKey("acct1", endpoint_url=server.base, access_key=encoded), "az://bucket/m.bin"),
        "sas": (AzureKey("acct1", endpoint_url=server.base, sas_token=f"sv=1&sig={SECRET}"), "az://bucket/m.bin"),
        "hf": (HfKey(server.base, SECRET), "hf://org/m"),
        "oci": (OciKey({host: ("me", SECRET)}, (host,)), f"oci://{host}/org/m:1"),
        "git": (GitKey(server.base, "me", SECRET), f"git+{server.base}/org/m"),
    }
    limits = FetchLimits(attempts_max=2, retry_delay_s=0.01, stall_timeout_s=2.0)
    storage = StorageKeys({("default", name): key for name, (key, _) in keys.items()})
    async with opened(tmp_path, storage=storage, limits=limits) as store:
        for name, (_, uri) in keys.items():
            server.fault_of_all = fault
            with pytest.raises(AdapterError) as caught:
                await store.fetch(FetchRequest(uri, storage_key=name))
            said = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text} {storage!r}"
            assert not any(secret in said for secret in (SECRET, encoded, account["private_key"][40:80])), name


# Claims ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(file_source, "_FILE_GRAIN_S", -1.0)
    for claim in ("mine", "theirs"):
        (tmp_path / "claims" / claim).mkdir(parents=True)
        (tmp_path / "claims" / claim / "m.bin").write_bytes(BODY)
    return tmp_path / "claims"


async def test_a_claim_is_read_by_the_tenant_whose_key_names_it(claims: Path, tmp_path: Path) -> None:
    keys = StorageKeys({("a", "k"): PvcKey("mine"), ("b", "k"): PvcKey("theirs")})
    async with opened(tmp_path, storage=keys) as store:
        assert content_of(await store.fetch(FetchRequest("pvc://mine/m.bin", tenant="a"))) == BODY
        for tenant in ("b", "default"):
            with pytest.raises(ArtifactDenied, match="may not read the claim 'mine'"):
                await store.fetch(FetchRequest("pvc://mine/m.bin", tenant=tenant))
        with pytest.raises(ArtifactDenied, match="may not read the claim 'theirs'"):
            await store.fetch(FetchRequest("pvc://theirs/m.bin", tenant="a", storage_key="k"))


async def test_a_link_out_of_a_claim_is_refused(claims: Path, tmp_path: Path) -> None:
    (claims / "mine" / "link.bin").symlink_to(claims / "theirs" / "m.bin")
    (claims / "mine" / "d").mkdir()
    (claims / "mine" / "d" / "up").symlink_to(claims / "theirs")
    keys = StorageKeys({("default", "k"): PvcKey("mine")})
    async with opened(tmp_path, storage=keys) as store:
        for path in ("link.bin", "d", "d/up/m.bin"):
            with pytest.raises(BadArtifact):
                await store.fetch(FetchRequest(f"pvc://mine/{path}"))


async def test_a_trusted_claim_trusts_its_own_files(claims: Path, tmp_path: Path) -> None:
    (claims / "mine" / "tr").mkdir()
    (claims / "mine" / "tr" / "m.pkl").write_bytes(BODY)
    (claims / "mine" / "tr" / "link.pkl").symlink_to(claims / "mine" / "m.bin")
    keys = StorageKeys({("default", "k"): PvcKey("mine")})
    policy = SourcePolicy(pvc_root=claims, trusted_prefixes=("pvc://mine/tr",))
    async with opened(tmp_path, storage=keys, policy=policy) as store:
        trusted = {
            path: (await store.fetch(FetchRequest(f"pvc://mine/{path}"))).trusted
            for path in ("tr/m.pkl", "tr/link.pkl", "m.bin")
        }
    assert trusted == {"tr/m.pkl": True, "tr/link.pkl": False, "m.bin": False}
