"""Which models kill pods, and what may still be done with them.

A pod says what it is about to do with a model before it does it (an intent, which outlives the pod), and withdraws
that when it is done. If the pod's process ends without a word, what it left was being done when it died. That is
evidence, not proof: the pod may have been killed, with innocent models on board. So the pool acts on the second death:

* being loaded at one death: suspect; its loads go on as before. At the deaths of two incarnations: quarantined, no
  third pod tries.
* running at one death: suspect, and named in its status. Everything in use is named then, hundreds of models when a
  pod is killed from outside, and a process of its own costs each of them tens of megabytes. At the deaths of two
  incarnations: from now on it loads and runs in a process of its own, which cannot take a pod along. If that process
  crashes, loading or running, `crashes_max` times within `crashes_within_s` on one pod, the model is quarantined.
* isolated, and on board of a pod that dies anyway: not blamed, it could not have done that.

Serving for a while after a death clears what that death was blamed on: soon for loading, which succeeded since, and
not much later for running, because a request is tried twice: one that kills brings the second death right after the
first. What is isolated stays isolated.

A suspicion is about one generation: a new spec begins without one, and an operator may release a model by hand.

Deliberately absent: who is dead (the leader sees that), and comparing the clocks of two pods. Crashes are counted per
incarnation; deaths are only counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.policy.snapshot import Death, Suspicion, Verdict

LOADING = "loading"
RUNNING = "running"
CRASHED = "crashed"
"""The model's own process ended without a word; its pod lives. Kept among the deaths, with the pod that saw it."""


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """When suspicion becomes a verdict."""

    loading_deaths_max: int = 2
    """Pods that may be lost to loading a model."""
    crashes_max: int = 3
    crashes_within_s: float = 60.0
    """So many crashes of an isolated model's process so close together end its service."""
    loading_clears_after_s: float = 30.0
    """Servable for so long since the last death, a model did not kill its pod by being loaded."""
    running_clears_after_s: float = 60.0
    """Servable for so long since the last death, a model that was running at one death is trusted again. Two pods
    that are killed from outside within this isolate what was in use on both."""
    crashes_kept_max: int = 8
    """Enough for a verdict and for its reader."""


LIMITS = QuarantineLimits()


@dataclass(frozen=True, slots=True)
class Allowed:
    """It may be loaded."""

    isolated: bool = False
    """Only in a process of its own."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not be loaded on any pod; the message says how to release it."""

    message: str


def may_load(suspicion: Suspicion | None, generation: int) -> Allowed | Refused:
    """Whether any pod may load this generation. The pod is not asked: a quarantine holds everywhere."""
    if suspicion is None or suspicion.generation != generation:
        return Allowed()
    if suspicion.verdict is Verdict.QUARANTINED:
        return Refused(f"quarantined: {_story(suspicion)}; register a corrected spec, or release it by hand")
    return Allowed(isolated=suspicion.isolate)


def judge(
    before: Suspicion | None, generation: int, deaths: Sequence[Death], limits: QuarantineLimits = LIMITS
) -> Suspicion | None:
    """The suspicion after more deaths and crashes, in the order in which they became known; None: there is none.

    `generation` is the registered one: what is known of another no longer counts. Told twice of one death, it counts
    it once.
    """
    known = list(before.deaths) if before is not None and before.generation == generation else []
    verdict = before.verdict if before is not None and known else Verdict.SUSPECT
    for death in deaths:
        isolated = Suspicion(generation, verdict, tuple(known)).isolate
        repeated = death.doing != CRASHED and any(
            (earlier.pod, earlier.incarnation, earlier.doing) == (death.pod, death.incarnation, death.doing)
            for earlier in known
        )
        if repeated or death in known or (isolated and death.doing != CRASHED):
            continue
        known.append(death)
        if _condemned(known, limits):
            verdict = Verdict.QUARANTINED
    if not known:
        return None
    # Deaths of pods are few: after the verdict of two none is added. Crashes are many, and the last ones count.
    crashes = [death for death in known if death.doing == CRASHED][-limits.crashes_kept_max :]
    kept = [death for death in known if death.doing != CRASHED or death in crashes]
    return Suspicion(generation, verdict, tuple(kept))


def after_service(suspicion: Suspicion, served_s: float, limits: QuarantineLimits = LIMITS) -> Suspicion | None:
    """What remains once a copy has been servable for `served_s` since the last death; None: nothing.

    A quarantined model does not serve, and stays what it is.
    """
    if suspicion.verdict is Verdict.QUARANTINED:
        return suspicion
    cleared = set()
    if served_s >= limits.loading_clears_after_s:
        cleared.add(LOADING)
    if served_s >= limits.running_clears_after_s and not suspicion.isolate:
        cleared.add(RUNNING)
    remaining = tuple(death for death in suspicion.deaths if death.doing not in cleared)
    if remaining == suspicion.deaths:
        return suspicion
    return Suspicion(suspicion.generation, suspicion.verdict, remaining) if remaining else None


def _condemned(deaths: Sequence[Death], limits: QuarantineLimits) -> bool:
    lost = {(death.pod, death.incarnation) for death in deaths if death.doing == LOADING}
    if len(lost) >= limits.loading_deaths_max:
        return True
    crashes: dict[tuple[str, str], list[float]] = {}
    for death in deaths:
        if death.doing == CRASHED:
            crashes.setdefault((death.pod, death.incarnation), []).append(death.at_s)
    nearest = limits.crashes_max - 1
    for times in crashes.values():
        times.sort()
        if any(late - early <= limits.crashes_within_s for early, late in zip(times, times[nearest:], strict=False)):
            return True
    return False


def _story(suspicion: Suspicion) -> str:
    lost = sorted({(death.pod, death.incarnation) for death in suspicion.deaths if death.doing == LOADING})
    crashed = sorted({death.pod for death in suspicion.deaths if death.doing == CRASHED})
    parts = []
    if lost:
        parts.append(f"{len(lost)} pods died while loading it ({', '.join(pod for pod, _ in lost)})")
    if crashed:
        parts.append(f"its own process crashed again and again (on {', '.join(crashed)})")
    return " and ".join(parts) or "it was there when pods died"
