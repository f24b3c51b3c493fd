"""The conformance suite of the Open Inference Protocol, as anybody runs it, against a pod and against a pool."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh.client import Client
from tests.conformance.peers.ours import write_models
from tests.conformance.report import Report

if TYPE_CHECKING:
    from tests.e2e.conftest import StartPod, StartPool

SUITE = Path(__file__).parents[1] / "conformance"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """URIs of the models that the suite asks for."""
    return write_models(tmp_path_factory.mktemp("conformance"))


def check(models: Mapping[str, str], registered_at: str, target: str, http: str, directory: Path) -> None:
    """Every case holds."""
    with Client(registered_at) as client:
        for name, uri in models.items():
            client.register(name, uri=uri)
    results = directory / "results.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        SUITE,
        "--target",
        target,
        "--http",
        http,
    ]
    done = subprocess.run([*command, "--report", results], cwd=SUITE.parents[1], capture_output=True, text=True)
    assert results.exists(), done.stdout[-4000:] + done.stderr[-2000:]
    report = Report.from_json(results.read_text())
    assert not report.deviations(), report.as_text()
    assert done.returncode == 0, done.stdout[-4000:]
    skipped = [(each.id, each.why) for each in report.results if each.outcome == "skipped"]
    assert skipped == []
    assert len(report.results) > 200


def test_every_case_holds_for_a_pod(start_pod: StartPod, models: Mapping[str, str], tmp_path: Path) -> None:
    pod = start_pod()
    check(models, pod.target, pod.target, pod.http, tmp_path)


@pytest.mark.etcd
def test_every_case_holds_for_a_pool(start_pool: StartPool, models: Mapping[str, str], tmp_path: Path) -> None:
    first, second = start_pool(2).pods
    check(models, first.grpc_endpoint, second.grpc_endpoint, second.http_endpoint, tmp_path)
