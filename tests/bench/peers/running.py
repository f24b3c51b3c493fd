"""One contestant, started on its core, asked for a right answer of every model, measured cell by cell, and stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from mesh.wire import messages
from mesh.wire.tensors import encode_request
from tests.bench.peers.answers import Judge
from tests.bench.peers.artifacts import ZIPF_SHARE, Asked, Fleet, write_list
from tests.bench.peers.contestants import Contestant, Site
from tests.bench.peers.process_tree import MARK, kill_marked, marked_pids
from tests.bench.peers.servers.predictors import NAME_BYTES

ROOT = Path(__file__).parents[3]
START_TIMEOUT_S = 600.0
"""200 models are 200 processes in Triton's Python backend, each with an interpreter of its own."""
_ANSWER_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_LOOK_EVERY_S = 0.1
_LOG_SHOWN_CHARACTERS = 300
_PLENTY_BYTES = 4 << 30
_PLENTY_MODELS = 1000


class ServerFailed(Exception):
    """A contestant did not start or did not answer; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant that has answered for every model of its fleet."""

    contestant: Contestant
    address: tuple[str, int]
    mark: str

    def pids(self) -> tuple[int, ...]:
        """Of all its processes, now."""
        return marked_pids(self.mark)


@contextlib.contextmanager
def running(
    contestant: Contestant, python: Path, fleet_name: str, fleet: Fleet, asked: Sequence[Asked], core: int, home: Path
) -> Iterator[Running]:
    """Start it with nothing but the fleet; `asked` holds a request for each model. Raises ServerFailed."""
    home.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix=f"{contestant.name}-", dir=home) as directory:
        site = _site(contestant, python, fleet_name, fleet, Path(directory))
        write_list(fleet, site.home / "models.json")
        with (site.home / "server.log").open("wb") as log:
            process = _start(contestant, site, core, mark, log.fileno())
            try:
                address = ("127.0.0.1", site.ports[0])
                until_s = time.monotonic() + START_TIMEOUT_S
                _wait_listening(address, process, until_s)
                if contestant.settle:
                    contestant.settle(site)
                for question in asked:
                    _wait_right(contestant, address, question, process, until_s)
                yield Running(contestant, address, mark)
            except ServerFailed as error:
                raise ServerFailed(f"{error}; its log: {_telling_line(site.home / 'server.log')}") from error
            finally:
                _stop(process, mark)


def encoded(contestant: Contestant, address: tuple[str, int], asked: Asked) -> bytes:
    """A request as this contestant reads it: a V2 message, or a whole HTTP request."""
    if contestant.speaks_grpc:
        return encode_request(asked.model, {"x": asked.rows}, request_id="1")
    body = asked.model.encode().ljust(NAME_BYTES, b"\0") + asked.rows.tobytes()
    named = f"{contestant.header_of_model}: {asked.model}\r\n" if contestant.header_of_model else ""
    head = (
        f"POST {contestant.path} HTTP/1.1\r\nhost: {address[0]}:{address[1]}\r\n"
        f"content-type: application/octet-stream\r\ncontent-length: {len(body)}\r\n{named}\r\n"
    )
    return head.encode() + body


def expected_of(contestant: Contestant, address: tuple[str, int], asked: Asked) -> object:
    """What `Judge` compares answers with."""
    return encoded(contestant, address, asked) if contestant.is_echo else asked.answer


def _telling_line(log: Path) -> str:
    """The last line that names an error, else the last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"(Error|Exception)\b", line)] or lines or ["(empty)"]
    return telling[-1][:_LOG_SHOWN_CHARACTERS]


def _site(contestant: Contestant, python: Path, fleet_name: str, fleet: Fleet, directory: Path) -> Site:
    scarce = fleet_name == "zipf"
    fleet_bytes = sum(artifact.path.stat().st_size for artifact in fleet.values())
    return Site(
        fleet_name,
        fleet,
        directory,
        python,
        _free_ports(),
        fleet_bytes // ZIPF_SHARE if scarce else _PLENTY_BYTES,
        len(fleet) // ZIPF_SHARE if scarce else _PLENTY_MODELS,
    )


def _free_ports() -> tuple[int, int, int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        first, second, third = (each.getsockname()[1] for each in sockets)
        return first, second, third


def _start(contestant: Contestant, site: Site, core: int, mark: str, log: int) -> subprocess.Popen[bytes]:
    launch = contestant.launch(site)
    own = not contestant.requirements
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HEXCOMB_", "PYTHON"))},
        **({"PYTHONPATH": str(ROOT)} if own else {}),
        "BENCH_MODELS": str(site.home / "models.json"),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
        **launch.environment,
    }
    return subprocess.Popen(
        ["taskset", "--cpu-list", str(core), *(str(word) for word in launch.command)],
        cwd=ROOT if own else site.home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait_listening(address: tuple[str, int], process: subprocess.Popen[bytes], until_s: float) -> None:
    while True:
        _check(process, until_s)
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0):
            return
        time.sleep(_LOOK_EVERY_S)


def _check(process: subprocess.Popen[bytes], until_s: float) -> None:
    if process.poll() is not None:
        raise ServerFailed(f"it ended with code {process.returncode}")
    if time.monotonic() > until_s:
        raise ServerFailed(f"not ready after {START_TIMEOUT_S:g} s")


def _wait_right(
    contestant: Contestant, address: tuple[str, int], asked: Asked, process: subprocess.Popen[bytes], until_s: float
) -> None:
    """Servers listen before they can answer, so failures are tried again; a wrong answer is not."""
    expected = expected_of(contestant, address, asked)
    judge = Judge([expected], of_v2=contestant.speaks_grpc)
    while True:
        _check(process, until_s)
        try:
            answer = _ask_once(contestant, address, asked)
        except (OSError, grpc.RpcError, http.client.HTTPException) as error:
            if time.monotonic() + _LOOK_EVERY_S > until_s:
                raise ServerFailed(f"{asked.model}: {error}") from error
            time.sleep(_LOOK_EVERY_S)
            continue
        if not judge.is_right(0, answer):
            raise ServerFailed(f"{asked.model}: a wrong answer of {len(answer)} bytes: {answer[:80]!r}")
        return


def _ask_once(contestant: Contestant, address: tuple[str, int], asked: Asked) -> bytes:
    host, port = address
    request = encoded(contestant, address, asked)
    if contestant.speaks_grpc:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"{host}:{port}", unlimited) as channel:
            answer = channel.unary_unary(messages.MODEL_INFER.path)(request, timeout=_ANSWER_TIMEOUT_S)
            return bytes(answer)
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=_ANSWER_TIMEOUT_S)) as connection:
        connection.connect()
        connection.sock.sendall(request)
        with contextlib.closing(http.client.HTTPResponse(connection.sock, method="POST")) as response:
            response.begin()
            body = response.read()
            if response.status != 200:
                raise ConnectionError(f"HTTP {response.status}: {body[:300]!r}")
            return body


def _stop(process: subprocess.Popen[bytes], mark: str) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    kill_marked(mark)
    if process.poll() is None:
        process.kill()
    process.wait()


def own_python() -> Path:
    """The interpreter of this checkout's environment."""
    return Path(sys.executable)
