"""Models in OCI registries: images with a directory `/models` (KServe's modelcars), and artifacts of files or archives.

A manifest names its layers by their SHA-256, and each is held against it. Layers are listed as the objects of the
artifact, and put together when they are here (`layers`):

* of an image (its config is a container's), what lies below `/models` in its layers, in order, whiteouts included;
* of an artifact (ORAS, ModelPack), every file: a layer with a title is a file of that name, an archive is unpacked.

An index is followed to the manifest for this machine. Anonymous and token access as registries' clients do it: the
registry says where tokens are given, and a login goes to no other registry than its own, and never without TLS unless
the key says `insecure`.
"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import (
    ArtifactDenied,
    ArtifactNotFound,
    BadLocation,
    ChecksumMismatch,
    FetchFailed,
)
from runtime_adapters.artifacts.listing import Listing, RemoteObject, check_count
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.names import check_distinct, safe_parts, shown
from runtime_adapters.artifacts.small_answers import Answer, ask, fields_of
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import OciKey
from runtime_adapters.artifacts.web_objects import ContentObjects
from runtime_adapters.errors import BadArtifact

MODELS_DIRECTORY = "models"
"""Where an image has its model: KServe's convention."""
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_OF_IMAGES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_TITLE = "org.opencontainers.image.title"
_UNPACKED = "io.deis.oras.content.unpack"
_MODELPACK_PATH = "org.cncf.model.filepath"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]*")
"""What may stand in a header."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_DOCKER_HUB = "registry-1.docker.io"
_INDEXES_DEEP_MAX = 2


class ImageSource(ContentObjects):
    """The layers of an image or an artifact."""

    def __init__(
        self,
        location: Location,
        key: OciKey,
        policy: SourcePolicy,
        timeouts: Timeouts,
        files_max: int,
        check: Callable[[], None],
    ) -> None:
        """`check` raises when nobody waits for a look or a read any more."""
        if not location.path:
            raise BadLocation(f"uri {location.shown!r} names no repository; write oci://registry/repository:tag")
        self._where = f"uri {location.shown!r}"
        self._key = key
        self._files_max = files_max
        registry = location.authority
        self._login = key.logins.get(registry)
        self._plain = registry in key.plain_http
        on_hub = registry == "docker.io"
        host = _DOCKER_HUB if on_hub else registry
        name = f"library/{location.path}" if on_hub and "/" not in location.path else location.path
        base = f"{'http' if self._plain else 'https'}://{host}/v2/{name}/"
        super().__init__(location, base, {}, key.certificate, policy, timeouts, check)

    def look(self, known: RemoteObject | None = None) -> Listing:
        manifest = self._manifest(self._location.revision or "latest", _INDEXES_DEEP_MAX)
        is_image = fields_of(manifest.get("config")).get("mediaType") in _OF_IMAGES
        layers = manifest.get("layers")
        if not isinstance(layers, list) or not layers:
            raise BadArtifact(f"{self._where}: the manifest has no layers; push the model again")
        check_count(len(layers), self._files_max, self._location)
        objects = tuple(self._layer(number, fields_of(layer), is_image) for number, layer in enumerate(layers))
        check_distinct([safe_parts(item.name) for item in objects])
        return Listing(objects, is_directory=True)

    def _layer(self, number: int, layer: dict[str, Any], is_image: bool) -> RemoteObject:
        digest, size_bytes, kind = str(layer.get("digest")), layer.get("size"), str(layer.get("mediaType"))
        if not _DIGEST.fullmatch(digest) or not isinstance(size_bytes, int):
            raise BadArtifact(f"{self._where}: layer {number} has no sha256 digest or no size; push the model again")
        said = fields_of(layer.get("annotations"))
        title = str(said.get(_TITLE) or said.get(_MODELPACK_PATH) or "")
        archive = "" if title and not is_image and not _is_packed(kind, said) else _archive_of(kind)
        if not title and not archive:
            raise BadArtifact(
                f"{self._where}: layer {number} is a {shown(kind)}, neither a tar archive (plain or gzip) nor a file "
                "with a title; pack it with gzip, or push it with `oras push`"
            )
        return RemoteObject(
            name=f".layer-{number}" if archive else title,
            key=f"blobs/{digest}",
            size_bytes=size_bytes,
            version=digest,
            settled=True,
            etag=digest,
            sha256=digest.removeprefix("sha256:"),
            archive=archive,
            below=MODELS_DIRECTORY if is_image else "",
        )

    def _manifest(self, reference: str, deep_max: int) -> dict[str, Any]:
        answer = self._ask(f"manifests/{reference}")
        if _DIGEST.fullmatch(reference) and hashlib.sha256(answer.body).hexdigest() != reference[7:]:
            raise ChecksumMismatch(
                f"{self._where}: the registry's manifest is not the one of that digest; push it again"
            )
        found = answer.json(self._where)
        listed = found.get("manifests")
        if listed is None or not isinstance(listed, list):
            return found
        if not deep_max:
            raise BadArtifact(f"{self._where}: its index leads to an index and so on; name a manifest by its digest")
        return self._manifest(_for_this_machine(listed, self._where), deep_max - 1)

    def _ask(self, path: str) -> Answer:
        accepted = {"Accept": ", ".join((*_MANIFESTS, *_INDEXES))}
        url = self._base + path
        answer = self._answer(url, {**accepted, **self._own})
        if answer.status == 401 and not self._own:
            self._own = self._authorized(answer.headers.get("WWW-Authenticate", ""))
            answer = self._answer(url, {**accepted, **self._own})
        _check(answer, self._where, self._login is not None)
        return answer

    def _answer(self, url: str, headers: dict[str, str]) -> Answer:
        rules = self._policy.check_server
        return ask(url, headers, self._timeouts, self._certificate, self._where, self._check_wanted, rules)

    def _authorized(self, challenge: str) -> dict[str, str]:
        """The header that the registry's challenge asks for; none where there is nothing to answer it with."""
        scheme, _, rest = challenge.partition(" ")
        basic = (
            {"Authorization": "Basic " + base64.b64encode(":".join(self._login).encode()).decode()}
            if self._login
            else {}
        )
        if scheme.lower() != "bearer":
            return basic
        said = dict(_CHALLENGE.findall(rest))
        realm = said.get("realm", "")
        if not realm.startswith("https://") and not (self._plain and realm.startswith("http://")):
            raise ArtifactDenied(
                f"{self._where}: the registry gives its tokens away without TLS; no login is sent there"
            )
        self._policy.check_server(realm)
        query = {"scope": said.get("scope") or f"repository:{self._location.path}:pull"}
        query |= {"service": said["service"]} if "service" in said else {}
        url = realm + ("&" if "?" in realm else "?") + urlencode(query)
        answer = self._answer(url, basic)
        _check(answer, self._where, self._login is not None)
        given = answer.json(self._where)
        token = str(given.get("token") or given.get("access_token") or "")
        if not _TOKEN.fullmatch(token):
            raise BadArtifact(f"{self._where}: the registry gives a token that is none; check the uri")
        return {"Authorization": f"Bearer {token}"}


