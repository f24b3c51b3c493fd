"""An object of a bucket, or all objects below a prefix: S3, Google's, Azure's.

An object of the very name goes first.

obstore's asyncio functions are not used: after a failed body they abort the interpreter at its exit (seen with 0.12 on
Python 3.11).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from runtime_adapters.artifacts.errors import ArtifactNotFound
from runtime_adapters.artifacts.foreign import NO_BUCKET, map_foreign
from runtime_adapters.artifacts.listing import Listing, RemoteObject, check_count
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.names import check_distinct, safe_parts
from runtime_adapters.artifacts.stored_objects import NotModified, Opened, StoredObjects, remote_object

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

    from runtime_adapters.artifacts.clients import ObjectClient


class BucketSource(StoredObjects):
    """What lies in a bucket at a key, or below it."""

    def __init__(self, location: Location, client: ObjectClient, files_max: int) -> None:
        self._files_max = files_max
        self._client = client
        super().__init__(location)

    def look(self, known: RemoteObject | None = None) -> Listing:
        key = self._location.path.removesuffix("/")
        try:
            if key and not self._location.path.endswith("/"):
                try:
                    return Listing((self.look_at_object(key, known),), is_directory=False)
                except FileNotFoundError as error:
                    if any(code in str(error) for code in NO_BUCKET):
                        raise
            return self._look_below(key)
        except Exception as error:
            raise map_foreign(error, self._location) from None

    def _get(
        self,
        key: str,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        offset: int = 0,
        end: int | None = None,
    ) -> Opened:
        import obstore

        options: GetOptions = {}
        if if_match:
            options["if_match"] = if_match
        if if_none_match:
            options["if_none_match"] = if_none_match
        if end is not None:
            options["range"] = (offset, end)
        elif offset:
            options["range"] = {"offset": offset}
        try:
            result = obstore.get(self._client, key, options=options or None)
        except obstore.exceptions.NotModifiedError as error:
            raise NotModified(str(map_foreign(error, self._location))) from None
        meta, body = result.meta, _body(result)
        return Opened(meta["size"], meta["e_tag"], meta["last_modified"], result.range[0], body)

    def _look_below(self, prefix: str) -> Listing:
        import obstore

        found: list[RemoteObject] = []
        for page in obstore.list(self._client, prefix or None, chunk_size=1000):
            for meta in page:
                name = meta["path"][len(prefix) :].lstrip("/")
                # Consoles mark a directory by an empty object named like it.
                if name:
                    etag = _quoted(meta["e_tag"])
                    found.append(remote_object(name, meta["path"], meta["size"], etag, meta["last_modified"]))
            check_count(len(found), self._files_max, self._location)
        parents = {item.name[:end] for item in found for end in _slashes(item.name)}
        objects = [item for item in found if item.size_bytes or item.name not in parents]
        if not objects:
            raise ArtifactNotFound(f"uri {self._location.shown!r}: no object of that name, and none below it")
        check_distinct([safe_parts(item.name) for item in objects])
        return Listing(tuple(sorted(objects, key=lambda item: item.name)), is_directory=True)


def _body(result: GetResult) -> Iterator[bytes]:
    yield from result.stream(min_chunk_size=1)


def _slashes(name: str) -> Iterator[int]:
    return (position for position, character in enumerate(name) if character == "/")


def _quoted(etag: str | None) -> str | None:
    """As a GET has it: Azure's listings leave the quotes out."""
    return f'"{etag}"' if etag and not etag.endswith('"') else etag
