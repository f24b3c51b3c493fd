"""One suite for every place that artifacts come from: files, a web server, an object store. And what servers do wrong.

The web server is real and misbehaves on request; the buckets are moto's S3 behind HTTP, versitygw, fake-gcs-server and
Azurite.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import os
import socket
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pytest

from runtime_adapters.artifacts import file_source, stored_objects
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.errors import (
    ArtifactChanged,
    ArtifactDenied,
    ArtifactNotFound,
    ArtifactTooLarge,
    ChecksumMismatch,
    FetchFailed,
    FetchTimedOut,
)
from runtime_adapters.artifacts.fetch import FetchRequest
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import AzureKey, GcsKey, HttpKey, PvcKey, S3Key, StorageKey
from runtime_adapters.errors import AdapterError, BadArtifact, LoadFailed
from tests.contract.artifact_stores import SECRET, Counted, content_of, opened, sha256_of
from tests.contract.faulty_server import FaultyServer, Served, faulty_server
from tests.contract.storage_servers import (
    AZURITE_ACCOUNT,
    AZURITE_KEY,
    AzurePlace,
    GcsPlace,
    ToolMissing,
    azurite,
    fake_gcs,
    s3_gateway,
)

# The places -----------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where a test puts an artifact."""

    storage_key: str | None

    def put(self, name: str, content: bytes) -> str: ...


@dataclass
class FilePlace:
    root: Path
    storage_key: str | None = None

    def put(self, name: str, content: bytes) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"file://{path}"


@dataclass
class HttpPlace:
    server: FaultyServer
    storage_key: str | None = None

    def put(self, name: str, content: bytes) -> str:
        return self.server.put(name, content)


@dataclass
class S3Place:
    client: Any
    bucket: str
    storage_key: str | None = "minio"

    def put(self, name: str, content: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=name, Body=content)
        return f"s3://{self.bucket}/{name}"


@dataclass
class ClaimPlace:
    root: Path
    storage_key: str | None = None

    def put(self, name: str, content: bytes) -> str:
        path = self.root / "claim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return f"pvc://claim/{name}"


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def gateway_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with s3_gateway(tmp_path_factory.mktemp("gateway"), "KEY", SECRET) as base:
            yield base
    except ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def s3(moto_endpoint: str, request: pytest.FixtureRequest) -> S3Place:
    return bucket_at(moto_endpoint, request)


@pytest.fixture
def gateway(gateway_endpoint: str, request: pytest.FixtureRequest) -> S3Place:
    return bucket_at(gateway_endpoint, request)


def bucket_at(endpoint: str, request: pytest.FixtureRequest) -> S3Place:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="KEY",
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    bucket = name_for(request)
    client.create_bucket(Bucket=bucket)
    return S3Place(client, bucket)


@pytest.fixture(scope="session")
def gcs_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with fake_gcs(tmp_path_factory.mktemp("gcs")) as base:
            yield base
    except ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def gs(gcs_endpoint: str, request: pytest.FixtureRequest) -> GcsPlace:
    return GcsPlace(gcs_endpoint, name_for(request))


@pytest.fixture(scope="session")
def azurite_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with azurite(tmp_path_factory.mktemp("azurite")) as base:
            yield base
    except ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def azure(azurite_endpoint: str, request: pytest.FixtureRequest) -> AzurePlace:
    return AzurePlace(azurite_endpoint, name_for(request))


def name_for(request: pytest.FixtureRequest) -> str:
    return "b" + hashlib.md5(request.node.nodeid.encode()).hexdigest()


@pytest.fixture
def claim(files: FilePlace, tmp_path: Path) -> ClaimPlace:
    return ClaimPlace(tmp_path / "claims")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FilePlace:
    # Files of a test are always younger than the grain of a clock.
    monkeypatch.setattr(file_source, "_FILE_GRAIN_S", -1.0)
    return FilePlace(tmp_path / "source")


REAL_BUCKETS = [pytest.param(name, marks=pytest.mark.clients) for name in ("gateway", "gs", "azure")]
BUCKETS = ["s3", *REAL_BUCKETS]


