"""What becomes of every field of an InferenceService, on the mesh and in pods of its own: one table.

A pod of the mesh is shared, so what is said of a pod cannot apply to one model in it. Four words say what follows:

* `HONOURED` - it has its effect.
* `NOTED`    - it has no effect there and cannot do harm by that; the service runs, and a condition names the field.
* `MOVED`    - only pods of its own can honour it. Mode Auto takes these; mode ModelMesh refuses the object.
* `REFUSED`  - nobody honours it; the object is refused, and the status names the field.

Rows match by the longest path; `*` stands for any one name, and `{model}` for `spec.predictor.model` or the framework's
(`spec.predictor.sklearn`, ...). What is below a row's path is treated as the row. README.md shows the table, and a test
compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from controller.reading import Manifest
from controller.service_view import FRAMEWORKS


class Handling(Enum):
    """What becomes of a field."""

    HONOURED = "honoured"
    NOTED = "noted"
    MOVED = "moved"
    REFUSED = "refused"


HONOURED, NOTED, MOVED, REFUSED = Handling.HONOURED, Handling.NOTED, Handling.MOVED, Handling.REFUSED


@dataclass(frozen=True, slots=True)
class Row:
    """One field."""

    path: str
    mesh: Handling
    dedicated: Handling
    how: str
    """What it does, or why not."""


MODEL = "{model}"


def _beside(path: str) -> tuple[Row, ...]:
    """Of a transformer or an explainer, which has pods of its own wherever the predictor runs."""
    return (
        Row(f"{path}.autoScaling", REFUSED, REFUSED, "lists of metrics: not built"),
        Row(f"{path}.batcher", REFUSED, REFUSED, "no agent in pods"),
        Row(f"{path}.canaryTrafficPercent", REFUSED, REFUSED, "needs routes with weights: not built"),
        Row(f"{path}.logger", REFUSED, REFUSED, "no agent in pods"),
        Row(f"{path}.scaleMetricType", NOTED, NOTED, "targets are percentages of what is requested"),
        Row(f"{path}.storageUris", REFUSED, REFUSED, "several artifacts: not built"),
        Row(f"{path}.timeout", NOTED, NOTED, "the caller's deadline holds"),
        Row(f"{path}.*", HONOURED, HONOURED, "its container, pod and scaling, in pods of its own"),
    )


TABLE: tuple[Row, ...] = (
    Row("spec.predictor.name", HONOURED, HONOURED, "the children are `<service>-<name>-predictor`"),
    Row("spec.predictor.minReplicas", HONOURED, HONOURED, "copies that are always loaded; the least pods"),
    Row("spec.predictor.maxReplicas", HONOURED, HONOURED, "the most copies; the most pods"),
    Row("spec.predictor.scaleMetric", NOTED, HONOURED, "the mesh scales copies by measured load; pods: cpu, memory"),
    Row("spec.predictor.scaleTarget", NOTED, HONOURED, "as scaleMetric; percent"),
    Row("spec.predictor.scaleMetricType", NOTED, NOTED, "targets are percentages of what is requested"),
    Row("spec.predictor.autoScaling", MOVED, REFUSED, "lists of metrics: not built"),
    Row(
        "spec.predictor.containerConcurrency", NOTED, NOTED, "the mesh bounds runs per pod; there is no proxy in a pod"
    ),
    Row("spec.predictor.timeout", NOTED, NOTED, "the caller's deadline holds"),
    Row("spec.predictor.canaryTrafficPercent", HONOURED, REFUSED, "a weighted alias; pods need routes with weights"),
    Row("spec.predictor.batcher", HONOURED, REFUSED, "maxBatchSize and maxLatency of shared runs; no agent in pods"),
    Row("spec.predictor.batcher.timeout", NOTED, REFUSED, "the caller's deadline holds"),
    Row("spec.predictor.logger", REFUSED, REFUSED, "payload logging is set for a whole pool, by its operator"),
    Row("spec.predictor.labels", NOTED, HONOURED, "of pods"),
    Row("spec.predictor.annotations", NOTED, HONOURED, "of pods"),
    Row("spec.predictor.deploymentStrategy", NOTED, HONOURED, "the mesh loads the new model, then switches"),
    Row("spec.predictor.workerSpec", MOVED, REFUSED, "several nodes for one model: not built"),
    Row("spec.predictor.storageUris", MOVED, REFUSED, "several artifacts: not built"),
    Row("spec.predictor.storageContainerName", MOVED, REFUSED, "ClusterStorageContainers: not built"),
    Row("spec.predictor.containers", MOVED, HONOURED, "a predictor that is a container, or one beside the model's"),
    Row("spec.predictor.*", MOVED, HONOURED, "whatever else is said of the pod: volumes, tolerations, ..."),
    Row("{model}.modelFormat", HONOURED, HONOURED, "which formats: `registration.MESH_FORMATS`"),
    Row("{model}.runtime", HONOURED, HONOURED, "one with `multiModel: true`; one without"),
    Row("{model}.runtimeVersion", MOVED, HONOURED, "the tag of the runtime's image"),
    Row("{model}.protocolVersion", HONOURED, HONOURED, "the mesh speaks v1, v2 and grpc-v2 to every model"),
    Row("{model}.storageUri", HONOURED, HONOURED, "the schemes of `registration.MESH_SCHEMES`"),
    Row("{model}.storage.key", HONOURED, REFUSED, "the namespace's entry of storage-config; pods: use storageUri"),
    Row("{model}.storage.path", HONOURED, REFUSED, "within what the key opens; pods: use storageUri"),
    Row("{model}.storage.parameters", HONOURED, REFUSED, "type and bucket; others belong into the key"),
    Row("{model}.storage.schemaPath", NOTED, NOTED, "the model's own metadata holds"),
    Row("{model}.confidential", REFUSED, REFUSED, "no attestation here"),
    Row("{model}.resources.requests.memory", HONOURED, HONOURED, "the size of a loaded copy, until it is measured"),
    Row("{model}.resources.requests.cpu", NOTED, HONOURED, "the mesh's pods share their cores"),
    Row("{model}.resources.limits.memory", NOTED, HONOURED, "the mesh counts what models take"),
    Row("{model}.resources.limits.cpu", NOTED, HONOURED, "the mesh's pods share their cores"),
    Row("{model}.*", MOVED, HONOURED, "whatever else is said of the container: image, args, env, probes, GPUs, ..."),
    *_beside("spec.transformer"),
    *_beside("spec.explainer"),
    Row("spec.explainer.art", REFUSED, REFUSED, "no such server here; use a container"),
    Row("spec.canary", REFUSED, REFUSED, "needs routes with weights: not built; canaryTrafficPercent on the mesh"),
    Row("spec.*", REFUSED, REFUSED, "no such field in v1beta1"),
)

_ROWS = {tuple(row.path.split(".")): row for row in TABLE}
_INNER = frozenset(path[:length] for path in _ROWS for length in range(1, len(path)))


@dataclass(frozen=True, slots=True)
class Spoken:
    """A field that an object says, and its row."""

    path: str
    row: Row


def spoken_fields(service: Manifest) -> tuple[Spoken, ...]:
    """Every field of the spec that is not null, in the object's order."""
    spec = service.get("spec")
    return tuple(_walk(spec, ("spec",), ("spec",))) if isinstance(spec, dict) else ()


