"""Our figures under ModelMesh's names."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from mesh.modelmesh_metrics import WithModelMeshNames
from mesh.telemetry import Sample, Telemetry


def scraped(telemetry: Telemetry) -> dict[str, float]:
    text = generate_latest(WithModelMeshNames(telemetry.registry, wall_clock=lambda: 1000.0)).decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("modelmesh_")]
    return {name: float(value) for name, value in lines}


def test_times_are_added_up_and_told_in_milliseconds() -> None:
    telemetry = Telemetry(CollectorRegistry())
    for format_name, seconds, cold in (("onnx", 0.0015, False), ("xgboost", 0.003, True)):
        telemetry.meter(format_name, "t", "m").answered(seconds, cold=cold)
    telemetry.load_stage("onnx", "fetch", 5.0)
    telemetry.load_stage("onnx", "load", 0.25)
    telemetry.load_failed("onnx", "load", "permanent")
    telemetry.load_failed("onnx", "fetch", "transient")
    found = scraped(telemetry)
    labels = 'code="OK",method="inference.GRPCInferenceService/ModelInfer"'
    assert found[f"modelmesh_api_request_milliseconds_sum{{{labels}}}"] == 4.5
    assert found[f"modelmesh_api_request_milliseconds_count{{{labels}}}"] == 2
    buckets = {name: value for name, value in found.items() if name.startswith("modelmesh_api_request_milliseconds_b")}
    assert [value for name, value in buckets.items() if 'le="2"' in name] == [1]
    assert [value for name, value in buckets.items() if 'le="+Inf"' in name] == [2]
    assert found["modelmesh_loadmodel_milliseconds_sum"] == 250
    assert found["modelmesh_loadmodel_failure"] == 2


def test_gauges_speak_of_what_models_lie_on() -> None:
    telemetry = Telemetry(CollectorRegistry())

    def samples() -> list[Sample]:
        device, disk = (("tier", "device"), ("device", "cpu")), (("tier", "disk"), ("device", ""))
        resident = (("state", "resident"),)
        return [
            Sample("hexcomb_capacity_bytes", "", device, 2000),
            Sample("hexcomb_capacity_bytes", "", disk, 9000),
            Sample("hexcomb_used_bytes", "", (*device, *resident), 500),
            Sample("hexcomb_used_bytes", "", (*disk, *resident), 700),
            Sample("hexcomb_lru_age_seconds", "", (), 60),
            Sample("hexcomb_models_resident", "", (), 3),
            Sample("hexcomb_models_registered", "", (), 40),
        ]

    telemetry.add_samples(samples)
    found = scraped(telemetry)
    assert found["modelmesh_instance_capacity_bytes"] == 2000
    assert found["modelmesh_instance_used_bytes"] == 500
    assert found["modelmesh_instance_used_bps"] == 2500
    assert found["modelmesh_instance_lru_age_seconds"] == 60
    assert found["modelmesh_instance_lru_seconds"] == 940
    assert found["modelmesh_instance_models_total"] == 3
    assert found["modelmesh_models_managed_total"] == 40
