"""What can go wrong with names, records and the store, told apart by what the caller does next.

Of one request (never retried as it stands; the gRPC code that the edge gives it stands behind):

* `InvalidName`, `InvalidSpec` - a tenant, id or field is not allowed                    (INVALID_ARGUMENT)
* `NotFound`                   - no model or alias of this name in this tenant           (NOT_FOUND)
* `AlreadyExists`              - the name is taken: other spec, alias, or owner          (ALREADY_EXISTS)
* `GenerationMismatch`, `TargetMismatch` - compare-and-set lost: read again, decide anew (FAILED_PRECONDITION)
* `StillReferenced`            - an alias points at the model: move the alias first      (FAILED_PRECONDITION)
* `UnsupportedRecord`          - written by a newer version: upgrade this pod            (FAILED_PRECONDITION)
* `Contended`                  - others changed the same names all the while: try again  (ABORTED)

Of the store:

* `StoreUnavailable` - not reachable, disk full: try again later. Whether a write took effect is not known.
* `StoreClosed`      - this process is stopping.
* `StoreRefused`     - it answers, but not to this pod: password, permission, certificate. The operator acts.
* `Compacted`        - a watch asked for revisions that are forgotten: list again, watch from there.
* `StoreReplaced`    - ... because this is another store than before: wiped, or restored from a backup. List again;
                       what is missing was lost, not deleted.
* `LeaseNotFound`    - the lease has run out or was revoked: grant a new one, write its keys again.
* `LimitExceeded`    - a key, value or transaction is too large: a bug of the caller, or a record too long.
* `PodIdTaken`       - another process has this pod's id: the pod cannot start; give it an id of its own.
* `InvalidAddress`, `StoreBusy`, `StoreCorrupt`, `StoreIncompatible` - the pod cannot start; the message says what the
                       operator does.

Messages name the field, what was found, what is allowed and what to do next. They never hold credentials.
"""

from __future__ import annotations


class PlacementError(Exception):
    """Base of every error that leaves this package."""


class InvalidName(PlacementError):
    """A tenant or an id that cannot be one."""


class InvalidSpec(PlacementError):
    """A field of a spec or of an alias has a value that is not allowed."""


class NotFound(PlacementError):
    """The tenant has no model or alias of this name."""


class AlreadyExists(PlacementError):
    """The name is taken by something else than what was asked for."""


class GenerationMismatch(PlacementError):
    """`if_generation` is not the model's generation."""


class TargetMismatch(PlacementError):
    """`expected_target` is not the alias's target."""


class StillReferenced(PlacementError):
    """An alias points at the model that was to go."""


class UnsupportedRecord(PlacementError):
    """A stored record that this version cannot read."""


class Contended(PlacementError):
    """Every try of a compare-and-set lost against somebody else's."""


class StoreError(PlacementError):
    """Base of the store's own errors."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written now; whether a write took effect is not known."""


class StoreRefused(StoreError):
    """The store does not let this pod in, and trying again does not help; nothing was written."""


class StoreClosed(StoreError):
    """The store has been closed in this process."""


class Compacted(StoreError):
    """The revisions asked for are forgotten."""

    def __init__(self, asked_revision: int, compacted_revision: int) -> None:
        super().__init__(
            f"revision {asked_revision} is forgotten: history begins after revision {compacted_revision}; "
            "list the keys again and watch from the revision of that list"
        )
        self.asked_revision = asked_revision
        self.compacted_revision = compacted_revision


class StoreReplaced(Compacted):
    """The store is not the one whose revisions were seen: its data was wiped, or put back from a backup."""

    def __init__(self, asked_revision: int, store_revision: int, found: str) -> None:
        super().__init__(asked_revision, store_revision)
        self.args = (
            f"the store has lost its history ({found}): it is at revision {store_revision}, and was to go on from "
            f"{asked_revision}; list the keys again, and restore what is missing",
        )
        self.found = found


class LeaseNotFound(StoreError):
    """The lease has run out, was revoked, or never was."""

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease} does not exist (run out or revoked): grant a new one and write its keys again")
        self.lease = lease


class LimitExceeded(StoreError):
    """A key, a value or a transaction is larger than the store takes."""


class StoreBusy(StoreError):
    """Another process has this store open."""


class StoreCorrupt(StoreError):
    """The store's file is damaged or is not a store."""


class StoreIncompatible(StoreError):
    """The store was written in a format that this version does not know."""


class InvalidAddress(StoreError):
    """The store's address cannot be read."""


class PodIdTaken(PlacementError):
    """Two processes were given one pod id, and the other one is alive."""

    def __init__(self, pod: str, address: str, other_address: str) -> None:
        super().__init__(
            f"pod id {pod!r} is held by a live process at {other_address}, and this one (at {address}) has it too: "
            "give each pod an id of its own (--pod-id), or stop the other one"
        )
