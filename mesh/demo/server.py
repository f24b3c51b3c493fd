"""The demo's pod: `hexcomb serve` as a user starts it, in a process of its own.

It listens on loopback at ports that the system picks, says where in its ready file, and logs to a file whose end is
shown when it does not start. It is a session leader: Ctrl-C in the terminal reaches the demo, which then stops the pod
the way an operator would, with SIGTERM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

START_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.02
STOP_TIMEOUT_S = 30.0
_LOG_SHOWN_CHARACTERS = 2000


class ServerFailed(Exception):
    """The pod did not start, or ended; the message holds the end of its log."""


class Server(Protocol):
    """A pod that the demo asks: one alone, or one of a pool (`mesh.demo.local_pool`)."""

    @property
    def name(self) -> str:
        """In the pool; empty: it is alone."""

    @property
    def grpc_endpoint(self) -> str:
        """HOST:PORT."""

    @property
    def http_endpoint(self) -> str:
        """HOST:PORT of health and metrics."""

    @property
    def pid(self) -> int:
        """Of the pod's process."""

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""

    def check_running(self) -> None:
        """Raises ServerFailed when the pod has ended."""


class DemoServer:
    """One running pod."""

    name = ""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, addresses: dict[str, object]) -> None:
        self._process = process
        self._log = log
        self.grpc_endpoint = f"127.0.0.1:{addresses['grpc_port']}"
        self.http_endpoint = f"127.0.0.1:{addresses['http_port']}"

    @property
    def pid(self) -> int:
        """Of the pod's process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def check_running(self) -> None:
        """Raises ServerFailed when the pod has ended."""
        if self._process.poll() is not None:
            raise ServerFailed(obituary(self._process, self._log))

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it takes too long."""
        stop_process(self._process, STOP_TIMEOUT_S)


def start_server(
    data_dir: Path, *, capacity_bytes: int, trusted_prefix: Path, settings: Sequence[str] = ()
) -> DemoServer:
    """Start a pod and wait until it is ready. Raises ServerFailed."""
    data_dir.mkdir(parents=True, exist_ok=True)
    ready_file = data_dir / "ready.json"
    ready_file.unlink(missing_ok=True)
    log = data_dir / "server.log"
    command = [
        sys.executable, "-m", "mesh.cli.main", "serve",
        "--grpc-port", "0", "--http-port", "0",
        "--data-dir", str(data_dir / "data"),
        "--ready-file", str(ready_file),
        "--capacity", str(capacity_bytes),
        "--trusted-prefixes", trusted_prefix.as_uri() + "/",
        "--device", "cpu",  # the capacity that the demo reports on is this machine's memory
        *settings,
    ]  # fmt: skip
    # The demo says what it means: settings of the user's own pods do not leak in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEXCOMB_")}
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        return DemoServer(process, log, wait_ready(process, ready_file, log))
    except BaseException:
        stop_process(process, STOP_TIMEOUT_S)
        raise


def stop_process(process: subprocess.Popen[Any], timeout_s: float) -> None:
    """End a child: ask, wait, then insist."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_ready(
    process: subprocess.Popen[bytes], ready_file: Path, log: Path, timeout_s: float = START_TIMEOUT_S
) -> dict[str, object]:
    """What the pod says once it is ready. Raises ServerFailed."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise ServerFailed(obituary(process, log))
        if ready_file.exists():
            try:
                addresses = json.loads(ready_file.read_text())
            except ValueError:
                addresses = {}  # half written: look again
            if isinstance(addresses, dict) and "grpc_port" in addresses:
                return addresses
        time.sleep(_LOOK_EVERY_S)
    raise ServerFailed(f"the server was not ready after {timeout_s:.0f} s; its log ends:\n{_end_of(log)}")


def obituary(process: subprocess.Popen[bytes], log: Path) -> str:
    """How the pod ended, with the end of its log."""
    code = process.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    return f"the server {how}; its log ends:\n{_end_of(log)}"


def _end_of(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-_LOG_SHOWN_CHARACTERS:].strip() or "(nothing)"
    except OSError as error:
        return f"(cannot be read: {error})"
