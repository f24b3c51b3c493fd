"""A real control plane on this machine: etcd, kube-apiserver and kube-controller-manager, with nothing to run pods on.

It is what the controller meets in a cluster as far as objects go: admission, RBAC, CRDs, watches, conflicts, garbage
collection, the state of Deployments and namespaces. Certificates are made for the occasion; service accounts are issued
tokens that the server checks. No request is anonymous.

`Admin` speaks plain HTTP to it with the administrator's certificate: what a test knows of the cluster without the
client under test. Where a test wants pods, it writes their status itself.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.demo.etcd_server import EtcdServer
from mesh.demo.ports import free_ports
from mesh.demo.server import stop_process
from tests.contract.certificates import Authority, Certificate

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "garbage-collector-controller",
    "endpointslice-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "disruption-controller",
    "horizontal-pod-autoscaler-controller",
)

Json = dict[str, Any]


class Refusal(Exception):
    """The server said no."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Admin:
    """Requests with a client certificate."""

    def __init__(self, server: str, authority: Path, certificate: Certificate) -> None:
        self._server = server
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(certificate.certificate, certificate.key)
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def send(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Json:
        """Raises Refusal, OSError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._server + path, data, {"Content-Type": content_type}, method=method)
        try:
            with self._opener.open(request, timeout=30) as answer:
                said: Json = json.loads(answer.read() or b"{}")
                return said
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                status = json.loads(text)
            except ValueError:
                raise Refusal(error.code, str(error.reason), text) from error
            raise Refusal(error.code, status.get("reason", ""), status.get("message", text)) from error

    def get(self, path: str) -> Json:
        return self.send("GET", path)

    def find(self, path: str) -> Json | None:
        """None: there is no such object."""
        try:
            return self.get(path)
        except Refusal as refusal:
            if refusal.status != 404:
                raise
            return None

    def create(self, path: str, manifest: Mapping[str, Any]) -> Json:
        return self.send("POST", path, manifest)

    def apply(self, path: str, manifest: Mapping[str, Any], manager: str = "the-user") -> Json:
        """Server-side apply, as `kubectl apply --server-side`; `path` ends in the object's name."""
        query = urllib.parse.urlencode({"fieldManager": manager, "force": "true"})
        return self.send("PATCH", f"{path}?{query}", manifest, "application/apply-patch+yaml")

    def merge(self, path: str, patch: Mapping[str, Any]) -> Json:
        return self.send("PATCH", path, patch, "application/merge-patch+json")

    def delete(self, path: str) -> Json:
        return self.send("DELETE", path)

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
        """What `condition` returns, once that is true."""
        until_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < until_s, f"within {timeout_s:g} s it did not happen that {what}"
            time.sleep(POLL_S)
        return found


class ControlPlane:
    """One cluster, on 127.0.0.1. `start` it; the address stays the same over restarts."""

    def __init__(self, programs: Mapping[str, Path], etcd: EtcdServer, directory: Path) -> None:
        self._programs = programs
        self._etcd = etcd
        self._directory = directory
        (self._port,) = free_ports(1)
        self.server = f"https://127.0.0.1:{self._port}"
        authority = Authority(directory / "certificates", "cluster authority")
        self.authority = authority.certificate
        self._serving = authority.issue("kube-apiserver")
        self._admin = authority.issue("admin", organization="system:masters")
        self._manager = authority.issue("system:kube-controller-manager")
        self._signing_key = directory / "service-accounts.key"
        self._signing_key.write_bytes(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,  # of the two, the one that both servers read
                serialization.NoEncryption(),
            )
        )
        self.admin = Admin(self.server, self.authority, self._admin)
        self._apiserver: subprocess.Popen[bytes] | None = None
        self._controllers: subprocess.Popen[bytes] | None = None

    def start(self) -> ControlPlane:
        """Start both programs, and wait until the server is ready and namespaces get their service accounts."""
        self.start_apiserver()
        kubeconfig = self.kubeconfig(
            "controllers",
            {"client-certificate": str(self._manager.certificate), "client-key": str(self._manager.key)},
        )
        self._controllers = self._launch(
            "kube-controller-manager",
            {
                "kubeconfig": kubeconfig,
                "controllers": ",".join(CONTROLLERS),
                "leader-elect": "false",
                "secure-port": 0,
                "service-account-private-key-file": self._signing_key,
                "root-ca-file": self.authority,
                "use-service-account-credentials": "true",
            },
        )
        self.admin.wait_until(
            lambda: self._controllers_run() and self.admin.find("/api/v1/namespaces/default/serviceaccounts/default"),
            "kube-controller-manager makes service accounts",
            START_TIMEOUT_S,
        )
        return self

    def start_apiserver(self) -> None:
        """Start it, for the first time or again, and wait until it is ready."""
        self._apiserver = self._launch(
            "kube-apiserver",
            {
                "etcd-servers": f"http://{self._etcd.endpoint}",
                "bind-address": "127.0.0.1",
                "advertise-address": "127.0.0.1",
                "secure-port": self._port,
                "tls-cert-file": self._serving.certificate,
                "tls-private-key-file": self._serving.key,
                "client-ca-file": self.authority,
                "authorization-mode": "RBAC",
                "anonymous-auth": "false",
                "service-account-issuer": "https://kubernetes.default.svc",
                "service-account-key-file": self._signing_key,
                "service-account-signing-key-file": self._signing_key,
                "service-cluster-ip-range": "10.0.0.0/24",
                "shutdown-delay-duration": "0s",
            },
        )
        self.admin.wait_until(self._is_ready, "kube-apiserver is ready", START_TIMEOUT_S)

    def kill_apiserver(self) -> None:
        """SIGKILL, as a machine dies."""
        assert self._apiserver is not None
        self._apiserver.send_signal(signal.SIGKILL)
        self._apiserver.wait()

    def stop(self) -> None:
        """End both programs; etcd is the caller's."""
        for process in (self._controllers, self._apiserver):
            if process is not None and process.poll() is None:
                stop_process(process, STOP_TIMEOUT_S)

    def kubeconfig(self, name: str, user: Mapping[str, str]) -> Path:
        """A kubeconfig file for whoever presents these credentials."""
        path = self._directory / f"{name}.kubeconfig"
        cluster = {"server": self.server, "certificate-authority": str(self.authority)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": dict(user)}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def service_account_kubeconfig(self, namespace: str, account: str) -> Path:
        """For programs that act as a service account, with a token that the server has issued."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        issued = self.admin.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)
        return self.kubeconfig(f"{namespace}-{account}", {"token": issued["status"]["token"]})

    def log_text(self, program: str) -> str:
        return (self._directory / f"{program}.log").read_text(errors="replace")

    def _launch(self, program: str, flags: Mapping[str, object]) -> subprocess.Popen[bytes]:
        with (self._directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [str(self._programs[program]), *(f"--{name}={value}" for name, value in flags.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={name: value for name, value in os.environ.items() if not name.startswith("KUBE")},
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        assert self._apiserver is not None
        assert self._apiserver.poll() is None, self.log_text("kube-apiserver")[-4000:]
        try:
            self.admin.send("GET", "/readyz?exclude=none")
        except ValueError:  # `ok` is no JSON
            return True
        except (Refusal, OSError):
            return False
        return True

    def _controllers_run(self) -> bool:
        assert self._controllers is not None
        assert self._controllers.poll() is None, self.log_text("kube-controller-manager")[-4000:]
        return True
