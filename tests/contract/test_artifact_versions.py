"""Stores with versions: a Git server, an OCI registry, a Hugging Face hub.

The Git server is git's own. The registry is go-containerregistry's in `make test-clients`, and in `make test` one that
answers what the specification says and asks for tokens as public ones do. No hub runs on one machine: its answers here
are what the public hub's API documents.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime_adapters.artifacts import stored_objects
from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.credentials import StorageKeys
from runtime_adapters.artifacts.errors import (
    ArtifactDenied,
    ArtifactNotFound,
    ArtifactTooLarge,
    ChecksumMismatch,
    FetchFailed,
    FetchTimedOut,
    UnsafeArchive,
)
from runtime_adapters.artifacts.fetch import FetchRequest
from runtime_adapters.artifacts.fetching import FetchLimits
from runtime_adapters.artifacts.git_source import GitSource
from runtime_adapters.artifacts.small_answers import ask
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import GitKey, HfKey, OciKey, StorageKey
from runtime_adapters.errors import BadArtifact, LoadFailed
from tests.contract.artifact_stores import LIMITS, SECRET, content_of, opened
from tests.contract.faulty_server import FaultyServer, Served, faulty_server
from tests.contract.git_server import GitServer, git_server
from tests.contract.storage_servers import ToolMissing, registry, send

BODY = os.urandom(200_000)


def keys(**named: StorageKey) -> StorageKeys:
    return StorageKeys({("default", name): key for name, key in named.items()})


# Git ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def git(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path / "repositories") as world:
        yield world


async def test_a_repository_is_read_at_a_branch_a_tag_and_a_commit(git: GitServer, tmp_path: Path) -> None:
    first = git.commit("org/m", {"model/a.onnx": BODY, "README.md": b"first"}, tag="v1")
    git.commit("org/m", {"README.md": b"second"})
    async with opened(tmp_path) as store:
        for rest, readme in (("", b"second"), ("@main", b"second"), ("@v1", b"first"), (f"@{first}", b"first")):
            content = content_of(await store.fetch(FetchRequest(git.uri("org/m", rest))))
            assert content == {"model/a.onnx": BODY, "README.md": readme}, rest
        assert content_of(await store.fetch(FetchRequest(git.uri("org/m", "#model")))) == {"a.onnx": BODY}
        single = await store.fetch(FetchRequest(git.uri("org/m", "@v1#model/a.onnx")))
        assert (content_of(single), single.path.suffix) == (BODY, ".onnx")
        again = await store.fetch(FetchRequest(git.uri("org/m", "@v1#model/a.onnx")))
        assert again.fetched_bytes == 0


async def test_a_commit_lies_on_the_disk_for_artifacts_while_it_is_read_and_then_nowhere(
    git: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git.commit("org/m", {"a": BODY})
    places: list[Path] = []
    start = GitSource._start

    def note(source: GitSource, *arguments: str) -> subprocess.Popen[bytes]:
        places.append(source._directory)
        return start(source, *arguments)

    monkeypatch.setattr(GitSource, "_start", note)
    async with opened(tmp_path) as store:
        assert content_of(await store.fetch(FetchRequest(git.uri("org/m")))) == {"a": BODY}
    assert {place.parent for place in places} == {tmp_path / "disk" / "staging"}
    gc.collect()
    assert not any(place.exists() for place in places)


async def test_a_commit_counts_on_the_disk_for_artifacts_while_it_is_read(git: GitServer, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(1_000_000)  # as large in a pack as it is
    git.commit("org/m", {"a": content})
    async with opened(tmp_path, capacity_bytes=1_500_000) as store:  # the file alone would fit
        with pytest.raises(LoadFailed, match="disk"):
            await store.fetch(FetchRequest(git.uri("org/m")))
        assert store.use().used_bytes == 0
    async with opened(tmp_path / "larger", capacity_bytes=2_500_000) as store:
        assert content_of(await store.fetch(FetchRequest(git.uri("org/m")))) == {"a": content}
        assert 1_000_000 <= store.use().used_bytes < 1_100_000, "what git fetched has left with it"


async def test_what_is_not_in_a_repository_is_named(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/m", {"a": b"1"})
    async with opened(tmp_path) as store:
        for uri in (git.uri("org/m", "@no-such-branch"), git.uri("org/m", "#no/such/path"), git.uri("org/other")):
            with pytest.raises(ArtifactNotFound):
                await store.fetch(FetchRequest(uri))


async def test_a_private_repository_wants_its_own_login(
    git: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_ASKPASS", "/ENVIRONMENT")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/ENVIRONMENT")
    git.commit("org/m", {"a": b"1"})
    git.authorization = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    origin = f"http://127.0.0.1:{git.port}"
    storage = keys(mine=GitKey(origin, "me", SECRET), wrong=GitKey(origin, "me", "no"), other=GitKey("https://g:443"))
    async with opened(tmp_path, storage=storage) as store:
        assert content_of(await store.fetch(FetchRequest(git.uri("org/m"), storage_key="mine"))) == {"a": b"1"}
        for key in ("wrong", None):
            with pytest.raises(ArtifactDenied, match="denies access"):
                await store.fetch(FetchRequest(git.uri("org/m"), storage_key=key))
        git.seen.clear()
        with pytest.raises(ArtifactDenied, match="https://g:443 only"):
            await store.fetch(FetchRequest(git.uri("org/m"), storage_key="other"))
        assert not git.seen


async def test_a_repository_that_redirects_gets_no_login_sent_on(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/m", {"a": b"1"})
    with git_server(tmp_path / "elsewhere") as other:
        git.redirect_to = f"http://127.0.0.1:{other.port}"
        storage = keys(mine=GitKey(f"http://127.0.0.1:{git.port}", "me", SECRET))
        async with opened(tmp_path, storage=storage) as store:
            with pytest.raises(BadArtifact, match="moved"):
                await store.fetch(FetchRequest(git.uri("org/m"), storage_key="mine"))
        assert not other.seen


async def test_links_submodules_and_lfs_pointers_are_refused(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/link", {"d/a": b"1"})
    (git.root / "org/link/d/up").symlink_to("/etc/passwd")
    git.commit("org/link", {})
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    git.commit("org/lfs", {"m.onnx": pointer})
    async with opened(tmp_path) as store:
        with pytest.raises(BadArtifact, match="is a link"):
            await store.fetch(FetchRequest(git.uri("org/link", "#d")))
        with pytest.raises(BadArtifact, match="Git LFS"):
            await store.fetch(FetchRequest(git.uri("org/lfs")))


async def test_a_repository_over_the_limits_is_refused(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/m", {"a": BODY, "b": b"2", "c": b"3"})
    async with opened(tmp_path, limits=FetchLimits(bytes_max=len(BODY) // 2)) as store:
        with pytest.raises(ArtifactTooLarge, match="--fetch-size-max"):
            await store.fetch(FetchRequest(git.uri("org/m")))
    async with opened(tmp_path, limits=FetchLimits(files_max=2)) as store:
        with pytest.raises(ArtifactTooLarge, match="more than 2 files"):
            await store.fetch(FetchRequest(git.uri("org/m")))


async def test_trees_that_name_one_another_are_no_list_without_end(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/m", {"a": b"1"})
    tree = git.git("org/m", "rev-parse", "HEAD^{tree}")
    for _ in range(8):  # 10 names for each tree: 10 ** 8 files
        names = "".join(f"040000 tree {tree}\td{number}\n" for number in range(10))
        tree = git.git("org/m", "mktree", input=names)
    git.git("org/m", "update-ref", "HEAD", git.git("org/m", "commit-tree", "-m", "models", tree))
    async with opened(tmp_path) as store:
        with pytest.raises(ArtifactTooLarge, match="list of the repository's files"):
            await store.fetch(FetchRequest(git.uri("org/m")))


async def test_git_is_stopped_when_nobody_waits_for_it_any_more(git: GitServer, tmp_path: Path) -> None:
    git.commit("org/m", {"a": b"1"})
    git.hold = threading.Event()
    async with opened(tmp_path) as store:
        only = asyncio.create_task(store.fetch(FetchRequest(git.uri("org/m"))))
        await asyncio.to_thread(git.at_hold.wait, 10)
        only.cancel()
        with pytest.raises(asyncio.CancelledError):
            await only
        await asyncio.wait_for(store.close(), 10)
    git.hold.set()


async def test_a_pod_without_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with opened(tmp_path) as store:
        with pytest.raises(BadArtifact, match="apt-get install git"):
            await store.fetch(FetchRequest("git+https://h/org/m"))


# Registries -----------------------------------------------------------------------------------------------------

OCI = "application/vnd.oci.image"


def layer(files: dict[str, bytes | None], *, zipped: bool = True) -> bytes:
    """A tar archive; None is a link to somewhere else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return gzip.compress(buffer.getvalue()) if zipped else buffer.getvalue()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Registry:
    """A registry that a test pushes to. `world`: the one of this file, which records what it is asked."""

    host: str
    world: FaultyServer | None = None

    def push(self, name: str, tag: str, manifest: dict[str, Any], blobs: list[bytes]) -> str:
        content = json.dumps(manifest).encode()
        if self.world is not None:
            for blob in blobs:
                self.world.files[f"/v2/{name}/blobs/{digest_of(blob)}"] = Served(blob, None)
            for reference in (tag, digest_of(content)):
                self.world.files[f"/v2/{name}/manifests/{reference}"] = Served(content, None)
            return digest_of(content)
        base = f"http://{self.host}/v2/{name}"
        for blob in blobs:
            send("POST", f"{base}/blobs/uploads/?digest={digest_of(blob)}", blob)
        send("PUT", f"{base}/manifests/{tag}", content, Content_Type=manifest["mediaType"])
        return digest_of(content)

    def push_image(self, name: str, tag: str, layers: list[bytes], kind: str = "layer.v1.tar+gzip") -> str:
        described = [describe(blob, f"{OCI}.{kind}") for blob in layers]
        config = b"{}"
        return self.push(name, tag, manifest_of(described, config, f"{OCI}.config.v1+json"), [*layers, config])

    def push_files(self, name: str, tag: str, files: dict[str, bytes]) -> str:
        """As `oras push` does it."""
        title = "org.opencontainers.image.title"
        described = [describe(blob, "application/octet-stream", {title: file}) for file, blob in files.items()]
        config = b"{}"
        kind = "application/vnd.oci.empty.v1+json"
        return self.push(name, tag, manifest_of(described, config, kind), [*files.values(), config])

    def uri(self, name: str, reference: str = "") -> str:
        return f"oci://{self.host}/{name}{reference}"


