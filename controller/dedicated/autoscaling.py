"""How many pods: a HorizontalPodAutoscaler, a ScaledObject of KEDA, or a number.

By the annotation `serving.kserve.io/autoscalerClass`: `hpa` (the default), `keda`, `external` (somebody else scales
the Deployment) and `none` (`minReplicas` pods). An autoscaler measures processor or memory; KServe accepts
`concurrency` and `rps` here and then ignores them, so they are refused. It also turns `minReplicas: 0` into 1 without a
word: so do we, since nothing wakes a pod, and the condition `FieldsHonoured` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controller import names
from controller.reading import InvalidField
from controller.service_view import Component, Service

SCALED_OBJECT = "keda.sh/v1alpha1/ScaledObject"
_CLASSES = ("hpa", "keda", "external", "none")
_TARGET_DEFAULT = 80
"""Percent of what is requested, as in KServe."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """`replicas`: written into the Deployment; None where somebody else does."""

    replicas: int | None
    api_version: str = ""
    kind: str = ""
    spec: dict[str, Any] | None = None
    """Of the autoscaler; None: there is none."""


def scaling_of(service: Service, component: Component, target: str, kinds: frozenset[str]) -> Scaling:
    """For the Deployment named `target`. Raises InvalidField."""
    scaler = service.annotations.get(names.AUTOSCALER_CLASS, "hpa")
    if scaler not in _CLASSES:
        path = f"metadata.annotations[{names.AUTOSCALER_CLASS}]"
        raise InvalidField(path, f"is {scaler!r}; allowed are {', '.join(_CLASSES)}")
    replicas_min = component.replicas_min if component.replicas_min is not None else 1
    if scaler == "none":
        return Scaling(max(replicas_min, 1))
    if scaler == "external":
        return Scaling(None)
    metric = _metric(component)
    if scaler == "keda":
        return _scaled_object(component, target, kinds, metric)
    replicas_min = max(replicas_min, 1)
    average = {"type": "Utilization", "averageUtilization": _target(component)}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
        "minReplicas": replicas_min,
        "maxReplicas": max(component.replicas_max, replicas_min),
        "metrics": [{"type": "Resource", "resource": {"name": metric, "target": average}}],
    }
    return Scaling(None, "autoscaling/v2", "HorizontalPodAutoscaler", spec)


def _scaled_object(component: Component, target: str, kinds: frozenset[str], metric: str) -> Scaling:
    if SCALED_OBJECT not in kinds:
        path = f"metadata.annotations[{names.AUTOSCALER_CLASS}]"
        raise InvalidField(path, f"is keda, and the cluster has no {SCALED_OBJECT}; install KEDA, or use hpa")
    replicas_min = max(component.replicas_min if component.replicas_min is not None else 1, 1)
    trigger = {"type": metric, "metricType": "Utilization", "metadata": {"value": str(_target(component))}}
    spec = {
        "scaleTargetRef": {"name": target},
        "minReplicaCount": replicas_min,
        "maxReplicaCount": max(component.replicas_max, replicas_min),
        "triggers": [trigger],
    }
    return Scaling(None, "keda.sh/v1alpha1", "ScaledObject", spec)


def _metric(component: Component) -> str:
    metric = component.scale_metric or "cpu"
    if metric not in ("cpu", "memory"):
        path = component.pod.at("scaleMetric")
        raise InvalidField(path, f"is {metric}; pods scale by cpu or memory. The mesh scales copies by load")
    return metric


def _target(component: Component) -> int:
    target = component.scale_target if component.scale_target is not None else _TARGET_DEFAULT
    if target > 100:
        raise InvalidField(component.pod.at("scaleTarget"), f"is {target}; it is a percentage, from 1 to 100")
    return target
