"""Pipelines on one pod: real models, every router, every protocol that a client may come by."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from mesh.client import Client
from mesh.client.errors import HexcombError
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.tensors import decode_response, encode_request
from tests.e2e.conftest import CRASH, RAISE, WAIT, ModelFiles, Pod, Refusal, StartPod, call_raw

X = np.arange(8, dtype=np.float32).reshape(2, 4)
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def graph(router: str, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A graph's root with these steps, and other nodes."""
    return {"nodes": {"root": {"routerType": router, "steps": list(steps)}, **more}}


def ask(service: str, **more: Any) -> dict[str, Any]:
    return {"serviceName": service, **more}


def after(service: str, **more: Any) -> dict[str, Any]:
    return {"serviceName": service, "data": "$response", **more}


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    """An HTTP answer's code and JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    try:
        with _OPENER.open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod, files: ModelFiles) -> Pod:
    pod = start_module_pod(trusted_prefixes=f"{files.directory.as_uri()}/")
    with pod.client() as client:
        for factor in (2, 3, 5):
            client.register(f"times-{factor}", uri=files.scale(factor).uri)
        client.register("obedient", uri=files.obedient().as_uri(), format="python")
        client.register("words", uri=files.words().uri)
        client.register("iris", uri=files.iris().uri)
        client.register("trees", uri=_trees(files).as_uri())
    return pod


def _trees(files: ModelFiles) -> Path:
    """XGBoost over what the flowers' classifier says: three probabilities."""
    import xgboost

    path = files.directory / "over-flowers.json"
    rows = np.random.default_rng(3).random((200, 3)).astype(np.float32)
    model = xgboost.XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1).fit(rows, rows.argmax(axis=1))
    model.save_model(path)
    return path


@pytest.fixture
def client(pod: Pod) -> Iterator[Client]:
    with pod.client() as client:
        yield client


# Tensors --------------------------------------------------------------------------------------------------------------


def test_a_sequence_hands_each_answer_on_by_position(client: Client) -> None:
    client.register_pipeline("six", graph("Sequence", ask("times-2"), after("times-3")))
    answer = client.infer("six", {"x": X}, request_id="7")
    np.testing.assert_array_equal(answer.outputs["y"], 6 * X)
    assert (answer.model_name, answer.model_version, answer.request_id) == ("six", "1", "7")


def test_trees_learn_from_the_probabilities_that_scikit_learn_gives(client: Client, files: ModelFiles) -> None:
    import xgboost

    client.register_pipeline(
        "stacked", graph("Sequence", ask("iris", outputs=["predict_proba"]), after("trees", outputs=["predict_proba"]))
    )
    rows = files.iris().inputs["input"]
    found = client.infer("stacked", {"anything": rows}).outputs
    probabilities = client.infer("iris", {"input": rows}, ["predict_proba"]).outputs["predict_proba"]
    trees = xgboost.XGBClassifier()
    trees.load_model(files.directory / "over-flowers.json")
    np.testing.assert_allclose(found["predict_proba"], trees.predict_proba(probabilities), rtol=1e-6)
    asked = client.infer("stacked", {"anything": rows}, ["predict"]).outputs
    np.testing.assert_array_equal(asked["predict"], trees.predict(probabilities))


def test_an_ensemble_answers_with_every_output_under_its_steps_name(client: Client) -> None:
    client.register_pipeline("both", graph("Ensemble", ask("times-2", name="two"), ask("times-3")))
    found = client.infer("both", {"x": X}).outputs
    assert sorted(found) == ["1.y", "two.y"]
    np.testing.assert_array_equal(found["two.y"] + found["1.y"], 5 * X)
    assert list(client.infer("both", {"x": X}, ["1.y"]).outputs) == ["1.y"]
    with pytest.raises(HexcombError, match=r"output 'y' is not among those of the pipeline's answer: 'two\.y', '1\.y'"):
        client.infer("both", {"x": X}, ["y"])


