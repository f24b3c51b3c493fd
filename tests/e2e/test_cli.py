"""The command line against a real pod: register, list, infer, pin, unregister; what scripts and people see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.demo.recipes import plan_recipes
from mesh.demo.server import DemoServer, start_server
from mesh.demo.training import TrainedModel, read_cases, train

Command = Callable[..., tuple[int, Any, str]]
pytestmark = pytest.mark.timeout(120)
MANY = 2_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[TrainedModel]:
    """Two models, ONNX and LightGBM, each in a directory of its name."""
    base = tmp_path_factory.mktemp("models")
    models = []
    for recipe in plan_recipes(8, 1, ["onnx", "lightgbm"])[:2]:
        (base / recipe.name).mkdir()
        models.append(train(recipe, base / recipe.name))
    return models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoServer]:
    base = tmp_path_factory.mktemp("pod")
    server = start_server(base, capacity_bytes=64 * 1024 * 1024, trusted_prefix=base)
    yield server
    server.stop()


@pytest.fixture
def hexcomb(server: DemoServer) -> Command:
    """Run a command with --json against the pod: exit code, value, errors."""

    def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, Any, str]:
        done = subprocess.run(
            [sys.executable, "-m", "mesh.cli.main", *arguments, "--json"],
            input=stdin,
            capture_output=True,
            timeout=60,
            env={**os.environ, "HEXCOMB_ENDPOINT": server.grpc_endpoint},
        )
        errors = done.stderr.decode()
        assert "Traceback" not in errors
        return done.returncode, json.loads(done.stdout), errors

    return run


def _v2(model: TrainedModel, case: int = 2) -> bytes:
    batch, _ = read_cases(model.cases)[case]
    tensor = {
        "name": model.input_name,
        "shape": list(batch.shape),
        "datatype": model.datatype,
        "data": batch.ravel().tolist(),
    }
    return json.dumps({"inputs": [tensor]}).encode()


def test_a_directory_is_registered_listed_asked_and_unregistered(
    hexcomb: Command, trained: list[TrainedModel], tmp_path: Path
) -> None:
    source = str(Path(trained[0].directory).parent)
    code, summary, _ = hexcomb("models", "register", "--from", source)
    assert (code, summary["registered"], summary["failed"]) == (0, 2, 0)
    code, summary, _ = hexcomb("models", "register", "--from", source)
    assert (code, summary["registered"], summary["unchanged"]) == (0, 0, 2)

    code, listed, _ = hexcomb("models", "list")
    assert code == 0
    assert {model["id"] for model in listed["models"]} == {model.name for model in trained}

    for model in trained:
        code, answer, errors = hexcomb("infer", model.name, "--input", "-", stdin=_v2(model))
        assert code == 0, errors
        _, expected = read_cases(model.cases)[2]
        for output in answer["outputs"]:
            values = np.array(output["data"]).reshape(output["shape"])
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, expected[output["name"]], rtol=1e-5)
            else:
                assert values.tolist() == expected[output["name"]].tolist()

        code, shown, _ = hexcomb("models", "show", model.name)
        assert (code, shown["state"], shown["format"]) == (0, "loaded", model.format)

    code, pods, _ = hexcomb("pods")
    assert code == 0
    assert pods["pods"][0]["models_resident"] == 2

    code, results, _ = hexcomb("models", "unregister", *(model.name for model in trained))
    assert code == 0
    assert all(result["existed"] for result in results["results"])
    code, listed, _ = hexcomb("models", "list")
    assert listed["models"] == []


def test_thousands_from_a_table_are_registered_but_for_those_that_are_refused_and_again_without_effect(
    hexcomb: Command, trained: list[TrainedModel], tmp_path: Path
) -> None:
    first, second = (str(model.artifact) for model in trained)
    assert hexcomb("models", "register", "m-0007", "--uri", second, "--tenant", "many")[0] == 0
    table = tmp_path / "models.csv"
    rows = [f"m-{number:04},{first},{number % 3},risk" for number in range(MANY)]
    table.write_text("\n".join(["name,uri,priority,labels.team", *rows, "m-9999,gopher://x/y,,"]) + "\n")
    for expected in ("registered", "unchanged"):
        code, summary, errors = hexcomb("models", "register", "--from", str(table), "--tenant", "many")
        assert (code, summary[expected], summary["failed"]) == (1, MANY - 1, 2), errors
        refused = {failure["name"]: failure for failure in summary["failures"]}
        assert refused["m-0007"]["origin"] == "models.csv:9"
        assert "another spec" in refused["m-0007"]["error"] or "if_generation" in refused["m-0007"]["error"]
        assert "gopher" in refused["m-9999"]["error"]
    code, listed, _ = hexcomb("models", "list", "--tenant", "many", "--all", "--label", "team=risk")
    assert len(listed["models"]) == MANY - 1
    names = [f"m-{number:04}" for number in range(MANY)]
    assert hexcomb("models", "unregister", "--tenant", "many", *names)[0] == 0


def test_tables_for_people_and_a_csv_question(
    hexcomb: Command, server: DemoServer, trained: list[TrainedModel], tmp_path: Path
) -> None:
    model = trained[1]
    assert hexcomb("models", "register", "ranker", "--uri", str(model.artifact), "--label", "team=growth")[0] == 0
    batch, _ = read_cases(model.cases)[3]
    np.savetxt(tmp_path / "rows.csv", batch, delimiter=",")
    environment = {**os.environ, "HEXCOMB_ENDPOINT": server.grpc_endpoint}

    def show(*arguments: str) -> str:
        command = [sys.executable, "-m", "mesh.cli.main", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    answers = show("infer", "ranker", "--input", str(tmp_path / "rows.csv")).splitlines()
    assert answers[0].split()[:2] == ["row", "predict"]
    assert len(answers) == 1 + len(batch)
    listed = show("models", "list").splitlines()
    assert listed[1].split()[:4] == ["ranker", "lightgbm", "loaded", "1"]
    assert "team=growth" in show("models", "show", "ranker")
    assert "ready" in show("pods")
    assert show("models", "pin", "ranker").strip() == "ranker: pinned"
    assert show("models", "unregister", "ranker").strip() == "ranker: unregistered"


@pytest.mark.parametrize(
    ("arguments", "code", "status", "said"),
    [
        (("models", "show", "nobody"), 1, "NOT_FOUND", "nobody"),
        (("infer", "nobody", "--input", "{request}"), 1, "NOT_FOUND", "nobody"),
        (("models", "pin", "nobody"), 1, "NOT_FOUND", "nobody"),
        (("models", "register", "bad", "--uri", "gopher://x/y"), 1, "INVALID_ARGUMENT", "gopher"),
        (("pods", "--endpoint", "127.0.0.1:1"), 3, "UNAVAILABLE", "127.0.0.1:1"),
    ],
)
def test_a_failure_is_one_sentence_and_a_code(
    arguments: tuple[str, ...], code: int, status: str, said: str, hexcomb: Command, tmp_path: Path
) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}')
    exit_code, value, errors = hexcomb(*(argument.format(request=request) for argument in arguments))
    assert exit_code == code
    assert value["error"]["code"] == status
    assert said in errors
    assert errors.startswith("error: ")


def test_another_spec_under_a_name_needs_its_generation(hexcomb: Command, trained: list[TrainedModel]) -> None:
    first, second = (str(model.artifact) for model in trained)
    assert hexcomb("models", "register", "swap", "--uri", first)[1]["generation"] == 1
    code, value, _ = hexcomb("models", "register", "swap", "--uri", second)
    assert (code, value["error"]["code"]) == (1, "ALREADY_EXISTS")
    code, value, _ = hexcomb("models", "register", "swap", "--uri", second, "--if-generation", "1")
    assert (code, value["outcome"], value["generation"]) == (0, "updated", 2)
    assert hexcomb("models", "unregister", "swap")[0] == 0


def test_tenants_do_not_see_each_other(hexcomb: Command, trained: list[TrainedModel]) -> None:
    assert hexcomb("models", "register", "mine", "--uri", str(trained[0].artifact), "--tenant", "blue")[0] == 0
    assert hexcomb("models", "list", "--tenant", "green")[1]["models"] == []
    assert len(hexcomb("models", "list", "--tenant", "blue")[1]["models"]) == 1
    assert hexcomb("models", "unregister", "mine", "--tenant", "blue")[0] == 0


def test_a_pod_alone_is_explained_watched_and_drained_as_a_pool_is(
    trained: list[TrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("alone")
    server = start_server(base, capacity_bytes=64 * 1024 * 1024, trusted_prefix=base)
    environment = {**os.environ, "HEXCOMB_ENDPOINT": server.grpc_endpoint}

    def run(*arguments: str, stdin: bytes | None = None) -> Any:
        command = [sys.executable, "-m", "mesh.cli.main", *arguments, "--json"]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    try:
        model = trained[0]
        run("models", "register", "a", "--uri", str(model.artifact))
        cold = run("explain", "a")
        assert "loaded nowhere" in cold["summary"]
        assert [place["chosen"] for place in cold["candidates"]] == [True]
        assert run("aliases", "set", "front", "--weights", "a=1")["weights"] == {"a": 1}
        run("infer", "front", "--input", "-", stdin=_v2(model))
        warm = run("explain", "front")
        assert warm["summary"].startswith("Served by 1 pod")
        assert "from its own copy" in warm["route"]
        assert warm["model"]["aliases"] == ["front"]
        assert run("pods")["pods"][0]["transport"].startswith("native, since only this machine reaches it")
        (pod,) = run("top", "--once", "--interval", "0.2")["pods"]
        assert (pod["models"], pod["state"]) == (1, "ready")
        assert run("aliases", "delete", "front") == {"name": "front", "existed": True}
        assert run("models", "release", "a")["state"] == "loaded"
        drained = run("pods", "drain", pod["pod"], "--wait")
        assert drained == {"pod": pod["pod"], "was_draining": False, "stopped": True}
    finally:
        server.stop()


def test_serve_refuses_a_port_that_is_taken_in_one_line(server: DemoServer, tmp_path: Path) -> None:
    port = server.grpc_endpoint.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", "serve", "--grpc-port", port, "--http-port", "0", "--device", "cpu",
         "--data-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_ends_a_pod_with_status_0(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", "serve", "--grpc-port", "0", "--http-port", "0", "--device", "cpu",
         "--data-dir", str(tmp_path / "data"), "--ready-file", str(tmp_path / "ready")],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "ready:" in line:
            break
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