def _is_packed(kind: str, annotations: dict[str, Any]) -> bool:
    return str(annotations.get(_UNPACKED, "")).lower() == "true" or kind.startswith("application/vnd.cncf.model.")


def _archive_of(kind: str) -> str:
    if kind.endswith(("tar+gzip", "tar.gzip")):
        return "tar.gz"
    return "tar" if kind.endswith(".tar") else ""


def _for_this_machine(listed: list[object], where: str) -> str:
    machine = _MACHINES.get(platform.machine(), platform.machine())
    described = [(fields_of(item.get("platform")), str(item.get("digest"))) for item in map(fields_of, listed)]
    fit = [digest for of, digest in described if of.get("architecture") == machine and of.get("os") == "linux"]
    # A model runs anywhere: what names no machine, or another one, will do. What is "unknown" is no model.
    rest = [digest for of, digest in described if of.get("architecture") != "unknown"]
    for digest in (*fit, *rest):
        if _DIGEST.fullmatch(digest):
            return digest
    raise ArtifactNotFound(f"{where}: its index names no manifest for this machine; push the model again")


def _check(answer: Answer, where: str, has_login: bool) -> None:
    if answer.status == 200:
        return
    code = f" (HTTP {answer.status})"
    if answer.status == 404:
        raise ArtifactNotFound(f"{where}: the registry has no such image{code}; check the uri")
    if answer.status in (401, 403):
        advice = "check its user name and password" if has_login else "a private image needs a storage key of type oci"
        raise ArtifactDenied(f"{where}: the registry denies access{code}; {advice}")
    if answer.status < 500 and answer.status != 429:
        raise BadArtifact(f"{where}: the registry refuses the request{code}; check the uri")
    raise FetchFailed(f"{where}: the registry fails{code}; it is tried again later")
