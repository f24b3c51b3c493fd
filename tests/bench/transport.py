"""Requests per core of the server, on both transports: a tiny ONNX model through a pod, beside the bare transport.

The echo is the transport with a handler that gives back what it got: what remains when everything of ours is taken
away. The pod does all that it always does: tenant, name, route, copy and its pin, checks, the run, metrics. The echo
answers one request after the other out of what arrived together; the pod runs that in one batch.

Servers run on one core and the load generator (`h2_load`) on another, in turns within one run, so that what else the
machine does falls on all alike. The rate is requests per second of the server's processor time: with a core to itself
that is what it answers per second, and with a busy neighbour it still is what a request costs.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import grpc
import numpy as np
import psutil

from mesh.client.client import Client
from mesh.client.operations import infer
from mesh.wire import messages
from tests.bench.figures import Reporter
from tests.bench.h2_load import Load, run_load
from tests.bench.models import read_models
from tests.bench.pods import running_pod

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
            loads: dict[str, list[tuple[float, Load]]] = {"echo": [], "pod": []}
            for pid, _ in contestants.values():
                _pin(pid, server_core)
            _pin(os.getpid(), load_core)
            for seen in range(-1, rounds):
                for who, (pid, port) in contestants.items():
                    answer = ask_once(port, message)
                    measured = _measure(pid, port, message, answer, seconds if seen >= 0 else _WARM_UP_S)
                    if seen >= 0:
                        loads[who].append(measured)
            _report(bench, name, loads)
    bench.progress(2, 2)


def _report(bench: Reporter, name: str, loads: dict[str, list[tuple[float, Load]]]) -> None:
    rates = {who: median(rate for rate, _ in measured) for who, measured in loads.items()}
    for who, measured in loads.items():
        bench.samples(
            f"{name}, {'bare echo' if who == 'echo' else 'tiny ONNX through a pod'}",
            [rate for rate, _ in measured],
            "1/s per core",
            note=f"p50 {median(load.percentile_ms(0.5) for _, load in measured):.2f}, p99 "
            f"{median(load.percentile_ms(0.99) for _, load in measured):.2f} ms with {CONNECTIONS * STREAMS} in "
            f"flight; {median(load.answered / load.seconds for _, load in measured):,.0f}/s answered",
        )
    bench.figure(f"{name}, of its bare echo", rates["pod"] / rates["echo"], "share", bar=ECHO_SHARE_MIN, at_least=True)


def _measure(pid: int, port: int, message: bytes, answer: bytes, seconds: float) -> tuple[float, Load]:
    """Requests per second of the server's processor time, and the load."""
    before_s = _cpu_s(pid)
    load = run_load(port, messages.MODEL_INFER.path, message, seconds, CONNECTIONS, STREAMS, answer)
    return load.answered / (_cpu_s(pid) - before_s), load


def ask_once(port: int, message: bytes) -> bytes:
    """The answer to one request."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer: bytes = channel.unary_unary(messages.MODEL_INFER.path)(message, timeout=60, wait_for_ready=True)
        return answer


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _pin(pid: int, core: int) -> None:
    """All threads of a process; those that it starts later go where their makers are."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), {core})


@contextlib.contextmanager
def _echo(name: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "tests.bench.echo_server", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()
