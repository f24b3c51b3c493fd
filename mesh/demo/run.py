"""The demo, from the first model trained to the verdict.

1. Train the models in worker processes, or find them in the cache.
2. Estimate what they weigh together; the server gets a share of that as its capacity.
3. Start the server, and register all models over the wire, in bulk.
4. Let it load, run and unload one model of each kind: what it weighs then, with every framework imported and no model
   left, is the baseline of its memory.
5. Ask, from another process, through a V2 client, and compare every answer, while the kernel's view of the server's
   memory is sampled.
6. Stop the server, unless it is to be kept.

Whatever ends the demo early (Ctrl-C, SIGTERM, an error) ends its processes too, by their ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mesh.cli.output import progress_bar
from mesh.client.client import Client
from mesh.client.operations import registration
from mesh.demo.memory import ResidentSetWatch
from mesh.demo.recipes import KINDS, plan_recipes
from mesh.demo.report import DemoOutcome, make_row
from mesh.demo.requesting import Plan
from mesh.demo.server import DemoServer, start_server, stop_process
from mesh.demo.trainers import cache_key, train_all
from mesh.demo.training import BATCHES, TrainedModel, available_kinds
from mesh.demo.training_worker import ONE_THREAD_EACH
from mesh.demo.workload import draw_requests
from runtime_adapters.base import LoadOptions
from runtime_adapters.registry import adapter_for, adapters

if TYPE_CHECKING:
    from rich.console import Console

_DEADLINE_S = 60.0
_LARGEST_MODELS_THAT_FIT = 3
"""A capacity below three of the largest models would measure nothing but their queue."""
_REGISTRATIONS_A_CALL = 100
_EVICTIONS = re.compile(r'^hexcomb_eviction_idle_seconds_count\{format="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)


class DemoFailed(Exception):
    """The demo could not be carried out (as opposed to: it found wrong answers)."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to train, how to ask, where to keep things. `kinds` empty: every kind whose framework is installed."""

    models: int
    requests: int
    capacity_fraction: float
    seed: int
    zipf_exponent: float
    in_flight: int
    cache_dir: Path
    kinds: tuple[str, ...] = ()
    keep: Path | None = None


@dataclass(frozen=True, slots=True)
class KeptServer:
    """A server that was left running."""

    grpc_endpoint: str
    http_endpoint: str
    pid: int


def run_demo(options: DemoOptions, console: Console, *, quiet: bool = False) -> tuple[DemoOutcome, KeptServer | None]:
    """Raises DemoFailed, TrainingFailed, ServerFailed, HexcombError, KeyboardInterrupt."""
    started_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interrupts())
        models = _train(options, console, quiet)
        training_s = time.monotonic() - started_s
        models_bytes = sum(sizes := [_estimate_bytes(model) for model in models])
        capacity_bytes = max(int(options.capacity_fraction * models_bytes), _LARGEST_MODELS_THAT_FIT * max(sizes))
        server = _start(options, capacity_bytes, stack, console, quiet)
        with Client(server.grpc_endpoint) as client:
            _register(client, models, console, quiet)
            baseline_bytes, watch = _measure_baseline(server, client, models, options)
            stack.callback(watch.stop)
            before = client.pod_status()[0]
            evictions_before = _read_evictions(server)
            asked = _ask(options, server, models, console, quiet)
            server.check_running()
            after = client.pod_status()[0]
            evictions = _read_evictions(server)
        watch.stop()
        evictions.subtract(evictions_before)
        outcome = _make_outcome(
            options, models, asked, evictions,
            capacity_bytes=capacity_bytes,
            used_bytes=sum(tier.resident_bytes for tier in after.tiers if tier.tier == "device"),
            models_bytes=models_bytes,
            models_resident=after.models_resident,
            baseline_rss_bytes=baseline_bytes,
            peak_rss_bytes=watch.peak_bytes,
            training_s=round(training_s, 3),
            total_s=round(time.monotonic() - started_s, 3),
            evictions_total=after.evictions - before.evictions,
        )  # fmt: skip
        kept = None
        if options.keep is not None:
            kept = KeptServer(server.grpc_endpoint, server.http_endpoint, server.pid)
            stack.pop_all()  # nothing is ended: the server is the user's now
        return outcome, kept


