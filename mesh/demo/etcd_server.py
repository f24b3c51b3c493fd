"""A real etcd for the demo of several pods and for the tests: found or fetched, started on free ports, and broken.

The binary comes from where the caller says, from PATH, or from Debian's package `etcd-server`, which is downloaded and
unpacked into the user's cache without being installed: apt runs with lists and locks of its own, so no root is needed.
Other systems are told what to install.

`EtcdServer` is one member. Beside starting and stopping it does what tests of a store's clients need: `kill` it in the
middle of things, `wipe` its data and come back on the same port, `pause` it so that it holds its connections and says
nothing. `EtcdCluster` is several members.

It listens on loopback. It is a session leader, as the demo's pods are, so Ctrl-C reaches the demo first.

Deliberately absent: anything about keys (`placement.store.etcd`), and etcd as an operator should run it: three
members, TLS, backups.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.demo.debian_package import has_debian_tools, unpack_package
from mesh.demo.ports import free_ports
from mesh.demo.server import stop_process

PACKAGE = "etcd-server"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.02
_LOG_SHOWN_CHARACTERS = 2000
_PORT_TRIES = 5
"""Free ports are looked for before etcd takes them, so another process may be quicker."""


class EtcdMissing(Exception):
    """There is no etcd here and none could be fetched; the message says what to install."""


class EtcdFailed(Exception):
    """etcd did not start; the message holds the end of its log."""


# The binary ---------------------------------------------------------------------------------------------------------


def cache_dir() -> Path:
    """Where a fetched etcd is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hexcomb" / "etcd"


def find_etcd(explicit: str | None = None) -> Path:
    """The etcd to run: `explicit`, the one on PATH, the one in the cache, or Debian's. Raises EtcdMissing."""
    if explicit:
        if not os.access(explicit, os.X_OK):
            raise EtcdMissing(f"{explicit} is not a program; give the path of an etcd binary")
        return Path(explicit)
    if on_path := shutil.which("etcd"):
        return Path(on_path)
    cached = cache_dir() / "etcd"
    if not cached.exists():
        fetch_etcd(cached)
    return cached


