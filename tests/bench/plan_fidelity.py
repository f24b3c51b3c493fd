"""Does `hexcomb plan` say what a real pod does? The same trace on both, cold fraction and cold p99 side by side.

A real pod, and a real pool of two, with memory for a part of the models, is asked on a schedule (Poisson arrivals,
popularity after Zipf, drifting half-way) by an open loop: late answers do not make later questions late, which is
what a replay takes for granted. Then its own access log is replayed by the command as a user runs it, at the same
capacity and policy.

Before the schedule every model is loaded once and registered anew, so that both begin with empty memory and with
artifacts on the disk tier. Models differ in format and in bytes by two orders of magnitude, and no two share content.

Each pool meets the schedule twice, in turns with the others. How far the second run is from the first is shown beside:
no replay can be nearer to a run than another run is. And the log of one policy is replayed with another, which is what
`hexcomb plan` is for: there the loads that were recorded are not those that are foretold.

What keeps the two apart: a real pool gives hot models a second copy and balances loads, which the replay knows nothing
of; and a replay's loads do not slow each other down more than those did that were recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.client.async_client import AsyncClient
from mesh.client.client import Client
from mesh.client.operations import registration
from mesh.client.retries import RetryPolicy
from mesh.demo.access_logs import access_log_paths
from mesh.demo.etcd_server import EtcdMissing
from mesh.demo.fleet import Fleet, pod_names, start_fleet
from runtime_adapters.base import Array, LoadOptions
from runtime_adapters.registry import adapter_for
from tests.bench.figures import Reporter
from tests.bench.models import sample_inputs

SECONDS, SECONDS_QUICK = 75.0, 20.0
REQUESTS_PER_S = 40.0
ZIPF_EXPONENT = 0.9
CAPACITY_FRACTION = 0.3
COLD_FRACTION_BAR_POINTS = 2.0
COLD_P99_BAR = 15.0
_DEADLINE_S = 60.0
_TREES = (10, 15, 25, 40, 60, 90, 120, 160)
_WIDTHS = (300, 450, 650, 900, 1200, 1500, 1800, 2100)


@dataclass(frozen=True, slots=True)
class Asked:
    """A model to ask for."""

    name: str
    format: str
    artifact: Path
    inputs: dict[str, Array]
    size_bytes: int
    """As estimated from the artifact."""


@dataclass(frozen=True, slots=True)
class _Pool:
    pods: int
    policy: str

    def __str__(self) -> str:
        return f"{self.pods} pod{'s' if self.pods > 1 else ''}, {self.policy}"


_POOLS = (_Pool(1, "lru"), _Pool(1, "hazard"), _Pool(2, "lru"))
_FORETOLD = ((_POOLS[0], _POOLS[1]), (_POOLS[1], _POOLS[0]))
"""From the log of the first, what the second does."""


def run(bench: Reporter) -> None:
    """One pod, and two that share a store."""
    models = make_models(bench)
    seconds = float(bench.choose(int(SECONDS), int(SECONDS_QUICK)))
    capacity_bytes = int(CAPACITY_FRACTION * sum(model.size_bytes for model in models))
    rounds = bench.choose(2, 1)
    planned: dict[_Pool, list[dict[str, Any]]] = {pool: [] for pool in _POOLS}
    foretold: dict[_Pool, list[dict[str, Any]]] = {pool: [] for pool in _POOLS}
    for number, pool in enumerate(_POOLS * rounds):
        bench.progress(number, len(_POOLS) * rounds, str(pool))
        pod_bytes = capacity_bytes // pool.pods
        with tempfile.TemporaryDirectory(prefix="plan-", dir=bench.cache_dir) as directory:
            try:
                logs = serve_schedule(Path(directory), models, pool.pods, pod_bytes, pool.policy, seconds)
            except EtcdMissing as error:
                bench.skip(str(pool), str(error))
                continue
            planned[pool].append(plan(logs, *_options(pool, pod_bytes)))
            for source, other in _FORETOLD:
                if source == pool:
                    foretold[other].append(plan(logs, *_options(other, pod_bytes)))
    for pool in _POOLS:
        _compare(bench, f"{pool}", planned[pool], [each["observed"] for each in planned[pool]], are_bars=True)
    for source, pool in _FORETOLD:
        title = f"{pool}, foretold from a log of {source.policy}"
        _compare(bench, title, foretold[pool], [each["observed"] for each in planned[pool]], are_bars=False)
    bench.progress(1, 1)


def _options(pool: _Pool, pod_bytes: int) -> tuple[str, ...]:
    # A pod prefetches unless it is told not to.
    return "--capacity", str(pod_bytes), "--pods", str(pool.pods), "--policy", f"{pool.policy}+prefetch"


def _compare(
    bench: Reporter, title: str, planned: list[dict[str, Any]], seen: list[dict[str, Any]], *, are_bars: bool
) -> None:
    """Each run with its plan; beside it how far the runs are from one another."""
    for number, (plan_, real) in enumerate(zip(planned, seen, strict=True), 1):
        who = title if len(seen) == 1 else f"{title}, run {number}"
        others = [other for other in seen if other is not real]
        bench.figure(
            f"{who}: cold fraction, plan against reality",
            100 * abs(plan_["cold_fraction"] - real["cold_fraction"]),
            "points",
            bar=COLD_FRACTION_BAR_POINTS if are_bars else None,
            baseline=100 * abs(others[0]["cold_fraction"] - real["cold_fraction"]) if others else None,
            baseline_name="the other run against this" if others else "",
            note=f"planned {plan_['cold_fraction']:.2%}, real {real['cold_fraction']:.2%} of {plan_['requests']:,}",
        )
        bench.figure(
            f"{who}: cold p99, plan against reality",
            100 * abs(plan_["cold_p99_ms"] / real["cold_p99_ms"] - 1),
            "%",
            bar=COLD_P99_BAR if are_bars else None,
            baseline=100 * abs(others[0]["cold_p99_ms"] / real["cold_p99_ms"] - 1) if others else None,
            baseline_name="the other run against this" if others else "",
            note=f"planned {plan_['cold_p99_ms']:.0f} ms, real {real['cold_p99_ms']:.0f} ms; p50 "
            f"{plan_['cold_p50_ms']:.0f} and {real['cold_p50_ms']:.0f} ms",
        )


# The schedule and the pods ----------------------------------------------------------------------------------------


def draw_schedule(models: int, seconds: float, per_s: float, seed: int = 1) -> list[tuple[float, int]]:
    """(when, which model). The less popular half of the models changes places half-way."""
    draw = random.Random(seed)
    by_rank = list(range(models))
    draw.shuffle(by_rank)
    weights = [1.0 / rank**ZIPF_EXPONENT for rank in range(1, models + 1)]
    schedule: list[tuple[float, int]] = []
    time_s, drifted = draw.expovariate(per_s), False
    while time_s < seconds:
        if time_s > seconds / 2 and not drifted:
            by_rank[models // 2 :] = draw.sample(by_rank[models // 2 :], models - models // 2)
            drifted = True
        schedule.append((time_s, draw.choices(by_rank, weights)[0]))
        time_s += draw.expovariate(per_s)
    return schedule


def serve_schedule(
    directory: Path,
    models: Sequence[Asked],
    pods: int,
    pod_bytes: int,
    policy: str,
    seconds: float,
    per_s: float = REQUESTS_PER_S,
) -> list[Path]:
    """Ask real pods on schedule; the access logs of that, without what went before. Raises EtcdMissing."""
    logs = access_log_paths(directory / "log.csv", pod_names(pods))
    with _fleet(directory, models, pods, pod_bytes, policy, logs) as fleet:
        with Client(fleet.endpoints, timeout_s=_DEADLINE_S) as client:
            _register(client, models)
            for model in models:
                for server in fleet.servers:
                    with Client(server.grpc_endpoint, timeout_s=_DEADLINE_S) as one:
                        one.infer(model.name, model.inputs)
            client.unregister_many(model.name for model in models)
            _wait_empty(client)
            _register(client, models)
        began_s = time.time()
        asyncio.run(_ask(fleet.endpoints.split(","), models, draw_schedule(len(models), seconds, per_s)))
    for log in logs:
        _cut(log, began_s)
    return logs


@contextlib.contextmanager
def _fleet(
    directory: Path, models: Sequence[Asked], pods: int, pod_bytes: int, policy: str, logs: Sequence[Path]
) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        trusted = models[0].artifact.parent.resolve()
        yield start_fleet(directory / "pods", pods, pod_bytes, trusted, logs, stack, {"eviction_policy": policy})


async def _ask(endpoints: Sequence[str], models: Sequence[Asked], schedule: Sequence[tuple[float, int]]) -> None:
    """By an open loop, in turn over the endpoints. Raises whatever the first failed request raises."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                AsyncClient(endpoint, timeout_s=_DEADLINE_S, retry=RetryPolicy(attempts_max=1))
            )
            for endpoint in endpoints
        ]
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, (due_s, position) in enumerate(schedule):
                await asyncio.sleep(due_s - (time.monotonic() - began_s))
                model = models[position]
                tasks.create_task(clients[number % len(clients)].infer(model.name, model.inputs))


