"""Custom models on real pods: the repository's examples, over V1, V2 and gRPC, and what is told when they fail."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import InferInput

from mesh.client import HexcombError, InvalidRequest, NotFound
from tests.e2e.pools import ONE_TRY

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

EXAMPLES = Path(__file__).parents[2] / "deploy/examples/custom-models"
PETALS = np.array([[1.4, 0.2], [4.0, 1.0]], np.float32)
SCORES = PETALS @ np.array([0.5, 2.0], np.float32)

KSERVE_STREAM = """
from runtime_adapters import kserve


class Counter(kserve.Model):
    def load(self):
        self.ready = True

    def predict(self, payload, headers=None):
        for nth in range(int(payload.inputs[0].as_numpy().item())):
            yield kserve.InferResponse(None, self.name, [kserve.InferOutput("nth", [1], "INT32", [nth])])
"""
KSERVE_WRONG = """
import numpy as np
from runtime_adapters.kserve import InferOutput, InferRequest, InferResponse, Model


class Wrong(Model):
    def predict(self, payload, headers=None):
        if isinstance(payload, InferRequest):
            return InferResponse(None, self.name, [InferOutput("y", [2], "FP32", [1.0, 2.0, 3.0])])
        return {"raise": lambda: None, "predictions": payload["instances"]}
"""
KSERVE_UNREADY = """
from runtime_adapters.kserve import Model


class Unready(Model):
    def load(self):
        return False
