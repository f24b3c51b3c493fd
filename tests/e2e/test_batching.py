"""Requests that meet at a real pod: each gets its own answer, and the models that allow it run several at once."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesh.client import AsyncClient, HexcombError

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, Pod, StartPod

IN_FLIGHT = 24
_MODEL = '''
"""Takes 20 ms however many rows there are, and refuses 13s."""

import time

from runtime_adapters.custom import Model, TensorSpec


class Sleeper(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    batch_dimension = True

    def predict(self, inputs):
        x = inputs["x"]
        time.sleep(0.02)
        if (x == 13).any():
            raise ValueError("13 is no input")
        return {"y": ANSWER}
'''


@pytest.fixture(scope="module")
def pod(start_module_pod: StartPod) -> Pod:
    return start_module_pod()


async def ask_all(pod: Pod, name: str, values: list[float]) -> list[float | str]:
    async with AsyncClient(pod.target) as client:

        async def ask(value: float) -> float | str:
            try:
                answer = await client.infer(name, {"x": np.array([[value, value + 0.5]], np.float32)})
            except HexcombError as error:
                return str(error)
            return float(answer.outputs["y"][0, 0])

        await ask(0.0)  # loads it
        return await asyncio.gather(*(ask(value) for value in values))


def said_of(pod: Pod, name: str) -> str:
    with pod.client() as client:
        (copy,) = client.describe(name).copies
        return copy.batching


def runs_and_requests(pod: Pod) -> tuple[float, float]:
    with urllib.request.urlopen(f"{pod.http}/metrics") as answer:
        text = answer.read().decode()
    found = [re.search(rf"^hexcomb_run_requests_{of}{{.*}} (.*)$", text, re.MULTILINE) for of in ("count", "sum")]
    runs, requests = (0.0 if each is None else float(each[1]) for each in found)
    return runs, requests


async def test_requests_that_meet_share_runs_and_one_that_fails_fails_alone(pod: Pod, files: ModelFiles) -> None:
    artifact = files.python(_MODEL.replace("ANSWER", "x * 2"), "doubles")
    with pod.client() as client:
        client.register("doubles", uri=artifact.as_uri(), format="python", isolation="process")
    runs_before, requests_before = await asyncio.to_thread(runs_and_requests, pod)
    values = [20.0 + number for number in range(IN_FLIGHT)]
    for _ in range(4):  # the trial, then sizes that double
        assert await ask_all(pod, "doubles", values) == [2 * value for value in values]
    runs, requests = await asyncio.to_thread(runs_and_requests, pod)
    assert requests - requests_before == 4 * (IN_FLIGHT + 1)
    assert runs - runs_before < (requests - requests_before) / 2
    assert (await asyncio.to_thread(said_of, pod, "doubles")).startswith("yes, up to ")
    *good, bad = await ask_all(pod, "doubles", [*values, 13.0])
    assert good == [2 * value for value in values]
    assert "13 is no input" in str(bad)


async def test_a_model_whose_rows_influence_one_another_answers_each_as_if_it_were_alone(
    pod: Pod, files: ModelFiles
) -> None:
    artifact = files.python(_MODEL.replace("ANSWER", "x - x.mean(axis=0)"), "centred")
    with pod.client() as client:
        client.register("centred", uri=artifact.as_uri(), format="python", isolation="process")
    values = [20.0 + number for number in range(IN_FLIGHT)]
    assert await ask_all(pod, "centred", values) == [0.0] * IN_FLIGHT
    assert (await asyncio.to_thread(said_of, pod, "centred")).startswith("no: its output 'y' for a row differs")


async def test_a_spec_may_say_no(pod: Pod, files: ModelFiles) -> None:
    artifact = files.python(_MODEL.replace("ANSWER", "x * 3"), "triples")
    with pod.client() as client:
        client.register("triples", uri=artifact.as_uri(), format="python", isolation="process", batch_rows_max=1)
    assert await ask_all(pod, "triples", [1.0, 2.0, 3.0]) == [3.0, 6.0, 9.0]
    assert await asyncio.to_thread(said_of, pod, "triples") == "no: its spec says one row a run"
