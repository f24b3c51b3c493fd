"""What lies at a location: a list of objects, and how they are read. The protocol of all sources.

**What counts as unchanged.** Every object carries a `version`; while one is read, its version must not change. If it is
also `settled`, an equal version at a later time means equal bytes, and nothing is downloaded again:
* buckets: the ETag and the size; http: a strong ETag and the size, else Last-Modified and the size;
* file, pvc: device, inode, size, mtime and ctime;
* hf, oci, git: the hash that the store itself names the object by;
* times count only once they are older than the clock's grain, since a second write in the same tick changes no time.
Where a server says nothing (no ETag, no Last-Modified), the object is fetched each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from runtime_adapters.artifacts.errors import ArtifactTooLarge
from runtime_adapters.artifacts.locations import Location


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """One object: `name` is its place in a directory artifact (empty if it is the artifact), `key` its path there."""

    name: str
    key: str
    size_bytes: int
    version: str
    settled: bool
    etag: str | None = None
    """The strong ETag, if there is one: with it, an interrupted download goes on where it stopped."""
    sha256: str = ""
    """What its bytes must hash to, where the store says so; empty: it does not."""
    archive: str = ""
    """`tar` or `tar.gz`: it is a layer, and what is in it belongs to the artifact, not the object itself (`layers`)."""
    below: str = ""
    """Of a layer, the directory that counts; empty: all of it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies at a location. `trusted` is about links only: no file of it lies elsewhere than its name says."""

    objects: tuple[RemoteObject, ...]
    is_directory: bool
    trusted: bool = True

    @property
    def total_bytes(self) -> int:
        """Bytes of all objects."""
        return sum(item.size_bytes for item in self.objects)

    @property
    def settled(self) -> bool:
        """Whether an equal listing at a later time means equal bytes."""
        return all(item.settled for item in self.objects)


class Source(Protocol):
    """Something that can be looked at and read, from one worker thread at a time."""

    def look(self, known: RemoteObject | None = None) -> Listing:
        """What is there now. `known` is what was there before, if it was a single object: it may save a transfer."""

    def read(self, item: RemoteObject, offset: int = 0) -> Iterator[bytes]:
        """Its bytes from `offset`. Raises ArtifactChanged when it is no longer the version that was listed."""


def check_count(count: int, files_max: int, location: Location) -> None:
    """Raise ArtifactTooLarge where more files lie than this pod fetches."""
    if count > files_max:
        raise ArtifactTooLarge(f"uri {location.shown!r}: more than {files_max} files lie there; pack them, or name one")
