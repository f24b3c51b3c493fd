"""One object on a web server.

obstore follows redirects by itself, and takes along the headers of a storage key (all but `Authorization`), and as
`Referer` the query that holds a signature. So a URL that has either is asked for twice: first here for its redirects
alone, each judged by the operator's rules, and then through obstore at the URL where they end. A key's headers go to
the key's own origin only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from runtime_adapters.artifacts.clients import Timeouts, http_client, new_http_client
from runtime_adapters.artifacts.errors import ArtifactDenied, ArtifactNotFound, FetchFailed
from runtime_adapters.artifacts.foreign import map_foreign
from runtime_adapters.artifacts.listing import Listing, RemoteObject
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.small_answers import Answer, ask
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import HttpKey, origin_of
from runtime_adapters.artifacts.stored_objects import StoredObjects
from runtime_adapters.errors import BadArtifact

_PLAIN_URI = re.compile(r"(https?://[^/?#]+)/([A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)")
"""A server, and a path that every writer of URIs writes alike."""


class HttpSource(StoredObjects):
    """One object on a web server."""

    def __init__(
        self,
        location: Location,
        key: HttpKey | None,
        policy: SourcePolicy,
        timeouts: Timeouts,
        check: Callable[[], None],
    ) -> None:
        """`check` raises when nobody waits for the look any more."""
        self._headers: tuple[tuple[str, str], ...] = ()
        if key is not None and key.headers:
            if origin_of(location.uri) != key.origin:
                raise ArtifactDenied(f"uri {location.shown!r}: the storage key's headers are for {key.origin} only")
            self._headers = tuple(sorted(dict(key.headers).items()))
        self._certificate = key.certificate if key else ""
        self._policy = policy
        self._timeouts = timeouts
        self._check_wanted = check
        self._redirected = False
        super().__init__(location, None)

    def look(self, known: RemoteObject | None = None) -> Listing:
        uri = self._location.uri
        url = self._end_of_redirects(uri) if self._headers or self._location.query else uri
        self._redirected = url != uri
        headers = self._headers if origin_of(url) == origin_of(uri) else ()
        object_key = ""
        if (found := _PLAIN_URI.fullmatch(url)) and not self._redirected:
            object_key = found[2]
            self._store = http_client(found[1], headers, self._certificate, self._timeouts)
        else:  # it may only be asked for as it is written, and a signed one comes once
            self._store = new_http_client(url, headers, self._certificate, self._timeouts)
        try:
            return Listing((self.look_at_object(object_key, known),), is_directory=False)
        except Exception as error:
            raise map_foreign(error, self._location) from None

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        try:
            yield from super().read(item, offset)
        except ArtifactDenied as error:
            if not self._redirected:
                raise
            # Where a redirect leads is often good for minutes only; the next look is led to another place.
            raise FetchFailed(f"{error}; its server redirects, and is asked again") from None

    def _end_of_redirects(self, uri: str) -> str:
        # A GET of a byte, not a HEAD: signed URLs allow the one method that they were signed for.
        headers = dict(self._headers) | {"Range": "bytes=0-0"}
        where = f"uri {self._location.shown!r}"
        rules = self._policy.check_server
        answer = ask(
            uri, headers, self._timeouts, self._certificate, where, self._check_wanted, rules, headers_only=True
        )
        _check(answer, where)
        return answer.url


def _check(answer: Answer, where: str) -> None:
    """Raises unless the object is given: a server that fails now may redirect obstore's request, which comes next."""
    code = f" (HTTP {answer.status})"
    if answer.status in (200, 206, 416):  # the latter of an empty object, which has no first byte
        return
    if answer.status == 404:
        raise ArtifactNotFound(f"{where}: nothing is there{code}; check the uri")
    if answer.status in (401, 403):
        raise ArtifactDenied(f"{where}: the server denies access{code}; check the storage key or the uri's signature")
    if answer.status < 500 and answer.status not in (408, 425, 429):
        raise BadArtifact(f"{where}: the server refuses the request{code}; check the uri and the storage key")
    raise FetchFailed(f"{where}: the server fails{code}; it is tried again later")
