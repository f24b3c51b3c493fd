"""A real pod in a process of its own, on free ports, in a directory of its own: what the end-to-end tests talk to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.client import Client

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0


@dataclass
class Pod:
    """A running `hexcomb serve`."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    http_port: int
    log: Path

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def client(self, **options: object) -> Client:
        return Client(self.target, **options)  # type: ignore[arg-type]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


StartPod = Callable[..., Pod]


@pytest.fixture
def start_pod(tmp_path: Path) -> Iterator[StartPod]:
    """Start pods: `start_pod(capacity="64MiB", trusted_prefixes=...)`. A second call reuses the data directory."""
    pods: list[Pod] = []

    def start(data_dir: Path | None = None, env: dict[str, str] | None = None, **settings: object) -> Pod:
        number = len(pods)
        ready = tmp_path / f"ready-{number}.json"
        log = tmp_path / f"pod-{number}.log"
        given = {
            "grpc_port": 0,
            "http_port": 0,
            "data_dir": data_dir or tmp_path / "data",
            "ready_file": ready,
            "stop_grace_s": 5,
            **settings,
        }
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not True]
        arguments += [f"--{name.replace('_', '-')}" for name, value in given.items() if value is True]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mesh.cli.main", "serve", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env={**os.environ, **(env or {})},
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                process.kill()
                raise AssertionError(f"the pod did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.02)
        addresses = json.loads(ready.read_text())
        pod = Pod(process, addresses["grpc_port"], addresses["http_port"], log)
        pods.append(pod)
        return pod

    yield start
    for pod in pods:
        if pod.process.poll() is None:
            pod.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                pod.process.wait(STOP_TIMEOUT_S)
        if pod.process.poll() is None:
            pod.process.kill()
            pod.process.wait()