def describe(blob: bytes, kind: str, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": kind, "digest": digest_of(blob), "size": len(blob)}
    return found | ({"annotations": annotations} if annotations else {})


def manifest_of(layers: list[dict[str, Any]], config: bytes, config_kind: str) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": describe(config, config_kind),
        "layers": layers,
    }


@pytest.fixture(scope="session")
def real_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with registry(tmp_path_factory.mktemp("registry")) as base:
            yield base
    except ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture(params=["ours", pytest.param("go-containerregistry", marks=pytest.mark.clients)])
def images(request: pytest.FixtureRequest) -> Registry:
    if request.param == "ours":
        world: FaultyServer = request.getfixturevalue("server")
        return Registry(f"127.0.0.1:{world.port}", world)
    return Registry(request.getfixturevalue("real_registry").removeprefix("http://"))


def plain(images: Registry, **login: str) -> StorageKeys:
    logins = {images.host: (login["user"], login["password"])} if login else {}
    return keys(default_oci=OciKey(logins, (images.host,)))


async def test_of_an_image_the_models_directory_is_read(images: Registry, tmp_path: Path) -> None:
    base = layer(
        {"bin/sh": b"a shell", "bin/link": None, "models/old.bin": b"old", "models/d/x": b"x", "../climb": b"!"}
    )
    top = layer({"./models/a.onnx": BODY, "models/.wh.old.bin": b"", "models/d/x": b"y", "etc/passwd": b"root"})
    digest = images.push_image("org/car", "1.0", [base, top])
    async with opened(tmp_path, storage=plain(images)) as store:
        for reference in (":1.0", f"@{digest}"):
            artifact = await store.fetch(FetchRequest(images.uri("org/car", reference)))
            assert content_of(artifact) == {"a.onnx": BODY, "d/x": b"y"}
        assert (await store.fetch(FetchRequest(images.uri("org/car", ":1.0")))).fetched_bytes == 0


