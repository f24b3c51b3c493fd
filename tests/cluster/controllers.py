"""`hexcomb-controller` in a process of its own, allowed what `deploy/controller/rbac.yaml` says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.control_plane import ControlPlane, Json

RBAC = Path(__file__).parents[2] / "deploy" / "controller" / "rbac.yaml"
NAMESPACE = "hexcomb"
ACCOUNT = "hexcomb-controller"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05

_PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/roles",
    "RoleBinding": f"/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}/rolebindings",
}


@dataclass
class RunningController:
    """One process."""

    process: subprocess.Popen[bytes]
    http_port: int
    log: Path

    def ask(self, path: str) -> str:
        """What its HTTP server says, well or not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
                said: bytes = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()
        return said.decode()

    def metrics(self) -> list[str]:
        """Line by line."""
        return self.ask("/metrics").splitlines()

    def calls_by_method(self) -> dict[str, float]:
        """Calls to the API server that it has made, watches left out."""
        calls: dict[str, float] = {}
        for line in self.metrics():
            if line.startswith("hexcomb_controller_cluster_calls_total{"):
                method = line.partition('method="')[2].partition('"')[0]
                calls[method] = calls.get(method, 0.0) + float(line.rpartition(" ")[2])
        return calls

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)


class ControllerStarter:
    """Starts controllers that watch one namespace each, so that tests do not work on one another's services."""

    def __init__(self, cluster: ControlPlane, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._started: list[RunningController] = []

    def __call__(self, namespace: str, mesh_endpoint: str, **settings: object) -> RunningController:
        grant(self._cluster)
        number = len(self._started)
        ready, log = self._directory / f"controller-{number}.json", self._directory / f"controller-{number}.log"
        given = {
            "kubeconfig": self._cluster.service_account_kubeconfig(NAMESPACE, ACCOUNT),
            "watch_namespace": namespace,
            "mesh_endpoint": mesh_endpoint,
            "lease_name": f"hexcomb-{namespace}",
            "host": "127.0.0.1",
            "http_port": 0,
            "ready_file": ready,
            **settings,
        }
        arguments = []
        for name, value in given.items():
            flag = name.replace("_", "-")
            switch = f"--{flag}" if value is True else f"--no-{flag}"
            arguments.append(switch if isinstance(value, bool) else f"--{flag}={value}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "controller.main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={name: value for name, value in os.environ.items() if not name.startswith(("KUBE", "HEXCOMB"))},
            )
        until_s = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > until_s:
                process.kill()
                process.wait()
                raise AssertionError(f"the controller did not start:\n{log.read_text()[-4000:]}")
            time.sleep(POLL_S)
        running = RunningController(process, json.loads(ready.read_text())["http_port"], log)
        self._started.append(running)
        return running

    def close(self) -> None:
        for running in self._started:
            if running.process.poll() is None:
                running.process.terminate()
        for running in self._started:
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(STOP_TIMEOUT_S)
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()


StartController = Callable[..., RunningController]


def grant(cluster: ControlPlane) -> None:
    """Make the controller's namespace, and apply its service account and its roles."""
    namespace: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    for manifest in (namespace, *yaml.safe_load_all(RBAC.read_text())):
        cluster.admin.apply(f"{_PATHS[manifest['kind']]}/{manifest['metadata']['name']}", manifest)