def test_a_switch_looks_at_the_tensors_where_they_are(client: Client) -> None:
    def first(compares: str) -> str:
        return f'inputs.#(name=="x").data.#({compares})'

    steps = (ask("times-2", condition=first(">100")), ask("times-3", condition=first("==7")))
    client.register_pipeline("either", graph("Switch", *steps))
    np.testing.assert_array_equal(client.infer("either", {"x": X}).outputs["y"], 3 * X)
    np.testing.assert_array_equal(client.infer("either", {"x": 99 * X}).outputs["y"], 198 * X)
    with pytest.raises(HexcombError, match="none of the routes matched with the switch condition") as raised:
        client.infer("either", {"x": 0 * X})
    assert raised.value.code == "NOT_FOUND"


def test_a_sequence_stops_where_a_condition_does_not_hold_of_the_answer(client: Client) -> None:
    condition = "outputs.0.data.#(>20)"
    client.register_pipeline("until", graph("Sequence", ask("times-2"), after("times-5", condition=condition)))
    np.testing.assert_array_equal(client.infer("until", {"x": X}).outputs["y"], 2 * X)
    np.testing.assert_array_equal(client.infer("until", {"x": 2 * X}).outputs["y"], 20 * X)


def test_a_switch_after_a_step_looks_at_what_that_answered(client: Client) -> None:
    judge = graph("Switch", ask("times-3", condition="inputs"), ask("times-5", condition="outputs"))["nodes"]["root"]
    client.register_pipeline(
        "judged", graph("Sequence", ask("times-2"), {"nodeName": "n", "data": "$response"}, n=judge)
    )
    np.testing.assert_array_equal(client.infer("judged", {"x": X}).outputs["y"], 10 * X)


def test_a_splitter_shares_requests_by_weight(client: Client) -> None:
    client.register_pipeline("split", graph("Splitter", ask("times-2", weight=75), ask("times-3", weight=25)))
    found = Counter(float(client.infer("split", {"x": X}).outputs["y"][0, 1]) for _ in range(200))
    assert set(found) == {2.0, 3.0}
    assert 110 < found[2.0] < 185, "75 % of 200, six standard deviations on either side"


def test_texts_go_from_step_to_step(client: Client) -> None:
    client.register_pipeline("echo", graph("Sequence", ask("words"), after("words")))
    text = np.array([b"one", b"", "fünf".encode()], np.object_)
    assert client.infer("echo", {"text": text}).outputs["same"].tolist() == text.tolist()


def test_aliases_and_pipelines_are_steps_and_a_pipeline_has_aliases(client: Client) -> None:
    client.put_alias("now", "times-2")
    client.register_pipeline("inner", graph("Sequence", ask("now"), after("times-3")))
    client.register_pipeline("outer", graph("Sequence", ask("inner"), {"nodeName": "n", "data": "$response"},
                                            n=graph("Ensemble", ask("times-5"))["nodes"]["root"]))  # fmt: skip
    client.put_alias("front", "outer")
    np.testing.assert_array_equal(client.infer("front", {"x": X}).outputs["0.y"], 30 * X)
    client.put_alias("now", "times-3", wait=True)
    np.testing.assert_array_equal(client.infer("front", {"x": X}).outputs["0.y"], 45 * X)
    client.put_alias("front", "inner")
    np.testing.assert_array_equal(client.infer("front", {"x": X}).outputs["y"], 9 * X)
    with pytest.raises(
        HexcombError, match="alias 'now' cannot point at pipeline 'outer', which has a step that asks it"
    ):
        client.put_alias("now", "outer")


def test_a_new_graph_answers_from_the_next_request_on(client: Client) -> None:
    client.register_pipeline("changing", graph("Sequence", ask("times-2")))
    with pytest.raises(HexcombError, match="changing") as raised:
        client.register_pipeline("changing", graph("Sequence", ask("times-3")))
    assert raised.value.code == "ALREADY_EXISTS"
    client.register_pipeline("changing", graph("Sequence", ask("times-3")), if_generation=1)
    answer = client.infer("changing", {"x": X})
    np.testing.assert_array_equal(answer.outputs["y"], 3 * X)
    assert answer.model_version == "2"


