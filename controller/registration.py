"""A service's model as the mesh registers it, or everything that speaks against that.

The model's id is `<service>__isvc-<10 hex digits>`, ModelMesh's form. The digits come from what decides which numbers
it answers: where the artifact lies, and its format. So another artifact is another model, loaded beside the old one
before requests move; another number of copies is the same model with a new spec.

"No" is a list, so that somebody who moves a service to the mesh sees all that is in the way at once, in this order:
1. fields that only pods of its own can honour; 2. no model; 3. the runtime; 4. the format; 5. the protocol; 6. the
storage; 7. the size.

`minReplicas` that is not said is no copy that must be loaded: a pool holds more services than fit into its memory, and
KServe's default of 1 for each of them would end that. It is loaded once, when it is applied.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from controller import names
from controller.fields import Handling, spoken_fields
from controller.mesh_view import MeshView
from controller.objects import Objects
from controller.policy import Policy
from controller.quantities import bytes_of
from controller.reading import shown
from controller.runtimes import NoRuntime, Runtime, choose_runtime, readable
from controller.service_view import Component, Model, Service, Storage

MESH_FORMATS = {"sklearn": ("sklearn", None), "pytorch": ("torch", "torch")}
"""KServe's name -> what a pod must have, and what the spec says; None: the pod looks, since `sklearn` may be skops or a
pickle. Every other format has one name for both."""
MESH_PROTOCOLS = ("v1", "v2", "grpc-v2")
MESH_SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "https", "http", "hf", "oci", "pvc", "file", "git+https")
_SCHEME_OF_TYPE = {"s3": "s3", "gcs": "gs", "gs": "gs", "azure": "az", "pvc": "pvc"}
_BUCKET_OF_SCHEME = {"s3": "bucket", "gs": "bucket", "az": "container", "pvc": "name"}
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_COPIES_LIMIT = 10_000
BATCH_ROWS_LIMIT = 65_536
BATCH_DELAY_MAX_S = 10.0


@dataclass(frozen=True, slots=True)
class Registration:
    """A model that shall be registered, with this spec."""

    id: str
    spec: dict[str, Any]
    """As `mesh.client.SpecFields`."""
    load_now: bool = False
    """Load it without waiting for a request."""


@dataclass(frozen=True, slots=True)
class Against:
    """Something that keeps a service off the mesh. `reason` is one of the status's."""

    path: str
    problem: str
    reason: str = "InvalidPredictorSpec"
    moves: bool = True
    """Pods of its own could do it."""
    of_object: bool = True
    """False: it lies in what the mesh is just now, and may pass without a change of the object."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True, slots=True)
class OnMesh:
    """It can be served there. `noted` are fields without effect."""

    registration: Registration
    runtime: Runtime | None
    """None: the mesh's own pods, whatever ServingRuntimes there are."""
    noted: tuple[str, ...]


def plan_registration(
    service: Service, objects: Objects, mesh: MeshView, policy: Policy
) -> OnMesh | tuple[Against, ...]:
    """The registration, or all that is against it."""
    spoken = spoken_fields(objects.service)
    against = [
        Against(field.path, field.row.how, moves=field.row.mesh is Handling.MOVED)
        for field in spoken
        if field.row.mesh in (Handling.MOVED, Handling.REFUSED)
    ]
    model = service.model
    if model is None:
        return tuple(against) or (Against(service.predictor.pod.at("containers"), "a container, not a model"),)
    runtime = _runtime(model, objects)
    if isinstance(runtime, NoRuntime):
        against.append(Against(f"{model.where}.runtime", runtime.message, runtime.reason))
        runtime = None
    against.extend(_against_format(model, runtime, mesh))
    uri = _uri(model, objects)
    if isinstance(uri, Against):
        against.append(uri)
        uri = ""
    size_bytes = _size_bytes(model)
    if isinstance(size_bytes, Against):
        against.append(size_bytes)
        size_bytes = None
    if size_bytes is not None and 0 < mesh.capacity_bytes < size_bytes:
        problem = f"the model is said to take {size_bytes} bytes; the mesh's largest pod has {mesh.capacity_bytes}"
        against.append(Against(f"{model.where}.resources.requests.memory", problem, of_object=False))
    if against:
        return tuple(against)
    registration = Registration(
        *_identified(service.name, _spec(service, model, uri, size_bytes)),
        load_now=policy.load_when_applied and service.predictor.replicas_min != 0,
    )
    return OnMesh(registration, runtime, tuple(field.path for field in spoken if field.row.mesh is Handling.NOTED))


def _runtime(model: Model, objects: Objects) -> Runtime | NoRuntime | None:
    runtimes = readable(objects.runtimes, objects.cluster_runtimes)
    chosen = choose_runtime(model, runtimes, multi_model=True)
    return None if isinstance(chosen, NoRuntime) and not model.runtime else chosen