def _walk(value: dict[str, Any], path: tuple[str, ...], pattern: tuple[str, ...]) -> Iterator[Spoken]:
    """`pattern` is the path in the words of the table."""
    for name, below in value.items():
        if below is None:
            continue
        here, ours = (*path, str(name)), (*pattern, str(name))
        if pattern == ("spec", "predictor") and name in (*FRAMEWORKS, "model"):
            ours = (MODEL,)
        if isinstance(below, dict) and (ours in _INNER) and ours not in _ROWS:
            yield from _walk(below, here, ours)
            continue
        row = _ROWS.get(ours) or _ROWS.get((*ours[:-1], "*")) or _row_above(ours)
        if isinstance(below, dict) and ours in _INNER:
            inner = [deeper for deeper in below if (*ours, deeper) in _ROWS]
            yield from _walk({deeper: below[deeper] for deeper in inner}, here, ours)
            if len(inner) == len(below) and inner:
                continue
        yield Spoken(".".join(here), row)


def _row_above(pattern: tuple[str, ...]) -> Row:
    for length in range(len(pattern) - 1, 0, -1):
        found = _ROWS.get(pattern[:length]) or _ROWS.get((*pattern[: length - 1], "*"))
        if found is not None:
            return found
    return _ROWS[("spec", "*")]


def table_in_markdown() -> str:
    """The table as README.md shows it."""
    lines = ["| field | on the mesh | pods of its own | |", "|---|---|---|---|"]
    lines += [f"| `{row.path}` | {row.mesh.value} | {row.dedicated.value} | {row.how} |" for row in TABLE]
    return "\n".join(lines)
