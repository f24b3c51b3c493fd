"""Every row of the table of fields, tried on an object that says the field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.dedicated.planning import InPods, plan_dedicated
from controller.fields import MODEL, TABLE, Handling, Row, spoken_fields, table_in_markdown
from controller.mesh_view import MeshView
from controller.objects import Objects
from controller.policy import Policy
from controller.registration import OnMesh, plan_registration
from controller.service_view import read_service
from tests.unit.controller.builders import FORMATS, World, reason, runtime, service

SAID: dict[str, Any] = {
    "spec.predictor.name": "blue",
    "spec.predictor.minReplicas": 2,
    "spec.predictor.maxReplicas": 3,
    "spec.predictor.scaleMetric": "rps",
    "spec.predictor.scaleTarget": 5,
    "spec.predictor.scaleMetricType": "Utilization",
    "spec.predictor.autoScaling": {"metrics": [{"type": "Resource"}]},
    "spec.predictor.containerConcurrency": 4,
    "spec.predictor.timeout": 30,
    "spec.predictor.canaryTrafficPercent": 10,
    "spec.predictor.batcher": {"maxBatchSize": 16, "maxLatency": 20},
    "spec.predictor.batcher.timeout": 60,
    "spec.predictor.logger": {"mode": "all", "url": "http://sink"},
    "spec.predictor.labels": {"team": "a"},
    "spec.predictor.annotations": {"note": "b"},
    "spec.predictor.deploymentStrategy": {"type": "Recreate"},
    "spec.predictor.workerSpec": {"pipelineParallelSize": 2},
    "spec.predictor.storageUris": [{"uri": "s3://models/lora"}],
    "spec.predictor.storageContainerName": "default",
    "spec.predictor.containers": [{"name": "beside", "image": "x"}],
    "spec.predictor.*": ("tolerations", [{"operator": "Exists"}]),
    "{model}.modelFormat": {"name": "onnx"},
    "{model}.runtime": "pool",
    "{model}.runtimeVersion": "1.2",
    "{model}.protocolVersion": "v2",
    "{model}.storageUri": "s3://models/other",
    "{model}.storage.key": "bucket",
    "{model}.storage.path": "other",
    "{model}.storage.parameters": {"bucket": "b"},
    "{model}.storage.schemaPath": "schema.json",
    "{model}.confidential": {"enabled": True},
    "{model}.resources.requests.memory": "1Gi",
    "{model}.resources.requests.cpu": "1",
    "{model}.resources.limits.memory": "1Gi",
    "{model}.resources.limits.cpu": "1",
    "{model}.*": ("args", ["--debug"]),
    **{
        f"spec.{role}.{name}": value
        for role in ("transformer", "explainer")
        for name, value in {
            "autoScaling": {"metrics": []},
            "batcher": {"maxBatchSize": 2},
            "canaryTrafficPercent": 10,
            "logger": {"mode": "all"},
            "scaleMetricType": "Utilization",
            "storageUris": [{"uri": "s3://x"}],
            "timeout": 5,
            "*": ("containers", [{"image": "x"}]),
        }.items()
    },
    "spec.explainer.art": {"type": "SquareAttack"},
    "spec.canary": [{"name": "blue"}],
    "spec.*": ("surprise", 1),
}
BY_KEY = {"key": "bucket", "path": "iris", "parameters": {"type": "s3"}}
POOL = runtime("pool", {"name": "sklearn"}, multiModel=True)


def saying(row: Row) -> tuple[dict[str, Any], str]:
    """An object that says the row's field, and the field's path in it."""
    value = SAID[row.path]
    path = row.path
    if path.endswith(".*"):
        name, value = value
        path = path.removesuffix("*") + name
    path = path.replace(MODEL, "spec.predictor.model")
    said = service()
    fields: dict[str, Any] = {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/iris"}
    if ".storage." in path:
        del fields["storageUri"]
        fields["storage"] = dict(BY_KEY)
    if path.endswith("storageUris"):
        del fields["storageUri"]
    said["spec"]["predictor"] = {"model": fields}
    *parents, last = path.split(".")
    inner: dict[str, Any] = said
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = {"type": "s3", **value} if last == "parameters" else value
    return said, path


def test_readme_has_the_table() -> None:
    readme = Path(__file__).parents[3] / "controller" / "README.md"
    shown = readme.read_text().partition("<!-- fields -->\n")[2].partition("\n<!-- /fields -->")[0]
    assert shown == table_in_markdown(), "write table_in_markdown() into controller/README.md"


def test_every_row_is_tried() -> None:
    assert list(SAID) == [row.path for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.path)
def test_a_field_on_the_mesh_has_the_handling_of_its_row(row: Row) -> None:
    said, path = saying(row)
    assert row in [spoken.row for spoken in spoken_fields(said) if path in spoken.path or spoken.path in path]
    objects = Objects(said, cluster_runtimes=(POOL,))
    planned = plan_registration(read_service(said), objects, MeshView(True, FORMATS, 2**31), Policy())
    if row.mesh in (Handling.MOVED, Handling.REFUSED):
        assert not isinstance(planned, OnMesh)
        (found,) = [against for against in planned if against.path == path]
        assert found.moves is (row.mesh is Handling.MOVED)
        world = World(said, runtimes=(POOL,))
        world.turn()
        assert reason(world.status) == ("False", "InvalidPredictorSpec")
        assert not world.mesh.models
    else:
        assert isinstance(planned, OnMesh), planned
        assert (path in planned.noted) is (row.mesh is Handling.NOTED)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.path)
def test_a_field_in_pods_of_its_own_has_the_handling_of_its_row(row: Row) -> None:
    said, path = saying(row)
    if row.path == "spec.predictor.scaleMetric":
        said["spec"]["predictor"]["scaleMetric"] = "memory"
    if row.path == "spec.predictor.containers":
        del said["spec"]["predictor"]["model"]
    server = runtime("pool", {"name": "sklearn", "autoSelect": True}, {"name": "onnx", "autoSelect": True})
    objects = Objects(said, cluster_runtimes=(server,))
    planned = plan_dedicated(read_service(said), objects, Policy())
    if row.dedicated is Handling.REFUSED:
        assert not isinstance(planned, InPods)
        assert path in [against.path for against in planned]
        return
    if path.endswith("schemaPath"):
        return  # What it stands beside is refused.
    assert isinstance(planned, InPods), planned
    assert (path in planned.noted) is (row.dedicated is Handling.NOTED)
    if row.dedicated is Handling.HONOURED and path.startswith("spec.predictor"):
        plain = service({"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models/iris"}})
        without = plan_dedicated(read_service(plain), replace(objects, service=plain), Policy())
        same = planned.workload == without.workload if isinstance(without, InPods) else False
        # Those that choose among runtimes need not change what is chosen.
        assert not same or path.endswith(("modelFormat", "runtime", "protocolVersion"))


def test_fields_of_the_old_style_are_those_of_the_model() -> None:
    said = service(
        {"sklearn": {"storageUri": "s3://b/x", "env": [{"name": "A"}], "resources": {"limits": {"cpu": "1"}}}}
    )
    handled = {spoken.path: spoken.row.mesh for spoken in spoken_fields(said)}
    assert handled == {
        "spec.predictor.sklearn.storageUri": Handling.HONOURED,
        "spec.predictor.sklearn.env": Handling.MOVED,
        "spec.predictor.sklearn.resources.limits.cpu": Handling.NOTED,
    }


def test_a_gpu_is_a_matter_of_pods() -> None:
    gpu = {"nvidia.com/gpu": 1}
    said = service({"onnx": {"storageUri": "s3://b/x", "resources": {"limits": gpu, "requests": gpu}}})
    assert {spoken.row.mesh for spoken in spoken_fields(said)} == {Handling.HONOURED, Handling.MOVED}
