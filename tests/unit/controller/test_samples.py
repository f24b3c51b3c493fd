"""What KServe's documentation shows, each in the mode and with the children that one expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.desired import desired
from controller.names import predictor_name
from controller.objects import Objects
from tests.unit.controller.builders import NOW_S, World, message, reason, runtime

SAMPLES = Path(__file__).parent / "samples"
SERVICES: list[dict[str, Any]] = yaml.safe_load((SAMPLES / "services.yaml").read_text())
KINDS = frozenset({"keda.sh/v1alpha1/ScaledObject"})


def kserves_runtimes() -> tuple[dict[str, Any], ...]:
    """All of KServe's."""
    names = ("name", "version", "autoSelect", "priority")
    return tuple(
        runtime(
            described["name"],
            *(dict(zip(names, one, strict=True)) for one in described["formats"]),
            protocolVersions=described["protocols"],
            containers=[{"name": "kserve-container", "image": f"example/{described['name']}:1"}],
        )
        for described in yaml.safe_load((SAMPLES / "runtimes.yaml").read_text())
    )


@pytest.mark.parametrize("sample", SERVICES, ids=lambda sample: sample["chapter"])
def test_a_sample_ends_where_one_expects(sample: dict[str, Any]) -> None:
    spec = {name: sample[name] for name in ("predictor", "transformer", "explainer") if name in sample}
    metadata = {"name": "sample", "namespace": "default", "uid": "u", "generation": 1}
    said = {"metadata": {**metadata, "annotations": sample.get("annotations", {})}, "spec": spec}
    decided = desired(
        Objects(said, cluster_runtimes=kserves_runtimes(), kinds=KINDS), World().mesh, World().policy, NOW_S
    )
    if "refused" in sample:
        assert decided.hold
        assert reason(decided.status, "Ready")[0] == "False"
        assert sample["refused"] in message(decided.status)
        return
    assert decided.mode is not None
    assert decided.mode.value == sample["mode"], message(decided.status, "ModeChosen")
    children = [(child["kind"], child["metadata"]["name"]) for child in decided.children]
    name = predictor_name("sample")
    beside = [tuple(one.split()) for one in sample.get("beside", ())]
    assert children == [*((kind, name) for kind in sample.get("children", ())), ("Service", name), *beside]
    assert len(decided.registrations) == (decided.mode.value == "ModelMesh")
    if "runtime" in sample:
        assert decided.status["clusterServingRuntimeName"] == sample["runtime"]
