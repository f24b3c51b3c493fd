"""Every request is answered rightly, or there is an excuse that holds.

**A right answer** comes from an artifact that the asked name stood for at some time of its life.

**An error needs an excuse.** The pod that was asked was itself stopped or frozen; the name was not registered, or was
a moment ago, as far as that pod could know; the artifact is bad; the deadline was too short for a load. Without one of
these, two promises are broken by an error:

* *Resident*: a copy answered all the while on a pod that was well and could be reached, and the asked pod knew of it.
* *Calm*: no pod and no way between two had been in trouble for a while, so that every model should find a place. The
  store may be away, cut off, compacted or wiped meanwhile: that is no excuse, cold models still load.

Between the two, while pods are in trouble and nobody has a copy, errors are counted by their excuse and not judged.
"""

from __future__ import annotations

from collections import Counter

from mesh.simulation.checking.pods import Run, connected_since, room_bytes, undisturbed_since
from mesh.simulation.checking.truth import ServingTruth, StoreTruth
from mesh.simulation.checking.violation import Violation
from mesh.simulation.clients import Answered, Failed
from mesh.simulation.execution import factor_of
from mesh.simulation.pod import SimulatedPod
from mesh.transport.base import StatusCode
from placement.policy.snapshot import ModelName

VIEW_LAG_S = 15.0
"""How far a pod's view may be behind a store that it reaches: a late batch, or a watch that is set up again."""
LOADED_WITHIN_S = 6.0
"""In calm a load, queueing included, takes less; requests with shorter deadlines may miss it."""
PROBED_WITHIN_S = 4.0
"""A pod that can be reached again is found to be so within this."""
AFTERMATH_S = 5.0
"""How long after a pod's trouble errors may still come from it."""


