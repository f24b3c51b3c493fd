"""Metrics: bound once, labelled by format unless asked otherwise, gone with their model."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from mesh.telemetry import Sample, Telemetry


def text_of(telemetry: Telemetry) -> str:
    return generate_latest(telemetry.registry).decode()


def test_two_pods_in_one_process_do_not_collide() -> None:
    one, other = Telemetry(CollectorRegistry()), Telemetry(CollectorRegistry())
    one.meter("onnx", "default", "m").answered(0.001, cold=False)
    assert 'hexcomb_request_seconds_count{format="onnx",outcome="hit"} 1.0' in text_of(one)
    assert 'hexcomb_request_seconds_count{format="onnx",outcome="hit"}' not in text_of(other)


def test_models_of_a_format_share_their_series() -> None:
    telemetry = Telemetry(CollectorRegistry())
    assert telemetry.meter("onnx", "default", "a") is telemetry.meter("onnx", "default", "b")
    telemetry.meter("onnx", "default", "a").answered(0.001, cold=False)
    telemetry.meter("onnx", "default", "b").answered(0.001, cold=True)
    telemetry.meter("onnx", "default", "b").failed("INTERNAL")
    text = text_of(telemetry)
    assert 'hexcomb_request_seconds_count{format="onnx",outcome="hit"} 1.0' in text
    assert 'hexcomb_request_seconds_count{format="onnx",outcome="miss"} 1.0' in text
    assert 'hexcomb_request_errors_total{code="INTERNAL",format="onnx"} 1.0' in text
    assert 'model="' not in text


def test_per_model_series_are_there_when_asked_for_and_leave_with_the_model() -> None:
    telemetry = Telemetry(CollectorRegistry(), per_model=True)
    for name in ("going", "staying"):
        meter = telemetry.meter("onnx", "default", name)
        meter.answered(0.001, cold=False)
        meter.failed("INTERNAL")
    assert text_of(telemetry).count('model="going"') > 2
    telemetry.forget("onnx", "default", "going")
    telemetry.forget("onnx", "default", "never-seen")
    assert 'model="going"' not in text_of(telemetry)
    assert 'model="staying"' in text_of(telemetry)
    telemetry.meter("onnx", "default", "going").answered(0.001, cold=False)  # registered again: counted from nothing
    assert 'hexcomb_request_seconds_count{format="onnx",model="going",outcome="hit",tenant="default"} 1.0' in text_of(
        telemetry
    )


def test_samples_are_computed_at_each_scrape_with_the_type_that_their_name_says() -> None:
    telemetry = Telemetry(CollectorRegistry())
    number = 0.0

    def read() -> list[Sample]:
        return [
            Sample("hexcomb_things_total", "Things.", (), number),
            Sample("hexcomb_bytes", "Bytes.", (("tier", "disk"),), 5.0),
            Sample("hexcomb_bytes", "Bytes.", (("tier", "device"),), 7.0),
        ]

    telemetry.add_samples(read)
    number = 3.0
    text = text_of(telemetry)
    assert "# TYPE hexcomb_things_total counter" in text
    assert "hexcomb_things_total 3.0" in text
    assert "# TYPE hexcomb_bytes gauge" in text
    assert 'hexcomb_bytes{tier="disk"} 5.0' in text
    assert 'hexcomb_bytes{tier="device"} 7.0' in text
    assert "_created" not in text


def test_loads_unloads_and_evictions_are_counted_by_format() -> None:
    telemetry = Telemetry(CollectorRegistry())
    telemetry.load_stage("onnx", "load", 0.002)
    telemetry.load_failed("onnx", "fetch", "transient")
    telemetry.unloaded("onnx", 0.001)
    telemetry.evicted("onnx", 12.0)
    text = text_of(telemetry)
    for line in (
        'hexcomb_load_seconds_count{format="onnx",stage="load"} 1.0',
        'hexcomb_load_failures_total{format="onnx",kind="transient",stage="fetch"} 1.0',
        'hexcomb_unload_seconds_count{format="onnx"} 1.0',
        'hexcomb_eviction_idle_seconds_sum{format="onnx"} 12.0',
    ):
        assert line in text
