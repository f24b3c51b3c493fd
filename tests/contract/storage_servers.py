"""Real object stores, registries and repositories on this machine, for the tests of artifact sources.

Programs are built from Go modules, or installed from npm, into the user's cache, once, under their version. A machine
without Go, Node or git is told so by a skip, which is a failure in CI.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mesh.demo.ports import free_ports
from mesh.demo.server import stop_process

AZURITE = "azurite@3.35.0"
FAKE_GCS = "github.com/fsouza/fake-gcs-server@v1.52.2"
GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
REGISTRY = "github.com/google/go-containerregistry/cmd/registry@v0.20.6"
START_TIMEOUT_S = 60.0
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, in its documentation: a secret of nobody."""


class ToolMissing(Exception):
    """A tool is not on this machine; the message says which."""


def cache_dir() -> Path:
    """Where built programs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hexcomb" / "storage-servers"


def go_program(module: str) -> Path:
    """A program built from a Go module, `path@version`. Raises ToolMissing."""
    path, _, version = module.partition("@")
    name = path.rpartition("/")[2]
    program = cache_dir() / f"{name}-{version}" / name
    if not program.exists():
        _need("go")
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
            _run(["go", "install", module], {"GOBIN": scratch, "GOFLAGS": "-buildvcs=false"})
            (Path(scratch) / name).replace(program)  # whoever builds at the same time gets a whole file
    return program


def npm_program(package: str, program: str) -> list[str]:
    """The command of an npm package's program. Raises ToolMissing."""
    home = cache_dir() / package.replace("@", "-")
    if not home.exists():
        _need("npm")
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            _run(["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", scratch, package], {})
            Path(scratch).rename(home)
            Path(scratch).mkdir()
    return ["node", str(home / "node_modules" / ".bin" / program)]


def _need(tool: str) -> None:
    if shutil.which(tool) is None:
        raise ToolMissing(f"{tool} is not on PATH; install it to test against real stores")


def _run(command: Sequence[str], more: dict[str, str]) -> None:
    done = subprocess.run(
        command, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}"


@contextmanager
def running(command: Sequence[str], port: int, directory: Path) -> Iterator[str]:
    """The base URL of a started server that answers; it is stopped at the end."""
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    try:
        until_s = time.monotonic() + START_TIMEOUT_S
        while not _answers(base):
            assert process.poll() is None, (directory / "server.log").read_text()[-3000:]
            assert time.monotonic() < until_s, f"{command[0]} did not answer within {START_TIMEOUT_S:.0f} s"
            time.sleep(0.05)
        yield base
    finally:
        stop_process(process, timeout_s=5.0)


def _answers(base: str) -> bool:
    try:
        urllib.request.urlopen(base, timeout=1).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def send(method: str, url: str, body: bytes = b"", **headers: str) -> bytes:
    """One request that must succeed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body if method != "GET" else None, named, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: bytes = answer.read()
        return found


# Registries and repositories ------------------------------------------------------------------------------------------


@contextmanager
def registry(directory: Path) -> Iterator[str]:
    """An OCI registry, go-containerregistry's, in memory."""
    (port,) = free_ports(1)
    with running([str(go_program(REGISTRY)), f"-port={port}"], port, directory) as base:
        yield base


# Buckets ------------------------------------------------------------------------------------------------------------


@contextmanager
def fake_gcs(directory: Path) -> Iterator[str]:
    """Google's buckets, by fake-gcs-server."""
    (port,) = free_ports(1)
    command = [
        *(str(go_program(FAKE_GCS)), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
        *("-backend", "memory", "-public-host", f"127.0.0.1:{port}"),
    ]
    with running(command, port, directory) as base:
        yield base


@contextmanager
def azurite(directory: Path) -> Iterator[str]:
    """Azure's containers, by Azurite."""
    (port,) = free_ports(1)
    command = [
        *(*npm_program(AZURITE, "azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port)),
        *("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"),
    ]
    with running(command, port, directory) as base:
        yield base


@contextmanager
def s3_gateway(directory: Path, access_key: str, secret_key: str) -> Iterator[str]:
    """S3 in front of a directory, by versitygw."""
    (port,) = free_ports(1)
    (directory / "buckets").mkdir()
    command = [
        *(str(go_program(GATEWAY)), "--access", access_key, "--secret", secret_key, "--port", f"127.0.0.1:{port}"),
        *("--quiet", "posix", str(directory / "buckets")),
    ]
    with running(command, port, directory) as base:
        yield base


@dataclass
class GcsPlace:
    """A bucket of fake-gcs-server."""

    endpoint: str
    bucket: str
    storage_key: str | None = "google"

    def __post_init__(self) -> None:
        body = json.dumps({"name": self.bucket}).encode()
        send("POST", f"{self.endpoint}/storage/v1/b?project=p", body, Content_Type="application/json")

    def put(self, name: str, content: bytes) -> str:
        query = urllib.parse.urlencode({"uploadType": "media", "name": name})
        send("POST", f"{self.endpoint}/upload/storage/v1/b/{self.bucket}/o?{query}", content)
        return f"gs://{self.bucket}/{name}"


@dataclass
class AzurePlace:
    """A container of Azurite."""

    endpoint: str
    container: str
    storage_key: str | None = "microsoft"

    def __post_init__(self) -> None:
        self._send(f"/{self.container}", b"", {}, "restype=container")

    def put(self, name: str, content: bytes) -> str:
        self._send(f"/{self.container}/{urllib.parse.quote(name)}", content, {"x-ms-blob-type": "BlockBlob"})
        return f"az://{self.container}/{name}"

    def _send(self, path: str, body: bytes, headers: dict[str, str], query: str = "") -> None:
        # Azure's shared key: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        moment = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        signed = {**headers, "x-ms-date": moment, "x-ms-version": "2023-11-03"}
        length = str(len(body)) if body else ""
        content_type = "application/octet-stream"
        lines = ["PUT", "", "", length, "", content_type, *[""] * 6]
        lines += [f"{name}:{signed[name]}" for name in sorted(signed)]
        lines.append(f"/{AZURITE_ACCOUNT}/{AZURITE_ACCOUNT}{path}")
        lines += [pair.replace("=", ":") for pair in query.split("&") if pair]
        digest = hmac.new(base64.b64decode(AZURITE_KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
        authorization = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"{self.endpoint}/{AZURITE_ACCOUNT}{path}" + (f"?{query}" if query else "")
        send("PUT", url, body, **signed, Authorization=authorization, Content_Type=content_type)
