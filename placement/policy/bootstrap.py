"""Whether a new pod may take requests: it must be able to load what others load.

A release that cannot load models stops itself, if a new pod loads a few models that are servable on other pods before
it becomes ready. Failures of those are the pod's; a model that serves nowhere may be bad itself, and counts for
nothing. (ModelMesh has the idea: "bootstrap clearance".)

A failure that may pass (storage away) keeps the pod from becoming ready without condemning it. In a pool where nothing
serves, or when a few loads have succeeded, there is nothing more to prove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.policy.snapshot import ModelName

MESSAGES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class TrialLoad:
    """One load that a new pod tried."""

    name: ModelName
    loaded: bool
    servable_elsewhere: bool
    """When it ended, as the pod saw the pool."""
    permanent: bool = False
    """It failed, and not for want of something that comes back."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class BootstrapLimits:
    """How much a new pod has to prove."""

    successes_wanted: int = 3
    failures_max: int = 3
    """Models that others serve and this pod cannot load, before it is condemned."""
    failed_share_max: float = 0.5
    """Of the trials that count; above it a pod is not ready."""


LIMITS = BootstrapLimits()


@dataclass(frozen=True, slots=True)
class Ready:
    """It may take requests."""

    reason: str


@dataclass(frozen=True, slots=True)
class KeepTrying:
    """Not yet."""

    reason: str


@dataclass(frozen=True, slots=True)
class NeverReady:
    """This process will not become ready; its release, its image or its machine is bad."""

    reason: str


BootstrapVerdict = Ready | KeepTrying | NeverReady


def judge_bootstrap(
    trials: Sequence[TrialLoad], candidates_left: int, limits: BootstrapLimits = LIMITS
) -> BootstrapVerdict:
    """The verdict after these trials, the last one of each model counting. `candidates_left`: models that are servable
    elsewhere and were not tried."""
    last = {trial.name: trial for trial in trials}
    counted = [trial for _, trial in sorted(last.items()) if trial.loaded or trial.servable_elsewhere]
    loaded = [trial for trial in counted if trial.loaded]
    failed = [trial for trial in counted if not trial.loaded]
    condemning = [trial for trial in failed if trial.permanent]
    share = len(failed) / len(counted) if counted else 0.0
    told = "; ".join(f"{trial.name}: {trial.message}" for trial in failed[:MESSAGES_SHOWN])

    if len(condemning) >= limits.failures_max and len(condemning) / len(counted) > limits.failed_share_max:
        return NeverReady(
            f"{len(condemning)} of {len(counted)} models that other pods serve cannot be loaded here: {told}"
        )
    if share > limits.failed_share_max:
        return KeepTrying(f"{len(failed)} of {len(counted)} models that other pods serve failed to load here: {told}")
    if len(loaded) >= limits.successes_wanted:
        return Ready(f"{len(loaded)} models were loaded")
    if candidates_left <= 0:
        return Ready(f"{len(loaded)} models were loaded, and no other is servable elsewhere")
    return KeepTrying(
        f"{len(loaded)} of {min(limits.successes_wanted, len(loaded) + candidates_left)} trial loads done"
    )
