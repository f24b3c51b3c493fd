"""Children of every documented service, tried on a real API server: it takes them, and keeps them as they were said."""

from __future__ import annotations

from typing import Any

import pytest

from controller.desired import desired
from controller.objects import Objects
from controller.owned_children import contains
from tests.cluster.control_plane import ControlPlane
from tests.unit.controller.builders import NOW_S, World
from tests.unit.controller.test_samples import SERVICES, kserves_runtimes

TRY = "fieldManager=hexcomb-controller&force=true&dryRun=All"
GROUPS = {
    "Service": "/api/v1/namespaces/{}/services/{}",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments/{}",
    "HorizontalPodAutoscaler": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers/{}",
}


def children_of(sample: dict[str, Any], namespace: str) -> tuple[Any, ...]:
    spec = {name: sample[name] for name in ("predictor", "transformer", "explainer") if name in sample}
    annotations = sample.get("annotations", {})
    metadata = {"name": "sample", "namespace": namespace, "uid": "u", "generation": 1, "annotations": annotations}
    world = World()
    objects = Objects({"metadata": metadata, "spec": spec}, cluster_runtimes=kserves_runtimes())
    return desired(objects, world.mesh, world.policy, NOW_S).children


@pytest.mark.parametrize("sample", SERVICES, ids=lambda sample: sample["chapter"])
def test_the_api_server_takes_and_keeps_what_is_wanted(cluster: ControlPlane, sample: dict[str, Any]) -> None:
    for child in children_of(sample, "default"):
        path = GROUPS[child["kind"]].format("default", child["metadata"]["name"])
        kept = cluster.admin.send("PATCH", f"{path}?{TRY}", child, "application/apply-patch+yaml")
        assert contains(kept, child), f"it keeps {kept['spec']} of {child['spec']}"
