"""How the artifact comes to `/mnt/models` of the predictor's container: KServe's storage initialiser, or a claim.

A controller that writes the pod itself needs no webhook for pods: what KServe's webhook puts into them stands in the
Deployment here, where people see it.

* any scheme that the initialiser fetches - an init container writes into an emptyDir, which the server sees read-only;
* `pvc://claim/path` - the claim itself, no copy;
* `oci+native://image` - an image volume (Kubernetes 1.33 or later).

Credentials come from the pod's service account as the cloud gives them (workload identity).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller.reading import InvalidField

MODEL_DIR = "/mnt/models"
_FETCHED_VOLUME = "kserve-provision-location"
_CLAIM_VOLUME = "kserve-pvc-source"
_IMAGE_VOLUME = "kserve-oci-image"
FETCHED = ("s3", "gs", "https", "http", "hdfs", "webhdfs", "hf", "modelscope", "abfs", "abfss")
"""Schemes that the storage initialiser takes; Azure's buckets are https."""


@dataclass(frozen=True, slots=True)
class ModelVolume:
    """What a pod needs so that its server finds the artifact."""

    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    init_containers: list[dict[str, Any]] = field(default_factory=list)


def model_volume(uri: str, path: str, initialiser_image: str, read_only: bool) -> ModelVolume:
    """Raises InvalidField for a place from which nothing here fetches; `path` is where it is written."""
    scheme, separator, rest = uri.partition("://")
    # The API server does not keep `false` here.
    seen_as = {"readOnly": True} if read_only else {}
    if not separator:
        raise InvalidField(path, "is a path in a pod's own image; give a URI, such as s3://bucket/model")
    if scheme == "pvc":
        claim, _, inner = rest.partition("/")
        if not claim:
            raise InvalidField(path, "names no claim; write pvc://claim/path")
        mount: dict[str, Any] = {"name": _CLAIM_VOLUME, "mountPath": MODEL_DIR, **seen_as}
        if inner.strip("/"):
            mount["subPath"] = inner.strip("/")
        claimed = {"name": _CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}}
        return ModelVolume([mount], [claimed])
    if scheme == "oci+native":
        mounted = {"name": _IMAGE_VOLUME, "mountPath": MODEL_DIR, "subPath": "models", "readOnly": True}
        image = {"name": _IMAGE_VOLUME, "image": {"reference": rest, "pullPolicy": "IfNotPresent"}}
        return ModelVolume([mounted], [image])
    if scheme not in FETCHED:
        raise InvalidField(path, f"scheme {scheme}; pods fetch {', '.join(FETCHED)}, pvc and oci+native")
    fetched = {
        "name": "storage-initializer",
        "image": initialiser_image,
        "args": [uri, MODEL_DIR],
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": _FETCHED_VOLUME, "mountPath": MODEL_DIR}],
    }
    return ModelVolume(
        [{"name": _FETCHED_VOLUME, "mountPath": MODEL_DIR, **seen_as}],
        [{"name": _FETCHED_VOLUME, "emptyDir": {}}],
        [fetched],
    )