def test_a_model_that_takes_what_it_is_given_by_no_name_or_position_says_both_sides(client: Client) -> None:
    client.register_pipeline("unfit", graph("Sequence", ask("both"), after("times-2")))
    with pytest.raises(HexcombError) as raised:
        client.infer("unfit", {"x": X})
    assert raised.value.code == "INVALID_ARGUMENT"
    assert "step '1' ('times-2'): it takes 'x' and is given 'two.y', '1.y'" in str(raised.value)


# What fails -----------------------------------------------------------------------------------------------------------


def told(value: float) -> np.ndarray[Any, Any]:
    """A request that the obedient model obeys."""
    return np.array([[value, 0.0]], np.float32)


def test_a_soft_failure_is_left_out_of_an_ensemble_and_told_a_hard_one_is_the_answer(pod: Pod, client: Client) -> None:
    client.register_pipeline("soft", graph("Ensemble", ask("obedient", name="may"), ask("words", name="does")))
    body = encode_request("soft", {"x": told(RAISE), "text": np.array([b"a"], np.object_)})
    answer = call_raw(pod.target, messages.MODEL_INFER.path, body)
    assert isinstance(answer, bytes)
    assert list(decode_response(answer).outputs) == ["does.same"]
    parameters = inference_pb2.ModelInferResponse.FromString(answer).parameters
    assert "no answer for you" in parameters["failed_step.may"].string_param
    x = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [RAISE, 0]}
    text = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    code, over_http = post(f"{pod.http}/v2/models/soft/infer", {"inputs": [x, text]})
    assert code == 200
    assert "no answer for you" in over_http["parameters"]["failed_step.may"]
    hard = graph("Ensemble", ask("obedient", name="must", dependency="Hard"), ask("words", name="does"))
    client.register_pipeline("hard", hard)
    with pytest.raises(
        HexcombError, match=r"pipeline 'hard', node 'root', step 'must' \('obedient'\): .*no answer for you"
    ):
        client.infer("hard", {"x": told(RAISE), "text": np.array([b"a"], np.object_)})


def test_a_step_whose_process_dies_is_tried_again_as_any_request(client: Client) -> None:
    client.register_pipeline("deadly", graph("Sequence", ask("obedient")))
    with pytest.raises(HexcombError) as raised:
        client.infer("deadly", {"x": told(CRASH)})
    assert raised.value.code == "INTERNAL"
    np.testing.assert_array_equal(client.infer("deadly", {"x": told(9.0)}).outputs["y"], 2 * told(9.0))


def test_a_client_that_leaves_takes_every_step_along(
    pod: Pod, client: Client, tmp_path: Path, files: ModelFiles
) -> None:
    gate = tmp_path / "gate"
    parameters = {"gate": str(gate)}
    uri = files.obedient().as_uri()
    client.register("gated", uri=uri, format="python", parameters=parameters)
    client.register_pipeline("leaving", graph("Ensemble", ask("gated", name="a"), ask("gated", name="b")))
    body = encode_request("leaving", {"x": told(WAIT)})
    with grpc.insecure_channel(pod.target) as channel:
        waiting = channel.unary_unary(messages.MODEL_INFER.path).future(body, timeout=60)
        pod.wait_until(lambda: Path(f"{gate}.reached").exists(), "a step runs")
        waiting.cancel()
        gate.touch()
        with pytest.raises(grpc.FutureCancelledError):
            waiting.result()
    pod.wait_settled()


