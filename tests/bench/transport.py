"""Requests per core of the server, on both transports: a tiny ONNX model through a pod, beside the bare transport.

The echo is the transport with a handler that gives back what it got: what remains when everything of ours is taken
away. The pod does all that it always does: tenant, name, route, copy and its pin, checks, the run, metrics. The echo
answers one request after the other out of what arrived together; the pod runs that in one batch.

Servers run on one core and the load generator (`peers/load.py`) on another, in turns within one run, so that what else
the machine does falls on all alike. The rate is requests per second of the server's processor time: with a core to
itself that is what it answers per second, and with a busy neighbour it still is what a request costs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import grpc
import numpy as np

from mesh.client.client import Client
from mesh.client.operations import infer
from mesh.wire import messages
from tests.bench.figures import Reporter
from tests.bench.models import read_models
from tests.bench.peers.answers import LoadFailed
from tests.bench.peers.load import Load, LoadResult, pin_to, run_load
from tests.bench.pods import pin_process, running_pod

ECHO_SHARE_MIN = 0.5
"""Of the bare transport's requests per core: issue 5's bar."""
CONNECTIONS, STREAMS = 4, 8
_WARM_UP_S = 0.5
_MODEL = "onnx-tiny"


def run(bench: Reporter) -> None:
    """Both transports, each bare and with the pod behind it."""
    model = read_models(bench.cache_dir)[_MODEL]
    message = infer(_MODEL, {"x": np.zeros((1, 4), np.float32)}, (), "", "").body
    rounds, seconds = bench.choose(5, 3), bench.choose(3, 1)
    server_core, load_core = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    for number, name in enumerate(("native", "grpcio")):
        bench.progress(number, 2, name)
        with running_pod(bench, settings=("--transport", name)) as pod, _echo(name) as (echo_pid, echo_port):
            with Client(pod.grpc_endpoint, timeout_s=120.0) as client:
                client.register(_MODEL, uri=model.artifact.as_uri(), format=model.format)
            contestants = {"echo": (echo_pid, echo_port), "pod": (pod.pid, int(pod.grpc_endpoint.rpartition(":")[2]))}
            loads: dict[str, list[LoadResult]] = {"echo": [], "pod": []}
            for pid, _ in contestants.values():
                pin_process(pid, server_core)
            pin_to((load_core,))
            for _ in range(rounds):
                for who, (pid, port) in contestants.items():
                    answer = ask_once(port, message)
                    loads[who].append(load_of(pid, port, message, answer, CONNECTIONS * STREAMS, seconds))
            _report(bench, name, loads)
    bench.progress(2, 2)


def _report(bench: Reporter, name: str, loads: dict[str, list[LoadResult]]) -> None:
    rates = {who: median(load.per_server_core_s for load in measured) for who, measured in loads.items()}
    for who, measured in loads.items():
        bench.samples(
            f"{name}, {'bare echo' if who == 'echo' else 'tiny ONNX through a pod'}",
            [load.per_server_core_s for load in measured],
            "1/s per core",
            note=f"p50 {median(load.latencies_ms[0] for load in measured):.2f}, p99 "
            f"{median(load.latencies_ms[1] for load in measured):.2f} ms with {CONNECTIONS * STREAMS} in "
            f"flight; {median(load.answered / load.duration_s for load in measured):,.0f}/s answered",
        )
    bench.figure(f"{name}, of its bare echo", rates["pod"] / rates["echo"], "share", bar=ECHO_SHARE_MIN, at_least=True)


def load_of(pid: int, port: int, message: bytes, answer: bytes, in_flight: int, seconds: float) -> LoadResult:
    """What so many requests in flight, all alike, come to. Raises LoadFailed; an answer that differs is one, too."""
    load = Load(
        address=("127.0.0.1", port),
        grpc_path=messages.MODEL_INFER.path,
        requests=(message,),
        expected=(answer,),
        order=(0,),
        in_flight=in_flight,
        rate_per_s=0.0,
        warm_up_s=_WARM_UP_S,
        duration_s=seconds,
        server_pids=(pid,),
        connections_max=CONNECTIONS,
    )
    result = run_load(load)
    if result.wrong:
        raise LoadFailed(f"{result.wrong} answers differ from the first one")
    return result


def ask_once(port: int, message: bytes) -> bytes:
    """The answer to one request."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer: bytes = channel.unary_unary(messages.MODEL_INFER.path)(message, timeout=60, wait_for_ready=True)
        return answer


@contextlib.contextmanager
def _echo(name: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "tests.bench.echo_server", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()