# The steps, in order -------------------------------------------------------------------------------------------


def _train(options: DemoOptions, console: Console, quiet: bool) -> list[TrainedModel]:
    installed = available_kinds()
    known_formats = adapters()
    kinds = [kind for kind in options.kinds or installed if KINDS[kind].format in known_formats]
    if missing := sorted(set(kinds) - set(installed)):
        raise DemoFailed(f"kinds {', '.join(missing)}: not installed here; pip install 'hexcomb[demo]' brings most")
    if not kinds:
        raise DemoFailed("none of the demo's frameworks is installed; install them with: pip install 'hexcomb[demo]'")
    planned = plan_recipes(options.models, options.seed, kinds)
    with progress_bar(console, enabled=not quiet) as bar:
        task = bar.add_task("training   ", total=len(planned), remark=f"{len(kinds)} kinds of artifact")
        return train_all(planned, options.cache_dir / cache_key(), lambda more: bar.advance(task, more))


def _estimate_bytes(model: TrainedModel) -> int:
    options = LoadOptions(model_id=model.name, trusted=True)
    return adapter_for(model.format).estimate(model.artifact, options).total_bytes


def _start(
    options: DemoOptions, capacity_bytes: int, stack: contextlib.ExitStack, console: Console, quiet: bool
) -> DemoServer:
    if options.keep is not None:
        data_dir = options.keep
    else:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hexcomb-demo-")))
    server = start_server(data_dir, capacity_bytes=capacity_bytes, trusted_prefix=options.cache_dir.resolve())
    stack.callback(server.stop)
    if not quiet:
        console.print(f"serving     on {server.grpc_endpoint} with a capacity of {capacity_bytes / 2**20:.1f} MiB")
    return server


def _measure_baseline(
    server: DemoServer, client: Client, models: Sequence[TrainedModel], options: DemoOptions
) -> tuple[int, ResidentSetWatch]:
    """Load, run and unload one model of each kind; what is left is the server without models.

    The largest of each kind, and asked from as many sides as later: so the frameworks' scratch space and the worker
    threads' stacks are in the baseline, and what the resident set grows by afterwards is models.
    """
    largest: dict[str, TrainedModel] = {}
    for model in sorted(models, key=lambda model: model.size_bytes):
        largest[model.kind] = dataclasses.replace(model, name=f"baseline-{model.name}")
    few = tuple(largest.values())
    _register_all(client, few)
    draws = [(index, case) for index in range(len(few)) for case in range(len(BATCHES))] * options.in_flight
    plan = Plan(server.grpc_endpoint, few, tuple(draws), options.in_flight, _DEADLINE_S)
    refuse_faults(_run_requests(plan, lambda answered: None), "the first load of each kind")
    for result in client.unregister_many(model.name for model in few):
        if result.status_code:
            raise DemoFailed(f"cannot unregister {result.id}: {result.message}")
    _wait_empty(client)
    watch = ResidentSetWatch(server.pid)
    baseline_bytes = watch.now_bytes()
    watch.start()
    return baseline_bytes, watch


def _register(client: Client, models: Sequence[TrainedModel], console: Console, quiet: bool) -> None:
    with progress_bar(console, enabled=not quiet) as bar:
        task = bar.add_task("registering", total=len(models), remark="over the wire")
        for first in range(0, len(models), _REGISTRATIONS_A_CALL):
            few = models[first : first + _REGISTRATIONS_A_CALL]
            _register_all(client, few)
            bar.advance(task, len(few))