@pytest.fixture(params=["files", "claim", "http", *BUCKETS])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "http":
        return HttpPlace(request.getfixturevalue("server"))
    made: Place = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def keys(request: pytest.FixtureRequest) -> StorageKeys:
    """Storage keys for whichever place the test uses."""
    wanted = set(request.node.callspec.params.values()) if hasattr(request.node, "callspec") else set()
    key: StorageKey
    if "gs" in wanted:
        name, key = "google", GcsKey(request.getfixturevalue("gcs_endpoint"))
    elif "azure" in wanted:
        endpoint = f"{request.getfixturevalue('azurite_endpoint')}/{AZURITE_ACCOUNT}"
        name, key = "microsoft", AzureKey(AZURITE_ACCOUNT, endpoint_url=endpoint, access_key=AZURITE_KEY)
    elif "claim" in wanted:
        name, key = "claim", PvcKey("claim")
    else:
        endpoint = request.getfixturevalue("gateway_endpoint" if "gateway" in wanted else "moto_endpoint")
        name, key = "minio", S3Key(endpoint_url=endpoint, access_key_id="KEY", secret_access_key=SECRET)
    return StorageKeys({("default", name): key, ("other", name): key})


def request_for(place: Place, uri: str, **changes: Any) -> FetchRequest:
    return FetchRequest(uri=uri, storage_key=place.storage_key, **changes)


BODY = os.urandom(300_000)


# What every place promises --------------------------------------------------------------------------------------


