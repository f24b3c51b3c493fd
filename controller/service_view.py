"""An InferenceService, read: which components it has, which model, how it scales.

v1beta1 says one thing in several ways, and all of them are read into one form: a model under `model`, under the name of
its framework (`sklearn: {storageUri: ...}`), with its storage as a URI, as a key and a path, or in annotations of
ModelMesh. Every value keeps the path at which it was written, so that whoever refuses it can say where.

The order of a framework's own defaults is KServe's: Triton, ONNX and Hugging Face speak V2 unless told, all others V1.

Deliberately absent: what pods need (volumes, probes, tolerations, ...) stays as it was written, in `Component.pod`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from controller import names
from controller.reading import InvalidField, Manifest, Part, shown

FRAMEWORKS = (
    "sklearn", "xgboost", "tensorflow", "pytorch", "triton", "onnx", "huggingface", "pmml", "lightgbm", "paddle",
)  # fmt: skip
PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")
SCALE_METRICS = ("cpu", "memory", "concurrency", "rps")
_V2_BY_DEFAULT = ("triton", "onnx", "huggingface", "vLLM")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MODEL_FIELDS = frozenset(
    {"modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri", "storage", "confidential"}
)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the artifact lies. Either `uri`, or a storage key and a path within what it opens."""

    where: str
    """The path at which the place is written."""
    uri: str = ""
    key: str = ""
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    schema_path: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """What a predictor serves, in whichever form it was written."""

    where: str
    """`spec.predictor.model`, or the framework's."""
    format: str
    version: str
    runtime: str
    protocol: str
    """Empty: not said, and the framework has no default but the runtime's."""
    runtime_version: str
    storage: Storage | None
    container: Part
    """With everything in it that is the container's: image, args, env, resources, ..."""

    @property
    def protocol_or_default(self) -> str:
        """What a runtime has to speak."""
        return self.protocol or "v1"


@dataclass(frozen=True, slots=True)
class Component:
    """A predictor, transformer or explainer: how it scales, and its pod as it was written."""

    pod: Part
    name: str
    replicas_min: int | None
    """None: not said."""
    replicas_max: int
    """0: not said."""
    scale_metric: str
    scale_target: int | None
    container_concurrency: int
    """Requests that one copy takes at a time; 0: not limited."""
    timeout_s: int | None
    canary_percent: int | None


@dataclass(frozen=True, slots=True)
class Service:
    """One InferenceService."""

    name: str
    namespace: str
    uid: str
    generation: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    deleting: bool
    predictor: Component
    model: Model | None
    """None: the predictor is a container of its own."""
    transformer: Component | None
    explainer: Component | None
    canaries: tuple[Component, ...]
    spec: Part

    @property
    def stopped(self) -> bool:
        """Everything that serves it is to go, the object stays."""
        return self.annotations.get(names.STOP, "").lower() == "true"


def read_service(service: Manifest) -> Service:
    """Raises InvalidField for the first thing that cannot be, in the order of the object."""
    whole = Part(service, "")
    metadata, spec = whole.part("metadata"), whole.part("spec")
    name = metadata.text("name")
    if not _NAME.fullmatch(name):
        raise InvalidField("metadata.name", f"is {name!r}; it must be lower-case letters, digits and -, a letter first")
    annotations = metadata.texts("annotations")
    if not spec.has("predictor"):
        raise InvalidField("spec.predictor", "is missing; every InferenceService has one")
    predictor = spec.part("predictor")
    _check_child_name(name, predictor)
    return Service(
        name=name,
        namespace=metadata.text("namespace", "default"),
        uid=metadata.text("uid"),
        generation=metadata.whole("generation", high=2**63 - 1) or 0,
        labels=metadata.texts("labels"),
        annotations=annotations,
        deleting=metadata.has("deletionTimestamp"),
        predictor=_component(predictor),
        model=_model(predictor, annotations),
        transformer=_component(spec.part("transformer")) if spec.has("transformer") else None,
        explainer=_component(spec.part("explainer")) if spec.has("explainer") else None,
        canaries=tuple(_component(canary) for canary in spec.parts("canary")),
        spec=spec,
    )


