"""The kserve package's clients, in an environment of their own: every call of theirs, the README's example, and our
client in the same process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesh.demo.ports import free_ports
from tests.bench.peers.environments import python_of

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("kserve==0.21.0", "cachetools>=6.0", "ml-dtypes>=0.5")
"""The last two are what our client needs beside what kserve brings."""
TIMEOUT_S = 120

_CALLS = """
import asyncio, sys
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

target, url = sys.argv[1:]
X = np.array([[1, 2, 3, 4]], np.float32)


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def request(binary):
    asked = InferInput("x", [1, 4], "FP32")
    asked.set_data_from_numpy(X, binary_data=binary)
    return InferRequest(model_name="scale", infer_inputs=[asked])


async def over_grpc():
    client = InferenceGRPCClient(target)
    assert public(InferenceGRPCClient) == {
        "close", "infer", "is_model_ready", "is_server_live", "is_server_ready"
    }, public(InferenceGRPCClient)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("scale")
    assert not await client.is_model_ready("nobody")
    for binary in (True, False):
        answer = await client.infer(request(binary))
        assert (answer.outputs[0].as_numpy() == 2 * X).all()
    await client.close()


async def over_rest():
    assert public(InferenceRESTClient) == {
        "close", "explain", "infer", "is_model_ready", "is_server_live", "is_server_ready"
    }, public(InferenceRESTClient)
    for protocol in ("v1", "v2"):
        client = InferenceRESTClient(RESTConfig(protocol=protocol))
        assert await client.is_server_live(url), protocol
        if protocol == "v2":
            assert await client.is_server_ready(url)
            for binary in (True, False):
                answer = await client.infer(url, request(binary), model_name="scale")
                assert (answer.outputs[0].as_numpy() == 2 * X).all()
        else:
            answer = await client.infer(url, {"instances": X.tolist()}, model_name="scale")
            assert answer == {"predictions": (2 * X).tolist()}, answer
            rows = np.arange(12, dtype=np.float32).reshape(2, 6).tolist()
            explained = await client.explain(url, "churn", {"instances": rows})
            assert np.shape(explained["explanations"]) == (2, 7), explained
            try:
                await client.explain(url, "scale", {"instances": X.tolist()})
            except httpx.HTTPStatusError as error:
                assert error.response.status_code in (400, 501), error.response.text
        assert await client.is_model_ready(url, "scale")
        try:
            assert not await client.is_model_ready(url, "nobody")
            assert protocol == "v2"
        except httpx.HTTPStatusError as error:  # so it is told of a 404 over V1, which KServe's own servers give, too
            assert (protocol, error.response.status_code) == ("v1", 404)
        await client.close()


asyncio.run(over_grpc())
asyncio.run(over_rest())
print("every call was answered")
"""


_BOTH = """
import asyncio, sys
import numpy as np
import pandas

target, first = sys.argv[1:]
if first == "kserve":
    import kserve
    import mesh.client
else:
    import mesh.client
    import kserve
X = np.array([[1, 2, 3, 4]], np.float32)


async def main():
    asked = kserve.InferInput("x", [1, 4], "FP32")
    asked.set_data_from_numpy(X)
    theirs = kserve.InferenceGRPCClient(target)
    async with mesh.client.AsyncClient(target) as ours:
        answer, same = await asyncio.gather(
            theirs.infer(kserve.InferRequest(model_name="scale", infer_inputs=[asked])), ours.infer("scale", {"x": X})
        )
    await theirs.close()
    assert (answer.outputs[0].as_numpy() == same.outputs["y"]).all()


asyncio.run(main())
with mesh.client.Client(target) as client:
    assert (client.infer_frame("scale", pandas.DataFrame(X)).to_numpy() == 2 * X).all()
