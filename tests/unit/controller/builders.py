"""Objects and a mesh with valid defaults, so that a test states only what matters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controller.desired import Desired, desired
from controller.mesh_view import MeshAlias, MeshFailure, MeshModel, MeshView, ModelState
from controller.objects import Objects
from controller.policy import Policy

FORMATS = frozenset({"sklearn", "pickle", "xgboost", "lightgbm", "onnx", "torch", "python"})
NOW_S = 1_800_000_000.0


def service(
    predictor: Mapping[str, Any] | None = None,
    annotations: Mapping[str, str] | None = None,
    mode: str | None = "ModelMesh",
    name: str = "iris",
    **spec: Any,
) -> dict[str, Any]:
    """An InferenceService; on the mesh, unless told."""
    said = {**({"serving.kserve.io/deploymentMode": mode} if mode else {}), **(annotations or {})}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "team-a", "uid": "u-1", "generation": 1, "annotations": said},
        "spec": {"predictor": dict(predictor or sklearn()), **spec},
    }


def sklearn(uri: str = "s3://models/iris", **fields: Any) -> dict[str, Any]:
    """A predictor in the old style; `fields` are the predictor's."""
    return {"sklearn": {"storageUri": uri}, **fields}


def model(model_format: str = "sklearn", **fields: Any) -> dict[str, Any]:
    """A predictor in the new style; `fields` are the model's."""
    return {"model": {"modelFormat": {"name": model_format}, "storageUri": "s3://models/iris", **fields}}


def runtime(name: str, *formats: Mapping[str, Any], **spec: Any) -> dict[str, Any]:
    """A ServingRuntime, for pods of its own unless told."""
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"supportedModelFormats": list(formats), "containers": [{"name": "kserve-container"}], **spec},
    }


def reason(status: Mapping[str, Any], condition: str = "PredictorReady") -> tuple[str, str]:
    """Status and reason of a condition."""
    found = next(one for one in status["conditions"] if one["type"] == condition)
    return found["status"], found.get("reason", "")


def message(status: Mapping[str, Any], condition: str = "PredictorReady") -> str:
    """What a condition says."""
    return str(next(one for one in status["conditions"] if one["type"] == condition).get("message", ""))


