"""What can go wrong between a URI and the pod's disk, told apart by what the caller does next.

Permanent, until the spec, the object or the configuration changes (`BadArtifact`):

* `BadLocation`         - the URI cannot be used, or the operator does not allow it.
* `ArtifactNotFound`    - nothing lies there.
* `ArtifactDenied`      - something may lie there, and these credentials may not read it.
* `ChecksumMismatch`    - the bytes are not the ones that the spec asks for.
* `ArtifactTooLarge`    - more bytes, or more files, than the limits allow.
* `UnsafeArchive`       - unpacking would write outside its directory, or far more than the archive's size explains.

Transient (`LoadFailed`):

* `FetchFailed`         - the network, or the other side, failed.
* `FetchTimedOut`       - the deadline came first.
* `ArtifactChanged`     - somebody was writing the object while it was read.
* `DiskFull`            - this pod's disk has no room now.

And one that stops the pod at its start: `BadStorageConfig`, an operator's slip in the file of storage keys.
Messages show a URI without its query, because a query can hold a signature.
"""

from __future__ import annotations

from runtime_adapters.errors import AdapterError, BadArtifact, LoadFailed


class BadLocation(BadArtifact):
    """The URI is malformed, or not allowed on this pod."""


class ArtifactNotFound(BadArtifact):
    """There is nothing at the URI."""


class ArtifactDenied(BadArtifact):
    """The credentials, or their absence, do not permit reading the URI."""


class ChecksumMismatch(BadArtifact):
    """The bytes at the URI are not those that the spec names."""


class ArtifactTooLarge(BadArtifact):
    """The artifact has more bytes or files than this pod fetches."""


class UnsafeArchive(BadArtifact):
    """The archive would escape its directory or explode."""


class FetchFailed(LoadFailed):
    """The transfer broke for a reason that may pass."""


class FetchTimedOut(FetchFailed):
    """The transfer did not end before its deadline."""


class ArtifactChanged(FetchFailed):
    """The object changed while it was being read; the next try reads the new one."""


class DiskFull(LoadFailed):
    """The disk tier has no room for this artifact now."""


class BadStorageConfig(AdapterError):
    """The file of storage keys cannot be used; the message names the entry and the field."""