async def test_whiteouts_take_away_what_earlier_layers_put_there(images: Registry, tmp_path: Path) -> None:
    first = layer({"models/d/a": b"a", "models/e/b": b"b", "models/c": b"c"}, zipped=False)
    second = layer({"models/d/.wh..wh..opq": b"", "models/d/new": b"n", "models/.wh.e": b""}, zipped=False)
    images.push_image("org/white", "1", [first, second], kind="layer.v1.tar")
    third = layer({".wh.models": b"", "models/only": b"o"}, zipped=False)
    images.push_image("org/white", "2", [first, second, third], kind="layer.v1.tar")
    fourth = layer({"models/.wh.only": b"", "models/only/one": b"1", "models/other": b"2"}, zipped=False)
    images.push_image("org/white", "3", [first, second, third, fourth], kind="layer.v1.tar")
    async with opened(tmp_path, storage=plain(images)) as store:
        assert content_of(await store.fetch(FetchRequest(images.uri("org/white", ":1")))) == {"c": b"c", "d/new": b"n"}
        assert content_of(await store.fetch(FetchRequest(images.uri("org/white", ":2")))) == {"only": b"o"}
        files = content_of(await store.fetch(FetchRequest(images.uri("org/white", ":3"))))
        assert files == {"only/one": b"1", "other": b"2"}


