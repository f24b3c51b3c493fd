"""The HTTP side: alive, ready, and what the pod counts, in words that dashboards can rely on."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.client import InvalidRequest, Refused, RetryPolicy

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

ONE_TRY = RetryPolicy(attempts_max=1)

HISTOGRAMS = {
    "hexcomb_request_seconds": {"format", "outcome"},
    "hexcomb_load_seconds": {"format", "stage"},
    "hexcomb_unload_seconds": {"format"},
    "hexcomb_eviction_idle_seconds": {"format"},
    "hexcomb_queue_wait_seconds": set(),
    "hexcomb_run_queue_seconds": set(),
    "hexcomb_run_requests": {"format"},
}
COUNTERS = {
    "hexcomb_request_errors": {"format", "code"},
    "hexcomb_load_failures": {"format", "stage", "kind"},
    "hexcomb_requests_refused": {"reason"},
    "hexcomb_cache_hits": set(),
    "hexcomb_cache_misses": set(),
}
GAUGES = {
    "hexcomb_capacity_bytes": {"tier", "device"},
    "hexcomb_used_bytes": {"tier", "device", "state"},
    "hexcomb_resident_model_bytes": {"source"},
    "hexcomb_lru_age_seconds": set(),
    "hexcomb_models_registered": set(),
    "hexcomb_models_resident": set(),
    "hexcomb_models_loading": set(),
    "hexcomb_loads_queued": set(),
    "hexcomb_requests_waiting": set(),
    "hexcomb_requests_in_flight": set(),
    "hexcomb_ready": set(),
}


def read(url: str) -> tuple[int, str, str]:
    """Status, content type, body."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


class Scrape:
    """One reading of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, sample: str, **labels: str) -> float:
        """The sum of a sample's values over the series that carry these labels."""
        return sum(
            each.value
            for family in self.families.values()
            for each in family.samples
            if each.name == sample and all(each.labels.get(name) == value for name, value in labels.items())
        )


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    """A pod that has known hits, misses, an eviction, a failed load and refused requests."""
    pod = start_module_pod(capacity="20MiB", residency_min_s=0)
    with pod.client(retry=ONE_TRY) as client:
        for index in range(3):
            client.register(f"m{index}", uri=files.scale(index + 2.0, 8 << 20).uri, capacity_hint_bytes=9 << 20)
        for name in ("m0", "m0", "m0", "m1", "m2"):
            client.infer(name, files.scale().inputs)
        client.register("bad", uri=(tmp_path_factory.mktemp("none") / "absent.onnx").as_uri(), format="onnx")
        with pytest.raises(Refused):
            client.infer("bad", files.scale().inputs)
        with pytest.raises(InvalidRequest):
            client.infer("m2", {"x": files.scale().inputs["x"][:, :2]})
    pod.wait_settled()
    return pod


@pytest.fixture
def scrape(pod: Pod) -> Scrape:
    status, content_type, text = read(f"{pod.http}/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    return Scrape(text)


def test_a_pod_is_alive_and_ready(pod: Pod) -> None:
    assert read(f"{pod.http}/healthz")[0] == 200
    status, _, body = read(f"{pod.http}/readyz")
    assert (status, body.strip()) == (200, "ready")
    assert read(f"{pod.http}/nothing-here")[0] == 404


@pytest.mark.parametrize(
    ("families", "kind"),
    [(HISTOGRAMS, "histogram"), (COUNTERS, "counter"), (GAUGES, "gauge")],
    ids=lambda v: str(v)[:9],
)
def test_every_promised_family_is_there_with_its_type_labels_and_help(
    scrape: Scrape, families: dict[str, set[str]], kind: str
) -> None:
    for name, labels in families.items():
        family = scrape.families[name]
        assert family.type == kind, name
        assert family.documentation, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name


def test_counts_agree_with_what_was_done_and_with_the_status(scrape: Scrape, pod: Pod) -> None:
    status = pod.status()
    assert scrape.value("hexcomb_request_seconds_count", outcome="hit") == 2
    assert scrape.value("hexcomb_request_seconds_count", outcome="miss") == 3
    assert scrape.value("hexcomb_request_seconds_count", format="onnx") == 5
    assert scrape.value("hexcomb_load_seconds_count", format="onnx", stage="load") == 3
    assert scrape.value("hexcomb_load_failures_total", stage="fetch", kind="permanent", format="onnx") == 1
    assert scrape.value("hexcomb_eviction_idle_seconds_count", format="onnx") == status.evictions >= 1
    assert scrape.value("hexcomb_unload_seconds_count") == status.evictions
    assert scrape.value("hexcomb_queue_wait_seconds_count") == 3
    assert scrape.value("hexcomb_request_errors_total", code="INVALID_ARGUMENT") == 1
    assert scrape.value("hexcomb_requests_refused_total") == 1
    assert scrape.value("hexcomb_cache_hits_total") == status.hits == 3
    assert scrape.value("hexcomb_cache_misses_total") == status.misses == 4
    assert scrape.value("hexcomb_models_registered") == 4
    assert scrape.value("hexcomb_models_resident") == status.models_resident
    assert scrape.value("hexcomb_capacity_bytes", tier="device") == 20 << 20
    assert 0 < scrape.value("hexcomb_used_bytes", tier="device", state="resident") <= 20 << 20
    assert scrape.value("hexcomb_used_bytes", tier="disk", state="resident") > 0
    assert scrape.value("hexcomb_lru_age_seconds") > 0
    resident = status.models_resident
    assert scrape.value("hexcomb_resident_model_bytes", source="declared") == resident * (9 << 20)
    for source in ("estimated", "measured"):
        assert scrape.value("hexcomb_resident_model_bytes", source=source) > 0
    assert scrape.value("hexcomb_ready") == 1


def test_no_model_is_named_in_a_metric_unless_asked_for(pod: Pod, start_pod: StartPod, files: ModelFiles) -> None:
    assert not re.search(r'"m\d"', read(f"{pod.http}/metrics")[2])
    named = start_pod(metrics_per_model=True)
    example = files.scale()
    with named.client(retry=ONE_TRY) as client:
        client.register('odd"name\\n{}', uri=example.uri)
        client.infer('odd"name\\n{}', example.inputs)
        client.infer('odd"name\\n{}', example.inputs)
        scrape = Scrape(read(f"{named.http}/metrics")[2])
        assert scrape.value("hexcomb_request_seconds_count", model='odd"name\\n{}', format="onnx") == 2
        client.unregister('odd"name\\n{}')
        named.wait_settled()
        named.wait_until(lambda: "odd" not in read(f"{named.http}/metrics")[2], "the series left with the model")


def test_the_ready_file_says_where_the_pod_is(pod: Pod) -> None:
    (ready,) = pod.log.parent.glob("ready-*.json")
    assert json.loads(ready.read_text()) == {
        "grpc_port": pod.grpc_port,
        "http_port": pod.http_port,
        "pid": pod.process.pid,
    }
