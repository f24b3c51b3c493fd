"""The load generator: a process that asks a server over V2 and holds every answer against the framework's.

It speaks through Triton's own client package: its messages, its stub and its decoding of results. Nothing of ours is
between the question and the answer, so a fault in our wire cannot cancel itself out. The stub is called directly
because the package's client class does not show trailing metadata, in which the server says whether a request had to
wait for a load (`hexcomb-cold`).

Several endpoints are one channel, which goes round over them and repeats elsewhere what a lost pod leaves unanswered:
gRPC's own means, as any client of a pool has them (`mesh.client.service_config`).

A process of its own, so that neither its CPU time hides in the server's nor its memory in the server's resident set.
It is a closed loop: so many requests in flight, each sent when one before it is answered. A plan (JSON) comes on
stdin; progress and, at the end, the outcome go to stdout, one JSON object a line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh.client.service_config import SERVICE_CONFIG
from mesh.demo.checking import compare_answers
from mesh.demo.training import TrainedModel, read_cases

COLD_METADATA = "hexcomb-cold"
_PROGRESS_EVERY_S = 0.1
_COMPLAINTS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask: models, and for each request the index of its model and of its case."""

    endpoints: str
    """HOST:PORT, or several with commas between them."""
    models: tuple[TrainedModel, ...]
    draws: tuple[tuple[int, int], ...]
    in_flight: int
    deadline_s: float

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps({**asdict(self), "models": [model.to_json() for model in self.models]}) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Plan:
        """The inverse of `to_line`."""
        value = json.loads(line)
        models = tuple(TrainedModel.from_json(model) for model in value["models"])
        return cls(**{**value, "models": models, "draws": tuple((model, case) for model, case in value["draws"])})


@dataclass(slots=True)
class Tally:
    """What came back, for one format. Seconds of right and wrong answers alike; errors have none."""

    hit_seconds: list[float] = field(default_factory=list)
    miss_seconds: list[float] = field(default_factory=list)
    bit_equal: int = 0
    wrong: int = 0
    errors: int = 0

    def add(self, other: Tally) -> None:
        """Take in what another tally counted."""
        self.hit_seconds += other.hit_seconds
        self.miss_seconds += other.miss_seconds
        self.bit_equal += other.bit_equal
        self.wrong += other.wrong
        self.errors += other.errors

    def to_json(self) -> dict[str, Any]:
        """Counts and percentiles."""
        answered = len(self.hit_seconds) + len(self.miss_seconds)
        return {
            "requests": answered + self.errors,
            "hits": len(self.hit_seconds),
            "misses": len(self.miss_seconds),
            "bit_equal": self.bit_equal,
            "wrong": self.wrong,
            "errors": self.errors,
            "warm_p50_ms": percentile_ms(self.hit_seconds, 50),
            "warm_p99_ms": percentile_ms(self.hit_seconds, 99),
            "cold_p50_ms": percentile_ms(self.miss_seconds, 50),
            "cold_p99_ms": percentile_ms(self.miss_seconds, 99),
        }


def percentile_ms(seconds: list[float], percent: float) -> float | None:
    """None of nothing."""
    return round(float(np.percentile(seconds, percent)) * 1000, 3) if seconds else None


class Asker:
    """Sends what is due, from as many threads as requests may be in flight."""

    def __init__(self, plan: Plan) -> None:
        import grpc
        from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

        self._plan = plan
        self._grpc_error = grpc.RpcError
        self._result = InferResult
        self._channel = grpc.insecure_channel(
            f"ipv4:{plan.endpoints}",
            options=[
                ("grpc.service_config", SERVICE_CONFIG),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_http_proxy", 0),  # the server is on this machine
            ],
        )
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(self._channel).ModelInfer
        self._questions = [
            [(_question(service_pb2, model, batch), answer) for batch, answer in read_cases(model.cases)]
            for model in plan.models
        ]
        self._lock = threading.Lock()
        self._due: Iterator[tuple[int, int]] = iter(plan.draws)
        self.answered = 0
        self.tallies: dict[str, Tally] = {}
        self.complaints: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """The work of one thread: ask until nothing is due."""
        mine: dict[str, Tally] = {}
        while not stop.is_set():
            with self._lock:
                due = next(self._due, None)
            if due is None:
                break
            model = self._plan.models[due[0]]
            self._ask(model, due, mine.setdefault(model.format, Tally()))
            self.answered += 1  # a count for the progress bar: a lost one does no harm
        with self._lock:
            for format_name, tally in mine.items():
                self.tallies.setdefault(format_name, Tally()).add(tally)

    def _ask(self, model: TrainedModel, due: tuple[int, int], tally: Tally) -> None:
        question, expected = self._questions[due[0]][due[1]]
        started_s = time.perf_counter()
        try:
            response, call = self._infer.with_call(question, timeout=self._plan.deadline_s)
        except self._grpc_error as error:
            tally.errors += 1
            self._complain(f"{model.name}: {error.code().name}: {error.details()}")
            return
        seconds = time.perf_counter() - started_s
        was_cold = any(key == COLD_METADATA for key, _ in call.trailing_metadata() or ())
        (tally.miss_seconds if was_cold else tally.hit_seconds).append(seconds)
        result = self._result(response)
        try:
            verdict = compare_answers(
                expected, {output.name: result.as_numpy(output.name) for output in response.outputs}
            )
        except Exception as error:  # an answer that the client cannot decode is a wrong answer
            tally.wrong += 1
            self._complain(f"{model.name}, case {due[1]}: cannot be decoded: {type(error).__name__}: {error}")
            return
        tally.bit_equal += verdict.bit_equal
        if not verdict.right:
            tally.wrong += 1
            self._complain(f"{model.name}, case {due[1]}: {verdict.why}")

    def _complain(self, message: str) -> None:
        with self._lock:
            if len(self.complaints) < _COMPLAINTS_KEPT:
                self.complaints.append(message)


def ask_all(plan: Plan, report_progress: Any = None) -> dict[str, Any]:
    """Carry out a plan; the outcome as JSON values."""
    asker = Asker(plan)
    stop = threading.Event()
    threads = [threading.Thread(target=asker.run, args=(stop,), daemon=True) for _ in range(plan.in_flight)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(_PROGRESS_EVERY_S)
        for thread in threads[1:]:
            thread.join(0 if threads[0].is_alive() else _PROGRESS_EVERY_S)
        if report_progress is not None:
            report_progress(asker.answered)
    seconds = time.perf_counter() - started_s
    total = Tally()
    for tally in asker.tallies.values():
        total.add(tally)
    return {
        **total.to_json(),
        "seconds": round(seconds, 3),
        "formats": {name: tally.to_json() for name, tally in asker.tallies.items()},
        "complaints": asker.complaints,
    }


def _question(service_pb2: Any, model: TrainedModel, batch: NDArray[Any]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model.name)
    tensor = request.inputs.add()
    tensor.name = model.input_name
    tensor.datatype = model.datatype
    tensor.shape.extend(batch.shape)
    request.raw_input_contents.append(batch.tobytes())
    for output in model.outputs:
        request.outputs.add().name = output
    return request


def main() -> None:
    """One plan from stdin, carried out."""

    def say(value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    plan = Plan.from_line(sys.stdin.readline())
    say({"outcome": ask_all(plan, lambda answered: say({"answered": answered}))})


if __name__ == "__main__":
    main()