async def test_an_object_arrives_whole_under_its_hash(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("models/m.onnx", BODY)
    async with opened(tmp_path, storage=keys) as store:
        artifact = await store.fetch(request_for(place, uri))
        assert content_of(artifact) == BODY
        assert artifact.path.suffix == ".onnx"
        assert artifact.content_hash == sha256_of(BODY).replace(":", "-")
        assert (artifact.size_bytes, artifact.fetched_bytes) == (len(BODY), len(BODY))


async def test_an_unchanged_object_is_not_transferred_again(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("m.bin", BODY)
    async with opened(tmp_path, storage=keys) as store:
        store.release(await store.fetch(request_for(place, uri)))
        assert (await store.fetch(request_for(place, uri))).fetched_bytes == 0
    async with opened(tmp_path, storage=keys) as restarted:
        assert (await restarted.fetch(request_for(place, uri))).fetched_bytes == 0


async def test_whoever_fetches_hears_a_file_as_it_comes_and_nothing_of_an_archive(
    place: Place, keys: StorageKeys, tmp_path: Path
) -> None:
    heard: list[tuple[int, bytes]] = []

    def hear(offset: int, piece: bytes) -> None:
        heard.append((offset, piece))

    request = request_for(place, place.put("m.bin", BODY))
    async with opened(tmp_path, storage=keys) as store:
        await store.fetch(request, hear)
        assert b"".join(piece for _, piece in heard) == BODY
        assert [offset for offset, _ in heard] == [0, *accumulate(len(piece) for _, piece in heard[:-1])]
        heard.clear()
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("a.txt", "a")
        await store.fetch(request_for(place, place.put("m.zip", zipped.getvalue())), hear)
        assert heard == []


async def test_a_changed_object_is_fetched_again(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("m.bin", BODY)
    async with opened(tmp_path, storage=keys) as store:
        old = await store.fetch(request_for(place, uri))
        place.put("m.bin", BODY[::-1])
        new = await store.fetch(request_for(place, uri))
        assert content_of(new) == BODY[::-1]
        assert content_of(old) == BODY


async def test_a_missing_object_is_a_permanent_error(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("there", BODY).replace("there", "not-there")
    async with opened(tmp_path, storage=keys) as store:
        with pytest.raises(ArtifactNotFound, match="not-there"):
            await store.fetch(request_for(place, uri))


async def test_equal_bytes_under_two_uris_are_stored_once(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uris = [place.put(name, BODY) for name in ("a/m.onnx", "b/m.onnx", "c.bin")]
    async with opened(tmp_path, storage=keys) as store:
        artifacts = [await store.fetch(request_for(place, uri)) for uri in uris]
        assert len({artifact.path.stat().st_ino for artifact in artifacts}) == 1
        assert store.use().entries == 1
        assert store.use().used_bytes < 1.3 * len(BODY)


async def test_a_checksum_that_does_not_hold_is_a_permanent_error(
    place: Place, keys: StorageKeys, tmp_path: Path
) -> None:
    uri = place.put("m.bin", BODY)
    async with opened(tmp_path, storage=keys) as store:
        right = await store.fetch(request_for(place, uri, checksum=sha256_of(BODY)))
        assert content_of(right) == BODY
        for _ in range(2):
            with pytest.raises(ChecksumMismatch, match="the spec asks for sha256:0000"):
                await store.fetch(request_for(place, uri, checksum="sha256:" + "0" * 64))
        assert store.use().entries == 1


async def test_an_object_over_the_limit_is_refused_before_its_body(
    place: Place, keys: StorageKeys, tmp_path: Path
) -> None:
    uri = place.put("m.bin", BODY)
    counted = Counted()
    limits = FetchLimits(bytes_max=len(BODY) - 1)
    async with opened(tmp_path, storage=keys, limits=limits, create=counted) as store:
        with pytest.raises(ArtifactTooLarge, match="--fetch-size-max"):
            await store.fetch(request_for(place, uri))
        assert (counted.created, store.use().used_bytes) == (0, 0)


async def test_an_empty_object_is_a_permanent_error(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("m.bin", b"")
    async with opened(tmp_path, storage=keys) as store:
        with pytest.raises(BadArtifact, match="empty"):
            await store.fetch(request_for(place, uri))


async def test_fifty_requests_at_once_are_one_download(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    uri = place.put("m.bin", BODY)
    counted = Counted()
    async with opened(tmp_path, storage=keys, create=counted) as store:
        artifacts = await asyncio.gather(*(store.fetch(request_for(place, uri)) for _ in range(50)))
        assert counted.created == 1
        assert len({artifact.lease for artifact in artifacts}) == 50
        for artifact in artifacts:
            store.release(artifact)
        assert store._disk.ledger.references(f"content/{artifacts[0].content_hash}") == 0


async def test_archives_are_unpacked_by_name_and_zip_formats_are_not(
    place: Place, keys: StorageKeys, tmp_path: Path
) -> None:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("m/a.txt", "a")
        archive.writestr("m/sub/b.txt", "b")
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        for name, text in (("m/a.txt", b"a"), ("m/sub/b.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    expected = {"a.txt": b"a", "sub/b.txt": b"b"}
    async with opened(tmp_path, storage=keys) as store:
        from_zip = await store.fetch(request_for(place, place.put("m.zip", zipped.getvalue())))
        from_tar = await store.fetch(request_for(place, place.put("m.tar.gz", tarred.getvalue())))
        kept = await store.fetch(request_for(place, place.put("m.skops", zipped.getvalue())))
        assert content_of(from_zip) == content_of(from_tar) == expected
        assert from_zip.content_hash == from_tar.content_hash
        assert content_of(kept) == zipped.getvalue()


async def test_an_archive_around_one_file_is_that_file(place: Place, keys: StorageKeys, tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("model.json", BODY)
    async with opened(tmp_path, storage=keys) as store:
        artifact = await store.fetch(request_for(place, place.put("m.zip", zipped.getvalue())))
        assert (content_of(artifact), artifact.path.suffix) == (BODY, ".json")


async def test_a_broken_archive_is_a_permanent_error_and_leaves_nothing(
    place: Place, keys: StorageKeys, tmp_path: Path
) -> None:
    uri = place.put("m.zip", b"PK not really")
    async with opened(tmp_path, storage=keys) as store:
        with pytest.raises(BadArtifact, match="corrupt"):
            await store.fetch(request_for(place, uri))
        assert store.use().used_bytes == 0


@pytest.mark.parametrize("kind", ["files", "claim", *BUCKETS])
async def test_a_directory_arrives_with_all_its_files(
    kind: str, request: pytest.FixtureRequest, keys: StorageKeys, tmp_path: Path
) -> None:
    place: Place = request.getfixturevalue(kind)
    place.put("d/model.onnx", BODY)
    place.put("d/sub/weights.bin", b"w")
    base = place.put("d2/x", b"not part of d").removesuffix("2/x")
    async with opened(tmp_path, storage=keys) as store:
        artifact = await store.fetch(request_for(place, base))
        assert content_of(artifact) == {"model.onnx": BODY, "sub/weights.bin": b"w"}
        assert (await store.fetch(request_for(place, base + "/"))).content_hash == artifact.content_hash
        assert (await store.fetch(request_for(place, base))).fetched_bytes == 0
        place.put("d/sub/weights.bin", b"v")
        assert content_of(await store.fetch(request_for(place, base))) == {"model.onnx": BODY, "sub/weights.bin": b"v"}


@pytest.mark.parametrize("kind", ["http", "s3"])
async def test_with_a_checksum_a_restarted_pod_needs_no_server(
    kind: str, request: pytest.FixtureRequest, server: FaultyServer, keys: StorageKeys, tmp_path: Path
) -> None:
    place: Place = HttpPlace(server) if kind == "http" else request.getfixturevalue("s3")
    uri = place.put("m.bin", BODY)
    async with opened(tmp_path, storage=keys) as store:
        await store.fetch(request_for(place, uri, checksum=sha256_of(BODY)))
    server.faults["/m.bin"] = ["status:500"] * 50
    if isinstance(place, S3Place):
        place.client.delete_object(Bucket=place.bucket, Key="m.bin")
    async with opened(tmp_path, storage=keys) as store:
        assert content_of(await store.fetch(request_for(place, uri, checksum=sha256_of(BODY)))) == BODY
        # Another tenant that knows the checksum, and may not read the object, gets nothing by it.
        with pytest.raises(AdapterError):
            await store.fetch(request_for(place, uri, checksum=sha256_of(BODY), tenant="other"))


# What servers do wrong ------------------------------------------------------------------------------------------


async def test_a_dropped_download_goes_on_where_it_stopped(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["drop"] * 5
    async with opened(tmp_path) as store:
        artifact = await store.fetch(FetchRequest(uri))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes < len(BODY)
    assert sum(1 for value in server.ranges() if value) >= 3


async def test_a_new_pod_goes_on_with_a_download_that_the_old_one_left(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["drop"] * 2
    limits = FetchLimits(attempts_max=1, stall_timeout_s=2.0)
    async with opened(tmp_path, limits=limits) as store:
        with pytest.raises(FetchFailed):
            await store.fetch(FetchRequest(uri))
        left_bytes = store.use().used_bytes
        assert left_bytes > len(BODY) // 4
    async with opened(tmp_path) as store:
        assert store.use().used_bytes == left_bytes
        server.seen.clear()
        artifact = await store.fetch(FetchRequest(uri))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes < len(BODY)
        resumed = [request.headers for request in server.seen if "range" in request.headers]
        assert resumed[0]["if-match"] == server.files["/m.bin"].etag


async def test_a_server_that_ignores_ranges_is_read_from_the_start(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["drop", "ignore-range,drop", "ignore-range", "ignore-range", "ignore-range"]
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(uri))) == BODY


async def test_without_an_etag_a_broken_download_starts_over(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY, etag=False)
    server.faults["/m.bin"] = ["drop", "drop"]
    async with opened(tmp_path) as store:
        artifact = await store.fetch(FetchRequest(uri))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes == len(BODY)
        again = await store.fetch(FetchRequest(uri))
        assert again.fetched_bytes == len(BODY)
        assert store.use().entries == 1


async def test_an_object_that_changes_while_it_is_read_never_becomes_a_mixture(
    server: FaultyServer, tmp_path: Path
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["change", "ignore-if-match"]
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(uri))) == BODY[::-1] + b"new"


async def test_an_object_that_never_stops_changing_is_a_transient_error(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["change"] * 50
    async with opened(tmp_path) as store:
        with pytest.raises(FetchFailed):
            await store.fetch(FetchRequest(uri))


@pytest.mark.parametrize("fault", ["status:500", "status:503", "status:429", "reset"])
async def test_a_passing_failure_of_the_server_is_tried_again(fault: str, server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = [fault] * 3
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(uri))) == BODY


ERRORS: list[tuple[str, type[AdapterError], str]] = [
    ("status:500", FetchFailed, "HTTP 500"),
    ("status:401", ArtifactDenied, "HTTP 401"),
    ("status:403", ArtifactDenied, "HTTP 403"),
    ("status:400", BadArtifact, "HTTP 400"),
    ("status:410", BadArtifact, "HTTP 410"),
    ("no-length", BadArtifact, "Content-Length"),
    ("claims-more", FetchFailed, "uri"),
    ("redirect:/m.bin", FetchFailed, "uri"),
]


@pytest.mark.parametrize(("fault", "error", "says"), ERRORS, ids=[case[0] for case in ERRORS])
async def test_each_failure_has_its_class_and_shows_no_secret(
    fault: str, error: type[AdapterError], says: str, server: FaultyServer, tmp_path: Path
) -> None:
    uri = server.put("m.bin", BODY) + f"?X-Amz-Signature={SECRET}"
    server.faults["/m.bin"] = [fault] * 100
    keys = StorageKeys({("default", "web"): HttpKey(server.base, {"Authorization": SECRET})})
    async with opened(tmp_path, storage=keys) as store:
        with pytest.raises(error, match=says) as caught:
            await store.fetch(FetchRequest(uri, storage_key="web"))
        assert type(caught.value) in (error, FetchTimedOut, ArtifactChanged)
        assert SECRET not in repr(caught.value)
        assert caught.value.__cause__ is None
        assert "m.bin" in str(caught.value)
        assert SECRET not in repr(keys)


async def test_what_a_key_holds_stays_with_its_origin_where_that_redirects(
    server: FaultyServer, tmp_path: Path
) -> None:
    headers = {"Authorization": SECRET, "PRIVATE-TOKEN": SECRET, "x-amz-security-token": SECRET}
    storage = StorageKeys({("default", "web"): HttpKey(server.base, headers)})
    with faulty_server() as network:
        # `localhost` is another host than 127.0.0.1.
        elsewhere = network.put("blob", BODY).replace("127.0.0.1", "localhost")
        uri = server.put("moved", BODY)
        server.faults["/latest"] = [f"redirect:{uri}"] * 20
        server.faults["/moved"] = [f"redirect:{elsewhere}?signed=for-it"] * 20
        async with opened(tmp_path, storage=storage) as store:
            artifact = await store.fetch(FetchRequest(f"{server.base}/latest", storage_key="web"))
            assert content_of(artifact) == BODY
            again = await store.fetch(FetchRequest(f"{server.base}/latest", storage_key="web"))
            assert again.fetched_bytes == 0
        assert network.seen
        assert all(SECRET not in f"{seen.path} {seen.headers}" for seen in network.seen)
        assert all("referer" not in seen.headers for seen in network.seen)
    assert all(seen.headers["private-token"] == SECRET for seen in server.seen)


async def test_a_signature_in_a_query_stays_with_its_server_where_that_redirects(
    server: FaultyServer, tmp_path: Path
) -> None:
    with faulty_server() as network:
        elsewhere = network.put("blob", BODY).replace("127.0.0.1", "localhost")
        server.faults["/m.bin"] = [f"redirect:{elsewhere}"] * 20
        async with opened(tmp_path) as store:
            assert content_of(await store.fetch(FetchRequest(f"{server.base}/m.bin?sig={SECRET}"))) == BODY
        assert network.seen
        assert all(SECRET not in f"{seen.path} {seen.headers}" for seen in network.seen)


@pytest.mark.parametrize("storage_key", ["web", None], ids=["keyed", "plain"])
async def test_a_file_does_not_come_from_where_the_operator_forbids(
    storage_key: str | None, server: FaultyServer, tmp_path: Path
) -> None:
    storage = StorageKeys({("default", "web"): HttpKey(server.base, {"X-Api-Key": SECRET})})
    request = FetchRequest(server.put("m.bin", BODY), storage_key=storage_key)
    with faulty_server() as inner:
        elsewhere = inner.put("blob", BODY).replace("127.0.0.1", "localhost")
        server.faults["/m.bin"] = [
            f"redirect:{elsewhere}",
            "redirect:https://account.blob.core.windows.net/c/m.bin",
            "redirect:http://169.254.169.254/latest",
        ]
        async with opened(tmp_path, storage=storage, policy=SourcePolicy(http_hosts=("127.0.0.1",))) as store:
            for says in ("host localhost is not among", "host account.blob.core.windows.net is not", "link-local"):
                with pytest.raises(BadArtifact, match=says):
                    await store.fetch(request)
            assert content_of(await store.fetch(request)) == BODY
        assert not inner.seen


async def test_a_server_that_redirects_after_the_look_leads_nowhere_either(
    server: FaultyServer, tmp_path: Path, small_parts: int
) -> None:
    uri = server.put("m.bin", BODY)
    with faulty_server() as inner:
        elsewhere = inner.put("blob", BODY).replace("127.0.0.1", "localhost")
        server.faults["/m.bin"] = ["", *[f"redirect:{elsewhere}"] * 20]
        async with opened(tmp_path, policy=SourcePolicy(http_hosts=("127.0.0.1",))) as store:
            with pytest.raises(BadArtifact, match="host localhost is not among"):
                await store.fetch(FetchRequest(uri))
        assert not inner.seen


async def test_a_name_that_leads_to_a_metadata_service_is_not_asked(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    async with opened(tmp_path) as store:
        with pytest.raises(BadArtifact, match=r"models\.example leads to 169\.254\.169\.254, a link-local address"):
            await store.fetch(FetchRequest("http://models.example/m.bin"))


async def test_the_operators_proxy_is_asked_for_what_this_machine_cannot_resolve(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["http://models.invalid/m.bin"] = Served(BODY, '"1"')
    monkeypatch.setenv("http_proxy", server.base)
    monkeypatch.setenv("no_proxy", "")
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest("http://models.invalid/m.bin"))) == BODY
    assert {seen.headers["host"] for seen in server.seen} == {"models.invalid"}


async def test_a_connection_that_its_server_closed_is_not_missed(server: FaultyServer, tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for name in ("a.bin", "b.bin", "c.bin"):
            uri = server.put(name, BODY)
            server.faults[f"/{name}"] = ["reset"]  # on the connection that the file before it left, and is kept
            assert content_of(await store.fetch(FetchRequest(uri))) == BODY
    assert [seen.path for seen in server.seen] == ["/a.bin", "/a.bin", "/b.bin", "/b.bin", "/c.bin", "/c.bin"]


async def test_a_body_shorter_than_announced_is_never_stored(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["claims-more"] * 2
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(uri, checksum=sha256_of(BODY)))) == BODY
        assert store.use().entries == 1


async def test_a_silent_server_is_given_up_after_the_stall_timeout(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["hold"] * 10
    limits = FetchLimits(stall_timeout_s=0.2, attempts_max=1, retry_delay_s=0.01)
    async with opened(tmp_path, limits=limits) as store:
        began_s = time.monotonic()
        with pytest.raises(LoadFailed):
            await store.fetch(FetchRequest(uri))
        assert time.monotonic() - began_s < 5


async def test_a_refused_connection_is_a_transient_error(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        with pytest.raises(FetchFailed, match="connection"):
            await store.fetch(FetchRequest("http://127.0.0.1:9/m.bin"))


async def test_a_waiter_gives_up_at_its_deadline_and_the_others_get_the_artifact(
    server: FaultyServer, tmp_path: Path
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["hold"]
    async with opened(tmp_path) as store:
        patient = asyncio.create_task(store.fetch(FetchRequest(uri)))
        cancelled = asyncio.create_task(store.fetch(FetchRequest(uri)))
        await asyncio.to_thread(server.at_hold.wait, 10)
        with pytest.raises(FetchTimedOut, match="caller's deadline"):
            await store.fetch(FetchRequest(uri, deadline_s=time.monotonic() + 0.05))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        server.hold.set()
        assert content_of(await patient) == BODY
        assert len(server.seen) == 1


async def test_when_the_last_waiter_leaves_the_download_stops_and_can_go_on(
    server: FaultyServer, tmp_path: Path
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["hold"]
    async with opened(tmp_path) as store:
        only = asyncio.create_task(store.fetch(FetchRequest(uri)))
        await asyncio.to_thread(server.at_hold.wait, 10)
        only.cancel()
        with pytest.raises(asyncio.CancelledError):
            await only
        server.hold.set()
        artifact = await store.fetch(FetchRequest(uri))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes <= len(BODY)


# Who may send what to whom --------------------------------------------------------------------------------------


async def test_headers_of_a_storage_key_go_to_its_own_origin_only(server: FaultyServer, tmp_path: Path) -> None:
    uri = server.put("m.bin", BODY)
    keys = StorageKeys(
        {
            ("default", "web"): HttpKey(server.base, {"Authorization": SECRET}),
            ("default", "elsewhere"): HttpKey("https://models.example:443", {"Authorization": SECRET}),
        }
    )
    async with opened(tmp_path, storage=keys) as store:
        await store.fetch(FetchRequest(uri, storage_key="web"))
        assert server.seen[0].headers["authorization"] == SECRET
        server.seen.clear()
        with pytest.raises(ArtifactDenied, match=r"models\.example"):
            await store.fetch(FetchRequest(uri, storage_key="elsewhere"))
        assert not server.seen


@pytest.mark.parametrize("signed", [True, False])
async def test_the_process_environment_never_reaches_a_bucket(
    signed: bool, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "ENVIRONMENT",
        "AWS_SECRET_ACCESS_KEY": "ENVIRONMENT",
        "AWS_SESSION_TOKEN": "ENVIRONMENT",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "mars-1",
        "AWS_DEFAULT_REGION": "mars-1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REQUEST_PAYER": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server.put("bucket/m.bin", BODY)
    key = S3Key(server.base, access_key_id="KEY", secret_access_key=SECRET) if signed else S3Key(server.base)
    async with opened(tmp_path, storage=StorageKeys({("default", "k"): key})) as store:
        assert content_of(await store.fetch(FetchRequest("s3://bucket/m.bin", storage_key="k"))) == BODY
    headers = server.seen[0].headers
    assert "ENVIRONMENT" not in repr(headers)
    assert "mars-1" not in repr(headers)
    assert "x-amz-request-payer" not in headers
    assert ("authorization" in headers) is signed
    assert "x-amz-security-token" not in headers


async def test_a_denied_bucket_names_the_reason_and_no_secret(server: FaultyServer, tmp_path: Path) -> None:
    server.faults["/bucket/m.bin"] = ["status:403"] * 10
    key = S3Key(server.base, access_key_id="KEY", secret_access_key=SECRET)
    async with opened(tmp_path, storage=StorageKeys({("default", "k"): key})) as store:
        with pytest.raises(ArtifactDenied, match="HTTP 403") as caught:
            await store.fetch(FetchRequest("s3://bucket/m.bin", storage_key="k"))
        assert SECRET not in repr(caught.value)
        assert SECRET not in repr(key)


async def test_a_bucket_that_does_not_exist_is_named(s3: S3Place, keys: StorageKeys, tmp_path: Path) -> None:
    async with opened(tmp_path, storage=keys) as store:
        for uri in ("s3://no-such-bucket/m.bin", "s3://no-such-bucket/dir/"):
            with pytest.raises(ArtifactNotFound, match="bucket does not exist"):
                await store.fetch(request_for(s3, uri))


async def test_keys_of_a_bucket_that_climb_or_collide_are_refused(
    s3: S3Place, keys: StorageKeys, tmp_path: Path
) -> None:
    async with opened(tmp_path, storage=keys) as store:
        for names in (("climb/../../x",), ("double//x",), ("same/Model.bin", "same/model.bin")):
            for name in names:
                s3.put(name, BODY)
            with pytest.raises(BadArtifact):
                await store.fetch(request_for(s3, f"s3://{s3.bucket}/{names[0].partition('/')[0]}/"))
        assert store.use().used_bytes == 0


async def test_markers_of_directories_in_a_bucket_are_not_files(s3: S3Place, keys: StorageKeys, tmp_path: Path) -> None:
    for name, content in (("d/", b""), ("d/sub/", b""), ("d/sub/a.bin", b"a"), ("d/empty.bin", b"")):
        s3.put(name, content)
    async with opened(tmp_path, storage=keys) as store:
        artifact = await store.fetch(request_for(s3, f"s3://{s3.bucket}/d"))
        assert content_of(artifact) == {"sub/a.bin": b"a", "empty.bin": b""}


async def test_the_query_of_a_signed_url_is_sent_as_it_is(server: FaultyServer, tmp_path: Path) -> None:
    server.put("a%20b/m.bin", BODY)
    async with opened(tmp_path) as store:
        await store.fetch(FetchRequest(f"{server.base}/a%20b/m.bin?sig=a%2Fb%2B&x=1"))
    assert server.seen[0].path == "/a%20b/m.bin?sig=a%2Fb%2B&x=1"


# Files of this machine ------------------------------------------------------------------------------------------


async def test_later_edits_of_a_local_file_do_not_reach_what_is_loaded(files: FilePlace, tmp_path: Path) -> None:
    uri = files.put("m.bin", BODY)
    async with opened(tmp_path) as store:
        artifact = await store.fetch(FetchRequest(uri))
        with (files.root / "m.bin").open("r+b") as file:
            file.write(b"edited in place")
        assert content_of(artifact) == BODY


async def test_files_outside_the_allowed_prefixes_are_refused_links_included(files: FilePlace, tmp_path: Path) -> None:
    inside = files.put("allowed/m.bin", BODY)
    outside = files.put("secret/m.bin", BODY)
    (files.root / "allowed/link.bin").symlink_to(files.root / "secret/m.bin")
    (files.root / "allowed/dir").mkdir()
    (files.root / "allowed/dir/link.bin").symlink_to(files.root / "secret/m.bin")
    policy = SourcePolicy(file_prefixes=(files.root / "allowed",))
    async with opened(tmp_path, policy=policy) as store:
        assert content_of(await store.fetch(FetchRequest(inside))) == BODY
        for uri in (outside, f"{files.root}/allowed/link.bin", f"{files.root}/allowed/dir", "/etc/passwd"):
            with pytest.raises(BadArtifact, match="limited to"):
                await store.fetch(FetchRequest(uri))


async def test_a_pipe_or_a_device_is_refused_without_being_read(files: FilePlace, tmp_path: Path) -> None:
    files.root.mkdir()
    os.mkfifo(files.root / "pipe")
    async with opened(tmp_path) as store:
        for path in (files.root / "pipe", Path("/dev/zero"), files.root):
            with pytest.raises(BadArtifact, match="neither a file nor a directory"):
                await store.fetch(FetchRequest(str(path)))


async def test_trust_follows_the_real_file_not_the_link(files: FilePlace, tmp_path: Path) -> None:
    trusted = files.put("trusted/m.pkl", BODY)
    files.put("other/m.pkl", BODY)
    (files.root / "trusted/link.pkl").symlink_to(files.root / "other/m.pkl")
    policy = SourcePolicy(trusted_prefixes=(f"file://{files.root}/trusted",))
    async with opened(tmp_path, policy=policy) as store:
        assert (await store.fetch(FetchRequest(trusted))).trusted
        assert not (await store.fetch(FetchRequest(f"{files.root}/trusted/link.pkl"))).trusted
        assert not (await store.fetch(FetchRequest(f"{files.root}/other/m.pkl"))).trusted


# Large objects, in parts ------------------------------------------------------------------------------------------


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    part_bytes = len(BODY) // 7
    monkeypatch.setattr(stored_objects, "PART_BYTES", part_bytes)
    monkeypatch.setattr(stored_objects, "PARALLEL_MIN_BYTES", 2 * part_bytes)
    return part_bytes


async def test_a_large_object_is_read_in_parts_that_follow_the_first_answer(
    server: FaultyServer, tmp_path: Path, small_parts: int
) -> None:
    uri = server.put("m.bin", BODY)
    async with opened(tmp_path) as store:
        artifact = await store.fetch(FetchRequest(uri, checksum=sha256_of(BODY)))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes == len(BODY)
    first, *rest = server.ranges()
    assert first is None
    parts = sorted(tuple(map(int, part.removeprefix("bytes=").split("-"))) for part in rest if part)
    assert [begin for begin, _ in parts] == [small_parts, *(last + 1 for _, last in parts[:-1])]
    assert parts[-1][1] == len(BODY) - 1
    assert max(last - begin + 1 for begin, last in parts) == small_parts


async def test_parts_go_on_where_a_broken_download_stopped(
    server: FaultyServer, tmp_path: Path, small_parts: int
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["", "", "reset", "reset", "reset", "reset", "reset", "reset"]
    async with opened(tmp_path) as store:
        artifact = await store.fetch(FetchRequest(uri))
        assert content_of(artifact) == BODY
        assert artifact.fetched_bytes < len(BODY)


async def test_a_large_object_of_a_server_that_ignores_ranges_is_read_in_one_stream(
    server: FaultyServer, tmp_path: Path, small_parts: int
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["ignore-range"] * 20
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(uri))) == BODY


async def test_a_large_object_that_changes_between_its_parts_is_never_a_mixture(
    server: FaultyServer, tmp_path: Path, small_parts: int
) -> None:
    uri = server.put("m.bin", BODY)
    server.faults["/m.bin"] = ["", "", "change"]
    async with opened(tmp_path) as store:
        content = content_of(await store.fetch(FetchRequest(uri)))
        assert content == server.files["/m.bin"].content
        assert content != BODY
