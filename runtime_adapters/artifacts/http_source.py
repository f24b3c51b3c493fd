"""One object on a web server. A storage key's headers go to the key's own origin only."""

from __future__ import annotations

from collections.abc import Callable

from runtime_adapters.artifacts.clients import Timeouts
from runtime_adapters.artifacts.errors import ArtifactDenied
from runtime_adapters.artifacts.listing import Listing, RemoteObject
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import HttpKey, origin_of
from runtime_adapters.artifacts.web_objects import WebObjects


class HttpSource(WebObjects):
    """One object on a web server; its URL is asked for as it is written."""

    def __init__(
        self,
        location: Location,
        key: HttpKey | None,
        policy: SourcePolicy,
        timeouts: Timeouts,
        check: Callable[[], None],
    ) -> None:
        """`check` raises when nobody waits for a look or a read any more."""
        headers = key.headers if key is not None else {}
        if key is not None and headers and origin_of(location.uri) != key.origin:
            raise ArtifactDenied(f"uri {location.shown!r}: the storage key's headers are for {key.origin} only")
        certificate = key.certificate if key is not None else ""
        super().__init__(location, location.uri, headers, certificate, policy, timeouts, check)

    def look(self, known: RemoteObject | None = None) -> Listing:
        return Listing((self.look_at_object("", known),), is_directory=False)
