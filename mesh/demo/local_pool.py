"""A pool on this machine: etcd and pods as real processes, started, broken and ended at will.

For the demo, for tests, and for whoever wants to see a pool at work. A pod keeps its name, its ports and its data
directory over restarts, as a pod of a StatefulSet does. With lines (`mesh.demo.line`) the ways from pod to pod, and
from each pod to etcd, lead through proxies that can be slowed, stalled, frozen and cut; clients call the pods directly.

Whatever ends the process that started a pool ends the pool: `stop` in order, the guardian otherwise.

Deliberately absent: what is served (`mesh.demo.run`, the tests).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from mesh.demo.etcd_server import EtcdCluster, EtcdServer, find_etcd
from mesh.demo.guardian import Guardian
from mesh.demo.line import Line, Lines
from mesh.demo.ports import free_ports
from mesh.demo.server import START_TIMEOUT_S, STOP_TIMEOUT_S, ServerFailed, obituary, stop_process, wait_ready

PREFIX = "hexcomb"
"""Of the pool's keys in etcd."""
QUICK_ETCD = ("--heartbeat-interval", "50", "--election-timeout", "500")
"""Ten times etcd's pace, for members on one machine: a lease is then kept to the second."""

SettingValue = str | int | float | bool | Path


class LocalPod:
    """One `hexcomb serve` of a pool. Not running until `start`."""

    def __init__(
        self, name: str, directory: Path, settings: Mapping[str, SettingValue], guardian: Guardian, lines: Lines | None
    ) -> None:
        self.name = name
        self.directory = directory
        self.settings = dict(settings)
        """By the names of `mesh.settings.Settings`; what is changed here holds from the next start on."""
        self.grpc_port, self.http_port, self.peer_port = free_ports(3)
        self.peer_line: Line | None = None
        """The way of other pods to this one."""
        self.store_lines: list[Line] = []
        """This pod's way to each member of etcd."""
        self._guardian = guardian
        self._lines = lines
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def grpc_endpoint(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """HOST:PORT of health and metrics."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process is there; a frozen one is."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process without waiting for it to be ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ready_file.unlink(missing_ok=True)
        given: dict[str, SettingValue] = {
            "pod_name": self.name,
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "peer_port": self.peer_port,
            "data_dir": self.directory / "data",
            "ready_file": self._ready_file,
            "device": "cpu",
            **self.settings,
        }
        if self.peer_line is not None:
            address, peer_address = self.peer_line.endpoints
            given = {"advertise_address": address, "advertise_peer_address": peer_address, **given}
        options = [f"--{key.replace('_', '-')}" + ("" if on is True else f"={on}") for key, on in given.items()]
        # A pool says what it means: settings of the user's own pods do not leak in.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEXCOMB_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mesh.cli.main", "serve", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )
        self._guardian.watch(self._process.pid)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it says that it is ready. Raises ServerFailed."""
        assert self._process is not None
        wait_ready(self._process, self._ready_file, self._log, timeout_s)

    def start(self) -> None:
        """Start it, or start it again, and wait until it is ready. Raises ServerFailed."""
        self.launch()
        self.wait_ready()

    @property
    def is_ready(self) -> bool:
        """Whether it has said so since its last start."""
        return self._ready_file.exists()

    def kill(self) -> None:
        """SIGKILL, as a machine dies."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and does nothing."""
        if self.is_running:
            self._signal(signal.SIGSTOP)
            # Until the last of its threads stands; an exit is left for `Popen` to see.
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """End a freeze."""
        self._signal(signal.SIGCONT)

    def drain(self) -> None:
        """SIGTERM: hand over, then stop. `wait_ended` waits."""
        self._signal(signal.SIGTERM)

    def wait_ended(self, timeout_s: float) -> int:
        """Wait until the process has ended; its status. Raises ServerFailed."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ServerFailed(
                f"pod {self.name} has not ended within {timeout_s:g} s; its log ends:\n{self.log_text()[-4000:]}"
            ) from None

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it takes too long."""
        if self._process is not None:
            self.thaw()
            stop_process(self._process, STOP_TIMEOUT_S)

    def check_running(self) -> None:
        """Raises ServerFailed when it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise ServerFailed(obituary(self._process, self._log))

    def log_text(self) -> str:
        """What it has logged, over all its lives."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def slow_down(self, factor: float) -> SlowDown:
        """Give the process a share of 1/factor of its time, until the answer is closed."""
        return SlowDown(self.pid, factor)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    @property
    def _ready_file(self) -> Path:
        return self.directory / "ready.json"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"


class LocalPool:
    """etcd and pods on 127.0.0.1. `start` it; at the end `stop` it, or use it as a context."""

    def __init__(
        self,
        directory: Path,
        pods: int = 4,
        *,
        settings: Mapping[str, SettingValue] | None = None,
        with_lines: bool = False,
        etcd_members: int = 1,
        etcd_binary: str | None = None,
        etcd_options: Sequence[str] = QUICK_ETCD,
    ) -> None:
        """`settings`: of every pod. Raises EtcdMissing."""
        self.directory = directory
        self._settings = dict(settings or {})
        self._guardian = Guardian()
        self._lines = Lines() if with_lines else None
        binary = find_etcd(etcd_binary)
        self._cluster = EtcdCluster(binary, directory / "etcd", etcd_members, etcd_options, self._guardian.watch)
        self._is_stopped = False
        self.pods: list[LocalPod] = []
        for _ in range(pods):
            self.add()

    @property
    def etcd(self) -> EtcdServer:
        """The first member, or the only one."""
        return self._cluster.members[0]

    @property
    def etcd_members(self) -> list[EtcdServer]:
        """All members."""
        return self._cluster.members

    @property
    def store_url(self) -> str:
        """As `--store` takes it: the straight way to all members."""
        return f"etcd://{self._cluster.endpoints}/{PREFIX}"

    @property
    def endpoints(self) -> str:
        """Of all pods, as our client takes them."""
        return ",".join(pod.grpc_endpoint for pod in self.pods)

    def add(self, name: str = "", **settings: SettingValue) -> LocalPod:
        """One more pod, not started yet."""
        name = name or f"pod-{len(self.pods)}"
        pod = LocalPod(name, self.directory / name, {**self._settings, **settings}, self._guardian, self._lines)
        store = self._cluster.endpoints
        if self._lines is not None:
            pod.peer_line = self._lines.open(pod.grpc_port, pod.peer_port, identify=self._pod_at)
            pod.store_lines = [self._lines.open(member.client_port) for member in self._cluster.members]
            store = ",".join(line.endpoint for line in pod.store_lines)
        pod.settings.setdefault("store", f"etcd://{store}/{PREFIX}")
        self.pods.append(pod)
        return pod

    def start(self) -> Self:
        """Start everything, and wait until every pod is ready. Raises EtcdFailed, ServerFailed."""
        try:
            self._cluster.start()
            for pod in self.pods:
                pod.launch()
            for pod in self.pods:
                pod.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything, the pods first, all at once. A second call does nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        for pod in self.pods:
            pod.thaw()
            pod.drain()
        for pod in self.pods:
            pod.stop()
        self._cluster.stop()
        if self._lines is not None:
            self._lines.close()
        self._guardian.dismiss()

    def leave_running(self) -> None:
        """From now on it is nobody's: `stop` is not called any more, and the end of this process ends nothing."""
        self._guardian.dismiss()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _pod_at(self, port: int) -> str:
        """The name of the pod that a connection from this local port comes from."""
        for pod in self.pods:
            if pod.is_running:
                try:
                    connections = psutil.Process(pod.pid).net_connections("tcp")
                except psutil.Error:
                    continue
                if any(connection.laddr.port == port for connection in connections):
                    return pod.name
        return ""


class SlowDown:
    """A process that gets only a share of its time: it is stopped and let go, many times a second."""

    _PERIOD_S = 0.1

    def __init__(self, pid: int, factor: float) -> None:
        self._pid = pid
        self._running_s = self._PERIOD_S / factor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-down", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                os.kill(self._pid, signal.SIGSTOP)
                time.sleep(self._PERIOD_S - self._running_s)
                os.kill(self._pid, signal.SIGCONT)
                time.sleep(self._running_s)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Full speed again."""
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