async def test_an_artifacts_files_have_their_titles(images: Registry, tmp_path: Path) -> None:
    images.push_files("org/files", "latest", {"model.onnx": BODY, "sub/config.json": b"{}"})
    async with opened(tmp_path, storage=plain(images)) as store:
        content = content_of(await store.fetch(FetchRequest(images.uri("org/files"))))
        assert content == {"model.onnx": BODY, "sub/config.json": b"{}"}


async def test_two_spellings_of_a_title_are_one_file(server: FaultyServer, tmp_path: Path) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    title = "org.opencontainers.image.title"
    blobs = [layer({"a": b"1"}), b"2"]
    described = [describe(blobs[0], f"{OCI}.layer.v1.tar+gzip"), describe(blobs[1], "text/plain", {title: "./a"})]
    images.push("org/m", "1", manifest_of(described, b"{}", f"{OCI}.empty.v1+json"), [*blobs, b"{}"])
    async with opened(tmp_path, storage=plain(images)) as store:
        assert content_of(await store.fetch(FetchRequest(images.uri("org/m", ":1")))) == {"a": b"2"}


async def test_an_index_leads_to_the_manifest_for_this_machine(images: Registry, tmp_path: Path) -> None:
    digest = images.push_image("org/index", "amd", [layer({"models/a": b"1"})])
    kind = f"{OCI}.manifest.v1+json"
    listed = [
        {"mediaType": kind, "digest": "sha256:" + "0" * 64, "size": 1, "platform": {"architecture": "unknown"}},
        {"mediaType": kind, "digest": digest, "size": 1, "platform": {"architecture": "amd64", "os": "linux"}},
    ]
    if images.world is None:
        del listed[0]  # a real registry takes no index of what it does not have
    images.push("org/index", "1", {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": listed}, [])
    async with opened(tmp_path, storage=plain(images)) as store:
        assert content_of(await store.fetch(FetchRequest(images.uri("org/index", ":1")))) == {"a": b"1"}


async def test_a_missing_image_is_a_permanent_error(images: Registry, tmp_path: Path) -> None:
    async with opened(tmp_path, storage=plain(images)) as store:
        with pytest.raises(ArtifactNotFound, match="no such image"):
            await store.fetch(FetchRequest(images.uri("org/none", ":1")))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"models/link": None}, "symbolic link"),
        ({"models/../../climb": b"!"}, "climbs"),
        ({"models/Model": b"1", "models/model": b"2"}, "mean one file"),
        ({"elsewhere/a": b"1"}, "below /models"),
        ({"models/zeros": bytes(70 * 1024 * 1024)}, "unpacks to"),
    ],
)
async def test_a_layer_that_would_do_harm_is_refused_and_leaves_nothing(
    files: dict[str, bytes | None], says: str, server: FaultyServer, tmp_path: Path
) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    images.push_image("org/bad", "1", [layer(files)])
    async with opened(tmp_path, storage=plain(images), capacity_bytes=2 * 1024**3) as store:
        with pytest.raises((UnsafeArchive, BadArtifact), match=says):
            await store.fetch(FetchRequest(images.uri("org/bad", ":1")))
        assert store.use().used_bytes == 0


