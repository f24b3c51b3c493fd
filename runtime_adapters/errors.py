"""What can go wrong with a model file, told apart by what the caller does next.

The caller (the pod's loader) does not look at messages. It looks at the class:

* `MissingRuntime`    - the operator installs a package; the model may load on another pod meanwhile.
* `BadArtifact`       - permanent: do not try again until the spec or the artifact changes.
* `UntrustedArtifact` - permanent: the format can run code and the operator did not trust where it came from.
* `OutOfMemory`       - the framework found no memory, in a load or in a run: make room, then try once more.
* `NoRoom`            - the same, seen before the framework was asked: so much is missing.
* `LoadFailed`        - transient: a process hung, a disk was full. Try again later, elsewhere first.
* `LoadCrashed`       - the same, and the isolated process ended by itself: what kills it may be the model.
* `BadInput`          - the client's request does not fit the model: INVALID_ARGUMENT, never retried.
* `ModelRaised`       - the model's own code failed on this request: reported to the client, the copy stays.
* `NobodyWaits`       - the run was given up, since its deadline had passed or its client had left: DEADLINE_EXCEEDED.
* `ModelCrashed`      - the isolated process of this copy is gone: drop the copy, load again.

Messages name the field, what was found, what is allowed and what to do next. They never hold credentials.
"""

from __future__ import annotations


class AdapterError(Exception):
    """Base of every error that leaves this package."""


class MissingRuntime(AdapterError):
    """The framework's package is not installed; the message holds the install command."""


class BadArtifact(AdapterError):
    """The artifact is corrupt, empty, ambiguous, or not of the declared format. Permanent."""


class UntrustedArtifact(BadArtifact):
    """Loading this format runs code, and its storage prefix is not marked trusted. Permanent."""


class OutOfMemory(AdapterError):
    """The framework found no memory for a load or a run in this process. Nothing of it remains."""


class NoRoom(OutOfMemory):
    """A load was not begun: the box has `missing_bytes` too few left for it."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


class LoadFailed(AdapterError):
    """The load failed for a reason that may pass (a dead worker process, a full disk). Transient."""


class LoadCrashed(LoadFailed):
    """The process of its own that a model was being loaded in has died, and nobody had stopped it."""


class BadInput(AdapterError):
    """The request's tensors do not fit the model's inputs."""


class ModelRaised(AdapterError):
    """The model's code raised, or returned something that cannot be sent, for this request."""


class NobodyWaits(AdapterError):
    """The run was left in the middle: nobody waits for its answer any more."""


class ModelCrashed(AdapterError):
    """The process that ran this copy has died; the copy can no longer serve."""
