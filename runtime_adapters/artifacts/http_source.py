"""One object on a web server."""

from __future__ import annotations

import re

from runtime_adapters.artifacts.clients import Timeouts, http_client, new_http_client
from runtime_adapters.artifacts.errors import ArtifactDenied
from runtime_adapters.artifacts.foreign import map_foreign
from runtime_adapters.artifacts.listing import Listing, RemoteObject
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.storage_keys import HttpKey, origin_of
from runtime_adapters.artifacts.stored_objects import StoredObjects

_PLAIN_URI = re.compile(r"(https?://[^/?#]+)/([A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)")
"""A server, and a path that every writer of URIs writes alike."""


class HttpSource(StoredObjects):
    """One object on a web server."""

    def __init__(self, location: Location, key: HttpKey | None, timeouts: Timeouts) -> None:
        headers: tuple[tuple[str, str], ...] = ()
        if key is not None and key.headers:
            if origin_of(location.uri) != key.origin:
                raise ArtifactDenied(f"uri {location.shown!r}: the storage key's headers are for {key.origin} only")
            headers = tuple(sorted(dict(key.headers).items()))
        certificate = key.certificate if key else ""
        if found := _PLAIN_URI.fullmatch(location.uri):
            server, self._key = found[1], found[2]
            store = http_client(server, headers, certificate, timeouts)
        else:  # it may only be asked for as it is written, and a signed one comes once
            self._key = ""
            store = new_http_client(location.uri, headers, certificate, timeouts)
        super().__init__(location, store)

    def look(self, known: RemoteObject | None = None) -> Listing:
        try:
            return Listing((self.look_at_object(self._key, known),), is_directory=False)
        except Exception as error:
            raise map_foreign(error, self._location) from None
