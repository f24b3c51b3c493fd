"""One model takes most of the traffic: it gets copies on other pods, and they are worth their number."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from mesh.client import AsyncClient, Client, HexcombError
from tests.e2e.conftest import ModelFiles, StartPool
from tests.e2e.pools import ends_of_logs, holders, status_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.etcd]

RUN_S = 0.02
COPIES = 3
IN_FLIGHT = 16
"""More than the copies can run, so that they never wait for questions."""
COPIED_WITHIN_S = 15.0
HEADROOM_S = 10.0
"""A copy is a Python process that starts on a machine where other tests run."""
MEASURED_S = 8.0

_WAITS = '''
"""Waits for 20 ms, which needs no processor, and answers with its input. One request, one run: no batch dimension."""

import time

from runtime_adapters.custom import Model, TensorSpec


class Waits(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs = (TensorSpec("y", "FP32", (-1, 4)),)

    def predict(self, inputs):
        time.sleep(0.02)
        return {"y": inputs["x"]}
'''


async def test_a_hot_model_gets_copies_on_other_pods_and_runs_on_all_of_them(
    start_pool: StartPool, files: ModelFiles
) -> None:
    pool = await asyncio.to_thread(start_pool, COPIES, trusted_prefixes=f"{files.directory.as_uri()}/")
    hot, others = files.python(_WAITS, "waits"), [files.scale(factor) for factor in range(2, 8)]
    with Client(pool.endpoints) as client:
        client.register("hot", uri=hot.as_uri(), format="python")
        for number, example in enumerate(others):
            client.register(f"other-{number}", uri=example.uri)
            client.infer(f"other-{number}", example.inputs)
        await asyncio.to_thread(client.infer, "hot", others[0].inputs)
    answered: Counter[str] = Counter()
    errors: list[str] = []
    over = False

    async def ask(client: AsyncClient, number: int) -> None:
        turn = number
        while not over:
            turn += 1
            # Of five questions four are for the hot model.
            name = "hot" if turn % 5 else f"other-{turn % len(others)}"
            try:
                await client.infer(name, others[0].inputs)
                answered[name] += 1
            except HexcombError as error:
                errors.append(f"{name}: {error}")

    async with AsyncClient(pool.endpoints) as client:
        began_s = time.monotonic()
        asking = [asyncio.create_task(ask(client, number)) for number in range(IN_FLIGHT)]
        await asyncio.to_thread(
            wait_until, pool, lambda: len(holders(pool, "hot")) == COPIES, "it has a copy on each pod", 60
        )
        copied_s = time.monotonic() - began_s
        before, measured_s = answered["hot"], time.monotonic()
        await asyncio.sleep(MEASURED_S)  # a measurement, not a wait
        per_s = (answered["hot"] - before) / (time.monotonic() - measured_s)
        run_s = [busy.run_s for pod in pool.pods for busy in status_of(pod).busy if busy.id == "hot"]
        over = True
        await asyncio.gather(*asking)
    ideal_per_s = COPIES / RUN_S
    possible_per_s = sum(1 / each for each in run_s)
    measured = ", ".join(f"{1e3 * each:.1f}" for each in run_s)
    print(
        f"\na hot model: a copy on each of {COPIES} pods after {copied_s:.1f} s; {per_s:.0f} runs/s of 20 ms, "
        f"{per_s / ideal_per_s:.2f} of what {COPIES} copies could do, {per_s / possible_per_s:.2f} at the run times "
        f"that the pods measured ({measured} ms); {len(errors)} errors in {sum(answered.values())}"
    )
    assert errors == [], ends_of_logs(pool)
    assert copied_s < COPIED_WITHIN_S + HEADROOM_S
    # The bar is 0.9. Below 0.7 it is not the machine: two copies alone would do that.
    assert per_s > 0.7 * ideal_per_s