def _against_format(model: Model, runtime: Runtime | None, mesh: MeshView) -> list[Against]:
    against: list[Against] = []
    needed, _ = MESH_FORMATS.get(model.format, (model.format, model.format))
    if needed not in mesh.formats:
        problem = f"no pod of the mesh loads {model.format}; they load {', '.join(sorted(mesh.formats)) or 'nothing'}"
        against.append(Against(f"{model.where}.modelFormat.name", problem, "NoSupportingRuntime", of_object=False))
    if model.protocol and model.protocol not in MESH_PROTOCOLS:
        problem = f"is {model.protocol}; the mesh speaks {', '.join(MESH_PROTOCOLS)}"
        against.append(Against(f"{model.where}.protocolVersion", problem, "NoSupportingRuntime"))
    return against


def _uri(model: Model, objects: Objects) -> str | Against:
    storage = model.storage
    if storage is None:
        return Against(f"{model.where}.storageUri", "is missing; say where the artifact lies", moves=True)
    uri = storage.uri or _uri_within(storage, objects)
    if isinstance(uri, Against):
        return uri
    scheme = _SCHEME.match(uri)
    if scheme is not None and scheme[1] not in MESH_SCHEMES:
        return Against(storage.where, f"scheme {scheme[1]}; the mesh fetches {', '.join(MESH_SCHEMES)}")
    if scheme is None and not uri.startswith("/"):
        return Against(storage.where, f"is {shown(uri)}, neither a URI nor an absolute path", moves=False)
    return uri


def _uri_within(storage: Storage, objects: Objects) -> str | Against:
    """A key and a path as the URI that means the same; without a bucket, the key's own is meant."""
    parameters = dict(storage.parameters)
    kind = parameters.pop("type", "") or objects.storage_types.get(storage.key, "")
    scheme = _SCHEME_OF_TYPE.get(kind)
    if scheme is None:
        found = f"is {shown(kind)}" if kind else "is not said, neither here nor in the key"
        return Against(
            storage.where.replace(".path", ".parameters.type"),
            f"{found}; allowed are {', '.join(_SCHEME_OF_TYPE)}, or give the whole storageUri",
            moves=False,
        )
    bucket = parameters.pop(_BUCKET_OF_SCHEME[scheme], "")
    account = parameters.pop("account_name", "") if scheme == "az" else ""
    if parameters:
        return Against(
            storage.where.replace(".path", f".parameters.{min(parameters)}"),
            "is not taken from an object: it would send the key's requests elsewhere; put it into the key",
            moves=False,
        )
    return f"{scheme}://{bucket}{'@' if account else ''}{account}/{storage.path.lstrip('/')}"


def _size_bytes(model: Model) -> int | Against | None:
    requests = model.container.value.get("resources")
    for name in ("requests", "memory"):
        requests = requests.get(name) if isinstance(requests, dict) else None
    if requests is None:
        return None
    size_bytes = bytes_of(requests)
    if not size_bytes:
        path = f"{model.where}.resources.requests.memory"
        return Against(path, f"is {shown(requests)}; it must be a quantity above 0, such as 512Mi", moves=False)
    return size_bytes


def _spec(service: Service, model: Model, uri: str, size_bytes: int | None) -> dict[str, Any]:
    predictor = service.predictor
    _, format_said = MESH_FORMATS.get(model.format, (model.format, model.format))
    spec: dict[str, Any] = {"uri": uri, "labels": names.mesh_labels(service.name)}
    if format_said is not None:
        spec["format"] = format_said
    if model.storage is not None and model.storage.key:
        spec["storage_key"] = model.storage.key
    if size_bytes is not None:
        spec["capacity_hint_bytes"] = size_bytes
    if predictor.replicas_min:
        spec["copies_min"] = min(predictor.replicas_min, _COPIES_LIMIT)
    if predictor.replicas_max:
        spec["copies_max"] = min(predictor.replicas_max, _COPIES_LIMIT)
    spec.update(_batching(predictor))
    return spec


def _batching(predictor: Component) -> dict[str, Any]:
    batcher = predictor.pod.part("batcher")
    rows_max, latency_ms = batcher.whole("maxBatchSize"), batcher.whole("maxLatency")
    said: dict[str, Any] = {}
    if rows_max:
        said["batch_rows_max"] = min(rows_max, BATCH_ROWS_LIMIT)
    if latency_ms:
        said["batch_delay_s"] = min(latency_ms / 1000, BATCH_DELAY_MAX_S)
    return said


def _identified(service: str, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    decides = json.dumps([spec["uri"], spec.get("format"), spec.get("storage_key")], ensure_ascii=True)
    digest = hashlib.sha1(decides.encode(), usedforsecurity=False).hexdigest()
    return f"{service}__isvc-{digest[:10]}", spec
