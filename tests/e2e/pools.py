"""Pools of real processes for tests: started, watched from outside, and asked without pause.

What is in the pool is read from etcd over its own HTTP gateway, so that no code of ours vouches for itself. Nothing
here sleeps in place of a condition: `wait_until` asks until the condition holds, and fails with the pods' logs when it
never does.

`SteadyLoad` asks at a steady pace, whatever the answers take: a stall shows as late answers, not as fewer questions.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import os
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from mesh.client import SERVICE_CONFIG, Client, RetryPolicy
from mesh.demo.etcd_server import EtcdServer
from mesh.demo.local_pool import PREFIX, LocalPod, LocalPool
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2
from mesh.wire.tensors import encode_request
from tests.e2e.conftest import Example

WAIT_TIMEOUT_S = 40.0
POLL_S = 0.05
LEASE_TTL_S = 3.0
ONE_TRY = RetryPolicy(attempts_max=1)
SETTINGS: Mapping[str, Any] = {
    "capacity": "256MiB",
    "lease_ttl_s": LEASE_TTL_S,
    "drain_grace_s": 20,
    "stop_grace_s": 5,
    "failure_backoff_base_s": 0.2,
    "no_tell_owner": True,
}
"""Of pods in tests: a short lease, so that what waits for its end is soon over; and clients that ask one pod are not
sent to another."""


def start_pool(
    directory: Path, pods: int = 3, *, with_lines: bool = False, members: int = 1, **settings: Any
) -> LocalPool:
    """A running pool. `settings`: of every pod, beside SETTINGS."""
    pool = LocalPool(
        directory,
        pods,
        settings={**SETTINGS, **settings},
        with_lines=with_lines,
        etcd_members=members,
        etcd_binary=os.environ.get("HEXCOMB_TEST_ETCD"),
    )
    return pool.start()


# Looking ------------------------------------------------------------------------------------------------------------


def wait_until(pool: LocalPool, condition: Callable[[], Any], what: str, timeout_s: float = WAIT_TIMEOUT_S) -> Any:
    """What `condition` returns, once that is true."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline_s:
            raise AssertionError(f"within {timeout_s:g} s it did not happen that {what}\n{ends_of_logs(pool)}")
        time.sleep(POLL_S)


def ends_of_logs(pool: LocalPool) -> str:
    """For a failure's message."""
    return "\n".join(f"---- {pod.name}\n{pod.log_text()[-2500:]}" for pod in pool.pods)