print("both were answered")
"""


@pytest.fixture(scope="module")
def kserve() -> Path:
    """The interpreter that has it."""
    return python_of(ROOT / ".cache" / "clients", "kserve", REQUIREMENTS)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        client.register("scale", uri=files.scale().uri)
        client.register("iris", uri=files.iris().uri)
        client.register("churn", uri=files.xgboost().uri)
    return pod


def run(python: Path, script: str, directory: Path, *arguments: str, **more: str) -> str:
    ran = subprocess.run(
        [python, "-P", "-c", script, *arguments],
        cwd=directory,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_every_call_of_its_clients_is_answered(kserve: Path, pod: Pod, tmp_path: Path) -> None:
    assert "every call was answered" in run(kserve, _CALLS, tmp_path, pod.target, pod.http)


@pytest.mark.parametrize("first", ["kserve", "mesh.client"])
def test_our_client_works_beside_theirs_in_one_process(kserve: Path, pod: Pod, tmp_path: Path, first: str) -> None:
    assert "both were answered" in run(kserve, _BOTH, tmp_path, pod.target, first, PYTHONPATH=str(ROOT))


def test_the_example_of_the_readme_runs_as_it_stands(kserve: Path, pod: Pod, tmp_path: Path) -> None:
    found = re.search(r"<!-- run kserve -->\n```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert found is not None
    example = found[1].replace("8033", str(pod.grpc_port)).replace("8008", str(pod.http_port))
    assert run(kserve, example, tmp_path).count("\n") == 3


_THEIR_IMPORTS = """
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput
from kserve.utils.utils import generate_uuid
"""
_THEIR_START = """
if __name__ == "__main__":
    import sys

    ModelServer(http_port=int(sys.argv[1]), grpc_port=int(sys.argv[2])).start([Flowers("flowers")])
"""
_PETALS = [[1.4, 0.2], [4.0, 1.0]]
_QUESTIONS: dict[str, tuple[str, Any]] = {
    "V1": ("/v1/models/flowers:predict", {"instances": [{"petals": row} for row in _PETALS]}),
    "explain": ("/v1/models/flowers:explain", {"instances": [{"petals": row} for row in _PETALS]}),
    "V2": (
        "/v2/models/flowers/infer",
        {"inputs": [{"name": "petals", "datatype": "FP32", "shape": [2, 2], "data": [1.4, 0.2, 4.0, 1.0]}]},
    ),
    "what it refuses": ("/v1/models/flowers:predict", {"instances": [{"leaves": 3}]}),
    "no rows": ("/v1/models/flowers:predict", {"instances": 3}),
}


def answers(url: str) -> dict[str, Any]:
    """Codes and answers, without what names a request or a version."""
    found: dict[str, Any] = {}
    for question, (path, body) in _QUESTIONS.items():
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                told = json.loads(answer.read())
            outputs = [
                {key: each[key] for key in ("name", "datatype", "shape", "data")} for each in told.get("outputs", [])
            ]
            found[question] = told if "outputs" not in told else outputs
        except urllib.error.HTTPError as error:
            found[question] = error.code
    return found


def test_a_class_answers_here_as_it_does_on_kserves_own_server(kserve: Path, pod: Pod, tmp_path: Path) -> None:
    example = ROOT / "deploy/examples/custom-models/kserve-flowers"
    with pod.client() as client:
        client.register("flowers", uri=example.as_uri(), format="python")
    ours = (example / "model.py").read_text()
    theirs = re.sub(r"^from runtime_adapters\.kserve import \(.*?^\)$", _THEIR_IMPORTS, ours, flags=re.S | re.M)
    assert theirs != ours
    shutil.copytree(example, tmp_path / "theirs")
    (tmp_path / "theirs/model.py").write_text(theirs + _THEIR_START)
    http_port, grpc_port = free_ports(2)
    command = [str(kserve), "model.py", str(http_port), str(grpc_port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path / "theirs", stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{http_port}"
        pod.wait_until(
            lambda: server.poll() is not None or is_ready(f"{url}/v2/models/flowers/ready"), "it is ready", 120
        )
        assert server.poll() is None, (tmp_path / "log").read_text()
        expected = answers(url)
        assert [expected[question] for question in ("what it refuses", "no rows")] == [400, 400]
        assert answers(pod.http) == expected
    finally:
        server.kill()
        server.wait()


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