async def test_a_registry_that_gives_other_bytes_is_caught(server: FaultyServer, tmp_path: Path) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    digest = images.push_files("org/m", "1", {"a": b"good"})
    server.files[f"/v2/org/m/blobs/{digest_of(b'good')}"] = Served(b"evil", None)
    async with opened(tmp_path, storage=plain(images)) as store:
        with pytest.raises(FetchFailed, match="its store names it by"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))
        server.files[f"/v2/org/m/manifests/{digest}"] = Served(b"{}", None)
        with pytest.raises(ChecksumMismatch, match="not the one of that digest"):
            await store.fetch(FetchRequest(images.uri("org/m", f"@{digest}")))


async def test_a_token_is_asked_for_where_the_registry_says_and_with_its_own_login_only(
    server: FaultyServer, tmp_path: Path
) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    images.push_files("org/m", "1", {"a": BODY})
    basic = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    server.guards["/v2/"] = (
        "Bearer given",
        f'Bearer realm="{server.base}/token",service="r",scope="repository:org/m:pull"',
    )
    server.guards["/token"] = (basic, "Basic")
    server.put("token", b'{"token": "given"}')
    async with opened(tmp_path, storage=plain(images, user="me", password=SECRET)) as store:
        assert content_of(await store.fetch(FetchRequest(images.uri("org/m", ":1")))) == {"a": BODY}
    (asked,) = [seen for seen in server.seen if seen.path.startswith("/token")]
    assert asked.path == "/token?scope=repository%3Aorg%2Fm%3Apull&service=r"
    assert all(SECRET not in f"{seen.path} {seen.headers}" for seen in server.seen)
    storage = keys(default_oci=OciKey({"other.example": ("me", SECRET)}, (images.host,)))
    server.seen.clear()
    async with opened(tmp_path / "second", storage=storage) as store:
        with pytest.raises(ArtifactDenied, match="denies access"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))
    assert all(seen.headers.get("authorization") != basic for seen in server.seen)


async def test_a_registry_cannot_send_the_pod_to_a_metadata_service(server: FaultyServer, tmp_path: Path) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    server.guards["/v2/"] = ("Bearer given", 'Bearer realm="http://169.254.169.254/latest/meta-data"')
    async with opened(tmp_path, storage=plain(images)) as store:
        with pytest.raises(BadArtifact, match="link-local"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))