@dataclass
class World:
    """A cluster and a mesh that do what they are told, one turn at a time."""

    object: dict[str, Any] = field(default_factory=service)
    policy: Policy = field(default_factory=Policy)
    mesh: MeshView = field(default_factory=lambda: MeshView(True, FORMATS, 2**31))
    runtimes: tuple[dict[str, Any], ...] = ()
    children: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    bad: frozenset[str] = frozenset()
    """URIs that do not load."""
    pods_answer: bool = True
    """Whether Deployments become available."""
    broken: frozenset[str] = frozenset()
    """Names of those that do not."""
    now_s: float = NOW_S

    def decide(self) -> Desired:
        """What `desired` says of this world."""
        objects = Objects(
            copy.deepcopy(self.object), cluster_runtimes=self.runtimes, children=tuple(self.children.values())
        )
        return desired(objects, self.mesh, self.policy, self.now_s)

    def turn(self) -> Desired:
        """Decide, and carry it out, in the order that is asked for."""
        decided = self.decide()
        self.now_s += 1
        if not decided.acts:
            return decided
        if not decided.hold:
            self._carry_out(decided)
        if decided.status:
            self.object = {**self.object, "status": copy.deepcopy(dict(decided.status))}
        return decided

    def _carry_out(self, decided: Desired) -> None:
        for child in decided.children:
            key = child["kind"], child["metadata"]["name"]
            known = self.children.get(key, {"status": {}, "metadata": {"generation": 0}})
            changed = known.get("spec") != child["spec"]
            generation = known["metadata"].get("generation", 0) + changed
            metadata = {**child["metadata"], "generation": generation}
            self.children[key] = {**child, "metadata": metadata, "status": known["status"]}
        models, aliases = dict(self.mesh.models), dict(self.mesh.aliases)
        for entry in decided.registrations:
            known = models.get(entry.id, MeshModel(entry.id))
            models[entry.id] = replace(known, spec=entry.spec)
            if entry.load_now and models[entry.id].state is ModelState.NOT_LOADED:
                models[entry.id] = self._loaded(models[entry.id])
        for wanted in decided.aliases:
            known_alias = aliases.get(wanted.id)
            at_once = known_alias is None or wanted.weights
            active = wanted.target if at_once or known_alias is None else known_alias.active
            aliases[wanted.id] = MeshAlias(wanted.id, active, wanted.target, wanted.owner, wanted.weights)
        listed = {wanted.id for wanted in decided.aliases}
        aliases = {name: alias for name, alias in aliases.items() if name in listed}
        kept = {entry.id for entry in decided.registrations} | decided.keep_models
        models = {name: known for name, known in models.items() if name in kept}
        for alias in aliases.values():
            assert {alias.active, alias.target, *alias.weights} <= set(models), "an alias leads to no model"
        self.mesh = replace(self.mesh, models=models, aliases=aliases)
        wanted_children = {(child["kind"], child["metadata"]["name"]) for child in decided.children}
        wanted_children |= decided.keep_children
        self.children = {key: child for key, child in self.children.items() if key in wanted_children}

    def goes_on(self) -> None:
        """Aliases that are on their way arrive, if their target loads; Deployments become available, if they can."""
        for key, child in self.children.items():
            if key[0] == "Deployment":
                answers = self.pods_answer and key[1] not in self.broken
                available = {"type": "Available", "status": str(answers), "reason": "MinimumReplicas"}
                seen = {"observedGeneration": child["metadata"]["generation"], "conditions": [available]}
                counts = {"replicas": 1, "readyReplicas": int(self.pods_answer)}
                self.children[key] = {**child, "status": {**seen, **counts}}
        models, aliases = dict(self.mesh.models), dict(self.mesh.aliases)
        for alias in aliases.values():
            if alias.active != alias.target:
                if models[alias.target].state is ModelState.FAILED:
                    continue
                models[alias.target] = self._loaded(models[alias.target])
                if models[alias.target].state is ModelState.LOADED:
                    aliases[alias.id] = replace(alias, active=alias.target)
        self.mesh = replace(self.mesh, models=models, aliases=aliases)

    def _loaded(self, known: MeshModel) -> MeshModel:
        if known.spec["uri"] in self.bad:
            failure = MeshFailure("the artifact is bad", True, "pod-0", self.now_s)
            return replace(known, state=ModelState.FAILED, failures=(failure,), copies=())
        return replace(known, state=ModelState.LOADED, copies=("pod-0",), failures=())

    def rest(self, turns_max: int = 12) -> Desired:
        """Turn until nothing changes."""
        for _ in range(turns_max):
            before = (self.object, self.mesh, dict(self.children))
            self.turn()
            self.goes_on()
            if (self.object, self.mesh, self.children) == before:
                return self.decide()
        raise AssertionError("it does not come to rest")

    def apply(self, changed: Mapping[str, Any]) -> None:
        """Somebody applies the object anew: the status stays."""
        generation = self.object["metadata"]["generation"] + 1
        metadata = {**changed["metadata"], "generation": generation}
        self.object = {**changed, "metadata": metadata, "status": self.object.get("status", {})}

    def served_by(self) -> str:
        """Who answers behind the service's name; the empty text if nobody does."""
        front = self.children["Service", "iris-predictor"]
        if front["spec"]["type"] == "ExternalName":
            alias = self.mesh.aliases.get("iris")
            models = (alias.weights or (alias.active,)) if alias is not None else ()
            states = [self.mesh.models[model].state for model in models]
            return "mesh" if states and ModelState.FAILED not in states else ""
        status = self.children.get(("Deployment", "iris-predictor"), {}).get("status", {})
        conditions = status.get("conditions") or [{}]
        return "pods" if conditions[0].get("status") == "True" else ""

    @property
    def status(self) -> Mapping[str, Any]:
        """As it was last written."""
        status: Mapping[str, Any] = self.object["status"]
        return status
