"""NVIDIA's perf_analyzer measures a pod, and a pool, to the end, with the statistics that they advertise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh.client import Client
from tests.e2e.perf_analyzer import analyze

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod, StartPool

README = Path(__file__).parents[2] / "README.md"

pytestmark = [pytest.mark.clients, pytest.mark.slow]


def counted(printed: str, what: str) -> int:
    """A count in what it printed of the server."""
    found = re.search(rf"{what}: (\d+)", printed)
    assert found, printed
    return int(found[1])


def test_it_measures_a_pod_over_both_protocols(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("words", uri=files.words().uri)
    for protocol, address in (("grpc", pod.target), ("http", pod.http.removeprefix("http://"))):
        printed = analyze("scale", protocol, address, "-b", "3", "--concurrency-range", "2")
        assert counted(printed, "Inference count") == 3 * counted(printed, "Successful request count") > 0
    assert counted(analyze("words", "grpc", pod.target, "--shape", "text:2"), "Successful request count") > 0
    with pod.client() as client:
        client.infer("scale", files.scale().inputs)


def test_the_command_of_the_readme_runs_as_it_stands(start_pod: StartPod, files: ModelFiles) -> None:
    pod = start_pod()
    with pod.client() as client:
        client.register("iris", uri=files.iris().uri)
    found = re.search(r"<!-- run perf -->\n```bash\nperf_analyzer (.*?)\n```$", README.read_text(), re.S | re.M)
    assert found is not None
    model_option, model, *options = found[1].replace("127.0.0.1:8033", pod.target).split()
    assert model_option == "-m"
    assert options[:2] == ["-u", pod.target]
    assert counted(analyze(model, "grpc", pod.target, *options[2:]), "Successful request count") > 0


def test_it_measures_a_pool_whose_other_pod_has_the_model(start_pool: StartPool, files: ModelFiles) -> None:
    pool = start_pool(2)
    first, second = pool.pods
    with Client(first.grpc_endpoint) as client:
        client.register("scale", uri=files.scale().uri)
        client.infer("scale", files.scale().inputs)
    printed = analyze("scale", "grpc", second.grpc_endpoint)
    assert counted(printed, "Successful request count") > 0
    assert counted(printed, "Inference count") > 0