"""


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod()
    with pod.client() as client:
        for name, example in (("stages", "stages"), ("talker", "talker"), ("flowers", "kserve-flowers")):
            client.register(name, uri=(EXAMPLES / example).as_uri(), format="python")
        for name, source in (("counter", KSERVE_STREAM), ("wrong", KSERVE_WRONG), ("unready", KSERVE_UNREADY)):
            client.register(name, uri=files.python(source, name).as_uri(), format="python")
    return pod


def ask(pod: Pod, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(f"{pod.http}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def tensor(name: str, array: Any, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}


def test_every_stage_of_a_model_is_run_coroutines_too(pod: Pod) -> None:
    rows = [[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 4.0, 1.5]]
    assert ask(pod, "/v1/models/stages:predict", {"instances": rows}) == (200, {"predictions": ["setosa", "another"]})
    code, told = ask(pod, "/v1/models/stages:explain", {"instances": rows})
    assert code == 200
    np.testing.assert_allclose(told["explanations"][1], [0, 0, 0, 0.7], atol=1e-6)
    with pod.client(retry=ONE_TRY) as client:
        answer = client.infer("stages", {"centimetres": np.array(rows, np.float32)})
        assert answer.outputs["kind"].tolist() == [b"setosa", b"another"]
        with pytest.raises(InvalidRequest, match="nothing is shorter than 0"):
            client.infer("stages", {"centimetres": -np.array(rows, np.float32)})


def test_an_asynchronous_generator_streams(pod: Pod) -> None:
    request = urllib.request.Request(
        f"{pod.http}/v2/models/talker/generate_stream", b'{"text_input": "one by one", "pause_s": 0.01}'
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        words = [json.loads(line[6:])["text_output"] for line in answer if line.startswith(b"data: ")]
    assert words == ["one", "by", "one"]


def test_a_class_written_for_kserve_answers_v1_v2_and_grpc(pod: Pod) -> None:
    rows = [{"petals": row} for row in PETALS.tolist()]
    code, told = ask(pod, "/v1/models/flowers:predict", {"instances": rows})
    assert code == 200, told
    np.testing.assert_allclose(told["predictions"], SCORES, rtol=1e-6)
    code, told = ask(pod, "/v1/models/flowers:explain", {"instances": rows})
    assert code == 200, told
    np.testing.assert_allclose(told["explanations"], PETALS * [0.5, 2.0], rtol=1e-6)
    code, told = ask(pod, "/v2/models/flowers/infer", {"inputs": [tensor("petals", PETALS)]})
    assert code == 200, told
    np.testing.assert_allclose(told["outputs"][0]["data"], SCORES, rtol=1e-6)
    code, told = ask(pod, "/v2/models/flowers/generate", {"petals": PETALS.tolist()})
    assert code == 200, told
    np.testing.assert_allclose(told["score"], SCORES, rtol=1e-6)
    with pod.client() as client:
        np.testing.assert_allclose(client.infer("flowers", {"petals": PETALS}).outputs["score"], SCORES, rtol=1e-6)
    inputs = {each["name"]: each["shape"] for each in metadata(pod, "flowers")["inputs"]}
    assert inputs == {"petals": [-1, 2], "v1_body": [1]}


def metadata(pod: Pod, model: str) -> Any:
    with urllib.request.urlopen(f"{pod.http}/v2/models/{model}", timeout=60) as answer:
        return json.loads(answer.read())


def test_a_kserve_class_may_stream(pod: Pod) -> None:
    body = json.dumps({"inputs": [tensor("times", np.array([3]), "INT32")]}).encode()
    # Its inputs are not described, so `generate` cannot know them; a stream of V2 requests needs no description.
    code, told = ask(pod, "/v2/models/counter/generate_stream", {"times": [3]})
    assert (code, "no input of the model" in told["error"]) == (400, True)
    request = urllib.request.Request(f"{pod.http}/v2/models/counter/infer", body)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 501

    async def stream() -> list[int]:
        asked = InferInput("times", [1], "INT32")
        asked.set_data_from_numpy(np.array([3], np.int32))

        async def requests() -> Any:
            yield {"model_name": "counter", "inputs": [asked]}

        async with triton_aio.InferenceServerClient(pod.target) as client:
            return [
                result.as_numpy("nth").item()
                async for result, _ in client.stream_infer(requests())
                if result is not None
            ]

    assert asyncio.run(stream()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "body", "code", "told"),
    [
        ("/v1/models/flowers:predict", {"instances": [{"leaves": 3}]}, 400, "each must have petals"),
        ("/v1/models/flowers:predict", [], 400, "not an object"),
        ("/v1/models/wrong:predict", {"instances": 3}, 400, '"instances" must be an array'),
        ("/v1/models/wrong:predict", {"instances": [1]}, 500, "cannot be written as JSON"),
        ("/v1/models/wrong:explain", {"instances": [1]}, 501, "does not explain itself"),
        ("/v2/models/wrong/infer", {"inputs": [tensor("x", np.zeros(1))]}, 500, "no FP32 of shape"),
        (
            "/v2/models/flowers/infer",
            {"inputs": [tensor("petals", PETALS), {**tensor("v1_body", np.zeros(1), "BYTES"), "data": ["{}"]}]},
            400,
            "the whole of a V1 request",
        ),
        ("/v1/models/unready:predict", {"instances": [1]}, 503, "left `ready` False"),
    ],
)
def test_what_a_kserve_class_gets_wrong_is_told_apart_from_what_its_client_does(
    pod: Pod, path: str, body: Any, code: int, told: str
) -> None:
    found, answer = ask(pod, path, body)
    assert (found, told in answer["error"]) == (code, True), answer
    with pod.client() as client:
        assert client.infer("flowers", {"petals": PETALS}).outputs["score"].shape == (2,)


RUNAWAY = """
import time

import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Runaway(Model):
    inputs = (TensorSpec("megabytes", "INT32", (1,)),)
    outputs = (TensorSpec("megabytes", "INT32", (1,)),)

    def predict(self, inputs):
        while inputs["megabytes"].item() < 0:
            pass
        taken = [bytearray(1 << 20) for _ in range(inputs["megabytes"].item())]
        return np.array([len(taken)], np.int32)