async def test_a_registry_cannot_redirect_to_what_the_operator_forbids(server: FaultyServer, tmp_path: Path) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    images.push_files("org/m", "1", {"a": b"1"})
    with faulty_server() as inner:
        inner.put("token", b'{"token": "of the pod\'s own network"}')
        server.put("token", b"{}")
        server.faults["/token"] = [f"redirect:http://localhost:{inner.port}/token"] * 20
        server.guards["/v2/"] = ("Bearer given", f'Bearer realm="{server.base}/token"')
        async with opened(tmp_path, storage=plain(images), policy=SourcePolicy(http_hosts=("127.0.0.1",))) as store:
            with pytest.raises(BadArtifact, match="host localhost is not among"):
                await store.fetch(FetchRequest(images.uri("org/m", ":1")))
            server.faults["/token"] = ["redirect:http://169.254.169.254/latest"] * 20
            with pytest.raises(BadArtifact, match="link-local"):
                await store.fetch(FetchRequest(images.uri("org/m", ":1")))
        assert not inner.seen
    assert all("network" not in seen.headers.get("authorization", "") for seen in server.seen)


@pytest.mark.parametrize("of", ["oci", "hf"])
async def test_no_layer_and_no_file_of_a_hub_comes_from_where_the_operator_forbids(
    of: str, server: FaultyServer, tmp_path: Path
) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    images.push_files("org/m", "1", {"m.onnx": BODY})
    put_model(server, {"m.onnx": BODY})
    storage = keys(default_oci=OciKey({}, (images.host,)), default_hf=HfKey(server.base))
    path = {"oci": f"/v2/org/m/blobs/{digest_of(BODY)}", "hf": f"/org/m/resolve/{COMMIT}/m.onnx"}[of]
    request = FetchRequest(images.uri("org/m", ":1") if of == "oci" else "hf://org/m")
    with faulty_server() as inner:
        inner.put("blob", BODY)
        server.faults[path] = [f"redirect:http://localhost:{inner.port}/blob", "redirect:http://169.254.169.254/x"]
        async with opened(tmp_path, storage=storage, policy=SourcePolicy(http_hosts=("127.0.0.1",))) as store:
            for says in ("host localhost is not among", "link-local"):
                with pytest.raises(BadArtifact, match=says):
                    await store.fetch(request)
            assert content_of(await store.fetch(request)) == {"m.onnx": BODY}
        assert not inner.seen


async def test_sizes_that_cancel_each_other_out_make_no_room(server: FaultyServer, tmp_path: Path) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    title = "org.opencontainers.image.title"
    large = describe(BODY, "application/octet-stream", {title: "large"})
    less = describe(b"", "application/octet-stream", {title: "less"}) | {"size": 1 - len(BODY)}
    images.push("org/m", "1", manifest_of([large, less], b"{}", f"{OCI}.empty.v1+json"), [BODY, b"", b"{}"])
    async with opened(tmp_path, storage=plain(images), limits=FetchLimits(bytes_max=1000)) as store:
        with pytest.raises(BadArtifact, match="below 0"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))
        assert store.use().used_bytes == 0


async def test_without_insecure_a_registry_is_spoken_to_over_tls_alone(server: FaultyServer, tmp_path: Path) -> None:
    storage = keys(default_oci=OciKey({f"127.0.0.1:{server.port}": ("me", SECRET)}))
    async with opened(tmp_path, storage=storage) as store:
        with pytest.raises(FetchFailed, match="no answer"):
            await store.fetch(FetchRequest(f"oci://127.0.0.1:{server.port}/org/m:1"))
    assert not server.seen


LAYER = {"mediaType": "application/octet-stream", "digest": "sha256:" + "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "manifest",
    [
        {"config": [], "layers": ["text"]},
        {"config": "text", "layers": [None, 1]},
        {"layers": [LAYER | {"annotations": ["text"]}]},
        {"layers": [LAYER | {"annotations": {"org.opencontainers.image.title": {"a": "\ud800"}}, "size": "1"}]},
        {"layers": {"0": LAYER}},
        {"manifests": ["text", None, {"platform": "text", "digest": 1}]},
        "[" * 100_000,
        '{"layers":' * 100_000,
    ],
    ids=lambda manifest: str(manifest)[:30],
)
async def test_a_manifest_of_any_shape_is_a_bad_artifact(
    manifest: str | dict[str, object], server: FaultyServer, tmp_path: Path
) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    text = manifest if isinstance(manifest, str) else json.dumps(manifest)
    server.files["/v2/org/m/manifests/1"] = Served(text.encode(), None)
    async with opened(tmp_path, storage=plain(images)) as store:
        with pytest.raises(BadArtifact):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))


