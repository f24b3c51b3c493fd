"""A fetch, understood: what is asked for, what was found, and whether that is what is here already. Pure.

Content on disk is found by who asks (the tenant and the storage key) and the URI together. To know a URI, or a
checksum, is not enough to get at what another tenant fetched.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from runtime_adapters.artifacts.disk_records import Origin
from runtime_adapters.artifacts.errors import ChecksumMismatch
from runtime_adapters.artifacts.listing import Listing, RemoteObject, Source
from runtime_adapters.artifacts.locations import Location, parse_location
from runtime_adapters.artifacts.storage_keys import AzureKey, StorageKey
from runtime_adapters.errors import BadArtifact

_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Errand:
    """One fetch, understood."""

    location: Location
    tenant: str
    storage_key: str | None
    sha256: str | None
    origin_key: str
    partial_key: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the source found; `source` is None if there was no need to look."""

    source: Source | None
    listing: Listing | None
    server: str
    trusted: bool


def understand(uri: str, tenant: str, storage_key: str | None, checksum: str | None) -> Errand:
    """Parse and check a request, before anything is read. Raises BadLocation, BadArtifact."""
    location = parse_location(uri)
    sha256: str | None = None
    if checksum:
        if not _CHECKSUM.fullmatch(checksum):
            raise BadArtifact(f"checksum {checksum[:80]!r} is not `sha256:` and 64 lower-case hex digits")
        sha256 = checksum.removeprefix("sha256:")
    who = [tenant, storage_key or "", location.uri]
    return Errand(
        location=location,
        tenant=tenant,
        storage_key=storage_key or None,
        sha256=sha256,
        origin_key=digest_of(who),
        partial_key=f"partial/{digest_of([*who, sha256 or ''])}",
    )


def digest_of(parts: list[str]) -> str:
    """A name for a list of words that no other list has."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def with_bucket(location: Location, key: StorageKey | None) -> Location:
    """`s3:///key` lies in the bucket that the storage key names; a container, in the key's account."""
    if key is None or location.kind not in ("s3", "gs", "azure") or location.kind != key.kind:
        return location
    container, at, account = location.authority.partition("@")
    container = container or key.default_bucket
    if isinstance(key, AzureKey) and not account:
        at, account = ("@", key.account_name) if key.account_name else ("", "")
    if f"{container}{at}{account}" == location.authority:
        return location
    return parse_location(f"{location.scheme}://{container}{at}{account}/{location.path}")


def unchanged(known: Origin, seen: Seen) -> bool:
    """Whether what was seen is, for sure, what the content on disk was made from."""
    if seen.listing is None:
        return True
    listing = seen.listing
    return (
        known.settled
        and listing.settled
        and (known.server, known.is_directory) == (seen.server, listing.is_directory)
        and known.objects == _objects_of(listing)
    )


def _objects_of(listing: Listing) -> tuple[tuple[str, int, str], ...]:
    return tuple((item.name, item.size_bytes, item.version) for item in listing.objects)


def known_object(known: Origin) -> RemoteObject | None:
    """What a source may ask "is it still this one" about: a single object with a strong ETag."""
    if known.is_directory or not known.settled or known.etag is None:
        return None
    name, size_bytes, version = known.objects[0]
    return RemoteObject(name, "", size_bytes, version, settled=True, etag=known.etag)


def origin_of(errand: Errand, seen: Seen, sha256: str, content_key: str) -> Origin:
    """What to remember of a fetch."""
    assert seen.listing is not None
    listing = seen.listing
    etag = None if listing.is_directory else listing.objects[0].etag
    return Origin(
        key=errand.origin_key,
        server=seen.server,
        is_directory=listing.is_directory,
        objects=_objects_of(listing),
        settled=listing.settled,
        etag=etag,
        object_sha256=sha256,
        content=content_key,
    )


def check_sha256(errand: Errand, found: str) -> None:
    """Raise ChecksumMismatch where the spec asks for other bytes."""
    if errand.sha256 is not None and errand.sha256 != found:
        raise ChecksumMismatch(
            f"uri {errand.location.shown!r}: its bytes have sha256:{found}, and the spec asks for "
            f"sha256:{errand.sha256}; upload the right artifact, or register the model with the checksum of this one"
        )