def _check_child_name(name: str, predictor: Part) -> None:
    own_name = predictor.text("name")
    child = names.predictor_name(name, own_name)
    if not _NAME.fullmatch(child):
        problem = f"is {shown(own_name)}; it must be lower-case letters, digits and -"
        raise InvalidField(predictor.at("name"), problem)
    if len(child) > names.LABEL_LENGTH_MAX:
        problem = f"is too long: the Service {child} has {len(child)} letters, and {names.LABEL_LENGTH_MAX} are allowed"
        raise InvalidField(predictor.at("name") if own_name else "metadata.name", problem)


def _component(part: Part) -> Component:
    replicas_min, replicas_max = part.whole("minReplicas"), part.whole("maxReplicas") or 0
    if replicas_max and (replicas_min or 0) > replicas_max:
        raise InvalidField(part.at("minReplicas"), f"is {replicas_min}, above maxReplicas {replicas_max}")
    return Component(
        pod=part,
        name=part.text("name"),
        replicas_min=replicas_min,
        replicas_max=replicas_max,
        scale_metric=part.choice("scaleMetric", SCALE_METRICS),
        scale_target=part.whole("scaleTarget", 1),
        container_concurrency=part.whole("containerConcurrency") or 0,
        timeout_s=part.whole("timeout", 1),
        canary_percent=part.whole("canaryTrafficPercent", 0, 100),
    )


def _model(predictor: Part, annotations: Mapping[str, str]) -> Model | None:
    given = [name for name in (*FRAMEWORKS, "model") if predictor.has(name)]
    has_containers = bool(list(predictor.parts("containers")))
    # With a model, `containers` are those beside it: KServe takes the model's own as `kserve-container`.
    if len(given) > 1 or not (given or has_containers):
        allowed = ", ".join(("model", *FRAMEWORKS, "containers"))
        raise InvalidField(predictor.path, f"has {', '.join(given) or 'none'} of {allowed}; exactly one is allowed")
    if not given:
        return None
    kind = given[0]
    part = predictor.part(kind)
    if part.has("name"):
        raise InvalidField(part.at("name"), "must not be set; the container's name is kserve-container")
    described = part.part("modelFormat")
    model_format = described.text("name") if kind == "model" else kind
    if not model_format:
        raise InvalidField(described.at("name"), "is missing; say which format the model has, such as sklearn")
    default = "v2" if model_format in _V2_BY_DEFAULT else ""
    runtime = part.text("runtime")
    if kind != "model" and (annotated := annotations.get(names.SERVING_RUNTIME, "")):
        if runtime:
            raise InvalidField(part.at("runtime"), f"is said as the annotation {names.SERVING_RUNTIME} too; keep one")
        runtime = annotated
    return Model(
        where=part.path,
        format=model_format,
        version=described.text("version"),
        runtime=runtime,
        protocol=part.choice("protocolVersion", PROTOCOLS, default),
        runtime_version=part.text("runtimeVersion"),
        storage=_storage(predictor, part, annotations),
        container=Part({key: value for key, value in part.value.items() if key not in _MODEL_FIELDS}, part.path),
    )


def _storage(predictor: Part, model: Part, annotations: Mapping[str, str]) -> Storage | None:
    described = model.part("storage")
    uri, several = model.text("storageUri"), list(predictor.parts("storageUris"))
    key = described.text("key") or annotations.get(names.SECRET_KEY, "")
    schema_path = described.text("schemaPath") or annotations.get(names.SCHEMA_PATH, "")
    if uri and several:
        raise InvalidField(predictor.at("storageUris"), f"stand beside {model.at('storageUri')}; keep one")
    if uri and described.has("path"):
        raise InvalidField(described.at("path"), f"stands beside {model.at('storageUri')}; keep one")
    if uri:
        return Storage(model.at("storageUri"), uri, key, "", described.texts("parameters"), schema_path)
    if described.has("path") or key:
        return Storage(
            described.at("path"), "", key, described.text("path"), described.texts("parameters"), schema_path
        )
    return None