def test_a_requests_deadline_is_that_of_its_steps(pod: Pod, client: Client, tmp_path: Path, files: ModelFiles) -> None:
    gate = tmp_path / "gate"
    client.register("slow", uri=files.obedient().as_uri(), format="python", parameters={"gate": str(gate)})
    client.infer("slow", {"x": told(0.0)})
    client.register_pipeline("late", {**graph("Sequence", ask("slow")), "timeout": 0.2})
    try:
        with pytest.raises(HexcombError, match=r"pipeline 'late' took longer than its timeout, 0\.2 s") as raised:
            client.infer("late", {"x": told(WAIT)})
        assert raised.value.code == "DEADLINE_EXCEEDED"
    finally:
        gate.touch()
    pod.wait_settled()


def test_many_requests_at_once_get_their_own_answers(client: Client) -> None:
    client.register_pipeline("many", graph("Ensemble", ask("six"), ask("times-5")))
    wrong: list[str] = []

    def run(number: int) -> None:
        for turn in range(20):
            x = X + 100 * number + turn
            found = client.infer("many", {"x": x}).outputs
            if not (np.array_equal(found["0.y"], 6 * x) and np.array_equal(found["1.y"], 5 * x)):
                wrong.append(f"{number}/{turn}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# What is told of them -------------------------------------------------------------------------------------------------


def test_metadata_are_the_first_steps_inputs_and_the_last_ones_outputs(client: Client) -> None:
    client.register_pipeline("first-and-last", graph("Sequence", ask("words"), after("both")))
    found = client.model_metadata("first-and-last")
    assert (found.platform, list(found.versions)) == ("hexcomb_pipeline", ["1"])
    assert [(each.name, each.datatype, list(each.shape)) for each in found.inputs] == [("text", "BYTES", [-1])]
    assert [(each.name, list(each.shape)) for each in found.outputs] == [("two.y", [-1, 4]), ("1.y", [-1, 4])]


def test_triton_clients_find_a_pipeline_as_they_find_a_model(pod: Pod, client: Client) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput

    client.infer("six", {"x": X})
    with InferenceServerClient(pod.target) as triton:
        assert triton.is_model_ready("six")
        index = {model.name: model for model in triton.get_model_repository_index().models}
        assert (index["six"].state, index["six"].version) == ("READY", "1")
        config = triton.get_model_config("six").config
        assert (config.backend, config.max_batch_size, config.input[0].name) == ("pipeline", 0, "x")
        statistics = triton.get_inference_statistics("six").model_stats[0]
        assert statistics.inference_stats.success.count >= 1
        triton.load_model("six")
        triton.unload_model("six")
        given = InferInput("x", X.shape, "FP32")
        given.set_data_from_numpy(X)
        np.testing.assert_array_equal(triton.infer("six", [given]).as_numpy("y"), 6 * X)
        answers: list[Any] = []
        arrived = threading.Event()
        triton.start_stream(lambda result, error: (answers.append(error or result), arrived.set()))
        triton.async_stream_infer("six", [given])
        assert arrived.wait(30)
        triton.stop_stream()
        np.testing.assert_array_equal(answers[0].as_numpy("y"), 6 * X)


def test_what_a_pipeline_asks_stays_and_the_pipeline_can_go(client: Client) -> None:
    client.put_alias("kept", "times-2")
    client.register_pipeline("keeper", graph("Ensemble", ask("kept"), ask("times-5")))
    for refused in (lambda: client.unregister("times-5"), lambda: client.delete_alias("kept")):
        with pytest.raises(HexcombError, match="is asked by a step of pipeline") as raised:
            refused()
        assert raised.value.code == "FAILED_PRECONDITION"
    assert client.unregister("keeper")
    client.delete_alias("kept")
    with pytest.raises(HexcombError) as raised:
        client.infer("keeper", {"x": X})
    assert raised.value.code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (graph("Sequence", ask("nobody")), "has a step for 'nobody', which is not registered"),
        (graph("Sequence", {"serviceUrl": "http://a/b"}), r"nodes\.root\.steps\[0\]\.serviceUrl is 'http://a/b'"),
        (graph("Splitter", ask("iris", weight=10)), "add up to 10; they must add up to 100"),
        (graph("Sequence", ask("refused")), "pipelines lead back to one another: refused -> refused"),
    ],
)
def test_a_graph_that_cannot_work_is_refused_with_its_field(client: Client, written: Any, message: str) -> None:
    with pytest.raises(HexcombError, match=message) as raised:
        client.register_pipeline("refused", written)
    assert raised.value.code == "INVALID_ARGUMENT"