class RequestChecks:
    """Judges each answer as it arrives."""

    def __init__(self, run: Run, store: StoreTruth, serving: ServingTruth) -> None:
        self.answered = 0
        self.cold = 0
        self.excuses: Counter[str] = Counter()
        self._run = run
        self._store = store
        self._serving = serving

    def judge(self, answered: Answered, asked: SimulatedPod) -> None:
        """Raise Violation unless the answer is right or its error excused. `asked` got the request."""
        if answered.failed is None:
            self.answered += 1
            self.cold += answered.cold
            self._judge_factor(answered)
            return
        excuse = self._excuse(answered, answered.failed, asked)
        self.excuses[excuse] += 1

    def _judge_factor(self, answered: Answered) -> None:
        uris = [uri for model in self._models_of(answered.name) for uri in self._store.story(model).uris]
        if answered.factor not in {factor_of(uri) for uri in uris}:
            raise Violation(
                "answers come from the model that was asked for",
                f"{answered.name} at {answered.machine} was answered by an artifact that it never had "
                f"(factor {answered.factor:.0f}; its artifacts: {uris})",
            )

    def _models_of(self, name: ModelName) -> list[ModelName]:
        """The models that the name has stood for."""
        targets = self._store.story(name).models
        return [ModelName(name.tenant, model_id) for model_id in targets] or [name]

    def _excuse(self, answered: Answered, failed: Failed, asked: SimulatedPod) -> str:
        began_s = answered.began_s
        if not undisturbed_since(asked, began_s):
            return "the pod that was asked was stopped, frozen or leaving"
        if failed.status is StatusCode.NOT_FOUND and (reason := self._unregistered(answered, asked)):
            return reason
        known_s = self._known_s(answered, asked)
        models = self._possible_models(answered.name, known_s)
        if any(model in asked.view.suspicions for model in models):
            return "pods died over it"
        if not all(self._is_sound(model, known_s) for model in models):
            return "its artifact is bad, or was a moment ago"
        patience_s = float("inf") if answered.deadline_s is None else answered.deadline_s - began_s
        if failed.status is StatusCode.DEADLINE_EXCEEDED and patience_s <= LOADED_WITHIN_S:
            return "the deadline was short"
        holders = {str(model): self._holder(model, asked, began_s) for model in models}
        if all(holders.values()):
            raise Violation(
                "no error while a reachable copy serves",
                f"{answered.name} at {answered.machine} from {began_s:.3f} s on: {failed.status.name}: "
                f"{failed.message!r}; served all the while, which {answered.machine} knew: {holders}",
            )
        if not self._calm(began_s):
            return f"in trouble: {failed.status.name}"
        if failed.status is StatusCode.DEADLINE_EXCEEDED and answered.ended_s < began_s + patience_s - LOADED_WITHIN_S:
            return "its load was predicted to take longer"
        if not all(self._has_room(model) for model in models):
            return "there is no room beside what is pinned"
        if not asked.view.pods.keys() >= self._run.pods.keys():
            return f"without the store it could not learn of all pods: {failed.status.name}"
        raise Violation(
            "no error in calm",
            f"{answered.name} at {answered.machine} from {began_s:.3f} s on: {failed.status.name}: {failed.message!r}",
        )

    def _known_s(self, answered: Answered, asked: SimulatedPod) -> float:
        """What the registry held until then, the asked pod knew when the request came."""
        waited_s = answered.ended_s - answered.began_s
        return self._run.store.informed_until_s(asked.machine.name, VIEW_LAG_S + waited_s)

    def _unregistered(self, answered: Answered, asked: SimulatedPod) -> str:
        """Whether the pod may have believed that there is no such name."""
        if asked.node.registry.detached:
            return "the store was wiped, and the pod waits for the names to be written back"
        known_s = self._known_s(answered, asked)
        for name in (answered.name, *self._models_of(answered.name)):
            if name not in self._store.models and name not in self._store.aliases:
                return "it is not registered"
            if self._store.story(name).changed_s >= known_s:
                return "its registration has just changed"
        return ""

    def _possible_models(self, name: ModelName, known_s: float) -> list[ModelName]:
        """What the name stands for; if it is an alias that was moved since `known_s`, all that it ever stood for."""
        alias = self._store.aliases.get(name)
        if alias is None:
            return [name]
        if self._store.story(name).changed_s >= known_s:
            return self._models_of(name)
        return [ModelName(name.tenant, model_id) for model_id in dict.fromkeys((alias.active, *alias.weights))]

    def _is_sound(self, model: ModelName, known_s: float) -> bool:
        """Whether its artifact can be loaded and run; if it was replaced since `known_s`, also those before it."""
        record = self._store.models.get(model)
        if record is None or model in self._store.suspicions:
            return False
        story = self._store.story(model)
        uris = [record.spec.uri] if story.changed_s < known_s else list(story.uris)
        contents = [self._run.contents.at(uri) for uri in uris]
        return all(content is not None and content.sound and not content.transient_share for content in contents)

    def _has_room(self, model: ModelName) -> bool:
        """Whether it fits anywhere beside what is pinned."""
        record = self._store.models.get(model)
        content = None if record is None else self._run.contents.at(record.spec.uri)
        if content is None:
            return False
        needed_bytes = max(content.size_bytes, content.estimate_bytes)
        return any(room_bytes(pod) >= needed_bytes for pod in self._run.pods.values())

    def _holder(self, model: ModelName, asked: SimulatedPod, began_s: float) -> str:
        """A machine that could have answered all along, that the asked pod knew of, and had found to be well."""
        known = {copy.pod for copy in asked.view.copies.get(model, ()) if copy.servable}
        well_since_s = began_s - PROBED_WITHIN_S
        for machine, held in self._serving.holders(model).items():
            pod = self._run.pods.get(machine)
            if pod is None or not any(serving.since_s < began_s for serving in held.values()):
                continue
            if machine == asked.machine.name:
                return machine
            if machine not in known or machine in asked.pool.outlying.slow:
                continue
            if (
                undisturbed_since(pod, well_since_s)
                and connected_since(self._run.network, asked.machine.name, machine, well_since_s)
                and max(pod.machine.slow_until_s, asked.machine.slow_until_s) < well_since_s
            ):
                return machine
        return ""

    def _calm(self, began_s: float) -> bool:
        """No pod was in trouble while the request was there, nor for a while before."""
        return not self._run.troubled() and self._run.last_trouble_s + AFTERMATH_S < began_s