def _register(client: Client, models: Sequence[Asked]) -> None:
    entries = [registration(model.name, uri=model.artifact.as_uri(), format=model.format) for model in models]
    for result in client.register_many(entries):
        if result.status_code:
            raise RuntimeError(f"{result.id} was not registered: {result.message}")


def _wait_empty(client: Client) -> None:
    until_s = time.monotonic() + _DEADLINE_S
    while any(pod.models_resident for pod in client.pod_status()):
        if time.monotonic() > until_s:
            raise RuntimeError("models are still held though all were unregistered")
        time.sleep(0.02)


def _cut(log: Path, began_s: float) -> None:
    """Leave the lines from then on."""
    with log.open(newline="") as file:
        columns, *rows = csv.reader(file)
    with log.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(row for row in rows if float(row[0]) >= began_s)


def plan(logs: Sequence[Path], *options: str) -> dict[str, Any]:
    """`hexcomb plan` as a user runs it."""
    command = [sys.executable, "-m", "mesh.cli.main", "plan", *map(str, logs), *options, "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(f"hexcomb plan: {answer.stderr}")
    planned: dict[str, Any] = json.loads(answer.stdout)
    return planned


# Models -----------------------------------------------------------------------------------------------------------


def make_models(bench: Reporter) -> list[Asked]:
    """Of several formats, from 0.1 to 20 MB, each of other content; made once."""
    import lightgbm
    import numpy as np
    import xgboost

    home = bench.cache_dir / "plan-models"
    if not (home / "made").exists():
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        draw = np.random.default_rng(7)
        features = draw.normal(size=(8000, 10)).astype(np.float32)
        for seed in range(3):
            labels = draw.integers(0, 2, 8000)
            settings = {"objective": "binary", "num_leaves": 511, "min_data_in_leaf": 3, "seed": seed}
            settings |= {"num_threads": 1, "verbosity": -1}
            forest = lightgbm.train(settings, lightgbm.Dataset(features, labels), num_boost_round=max(_TREES))
            boosted = xgboost.train(
                {"max_depth": 9, "eta": 0.01, "min_child_weight": 0, "nthread": 1, "seed": seed},
                xgboost.DMatrix(features, labels),
                num_boost_round=max(_TREES),
            )
            for trees in _TREES:
                bench.progress(0, 3, f"making models, {seed}, {trees} trees")
                forest.save_model(home / f"lightgbm-{seed}-{trees}.txt", num_iteration=trees)
                boosted[:trees].save_model(home / f"xgboost-{seed}-{trees}.ubj")
            for width in _WIDTHS:
                (home / f"onnx-{seed}-{width}.onnx").write_bytes(_network(width, draw))
        (home / "made").touch()
    return [_asked(path) for path in sorted(home.iterdir()) if path.name != "made"]


def _network(width: int, draw: Any) -> bytes:
    """ONNX: x of FP32 [-1, 64] through two square matrices."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    sizes = (64, width, width, 8)
    nodes, weights = [], []
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = (draw.standard_normal((rows, columns)) / rows).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["N", sizes[0]])],
        [helper.make_tensor_value_info(f"x{len(nodes)}", TensorProto.FLOAT, ["N", sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def _asked(artifact: Path) -> Asked:
    format_name = artifact.name.partition("-")[0]
    adapter = adapter_for(format_name)
    options = LoadOptions(model_id=artifact.stem, trusted=True)
    size_bytes = adapter.estimate(artifact, options).total_bytes
    loaded = adapter.load(artifact, options)
    inputs = sample_inputs(loaded.metadata)
    loaded.unload()
    return Asked(artifact.stem, format_name, artifact, inputs, size_bytes)