def test_the_pod_refuses_what_no_client_of_ours_would_send(client: Client) -> None:
    for fields, message in (
        ({"parameters": {"nodes.root": "{}"}}, "routerType is missing"),
        ({"parameters": {"other": "{}"}}, "a pipeline has nodes.<name>"),
        ({"pinned": True}, "pinned says nothing of a pipeline"),
    ):
        with pytest.raises(HexcombError, match=message):
            client.register("raw", uri="pipeline:", format="pipeline", **fields)


def test_tenants_have_their_own_pipelines(pod: Pod, files: ModelFiles) -> None:
    with pod.client(tenant="elsewhere") as other:
        with pytest.raises(HexcombError, match="has a step for 'times-2', which is not registered"):
            other.register_pipeline("six", graph("Sequence", ask("times-2"), after("times-3")))
        with pytest.raises(HexcombError, match="not found"):
            other.infer("six", {"x": X})
        other.register("times-2", uri=files.scale(7).uri)
        other.register_pipeline("six", graph("Sequence", ask("times-2")))
        np.testing.assert_array_equal(other.infer("six", {"x": X}).outputs["y"], 7 * X)


# REST -----------------------------------------------------------------------------------------------------------------


def test_v2_over_http_is_v2(pod: Pod, client: Client) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    code, answer = post(f"{pod.http}/v2/models/six/infer", {"id": "1", "inputs": [tensor]})
    assert (code, answer["model_name"], answer["outputs"][0]["data"]) == (200, "six", [6, 12, 18, 24])
    code, answer = post(f"{pod.http}/v2/models/either/infer", {"inputs": [{**tensor, "data": [0, 0, 0, 0]}]})
    assert code == 404
    assert "none of the routes matched with the switch condition" in answer["error"]


def test_v1_bodies_go_from_step_to_step(pod: Pod, client: Client) -> None:
    rows = {"instances": [[1, 2, 3, 4], [0, 0, 0, 1]]}
    client.register_pipeline(
        "v1-six", graph("Sequence", ask("times-2"), after("times-3", mapPredictionsToInstances=True))
    )
    assert post(f"{pod.http}/v1/models/v1-six:predict", rows) == (
        200,
        {"predictions": [[6, 12, 18, 24], [0, 0, 0, 6]]},
    )
    client.register_pipeline("v1-unmapped", graph("Sequence", ask("times-2"), after("times-3")))
    code, answer = post(f"{pod.http}/v1/models/v1-unmapped:predict", rows)
    assert code == 400
    assert "step '1' ('times-3'): the body must have either \"instances\"" in answer["error"]


def test_v1_ensembles_answer_with_their_steps_bodies_and_errors(pod: Pod, client: Client) -> None:
    rows = {"instances": [[1, 2, 3, 4]]}
    client.register_pipeline("v1-both", graph("Ensemble", ask("times-2", name="two"), ask("trees")))
    code, answer = post(f"{pod.http}/v1/models/v1-both:predict", rows)
    assert code == 200
    assert answer["two"] == {"predictions": [[2, 4, 6, 8]]}
    assert "step '1' ('trees')" in answer["1"]["error"]


