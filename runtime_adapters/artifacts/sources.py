"""Which source reads a location, after the operator's rules, and with which key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime_adapters.artifacts.bucket_source import BucketSource
from runtime_adapters.artifacts.clients import Timeouts, azure_client, gcs_client, s3_client
from runtime_adapters.artifacts.errors import ArtifactDenied, BadLocation
from runtime_adapters.artifacts.file_source import FileSource
from runtime_adapters.artifacts.git_source import GitSource
from runtime_adapters.artifacts.http_source import HttpSource
from runtime_adapters.artifacts.hub_source import HubSource
from runtime_adapters.artifacts.image_source import ImageSource
from runtime_adapters.artifacts.listing import Source
from runtime_adapters.artifacts.locations import Location
from runtime_adapters.artifacts.source_policy import SourcePolicy
from runtime_adapters.artifacts.storage_keys import (
    AzureKey,
    GcsKey,
    GitKey,
    HfKey,
    HttpKey,
    OciKey,
    PvcKey,
    S3Key,
    StorageKey,
    UnsupportedKey,
)


def open_source(
    location: Location,
    key: StorageKey | None,
    policy: SourcePolicy,
    timeouts: Timeouts,
    files_max: int,
    bytes_max: int,
    check: Callable[[], None],
    staging: Path,
    lies_there: Callable[[int], None],
) -> Source:
    """The source for a location, after the operator's rules. Raises BadLocation, ArtifactDenied.

    `check` raises when nobody waits any more: for the sources that cannot be left in the middle of a look. What is in
    `staging` goes at the pod's next start; `lies_there` hears how many bytes it has, and raises where there is no room.
    """
    policy.check(location)
    if isinstance(key, UnsupportedKey):
        raise ArtifactDenied(f"storage key is of type {key.type[:20]!r}, which this pod cannot read")
    match location.kind:
        case "file":
            return FileSource(location, location.file_path, policy, files_max)
        case "pvc":
            return _claim(location, key, policy, files_max)
        case "s3":
            _check_bucket(location)
            client = s3_client(location.authority, key if isinstance(key, S3Key) else S3Key(), timeouts)
            return BucketSource(location, client, files_max)
        case "gs":
            _check_bucket(location)
            return BucketSource(
                location,
                gcs_client(location.authority, key if isinstance(key, GcsKey) else GcsKey(), timeouts),
                files_max,
            )
        case "azure":
            return _azure(location, key if isinstance(key, AzureKey) else AzureKey(), timeouts, files_max)
        case "hf":
            return HubSource(location, key if isinstance(key, HfKey) else HfKey(), policy, timeouts, files_max, check)
        case "oci":
            oci_key = key if isinstance(key, OciKey) else OciKey()
            return ImageSource(location, oci_key, policy, timeouts, files_max, check)
        case "git":
            git_key = key if isinstance(key, GitKey) else None
            return GitSource(location, git_key, timeouts, files_max, bytes_max, check, staging, lies_there)
        case _:
            return HttpSource(location, key if isinstance(key, HttpKey) else None, policy, timeouts, check)


def _claim(location: Location, key: StorageKey | None, policy: SourcePolicy, files_max: int) -> FileSource:
    claim = location.authority
    if not isinstance(key, PvcKey) or key.name != claim:
        raise ArtifactDenied(
            f"uri {location.shown!r}: this tenant may not read the claim {claim!r}; the operator allows it with a "
            f'storage key {{"type": "pvc", "name": "{claim}"}} in the storage config'
        )
    root, rules = policy.of_claim(claim)
    return FileSource(location, root / location.path, rules, files_max)


def _azure(location: Location, key: AzureKey, timeouts: Timeouts, files_max: int) -> BucketSource:
    _check_bucket(location)
    container, _, account = location.authority.partition("@")
    if not account:
        raise BadLocation(
            f"uri {location.shown!r} names no account, and neither does its storage key; "
            "write az://container@account/path, or put account_name into the key"
        )
    if key.account_name and key.account_name != account:
        raise ArtifactDenied(f"uri {location.shown!r}: the storage key is for account {key.account_name!r} only")
    return BucketSource(location, azure_client(account, container, key, timeouts), files_max)


def _check_bucket(location: Location) -> None:
    if not location.authority or location.authority.startswith("@"):
        raise BadLocation(f"uri {location.shown!r} names no bucket, and neither does its storage key")
