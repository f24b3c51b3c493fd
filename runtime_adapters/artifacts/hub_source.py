"""Models of a Hugging Face hub: a repository at a revision, or a file or a directory in it.

One question gives the commit that the revision is now, and every file with its hash. The files are read at that commit,
so that all come from one state of the repository, in parts where they are large; large ones (LFS) are held against the
SHA-256 that the hub names them by.

Not taken: huggingface_hub. It is made for one user at a machine: it reads a token, an endpoint and a cache from the
process's environment and home, which may be another tenant's here, and would do that for the one question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactDenied, ArtifactNotFound, FetchFailed
from runtime_adapters.artifacts.listing import Listing, RemoteObject, check_count
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.names import check_distinct, safe_parts
from runtime_adapters.artifacts.small_answers import Answer, ask, fields_of
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import HfKey
from runtime_adapters.artifacts.web_objects import ContentObjects
from runtime_adapters.errors import BadArtifact

_LEFT_OUT = (".gitattributes",)
"""Of every repository, and of no model."""


class HubSource(ContentObjects):
    """What lies in a repository of a hub."""

    def __init__(
        self,
        location: Location,
        key: HfKey,
        policy: SourcePolicy,
        timeouts: Timeouts,
        files_max: int,
        check: Callable[[], None],
    ) -> None:
        """`check` raises when nobody waits for a look or a read any more."""
        self._key = key
        self._files_max = files_max
        self._repository = f"{location.authority}/{location.path}".rstrip("/")
        headers = {"Authorization": f"Bearer {key.token}"} if key.token else {}
        super().__init__(location, f"{key.server}/", headers, key.certificate, policy, timeouts, check)

    def look(self, known: RemoteObject | None = None) -> Listing:
        where = f"uri {self._location.shown!r}"
        revision = quote(self._location.revision or "main", safe="")
        url = f"{self._key.server}/api/models/{quote(self._repository)}/revision/{revision}?blobs=true"
        rules = self._policy.check_server
        answer = ask(url, self._own, self._timeouts, self._certificate, where, self._check_wanted, rules)
        _check(answer, where, bool(self._key.token))
        described = answer.json(where)
        commit, files = described.get("sha"), described.get("siblings")
        if not isinstance(commit, str) or not isinstance(files, list):
            raise BadArtifact(f"{where}: this is not the answer of a hub; check the storage key's endpoint_url")
        check_count(len(files), self._files_max, self._location)
        found = [
            self._object_of(commit, file) for file in map(fields_of, files) if file.get("rfilename") not in _LEFT_OUT
        ]
        inner = self._location.inner.rstrip("/")
        if single := [item for item in found if item.name == inner]:
            return Listing((replace(single[0], name=""),), is_directory=False)
        prefix = f"{inner}/" if inner else ""
        objects = [replace(item, name=item.name[len(prefix) :]) for item in found if item.name.startswith(prefix)]
        if not objects:
            raise ArtifactNotFound(f"{where}: the repository has no such file or directory; check the path")
        check_distinct([safe_parts(item.name) for item in objects])
        return Listing(tuple(sorted(objects, key=lambda item: item.name)), is_directory=True)

    def _object_of(self, commit: str, file: dict[str, Any]) -> RemoteObject:
        name, size_bytes, lfs = str(file.get("rfilename", "")), file.get("size"), fields_of(file.get("lfs"))
        sha256 = str(lfs.get("sha256") or "")
        blob = sha256 or str(file.get("blobId") or "")
        if not isinstance(size_bytes, int) or not blob:
            raise BadArtifact(f"uri {self._location.shown!r}: the hub does not say how long {name[:80]!r} is")
        safe_parts(name)
        key = f"{self._repository}/resolve/{commit}/{name}"
        return RemoteObject(name, key, size_bytes, f"blob:{blob}", settled=True, etag=blob, sha256=sha256)


def _check(answer: Answer, where: str, has_token: bool) -> None:
    said = answer.headers.get("X-Error-Code", "")
    code = f" (HTTP {answer.status}{', ' + said[:40] if said else ''})"
    if answer.status == 200:
        return
    if answer.status == 404:
        raise ArtifactNotFound(f"{where}: the hub has no such repository or revision{code}; check the uri")
    if answer.status in (401, 403):
        # Without a token a hub says the same of a repository that does not exist.
        advice = (
            "check that its token may read it" if has_token else "a private or gated model needs a key with a token"
        )
        raise ArtifactDenied(f"{where}: the hub denies access, or has no such model{code}; {advice}")
    if answer.status < 500 and answer.status != 429:
        raise BadArtifact(f"{where}: the hub refuses the request{code}; check the uri")
    raise FetchFailed(f"{where}: the hub fails{code}; it is tried again later")