def etcd_call(server: EtcdServer, path: str, token: str = "", **fields: Any) -> dict[str, Any]:
    """A call over etcd's own HTTP gateway. `token`: of an etcd with users."""
    headers = {"Authorization": token} if token else {}
    request = urllib.request.Request(f"http://{server.endpoint}/v3/{path}", json.dumps(fields).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def stored(pool: LocalPool, prefix: str) -> dict[str, Any]:
    """The pool's records in etcd under a prefix, read as JSON; None for what is none."""
    start = f"{PREFIX}/{prefix}".encode()
    end = start[:-1] + bytes([start[-1] + 1])
    answer = etcd_call(pool.etcd, "kv/range", key=_base64(start), range_end=_base64(end))
    found = {}
    for pair in answer.get("kvs", ()):
        key = base64.b64decode(pair["key"]).decode().removeprefix(f"{PREFIX}/")
        try:
            found[key] = json.loads(base64.b64decode(pair.get("value", "")))
        except ValueError:
            found[key] = None
    return found


def put_by_hand(pool: LocalPool, key: str, value: bytes) -> None:
    """Write into etcd what no pod would."""
    etcd_call(pool.etcd, "kv/put", key=_base64(f"{PREFIX}/{key}".encode()), value=_base64(value))


def delete_by_hand(pool: LocalPool, key: str) -> None:
    """Take a key out of etcd."""
    etcd_call(pool.etcd, "kv/deleterange", key=_base64(f"{PREFIX}/{key}".encode()))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def holders(pool: LocalPool, model: str, tenant: str = "default") -> list[str]:
    """Pods that have said in etcd that they serve this model."""
    prefix = f"copies/{tenant}/{model}/"
    return sorted(
        key.removeprefix(prefix) for key, copy in stored(pool, prefix).items() if copy and copy.get("servable")
    )


def leader(pool: LocalPool) -> str:
    """The pod that leads, as etcd has it; empty: none."""
    found = stored(pool, "leader").get("leader")
    return str(found["pod"]) if found else ""


def pod_named(pool: LocalPool, name: str) -> LocalPod:
    return next(pod for pod in pool.pods if pod.name == name)


def status_of(pod: LocalPod) -> hexcomb_pb2.PodDescription:
    """What a pod says of itself."""
    with Client(pod.grpc_endpoint) as client:
        return client.pod_status(pod.name)[0]


def total(pool: LocalPool, field_name: str) -> int:
    """A count over all pods that run."""
    return sum(getattr(status_of(pod), field_name) for pod in pool.pods if pod.is_running)


# Asking -------------------------------------------------------------------------------------------------------------


def check(example: Example, outputs: Mapping[str, Any]) -> None:
    """The answer is the framework's own."""
    for name, values in example.expected.items():
        np.testing.assert_array_equal(outputs[name], values)


@contextmanager
def plain_channel(pool: LocalPool) -> Iterator[Callable[[str, Example], None]]:
    """Asks through a plain gRPC channel that knows all endpoints and retries UNAVAILABLE and CANCELLED."""
    target = "ipv4:" + pool.endpoints
    with grpc.insecure_channel(target, options=[("grpc.service_config", SERVICE_CONFIG)]) as channel:
        infer = channel.unary_unary(messages.MODEL_INFER.path)

        def ask(model: str, example: Example) -> None:
            reply = inference_pb2.ModelInferResponse.FromString(
                infer(encode_request(model, example.inputs), timeout=30)
            )
            values = np.frombuffer(reply.raw_output_contents[0], np.float32)
            np.testing.assert_array_equal(values, next(iter(example.expected.values())).ravel())

        yield ask


@dataclass(frozen=True)
class Asked:
    """One question of a steady load."""

    at_s: float
    """When it was due; monotonic."""
    seconds: float
    who: str
    model: str
    error: str = ""


@dataclass
class SteadyLoad:
    """Questions at a steady pace, from threads, in turn over `models` and over `askers`.

    An asker is called with a model's name and raises when the answer is no good.
    """

    askers: Mapping[str, Callable[[str], None]]
    models: Sequence[str]
    per_s: float = 100.0
    threads: int = 12
    asked: list[Asked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        pairs = itertools.product(self.models, self.askers.items())
        self._due = enumerate(itertools.cycle(list(pairs)))
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(self.threads)]

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask_on(self) -> None:
        while True:
            with self._lock:
                number, (model, (who, ask)) = next(self._due)
            due_s = self._began_s + number / self.per_s
            if self._stop.wait(max(0.0, due_s - time.monotonic())):
                return
            error = ""
            began_s = time.monotonic()
            try:
                ask(model)
            except AssertionError as wrong:
                error = f"wrong: {wrong}"
            except grpc.RpcError as failed:
                error = f"{failed.code().name}: {failed.details()}"  # type: ignore[attr-defined]
            except Exception as failed:
                error = f"{type(failed).__name__}: {failed}"
            self.asked.append(Asked(due_s, time.monotonic() - began_s, who, model, error))

    def wait_for(self, more: int, timeout_s: float = 60.0) -> None:
        """Until so many further questions were answered."""
        wanted = len(self.asked) + more
        until_s = time.monotonic() + timeout_s
        while len(self.asked) < wanted:
            assert time.monotonic() < until_s, f"{len(self.asked)} of {wanted} questions were answered"
            time.sleep(POLL_S)

    def errors(self, who: str = "") -> list[str]:
        """What went wrong, for an asker or for all."""
        return [
            f"{each.who} at {each.at_s - self._began_s:.2f} s, after {each.seconds:.2f} s, {each.model}: {each.error}"
            for each in self.asked
            if each.error and (not who or each.who == who)
        ]

    def slowest_s(self, since_s: float = 0.0, until_s: float = float("inf"), share: float = 1.0) -> float:
        """The time that `share` of the questions due in between took at most; by the monotonic clock."""
        times = sorted(each.seconds for each in self.asked if since_s <= each.at_s < until_s)
        return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0

    def counts(self) -> Counter[str]:
        """Questions by asker."""
        return Counter(each.who for each in self.asked)


# Artifacts over HTTP ------------------------------------------------------------------------------------------------


class Depot:
    """An HTTP server with files, which counts what is fetched and can hold it back."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.gets: list[str] = []
        """Paths, in the order in which they were asked for."""
        self.open = threading.Event()
        """Cleared: artifacts are begun, and not finished."""
        self.open.set()
        depot = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                depot.gets.append(self.path)
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                content = depot.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    depot.open.wait(60)
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def add(self, path: Path) -> str:
        """Offer a file; its URI."""
        self.files[f"/{path.name}"] = path.read_bytes()
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path.name}"

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
