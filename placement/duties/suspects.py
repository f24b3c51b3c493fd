"""The leader's turn over deaths: what pods were about to do when they vanished becomes suspicion, or is let go.

An intent outlives its pod. Those of a process that is no longer in the pool, for a moment at least, are evidence, which
`placement.policy.quarantine` judges; the ruling is written, then the intent goes, in this order: whoever leads next
comes to the same ruling if this one is interrupted, and one death is counted once.

A process that comes back (the store was away from it, not it from the world) did not die, and what it was blamed for
is taken back. So it is when it was blamed by a pod that lost touch with it, and is still there when its lease would
have ended long ago; until then its record proves nothing. A suspicion about a generation that is not the registered
one any more goes. And a model that serves well for a while is cleared of what its loading was blamed for.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from placement.policy.quarantine import CRASHED, after_service, judge
from placement.policy.snapshot import Death, Intent, ModelName, PoolView, Suspicion

Process = tuple[str, str]
"""A pod and its incarnation."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What to write of one model, and which intents are thereby dealt with."""

    name: ModelName
    before: Suspicion | None
    after: Suspicion | None
    reason: str
    settled: tuple[Intent, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is a suspicion to write or to delete."""
        return self.after != self.before


class Suspects:
    """Since when processes are gone and suspects serve, as this leader has seen it."""

    def __init__(self, *, death_grace_s: float, proves_alive_s: float) -> None:
        """A process that is back within `death_grace_s` did not die; one that is there for `proves_alive_s` lives."""
        self._death_grace_s = death_grace_s
        self._proves_alive_s = proves_alive_s
        self._gone: dict[Process, float] = {}
        self._blamed: dict[Process, float | None] = {}
        """Since when a process that is blamed has been there; None: it was gone at some time since."""
        self._serving: dict[ModelName, tuple[Suspicion, float]] = {}

    def turn(
        self,
        view: PoolView,
        intents: Iterable[tuple[ModelName, Intent]],
        generation_of: Callable[[ModelName], int | None],
        now_s: float,
    ) -> tuple[Ruling, ...]:
        """Rulings, in the order of names. `generation_of`: the registered one; None: the model is not registered."""
        dead = self._dead(view, intents, now_s)
        served_s = self._served_s(view, now_s)
        alive = self._alive(view, now_s)
        rulings: list[Ruling] = []
        for name in sorted({*dead, *view.suspicions}):
            evidence = tuple(dead.get(name, ()))
            ruling = _rule(name, view, evidence, alive, generation_of(name), served_s.get(name, 0.0))
            if ruling is not None:
                rulings.append(ruling)
        return tuple(rulings)

    def _dead(
        self, view: PoolView, intents: Iterable[tuple[ModelName, Intent]], now_s: float
    ) -> dict[ModelName, list[Intent]]:
        gone: dict[Process, float] = {}
        dead: dict[ModelName, list[Intent]] = {}
        for name, intent in intents:
            process = (intent.pod, intent.incarnation)
            if _is_alive(view, process):
                continue
            gone[process] = since_s = self._gone.get(process, now_s)
            # Another incarnation under the pod's name is proof; an absence may be the store's.
            if now_s - since_s >= self._death_grace_s or intent.pod in view.pods:
                dead.setdefault(name, []).append(intent)
        self._gone = gone
        for found in dead.values():
            found.sort(key=lambda intent: (intent.pod, intent.incarnation, intent.doing))
        return dead

    def _alive(self, view: PoolView, now_s: float) -> frozenset[Process]:
        """Processes that are blamed and did not die."""
        blamed: dict[Process, float | None] = {}
        for suspicion in view.suspicions.values():
            for death in suspicion.deaths:
                process = (death.pod, death.incarnation)
                blamed[process] = self._blamed.get(process, now_s) if _is_alive(view, process) else None
        self._blamed = blamed
        return frozenset(
            process
            for process, since_s in blamed.items()
            if _is_alive(view, process)
            and process[0] not in view.fading
            and (since_s is None or now_s - since_s >= self._proves_alive_s)
        )

    def _served_s(self, view: PoolView, now_s: float) -> Mapping[ModelName, float]:
        serving: dict[ModelName, tuple[Suspicion, float]] = {}
        for name, suspicion in view.suspicions.items():
            if view.holders(name, suspicion.generation):
                known = self._serving.get(name)
                serving[name] = known if known is not None and known[0] == suspicion else (suspicion, now_s)
        self._serving = serving
        return {name: now_s - since_s for name, (_, since_s) in serving.items()}


def _is_alive(view: PoolView, process: Process) -> bool:
    pod = view.pods.get(process[0])
    return pod is not None and pod.incarnation == process[1]


def _rule(
    name: ModelName,
    view: PoolView,
    dead: tuple[Intent, ...],
    alive: Container[Process],
    generation: int | None,
    served_s: float,
) -> Ruling | None:
    before = view.suspicions.get(name)
    if generation is None or (before is not None and before.generation != generation):
        after, reason = None, "its generation is not the registered one"
    else:
        after, reason = before, ""
    if generation is not None:
        deaths = [
            Death(intent.pod, intent.incarnation, intent.doing, intent.at_s)
            for intent in dead
            if intent.generation == generation
        ]
        if after is not None:
            remaining = [d for d in after.deaths if d.doing == CRASHED or (d.pod, d.incarnation) not in alive]
            if len(remaining) < len(after.deaths):
                after, reason = judge(None, generation, remaining), "a pod that was taken for dead is back"
        if deaths:
            after = judge(after, generation, deaths)
            reason = f"pod {', '.join(death.pod for death in deaths)} died without a word while {deaths[0].doing} it"
        elif after is not None and after == before and served_s > 0:
            after = after_service(after, served_s)
            reason = f"it has served for {served_s:.0f} s"
    if after == before and not dead:
        return None
    return Ruling(name, before, after, reason, dead)
