"""What the errors of fetches, loads and returns mean to the cache.

Three answers, after what is to be done next: never again until the spec changes (a bad artifact), again after a pause
or on another pod (nearly everything), or once there is room. Only errors of the adapters' own say something to a
client; of any other only its type is told, and the traceback goes to the log.
"""

from __future__ import annotations

import logging

from cache.types import Failure, FailureKind, ModelKey
from mesh.telemetry import Telemetry
from runtime_adapters.errors import AdapterError, BadArtifact, MissingRuntime, OutOfMemory

log = logging.getLogger("hexcomb.loading")

CANCELLED = Failure(FailureKind.TRANSIENT, "cancelled: nobody waits for it any more")


class LoadFailures:
    """Counts and tells the failures of one pod's loads."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.count = 0
        """Since the pod started."""

    def told(self, key: ModelKey, stage: str, format_name: str, error: Exception) -> Failure:
        """Log and count an error, and say what it means."""
        kind = _kind(error)
        if not isinstance(error, AdapterError):
            log.error("%s of %s failed", stage, key, exc_info=error)
        message = str(error) if isinstance(error, AdapterError) else f"{type(error).__name__} during the {stage}"
        self._telemetry.load_failed(format_name or "unknown", stage, kind.value)
        self.count += 1
        log.warning("%s of %s failed (%s): %s", stage, key, kind.value, message)
        return Failure(kind, message)


def _kind(error: Exception) -> FailureKind:
    if isinstance(error, OutOfMemory):
        return FailureKind.NO_ROOM
    if isinstance(error, MissingRuntime):
        return FailureKind.TRANSIENT  # installed later, or there on another pod
    return FailureKind.PERMANENT if isinstance(error, BadArtifact) else FailureKind.TRANSIENT