def test_v1_conditions_are_kserves_paths_in_the_body(pod: Pod, client: Client) -> None:
    client.register_pipeline(
        "v1-switch",
        graph(
            "Switch",
            ask("times-2", condition='instances.#(modelId=="1")'),
            ask("times-3", condition="[@this].#(kind==credit)"),
            {"nodeName": "rest", "condition": "rows"},
            rest=graph("Sequence", ask("words"))["nodes"]["root"],
        ),
    )
    url = f"{pod.http}/v1/models/v1-switch:predict"
    assert post(url, {"instances": [[1, 1, 1, 1]], "kind": "credit"}) == (200, {"predictions": [[3, 3, 3, 3]]})
    code, answer = post(url, {"instances": [[1, 1, 1, 1]]})
    assert (code, "none of the routes matched with the switch condition" in answer["error"]) == (404, True)
    assert post(url, {"inputs": ["a"], "rows": 1}) == (200, {"outputs": ["a"]})
    assert post(url, [1])[0] == 400


def test_json_over_grpc_is_the_same(pod: Pod) -> None:
    def predict(name: str, body: bytes) -> Any:
        request = hexcomb_pb2.PredictRequest(name=name, body=body).SerializeToString()
        answer = call_raw(pod.target, messages.PREDICT.path, request)
        return answer if isinstance(answer, Refusal) else hexcomb_pb2.PredictResponse.FromString(answer)

    found = predict("v1-six", b'{"instances": [[1, 2, 3, 4]]}')
    assert (found.is_pipeline, json.loads(found.body)) == (True, {"predictions": [[6, 12, 18, 24]]})
    assert not predict("times-2", b"whatever").is_pipeline
    assert predict("v1-six", b"{").code is grpc.StatusCode.INVALID_ARGUMENT
    assert predict("nobody", b"{}").code is grpc.StatusCode.NOT_FOUND


def test_a_pipeline_says_what_it_does_not_do(pod: Pod) -> None:
    code, answer = post(f"{pod.http}/v1/models/v1-six:explain", {"instances": [[1, 2, 3, 4]]})
    assert code == 501
    assert "does not explain itself" in answer["error"]


def test_explain_asks_the_last_step(pod: Pod, client: Client) -> None:
    client.register_pipeline("explained", graph("Sequence", ask("iris", outputs=["predict_proba"]), after("trees")))
    rows = {"instances": [[5.1, 3.5, 1.4, 0.2]]}
    code, answer = post(f"{pod.http}/v1/models/explained:explain", rows)
    assert code == 200, answer
    assert np.shape(answer["explanations"])[-1] == 4, "three probabilities, and what all rows begin with"


# The command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_registers_kserves_files_and_shows_them(pod: Pod, tmp_path: Path) -> None:
    file = tmp_path / "graph.yaml"
    file.write_text(
        """
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata: {name: loans}
spec:
  minReplicas: 1
  nodes:
    root:
      routerType: Sequence
      steps:
      - {serviceName: times-2, name: scale}
      - {nodeName: judge, data: $response, dependency: Hard}
    judge:
      routerType: Switch
      steps:
      - {serviceName: times-3, condition: outputs.0}
"""
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mesh.cli.main", "pipelines", *arguments, "--endpoint", pod.target]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    registered = run("register", "loans", "--file", str(file))
    assert (registered.returncode, registered.stdout) == (0, "loans: created (generation 1)\n")
    assert "left out, since no pod runs a pipeline's router here: minReplicas" in registered.stderr
    shown = run("show", "loans").stdout
    assert "root: Sequence" in shown
    assert "1 -> node judge  (data: $response, dependency: Hard)" in shown
    assert "0 -> times-3  (condition: outputs.0)" in shown
    found = {each["name"]: each for each in json.loads(run("list", "--json").stdout)["pipelines"]}
    assert found["loans"]["graph"]["nodes"]["judge"]["routerType"] == "Switch"
    assert "loans" in run("list").stdout
    with pod.client() as client:
        assert "It asks: times-2 (" in client.explain("loans").summary
    assert run("unregister", "loans").stdout == "loans: unregistered\n"
    assert run("unregister", "loans").stdout == "loans: there was no such pipeline\n"
    file.write_text("kind: Pod")
    refused = run("register", "loans", "--file", str(file))
    assert refused.returncode != 0
    assert "only an InferenceGraph can become a pipeline" in refused.stderr
