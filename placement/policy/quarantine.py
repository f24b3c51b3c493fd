"""Which models kill pods, and what may still be done with them.

A pod says what it is about to do with a model before it does it (an intent, which outlives the pod), and withdraws
that when it is done. If the pod's process ends without a word, what it left was being done when it died. That is
evidence, not proof: the pod may have been killed, with innocent models on board. So the pool asks twice for what it
can only learn by losing a pod, and isolates at once where isolation answers the question for nothing:

* being loaded at one death: suspect; its loads go on as before. At the deaths of two incarnations: quarantined, no
  third pod tries. A load that succeeds and serves for a while afterwards clears what loading was blamed for.
* running at a death: from now on it runs (and loads) in a process of its own, which cannot take a pod along. If that
  process crashes `crashes_max` times within `crashes_within_s` on one pod, the model is quarantined. Serving well does
  not clear this: one bad request an hour would cost one pod an hour.
* isolated, and on board of a pod that dies anyway: not blamed, it could not have done that.

A suspicion is about one generation: a new spec begins without one, and an operator may release a model by hand.

Deliberately absent: comparing the clocks of two pods. Crashes are counted per incarnation; deaths are only counted.
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
    clears_after_s: float = 30.0
    """Servable for so long, a model did not kill its pod by being loaded."""
    deaths_kept_max: int = 8
    """Of one suspicion: enough for a verdict and for its reader."""


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
        isolated = any(earlier.doing == RUNNING for earlier in known)
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
    # The evidence of a verdict is at the end; what isolates must not be forgotten either.
    first_running = next((death for death in known if death.doing == RUNNING), None)
    kept = known[-limits.deaths_kept_max :]
    if first_running is not None and first_running not in kept:
        kept[0] = first_running
    return Suspicion(generation, verdict, tuple(kept))


def after_service(suspicion: Suspicion, served_s: float, limits: QuarantineLimits = LIMITS) -> Suspicion | None:
    """What remains once a copy has been servable for `served_s` since the last death; None: nothing.

    A quarantined model does not serve, and stays what it is.
    """
    if suspicion.verdict is Verdict.QUARANTINED or served_s < limits.clears_after_s:
        return suspicion
    remaining = tuple(death for death in suspicion.deaths if death.doing != LOADING)
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
    lost = sorted({death.pod for death in suspicion.deaths if death.doing == LOADING})
    crashed = sorted({death.pod for death in suspicion.deaths if death.doing == CRASHED})
    parts = []
    if lost:
        parts.append(f"pods {', '.join(lost)} died while loading it" if len(lost) > 1 else f"{lost[0]} died loading it")
    if crashed:
        parts.append(f"its own process crashed again and again on {', '.join(crashed)}")
    return " and ".join(parts) or "it was there when pods died"
