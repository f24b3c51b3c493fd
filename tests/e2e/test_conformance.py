"""The conformance suite of the Open Inference Protocol, as anybody runs it, against a pod and against a pool."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesh.client import Client
from tests.conformance.report import Report

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod, StartPool

SUITE = Path(__file__).parents[1] / "conformance"
ONNX_TYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8",
    "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE",
    "BF16": "BFLOAT16",
}  # fmt: skip
ANY_BYTES = """
from runtime_adapters.custom import Model, TensorSpec


class Same(Model):
    inputs = (TensorSpec("x", "BYTES", (-1, 4)),)
    outputs = (TensorSpec("y", "BYTES", (-1, 4)),)

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""
"""Not ONNX, whose strings are text."""
UNCLAIMED = "is not advertised|ModelStreamInfer is not there"
"""What a pod does not claim to do."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, files: ModelFiles) -> Mapping[str, str]:
    """The models that the suite asks for, by its names, as ONNX: their URIs."""
    from onnx import TensorProto, helper, save

    directory = tmp_path_factory.mktemp("conformance")

    def write(name: str, nodes: list[Any], inputs: list[str], outputs: list[str], kind: str) -> str:
        element = getattr(TensorProto, kind)
        described = [
            [helper.make_tensor_value_info(each, element, ["N", 4]) for each in names] for names in (inputs, outputs)
        ]
        graph = helper.make_graph(nodes, name, *described)
        path = directory / f"{name}.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        return path.as_uri()

    found = {
        f"identity_{datatype.lower()}": write(
            f"identity_{datatype.lower()}", [helper.make_node("Identity", ["x"], ["y"])], ["x"], ["y"], kind
        )
        for datatype, kind in ONNX_TYPES.items()
    }
    both = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    found["identity_bytes"] = files.python(ANY_BYTES, "same").as_uri()
    found["pair"] = write("pair", both, ["a", "b"], ["sum", "difference"], "FLOAT")
    return found


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
    assert [each for each in skipped if not re.search(UNCLAIMED, each[1])] == [], skipped
    assert len(report.results) > 200


def test_every_case_holds_for_a_pod(start_pod: StartPod, models: Mapping[str, str], tmp_path: Path) -> None:
    pod = start_pod()
    check(models, pod.target, pod.target, pod.http, tmp_path)


@pytest.mark.etcd
def test_every_case_holds_for_a_pool(start_pool: StartPool, models: Mapping[str, str], tmp_path: Path) -> None:
    first, second = start_pool(2).pods
    check(models, first.grpc_endpoint, second.grpc_endpoint, second.http_endpoint, tmp_path)
