"""The demo, from the first model trained to the verdict.

1. Train the models in worker processes, or find them in the cache.
2. Estimate what they weigh together; the server gets a share of that as its capacity.
3. Start the server, and register all models over the wire, in bulk.
4. Let it load, run and unload one model of each kind: what it weighs then, with every framework imported and no model
   left, is the baseline of its memory.
5. Ask, from another process, through a V2 client, and compare every answer, while the kernel's view of the server's
   memory is sampled.
6. Stop the server, unless it is to be kept.

With several pods it is the same, on a pool (`mesh.demo.local_pool`) whose pods share the capacity and are all asked;
one of them is killed meanwhile and another one drained (`mesh.demo.upheaval`).

Whatever ends the demo early (Ctrl-C, SIGTERM, an error) ends its processes too, by their ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mesh.cli.output import progress_bar
from mesh.client.client import Client
from mesh.client.operations import registration
from mesh.demo.access_logs import BASELINE, access_log_paths, begin_anew, take_out_baseline
from mesh.demo.fleet import Evictions, Fleet, Kept, pod_names, start_fleet
from mesh.demo.local_pool import LocalPod
from mesh.demo.memory import ResidentSets
from mesh.demo.recipes import KINDS, plan_recipes
from mesh.demo.report import DemoOutcome, make_row
from mesh.demo.requesting import Plan
from mesh.demo.server import stop_process
from mesh.demo.trainers import cache_key, train_all
from mesh.demo.training import BATCHES, TrainedModel, available_kinds
from mesh.demo.training_worker import ONE_THREAD_EACH
from mesh.demo.upheaval import Upheaval, UpheavalOutcome, hot_models
from mesh.demo.workload import draw_requests
from placement.constraints import REQUIRED_LABELS
from runtime_adapters.base import LoadOptions
from runtime_adapters.registry import adapter_for, adapters

if TYPE_CHECKING:
    from rich.console import Console

_DEADLINE_S = 60.0
_LARGEST_MODELS_THAT_FIT = 3
"""A capacity below three of the largest models would measure nothing but their queue."""
_REGISTRATIONS_A_CALL = 100


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
    pods: int = 1
    kinds: tuple[str, ...] = ()
    keep: Path | None = None
    access_log: Path | None = None
    """Where the servers write down who was asked for when; None: nowhere."""

    @property
    def access_logs(self) -> list[Path]:
        """The file of each pod, if there are any."""
        return [] if self.access_log is None else access_log_paths(self.access_log.resolve(), pod_names(self.pods))


def run_demo(options: DemoOptions, console: Console, *, quiet: bool = False) -> tuple[DemoOutcome, Kept | None]:
    """Raises DemoFailed, TrainingFailed, ServerFailed, EtcdMissing, EtcdFailed, HexcombError, KeyboardInterrupt."""
    started_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_interrupts())
        _begin_access_logs(options)
        stack.callback(take_out_baseline, options.access_logs)  # the last thing of all, when no server writes any more
        models = _train(options, console, quiet)
        training_s = time.monotonic() - started_s
        models_bytes = sum(sizes := [_estimate_bytes(model) for model in models])
        share_bytes = int(options.capacity_fraction * models_bytes / options.pods)
        capacity_bytes = max(share_bytes, _LARGEST_MODELS_THAT_FIT * max(sizes))
        fleet = _start(options, capacity_bytes, stack, console, quiet)
        with Client(fleet.endpoints) as client:
            _register(client, models, console, quiet)
            memory = _measure_baseline(fleet, client, models, options)
            stack.callback(memory.stop)
            evictions = Evictions(fleet.servers)
            asked, upheaval = _ask(options, fleet, models, memory, evictions, console, quiet)
            for server in fleet.running():
                server.check_running()
            after = client.pod_status()
            evictions.take(fleet.running())
        memory.stop()
        outcome = _make_outcome(
            options, models, asked, evictions.counts,
            capacity_bytes=capacity_bytes * options.pods,
            used_bytes=sum(tier.resident_bytes for pod in after for tier in pod.tiers if tier.tier == "device"),
            models_bytes=models_bytes,
            models_resident=sum(pod.models_resident for pod in after),
            memory=memory.peaks(capacity_bytes),
            upheaval=upheaval,
            training_s=round(training_s, 3),
            total_s=round(time.monotonic() - started_s, 3),
        )  # fmt: skip
        kept = None
        if options.keep is not None:
            kept = fleet.keep()
            take_out_baseline(options.access_logs)
            stack.pop_all()  # nothing is ended: the servers are the user's now
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


def _begin_access_logs(options: DemoOptions) -> None:
    try:
        begin_anew(options.access_logs)
    except OSError as error:
        raise DemoFailed(f"--access-log: {error.filename} cannot be written: {error.strerror}") from error


def _estimate_bytes(model: TrainedModel) -> int:
    options = LoadOptions(model_id=model.name, trusted=True)
    return adapter_for(model.format).estimate(model.artifact, options).total_bytes


def _start(
    options: DemoOptions, capacity_bytes: int, stack: contextlib.ExitStack, console: Console, quiet: bool
) -> Fleet:
    if options.keep is not None:
        data_dir = options.keep
    else:
        data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hexcomb-demo-")))
    trusted = options.cache_dir.resolve()
    fleet = start_fleet(data_dir, options.pods, capacity_bytes, trusted, options.access_logs, stack)
    if not quiet:
        each = "each " if options.pods > 1 else ""
        console.print(f"serving     on {fleet.endpoints}, {each}with a capacity of {capacity_bytes / 2**20:.1f} MiB")
    return fleet


def _measure_baseline(
    fleet: Fleet, client: Client, models: Sequence[TrainedModel], options: DemoOptions
) -> ResidentSets:
    """Load, run and unload one model of each kind on each server; what is left is the server without models.

    The largest of each kind, and asked from as many sides as later: so the frameworks' scratch space and the worker
    threads' stacks are in the baseline, and what the resident set grows by afterwards is models.
    """
    largest: dict[str, TrainedModel] = {}
    for model in sorted(models, key=lambda model: model.size_bytes):
        largest[model.kind] = model
    few: list[TrainedModel] = []
    for model in largest.values():
        for server in fleet.servers:  # in turn, so that they load side by side
            own = dataclasses.replace(model, name=f"{BASELINE}{server.name}-{model.name}")
            _register_all(client, [own], {REQUIRED_LABELS: server.name} if server.name else {})
            few.append(own)
    draws = [(index, case) for index in range(len(few)) for case in range(len(BATCHES))] * options.in_flight
    _run_requests(
        Plan(fleet.endpoints, tuple(few), tuple(draws), options.in_flight, _DEADLINE_S), lambda answered: None
    )
    for result in client.unregister_many(model.name for model in few):
        if result.status_code:
            raise DemoFailed(f"cannot unregister {result.id}: {result.message}")
    _wait_empty(client)
    memory = ResidentSets()
    for server in fleet.servers:
        memory.watch(server.name or "server", server.pid)
    return memory


def _register(client: Client, models: Sequence[TrainedModel], console: Console, quiet: bool) -> None:
    with progress_bar(console, enabled=not quiet) as bar:
        task = bar.add_task("registering", total=len(models), remark="over the wire")
        for first in range(0, len(models), _REGISTRATIONS_A_CALL):
            few = models[first : first + _REGISTRATIONS_A_CALL]
            _register_all(client, few)
            bar.advance(task, len(few))


def _ask(
    options: DemoOptions,
    fleet: Fleet,
    models: Sequence[TrainedModel],
    memory: ResidentSets,
    evictions: Evictions,
    console: Console,
    quiet: bool,
) -> tuple[dict[str, Any], UpheavalOutcome]:
    draws = draw_requests(
        len(models), options.requests, exponent=options.zipf_exponent, cases=len(BATCHES), seed=options.seed
    )
    plan = Plan(fleet.endpoints, tuple(models), tuple(draws), options.in_flight, _DEADLINE_S)
    upheaval = None
    if fleet.pool is not None:

        def restarted(pod: LocalPod) -> None:
            memory.watch(pod.name, pod.pid)
            evictions.begin([pod])

        hot = hot_models(draws, [model.name for model in models])
        upheaval = Upheaval(fleet.pool, len(draws), hot, lambda pod: evictions.take([pod]), restarted)
    with progress_bar(console, enabled=not quiet) as bar:
        task = bar.add_task("asking     ", total=len(draws), remark=f"{options.in_flight} in flight, all compared")

        def answered(count: int) -> None:
            bar.update(task, completed=count)
            if upheaval is not None:
                upheaval.answered(count)

        asked = _run_requests(plan, answered)
        answered(len(draws))
    return asked, UpheavalOutcome() if upheaval is None else upheaval.finish()


def _make_outcome(
    options: DemoOptions,
    models: Sequence[TrainedModel],
    asked: dict[str, Any],
    evictions: Counter[str],
    *,
    upheaval: UpheavalOutcome,
    **facts: Any,
) -> DemoOutcome:
    counts = Counter(model.format for model in models)
    rows = tuple(
        make_row(name, counts[name], evictions[name], asked["formats"].get(name, {})) for name in sorted(counts)
    )
    seconds = float(asked["seconds"])
    return DemoOutcome(
        total=make_row("all", len(models), sum(row.evictions for row in rows), asked),
        formats=rows,
        requests_per_s=round(asked["requests"] / seconds, 1) if seconds else 0.0,
        serving_s=seconds,
        seed=options.seed,
        pods=options.pods,
        upheaval=upheaval,
        complaints=(*upheaval.complaints, *asked["complaints"]),
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


def _register_all(client: Client, models: Sequence[TrainedModel], labels: Mapping[str, str] | None = None) -> None:
    entries = [
        registration(
            model.name,
            uri=model.artifact.resolve().as_uri(),
            format=model.format,
            labels={"demo": "yes", "dataset": model.dataset, "family": model.family, **(labels or {})},
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
    """Until nothing is held: an unregistered model's copy is unloaded after the answer."""
    until_s = time.monotonic() + 10.0
    while (held := sum(pod.models_resident for pod in client.pod_status())) > 0:
        if time.monotonic() > until_s:
            raise DemoFailed(f"{held} models are still held 10 s after all were unregistered")
        time.sleep(0.02)


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
