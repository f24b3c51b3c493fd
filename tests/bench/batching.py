"""What running requests together brings: throughput and latency with it and without, at 1, 8 and 64 in flight.

Two pods that differ in one setting, in turns, in one run: so ratios mean something on a machine that other work shares.
The load generator (grpc.aio, bodies encoded beforehand, each of other rows) takes its part of the same cores, and costs
as much per request as the endpoint does: what batching saves of a model's run is a smaller share of the whole than it
would be with clients elsewhere. So the processor time of the pods is shown as well, which others' load leaves alone.
Each answer is compared with the one that the same row got alone.

Requests for models whose runs are shorter than a hand-over never wait for a run; there, what arrives together shares
runs on the loop. They are asked by `peers/load.py`, over pygrpc-native, and what counts is requests per second of the
pod's processor time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesh.client.client import Client
from mesh.client.operations import infer
from mesh.demo.server import DemoServer
from mesh.wire import messages
from mesh.wire.tensors import decode_response
from runtime_adapters.datatypes import DTYPE_OF
from tests.bench.figures import Reporter, spread_of
from tests.bench.models import BenchModel, read_models
from tests.bench.pods import processor_s_of, running_pod, wait_prepared
from tests.bench.transport import ask_once, load_of

IN_FLIGHT = (1, 8, 64)
ROWS = 64
"""Different requests."""
_MODELS = ("onnx-6mb", "onnx-25mb", "sklearn-pipeline", "lightgbm-100x63", "torch-25mb", "python-small")
_ON_THE_LOOP = ("onnx-tiny", "xgboost-100x6")
_IN_FLIGHT_ON_THE_LOOP = (32, 256)
_ROUNDS = 4
_SECONDS = 2.0
_RELATIVE_TOLERANCE = 1e-5


@dataclass(slots=True)
class _Measured:
    rates: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    processor_s: float = 0.0
    """Of the pod."""


def run(bench: Reporter) -> None:
    """Every model, one after the other."""
    models = read_models(bench.cache_dir)
    chosen = [models[name] for name in _MODELS if name in models]
    chosen = chosen[: bench.choose(len(chosen), 2)]
    with running_pod(bench) as batching, running_pod(bench, settings=("--no-batching",)) as plain:
        for number, model in enumerate(chosen):
            bench.progress(number, len(chosen), model.name)
            pods = {True: batching, False: plain}
            for pod in pods.values():
                with Client(pod.grpc_endpoint, timeout_s=120.0) as client:
                    parameters = {"batch_dimension": "true"} if model.format == "torch" else {}  # nothing else says so
                    client.register(model.name, uri=model.artifact.as_uri(), format=model.format, parameters=parameters)
            asyncio.run(_measure(bench, model, pods))
            with Client(batching.grpc_endpoint) as client:
                said = client.describe(model.name).copies[0].batching
            bench.figure(f"{model.name}, batched", said.startswith("yes"), "", bar=1, at_least=True, note=said)
        for name in _ON_THE_LOOP:
            bench.progress(len(chosen), len(chosen), name)
            _measure_on_the_loop(bench, models[name], {True: batching, False: plain})
    bench.progress(len(chosen), len(chosen))


async def _measure(bench: Reporter, model: BenchModel, pods: dict[bool, DemoServer]) -> None:
    import grpc.aio

    bodies = _bodies(model)
    async with (
        grpc.aio.insecure_channel(pods[True].grpc_endpoint) as batching,
        grpc.aio.insecure_channel(pods[False].grpc_endpoint) as plain,
    ):
        calls = {
            together: channel.unary_unary(messages.MODEL_INFER.path)
            for together, channel in ((True, batching), (False, plain))
        }
        for together, pod in pods.items():
            await calls[together](bodies[0], timeout=120)
            with Client(pod.grpc_endpoint) as client:
                await asyncio.to_thread(wait_prepared, client, model.name)
        alone = [decode_response(await calls[False](body, timeout=120)).outputs for body in bodies]
        for together in (True, False):  # the trial, and the sizes that are learned
            await _load(calls[together], bodies, alone, max(IN_FLIGHT), _Measured(), _SECONDS / 2)
        for in_flight in IN_FLIGHT:
            found = {True: _Measured(), False: _Measured()}
            for _ in range(bench.choose(_ROUNDS, 1)):
                for together in (True, False):
                    before_s = processor_s_of(pods[together].pid)
                    await _load(calls[together], bodies, alone, in_flight, found[together], _SECONDS)
                    found[together].processor_s += processor_s_of(pods[together].pid) - before_s
            _report(bench, model.name, in_flight, found)


def _measure_on_the_loop(bench: Reporter, model: BenchModel, pods: dict[bool, DemoServer]) -> None:
    body, ports = _bodies(model)[0], {}
    answers = {}
    for together, pod in pods.items():
        ports[together] = int(pod.grpc_endpoint.rpartition(":")[2])
        with Client(pod.grpc_endpoint, timeout_s=120.0) as client:
            client.register(model.name, uri=model.artifact.as_uri(), format=model.format)
            ask_once(ports[together], body)
            wait_prepared(client, model.name)
        answers[together] = ask_once(ports[together], body)
    for in_flight in _IN_FLIGHT_ON_THE_LOOP:
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(bench.choose(_ROUNDS, 1)):
            for together, pod in pods.items():
                load = load_of(pod.pid, ports[together], body, answers[together], in_flight, _SECONDS / 2)
                rates[together].append(load.per_server_core_s)
        bench.figure(
            f"{model.name}, {in_flight} in flight, per core",
            float(np.median(rates[True])),
            "1/s",
            baseline=float(np.median(rates[False])),
            baseline_name="--no-batching",
        )


def _report(bench: Reporter, name: str, in_flight: int, found: dict[bool, _Measured]) -> None:
    rates = {together: float(np.median(measured.rates)) for together, measured in found.items()}
    spreads = {together: spread_of(measured.latencies_ms) for together, measured in found.items()}
    cpu_us = {together: 1e6 * each.processor_s / len(each.latencies_ms) for together, each in found.items()}
    bench.figure(
        f"{name}, {in_flight} in flight",
        rates[True] / rates[False],
        "x",
        note=f"{rates[True]:,.0f} for {rates[False]:,.0f} requests/s; the pod's processor {cpu_us[True]:.0f} for "
        f"{cpu_us[False]:.0f} µs each; p50 {spreads[True].p50:.2f} for "
        f"{spreads[False].p50:.2f} ms, p99 {spreads[True].p99:.2f} for {spreads[False].p99:.2f} ms",
    )


def _bodies(model: BenchModel) -> list[bytes]:
    loaded = model.load()
    (spec,) = (spec for spec in loaded.metadata.inputs if not spec.optional)
    loaded.unload()
    rows = np.random.default_rng(5).normal(size=(ROWS, *spec.shape[1:])).astype(DTYPE_OF[spec.datatype])
    return [infer(model.name, {spec.name: rows[at : at + 1]}, (), "", "").body for at in range(ROWS)]


async def _load(
    call: Any, bodies: list[bytes], alone: list[Any], in_flight: int, found: _Measured, seconds: float
) -> None:
    answered, ends = 0, time.perf_counter() + seconds

    async def lane(at: int) -> None:
        nonlocal answered
        while (began := time.perf_counter()) < ends:
            answer = await call(bodies[at % ROWS], timeout=60)
            found.latencies_ms.append((time.perf_counter() - began) * 1e3)
            answered += 1
            if answered % 16 == 0:
                _check(decode_response(answer).outputs, alone[at % ROWS])
            at += in_flight

    began = time.perf_counter()
    await asyncio.gather(*(lane(at) for at in range(in_flight)))
    found.rates.append(answered / (time.perf_counter() - began))


def _check(answer: Any, alone: Any) -> None:
    for name, expected in alone.items():
        if not np.allclose(answer[name], expected, rtol=_RELATIVE_TOLERANCE, atol=1e-6):
            raise RuntimeError(f"{name}: {answer[name]!r} is not {expected!r}, which the row got alone")