"""


def test_a_runaway_model_ends_at_the_limits_of_its_spec_and_harms_nobody(pod: Pod, files: ModelFiles) -> None:
    uri = files.python(RUNAWAY, "runaway").as_uri()
    with pod.client(retry=ONE_TRY) as client:
        limits = {"memory_limit_bytes": f"{64 << 20}", "infer_timeout_s": "1"}
        client.register("runaway", uri=uri, format="python", parameters=limits)

        def take(megabytes: int) -> int:
            answer = client.infer("runaway", {"megabytes": np.array([megabytes], np.int32)})
            return int(answer.outputs["megabytes"].item())

        assert take(8) == 8
        with pytest.raises(HexcombError, match="not enough memory"):
            take(1000)
        assert take(8) == 8
        with pytest.raises(HexcombError, match="did not answer within 1 s"):
            take(-1)
        assert take(8) == 8
        assert client.infer("flowers", {"petals": PETALS}).outputs["score"].shape == (2,)
    pod.wait_settled()


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"memory_limit_bytes": f"{1 << 50}"}, "this pod allows 2,147,483,648 (isolated_memory_max)"),
        ({"infer_timeout_s": "9999"}, "this pod allows 60.0 (run_timeout_s)"),
        ({"infer_timeout_s": "soon"}, "allowed is a number above 0"),
        ({"temperature": "1"}, "temperature"),
    ],
)
def test_a_spec_may_ask_for_less_than_the_pod_allows_and_for_no_more(
    pod: Pod, files: ModelFiles, parameters: dict[str, str], told: str
) -> None:
    uri = files.python(RUNAWAY, "runaway").as_uri()
    with pod.client(retry=ONE_TRY) as client:
        name = f"greedy-{next(iter(parameters))}-{next(iter(parameters.values()))}"
        client.register(name, uri=uri, format="python", parameters=parameters)
        with pytest.raises(HexcombError) as refused:
            client.infer(name, {"megabytes": np.array([1], np.int32)})
    assert told in str(refused.value)


SAYS = """
import numpy as np

from runtime_adapters.custom import Model, TensorSpec


class Says(Model):
    inputs = (TensorSpec("x", "FP32", (-1,)),)
    outputs = (TensorSpec("nth", "INT32", (1,)),)

    def predict(self, inputs):
        return np.array([{nth}], np.int32)
"""
X = {"x": np.zeros(1, np.float32)}
CHANGES = 3


def test_new_code_takes_the_place_of_the_old_under_load_without_an_error(pod: Pod, files: ModelFiles) -> None:
    heard: list[int] = []
    errors: list[Exception] = []
    stop = threading.Event()

    def ask_on() -> None:
        with pod.client(retry=ONE_TRY) as client:
            while not stop.is_set():
                try:
                    heard.append(int(client.infer("swapped", X).outputs["nth"].item()))
                except Exception as error:
                    errors.append(error)

    with pod.client() as client, ThreadPoolExecutor(2) as threads:
        client.register("swapped", uri=files.python(SAYS.format(nth=0), "says-0").as_uri(), format="python")
        client.infer("swapped", X)
        asking = [threads.submit(ask_on) for _ in range(2)]
        try:
            for nth in range(1, CHANGES + 1):
                uri = files.python(SAYS.format(nth=nth), f"says-{nth}").as_uri()
                client.register("swapped", uri=uri, format="python", if_generation=nth)
                pod.wait_until(
                    lambda: max(heard, default=0) == client.describe("swapped").generation - 1, "it is heard"
                )
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert errors == []
    assert [nth for before, nth in itertools.pairwise(sorted(set(heard))) if nth != before + 1] == []
    assert len(heard) > CHANGES


def test_a_watched_directory_is_served_as_it_is_saved(pod: Pod, files: ModelFiles) -> None:
    path = files.python(SAYS.format(nth=1), "watched")
    command = [sys.executable, "-m", "mesh.cli.main", "models", "register", "watched", "--uri", str(path)]
    command += ["--format", "python", "--watch", "--endpoint", pod.target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            with pod.client() as client:

                def says() -> int | None:
                    try:
                        return int(client.infer("watched", X).outputs["nth"].item())
                    except NotFound:
                        return None

                pod.wait_until(lambda: says() == 1, "it is registered")
                (path / "model.py").write_text(SAYS.format(nth="not quite right"))
                assert watching.stderr is not None
                assert "not valid Python" in watching.stderr.readline()
                assert says() == 1
                (path / "model.py").write_text(SAYS.format(nth=22))
                pod.wait_until(lambda: says() == 22, "the change is served")
        finally:
            watching.terminate()