def fetch_etcd(target: Path) -> None:
    """Unpack Debian's etcd into the file `target`. Raises EtcdMissing."""
    if not has_debian_tools():
        raise EtcdMissing(
            "there is no etcd on PATH: install it (macOS: `brew install etcd`; Fedora: `dnf install etcd`)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            root = unpack_package(PACKAGE, Path(scratch))
            (root / "usr/bin/etcd").replace(target)  # whoever fetches at the same time gets a whole file
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            output = error.stdout if isinstance(error, subprocess.CalledProcessError) else ""
            found = f"there is no etcd on PATH, and {PACKAGE} could not be fetched ({error}): install etcd"
            raise EtcdMissing(f"{found}\n{output}".strip()) from error


# One member ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Files of a member that speaks TLS to its clients. With `client_ca`, clients must show a certificate of it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(slots=True)
class EtcdServer:
    """One member, on 127.0.0.1. `start` it; the ports stay the same over restarts."""

    binary: Path
    directory: Path
    name: str = "m0"
    options: Sequence[str] = ()
    """Further flags."""
    tls: ServerTls | None = None
    client_port: int = 0
    peer_port: int = 0
    metrics_port: int = 0
    initial_cluster: str = ""
    """As etcd's flag; empty: a cluster of this one."""
    launched: Callable[[int], None] | None = field(default=None, repr=False)
    """Told the id of each process that is started."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None else None

    def choose_ports(self) -> None:
        """Take three ports that are free now."""
        self.client_port, self.peer_port, self.metrics_port = free_ports(3)

    def launch(self) -> None:
        """Start the process without waiting for it; `wait_healthy` waits."""
        if not self.client_port:
            self.choose_ports()
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
                start_new_session=True,
            )
        if self.launched is not None:
            self.launched(self._process.pid)

    def start(self) -> EtcdServer:
        """Start, and wait until it serves. Raises EtcdFailed."""
        ports_chosen = bool(self.client_port)
        for attempt in range(_PORT_TRIES):
            self.launch()
            try:
                self.wait_healthy()
                return self
            except EtcdFailed as error:
                self.kill()
                if ports_chosen or "address already in use" not in str(error) or attempt == _PORT_TRIES - 1:
                    raise
                self.client_port = 0
        raise AssertionError("unreachable")

    def wait_healthy(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the member has a leader and answers. Raises EtcdFailed."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if self._process is None or self._process.poll() is not None:
                raise EtcdFailed(f"etcd ended; its log ends:\n{self._end_of_log()}")
            if self._is_healthy():
                return
            time.sleep(_LOOK_EVERY_S)
        raise EtcdFailed(f"etcd was not healthy after {timeout_s:.0f} s; its log ends:\n{self._end_of_log()}")

    def stop(self) -> None:
        """SIGTERM; SIGKILL when it takes too long."""
        if self._process is not None:
            self.resume()
            stop_process(self._process, STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as a machine dies."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def wipe(self) -> None:
        """Kill it and delete its data: what comes back on this port is another, empty store."""
        self.kill()
        shutil.rmtree(self._data)

    def pause(self) -> None:
        """It keeps its connections and says nothing more, as behind a broken network."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            # Until the last of its threads stands; an exit is left for `Popen` to see.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """End a pause."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "etcd.log"

    def _end_of_log(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_SHOWN_CHARACTERS:].strip() or "(nothing)"

    def _is_healthy(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"http://127.0.0.1:{self.metrics_port}/health", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _command(self) -> list[str]:
        client_url = f"{'https' if self.tls else 'http'}://{self.endpoint}"
        peer_url = f"http://127.0.0.1:{self.peer_port}"
        command = [
            str(self.binary), "--name", self.name, "--data-dir", str(self._data), "--logger", "zap",
            "--log-level", "warn", "--listen-client-urls", client_url, "--advertise-client-urls", client_url,
            "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
            "--initial-cluster", self.initial_cluster or f"{self.name}={peer_url}",
            "--listen-metrics-urls", f"http://127.0.0.1:{self.metrics_port}",
        ]  # fmt: skip
        if self.tls is not None:
            command += ["--cert-file", str(self.tls.certificate), "--key-file", str(self.tls.key)]
            if self.tls.client_ca is not None:
                command += ["--client-cert-auth", "--trusted-ca-file", str(self.tls.client_ca)]
        return [*command, *self.options]


# Several members ----------------------------------------------------------------------------------------------------


class EtcdCluster:
    """Members on 127.0.0.1 that elect a leader."""

    def __init__(
        self,
        binary: Path,
        directory: Path,
        members: int = 3,
        options: Sequence[str] = (),
        launched: Callable[[int], None] | None = None,
    ) -> None:
        ports = free_ports(3 * members)
        self.members = [
            EtcdServer(
                binary,
                directory / f"m{i}",
                f"m{i}",
                options,
                client_port=ports[3 * i],
                peer_port=ports[3 * i + 1],
                metrics_port=ports[3 * i + 2],
                launched=launched,
            )
            for i in range(members)
        ]
        peers = ",".join(f"{member.name}=http://127.0.0.1:{member.peer_port}" for member in self.members)
        for member in self.members:
            member.initial_cluster = peers

    @property
    def endpoints(self) -> str:
        """HOST:PORT,HOST:PORT,... as in a store's address."""
        return ",".join(member.endpoint for member in self.members)

    def start(self) -> EtcdCluster:
        """Start all members, and wait until they have a leader. Raises EtcdFailed."""
        try:
            for member in self.members:
                member.launch()  # none becomes healthy before most of them run
            for member in self.members:
                member.wait_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.stop()
