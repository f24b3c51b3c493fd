"""Who asks a pod for models that it has not, so many times a second: `python -m tests.bench.loads_asker HOST:PORT`.

A process of its own, since the load generator beside it spins. It asks for one after the other until its stdin is
closed, and then prints what it saw, as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import grpc
import numpy as np

from mesh.client.operations import infer
from mesh.wire import messages
from mesh.wire.messages import COLD_METADATA

OTHERS = 8
FEATURES = 64
_PER_S = 4.8
"""Requests. Of eight models the pod evicts which it likes, so one in seven or so finds its model here; the others are
the 4 loads a second that were asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of it."""

    cold_ms: list[float]
    """Of each request that waited for a load."""
    warm: int
    """Requests that found their model here."""
    seconds: float

    def with_more(self, more: Asked) -> Asked:
        """Both together."""
        return Asked(self.cold_ms + more.cold_ms, self.warm + more.warm, self.seconds + more.seconds)


@dataclass(slots=True)
class Asker:
    """A process that asks; `asked` is known when it has ended."""

    process: subprocess.Popen[str]
    asked: Asked = field(init=False)


def other_name(number: int) -> str:
    """Of the models that are asked for, by turns."""
    return f"other-{number}"


@contextlib.contextmanager
def asking(endpoint: str) -> Iterator[Asker]:
    """While this lasts, models are asked for."""
    command = [sys.executable, "-m", "tests.bench.loads_asker", endpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asker = Asker(process)
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield asker
            said, _ = process.communicate(timeout=60)
            asker.asked = Asked(**json.loads(said))
        finally:
            process.kill()


def _ask(endpoint: str) -> Asked:
    cold_ms: list[float] = []
    warm = 0
    bodies = [
        infer(other_name(number), {"x": np.zeros((1, FEATURES), np.float32)}, (), "", "").body
        for number in range(OTHERS)
    ]
    with grpc.insecure_channel(endpoint) as channel:
        call = channel.unary_unary(messages.MODEL_INFER.path)
        grpc.channel_ready_future(channel).result(timeout=30)
        print("ready", flush=True)
        began_s = time.perf_counter()
        for number in itertools.count():
            due_s = began_s + number / _PER_S
            if select.select([sys.stdin], [], [], max(0.0, due_s - time.perf_counter()))[0]:
                break
            sent_s = time.perf_counter()
            _, answered = call.with_call(bodies[number % OTHERS], timeout=60)
            if any(key == COLD_METADATA for key, _ in answered.trailing_metadata()):
                cold_ms.append((time.perf_counter() - sent_s) * 1e3)
            else:
                warm += 1
    return Asked(cold_ms, warm, time.perf_counter() - began_s)


if __name__ == "__main__":
    print(json.dumps(asdict(_ask(sys.argv[1]))))