@pytest.mark.parametrize("token", ["two\r\nX-Lines: 1", "\u00e9", {"a": 1}])
async def test_a_token_that_fits_no_header_is_a_bad_artifact(
    token: object, server: FaultyServer, tmp_path: Path
) -> None:
    images = Registry(f"127.0.0.1:{server.port}", server)
    server.guards["/v2/"] = ("Bearer given", f'Bearer realm="{server.base}/token"')
    server.put("token", json.dumps({"token": token}).encode())
    async with opened(tmp_path, storage=plain(images)) as store:
        with pytest.raises(BadArtifact, match="a token that is none"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))
        server.guards["/v2/"] = ("Bearer given", 'Bearer realm="https://[::1"')
        with pytest.raises(BadArtifact, match="a URL that is none"):
            await store.fetch(FetchRequest(images.uri("org/m", ":1")))


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_answers_by_the_byte_is_left_at_the_deadline(part: str, server: FaultyServer) -> None:
    server.fault_of_all = f"drip:{part}"
    with pytest.raises(FetchTimedOut, match="come to an end"):
        ask(f"{server.base}/x", {}, Timeouts(0.5, 10.0, 5.0), "", "uri", lambda: None)
    assert server.at_hold.is_set()


@pytest.mark.parametrize("part", ["headers", "body"])
@pytest.mark.parametrize("uri", ["oci://{host}/org/m:1", "hf://org/m"])
async def test_nobodys_question_to_a_server_that_answers_by_the_byte_ends(
    uri: str, part: str, server: FaultyServer, tmp_path: Path
) -> None:
    server.fault_of_all = f"drip:{part}"
    host = f"127.0.0.1:{server.port}"
    storage = keys(default_oci=OciKey(plain_http=(host,)), default_hf=HfKey(server.base))
    limits = FetchLimits(attempts_max=1)
    async with opened(tmp_path, storage=storage, limits=limits) as store:
        waiting = asyncio.create_task(store.fetch(FetchRequest(uri.format(host=host))))
        assert await asyncio.to_thread(server.at_hold.wait, 20)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    # The store has closed, so its thread has ended, and the server still answers.
    assert not server.hold.is_set()


# Hubs -----------------------------------------------------------------------------------------------------------

COMMIT = "c" * 40