def _ask(
    options: DemoOptions, server: DemoServer, models: Sequence[TrainedModel], console: Console, quiet: bool
) -> dict[str, Any]:
    draws = draw_requests(
        len(models), options.requests, exponent=options.zipf_exponent, cases=len(BATCHES), seed=options.seed
    )
    plan = Plan(server.grpc_endpoint, tuple(models), tuple(draws), options.in_flight, _DEADLINE_S)
    with progress_bar(console, enabled=not quiet) as bar:
        task = bar.add_task("asking     ", total=len(draws), remark=f"{options.in_flight} in flight, all compared")
        return _run_requests(plan, lambda answered: bar.update(task, completed=answered))


def _make_outcome(
    options: DemoOptions,
    models: Sequence[TrainedModel],
    asked: dict[str, Any],
    evictions: Counter[str],
    *,
    evictions_total: int,
    **facts: Any,
) -> DemoOutcome:
    counts = Counter(model.format for model in models)
    rows = tuple(
        make_row(name, counts[name], evictions[name], asked["formats"].get(name, {})) for name in sorted(counts)
    )
    seconds = float(asked["seconds"])
    return DemoOutcome(
        total=make_row("all", len(models), evictions_total, asked),
        formats=rows,
        requests_per_s=round(asked["requests"] / seconds, 1) if seconds else 0.0,
        serving_s=seconds,
        seed=options.seed,
        complaints=tuple(asked["complaints"]),
        **facts,
    )


# What the steps are made of ------------------------------------------------------------------------------------


def refuse_faults(asked: dict[str, Any], what: str) -> None:
    """Raises DemoFailed when any of these requests failed or was answered wrongly: they are in no count of the demo."""
    if asked["errors"] or asked["wrong"]:
        raise DemoFailed(
            f"{what}: {asked['errors']} requests failed and {asked['wrong']} answers were wrong; the first complaints: "
            + "; ".join(asked["complaints"][:3])
        )


def _register_all(client: Client, models: Sequence[TrainedModel]) -> None:
    entries = [
        registration(
            model.name,
            uri=model.artifact.resolve().as_uri(),
            format=model.format,
            labels={"demo": "yes", "dataset": model.dataset, "family": model.family},
        )
        for model in models
    ]
    for result in client.register_many(entries):
        if result.status_code:
            raise DemoFailed(f"the server refused to register {result.id}: {result.message}")


def _run_requests(plan: Plan, on_progress: Any) -> dict[str, Any]:
    """The load generator's outcome. Raises DemoFailed when it ends without one."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "mesh.demo.requesting"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **dict.fromkeys(ONE_THREAD_EACH, "1")},
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(plan.to_line())
                process.stdin.close()
            for line in process.stdout:
                said = json.loads(line)
                if "outcome" in said:
                    outcome: dict[str, Any] = said["outcome"]
                    return outcome
                _raise_if_interrupted()
                on_progress(said["answered"])
            process.wait()
            stderr.seek(0)
            raise DemoFailed(f"the load generator ended without a result: {stderr.read()[-2000:].strip()}")
        finally:
            stop_process(process, 5.0)
            process.stdout.close()


def _wait_empty(client: Client) -> None:
    """Until the pod holds nothing: an unregistered model's copy is unloaded after the answer."""
    until_s = time.monotonic() + 10.0
    while (held := client.pod_status()[0].models_resident) > 0:
        if time.monotonic() > until_s:
            raise DemoFailed(f"the server still holds {held} models 10 s after all were unregistered")
        time.sleep(0.02)


def _read_evictions(server: DemoServer) -> Counter[str]:
    """By format, from the server's metrics page."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    with direct.open(f"http://{server.http_endpoint}/metrics", timeout=10) as page:
        text = page.read().decode()
    return Counter({name: int(float(count)) for name, count in _EVICTIONS.findall(text)})


_interrupted = threading.Event()
"""Set by Ctrl-C and SIGTERM. The exception alone is not enough: Python drops one that comes up inside a finaliser."""


def _raise_if_interrupted() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: through every `finally`."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, interrupt) for number in numbers]
    except ValueError:  # not the main thread: whoever runs us has the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