def put_model(
    server: FaultyServer, files: dict[str, bytes], revision: str = "main", large: tuple[str, ...] = ()
) -> None:
    siblings: list[dict[str, Any]] = []
    for name, content in files.items():
        file: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
        if name in large:
            file["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        siblings.append(file)
        server.files[f"/org/m/resolve/{COMMIT}/{name}"] = Served(content, '"the content network\'s own"')
    answer = json.dumps({"id": "org/m", "sha": COMMIT, "siblings": siblings}).encode()
    server.files[f"/api/models/org/m/revision/{revision}"] = Served(answer, None)


def hub(server: FaultyServer, token: str = "") -> StorageKeys:
    return keys(default_hf=HfKey(server.base, token))


async def test_a_model_of_a_hub_is_read_at_the_commit_of_its_revision(server: FaultyServer, tmp_path: Path) -> None:
    put_model(
        server, {"onnx/model.onnx": BODY, "config.json": b"{}", ".gitattributes": b"x"}, "v1", ("onnx/model.onnx",)
    )
    async with opened(tmp_path, storage=hub(server)) as store:
        whole = await store.fetch(FetchRequest("hf://org/m:v1"))
        assert content_of(whole) == {"onnx/model.onnx": BODY, "config.json": b"{}"}
        assert content_of(await store.fetch(FetchRequest("hf://org/m:v1/onnx"))) == {"model.onnx": BODY}
        single = await store.fetch(FetchRequest("hf://org/m:v1/onnx/model.onnx"))
        assert (content_of(single), single.path.suffix) == (BODY, ".onnx")
        assert (await store.fetch(FetchRequest("hf://org/m:v1"))).fetched_bytes == 0
        for uri in ("hf://org/m:v2", "hf://org/m:v1/none"):
            with pytest.raises(ArtifactNotFound):
                await store.fetch(FetchRequest(uri))


async def test_a_large_file_of_a_hub_comes_in_parts_and_is_held_against_its_hash(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_objects, "PART_BYTES", len(BODY) // 5)
    monkeypatch.setattr(stored_objects, "PARALLEL_MIN_BYTES", len(BODY) // 3)
    put_model(server, {"m.onnx": BODY}, large=("m.onnx",))
    async with opened(tmp_path, storage=hub(server)) as store:
        assert content_of(await store.fetch(FetchRequest("hf://org/m/m.onnx"))) == BODY
    assert len([seen for seen in server.seen if "range" in seen.headers]) > 3
    server.files[f"/org/m/resolve/{COMMIT}/m.onnx"] = Served(BODY[::-1], '"x"')
    async with opened(tmp_path / "second", storage=hub(server)) as store:
        with pytest.raises(FetchFailed, match="its store names it by"):
            await store.fetch(FetchRequest("hf://org/m/m.onnx"))


async def test_a_hubs_token_goes_to_the_hub_and_not_where_it_redirects_to(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "ENVIRONMENT")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    put_model(server, {"m.onnx": BODY})
    with faulty_server() as network:
        network.put("blob", BODY)
        # `localhost` is another host than 127.0.0.1, as a content network is another one than the hub.
        server.faults[f"/org/m/resolve/{COMMIT}/m.onnx"] = [f"redirect:http://localhost:{network.port}/blob"] * 20
        server.guards["/"] = (f"Bearer {SECRET}", "Bearer")
        async with opened(tmp_path, storage=hub(server, SECRET)) as store:
            assert content_of(await store.fetch(FetchRequest("hf://org/m/m.onnx"))) == BODY
        assert network.seen
        assert all("authorization" not in seen.headers for seen in network.seen)
    assert all("ENVIRONMENT" not in f"{seen.headers}" for seen in server.seen)
    async with opened(tmp_path / "second", storage=hub(server)) as store:
        with pytest.raises(ArtifactDenied, match="private or gated") as caught:
            await store.fetch(FetchRequest("hf://org/m/m.onnx"))
        assert SECRET not in repr(caught.value)


async def test_names_of_a_hub_that_climb_are_refused(server: FaultyServer, tmp_path: Path) -> None:
    put_model(server, {"../climb": BODY})
    async with opened(tmp_path, storage=hub(server)) as store:
        with pytest.raises(UnsafeArchive, match="climbs"):
            await store.fetch(FetchRequest("hf://org/m"))


async def test_what_is_under_a_trusted_repository_is_trusted(
    git: GitServer, server: FaultyServer, tmp_path: Path
) -> None:
    git.commit("org/m", {"a.pkl": BODY})
    put_model(server, {"m.pkl": BODY})
    policy = SourcePolicy(trusted_prefixes=("hf://org/m", git.uri("org/m")))
    async with opened(tmp_path, storage=hub(server), policy=policy) as store:
        assert (await store.fetch(FetchRequest("hf://org/m:main/m.pkl"))).trusted
        assert (await store.fetch(FetchRequest(git.uri("org/m", "@main#a.pkl")))).trusted
    async with opened(tmp_path / "second", storage=hub(server), limits=LIMITS) as store:
        assert not (await store.fetch(FetchRequest("hf://org/m/m.pkl"))).trusted
