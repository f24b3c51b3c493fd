"""A copy in a process of its own, driven from the pod: a leak, a crash or a GIL hog stays on the other side.

Any format can run isolated; custom Python models always do. `load_isolated` starts
`python -m runtime_adapters.isolation_worker`, has it load the artifact with the format's ordinary adapter, and returns
a `LoadedModel` whose calls travel to it: tensors through shared memory, a few hundred bytes of JSON beside them. A
round trip of a small request takes 0.23 ms (measured, two cores, mostly the switch of processes and back); starting the
child takes 0.14 s for a Python model, 1.3 s with torch's import (`StartCost`), of which the jail is 1 ms.

What goes wrong in the child becomes:

* in load: the adapter's own error; `LoadCrashed` when it crashed (with the signal); `LoadFailed` when it hung (then it
  is killed) or was cancelled; `UntrustedArtifact` when the jail was required and could not be built;
* in infer: `ModelRaised` when the model's code raised; `ModelCrashed` when the process is gone, took longer than
  `infer_timeout_s` (then it is killed), or answered nonsense.

`infer_timeout_s` is the operator's, not the client's: were it the client's deadline, one request with a deadline of a
millisecond could kill the copy for everybody. A caller that waits no longer leaves the run to end by itself.

One run at a time: calls queue on a lock. More at once would need more processes, which is what copies are for.

Deliberately absent: restarting (the caller drops a crashed copy and loads again), and a pool of warm children.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime_adapters.base import Array, LoadOptions, ModelMetadata, Size, Tensors
from runtime_adapters.errors import BadInput, LoadCrashed, LoadFailed, ModelCrashed, ModelRaised
from runtime_adapters.isolation_channel import Channel, ChannelClosed, ChannelTimedOut, MalformedMessage
from runtime_adapters.isolation_messages import describe_options, error_from, metadata_from
from runtime_adapters.isolation_process import ChildProcess, start_child
from runtime_adapters.jail import JailReport
from runtime_adapters.shared_tensors import BadSlot, TensorSegment, TensorsTooLarge, UnsendableTensor

_log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 120.0
"""From start to servable. A cold import of torch from a slow disk takes most of it."""
INFER_TIMEOUT_S = 60.0
TENSOR_BYTES_MAX = 1 << 30
"""Limit of one request's, and of one answer's, tensors."""
SEGMENT_KEPT_BYTES = 16 << 20
"""Shared memory beyond this is given back after each run."""

_MIB = 1 << 20
_PROCESS_BYTES = {
    "python": 0,
    "onnx": 43 * _MIB,
    "xgboost": 123 * _MIB,
    "lightgbm": 121 * _MIB,
    "sklearn": 150 * _MIB,
    "torch": 700 * _MIB,
}
"""What a process with the framework imported takes before its model (measured as `size` measures; torch's CUDA build).
The estimate of Python models has it in already. The second process of a format takes less: it shares the libraries."""
_PROCESS_BYTES_OTHERWISE = 100 * _MIB

_UNLOAD_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 5.0
"""A killed process is gone within this, unless it hangs in the kernel."""


@dataclass(frozen=True, slots=True)
class StartCost:
    """What the isolation of a copy cost before it could serve, in seconds."""

    process_s: float
    """Starting Python and building the jail."""
    runtime_s: float
    """Importing NumPy and the framework."""
    load_s: float
    """Loading the model itself."""


class Cancellation:
    """Ends a load from another thread: give it to `load_isolated`, then `cancel()` at any time."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._child: ChildProcess | None = None
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """The load raises LoadFailed. Without effect once it has returned."""
        with self._guard:
            self._cancelled = True
            child = self._child
        if child is not None:
            child.kill("its load was cancelled")

    def watch(self, child: ChildProcess) -> None:
        with self._guard:
            self._child = child
            cancelled = self._cancelled
        if cancelled:
            child.kill("its load was cancelled")

    def release(self) -> None:
        with self._guard:
            self._child = None


class IsolatedModel:
    """A handle on a copy in a child process. Threads may share it; their runs queue."""

    def __init__(self, link: _Link, metadata: ModelMetadata, jail: JailReport | None, cost: StartCost) -> None:
        self._link = link
        self._metadata = metadata
        self._output_names = frozenset(spec.name for spec in metadata.outputs)
        self._unloaded = False
        self.jail = jail
        """Which walls stand around the child; None: it was not to be jailed."""
        self.start_cost = cost

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    @property
    def pid(self) -> int:
        return self._link.child.pid

    @property
    def alive(self) -> bool:
        return self._link.child.alive

    def warm_up(self) -> None:
        with self._link.turn:
            self._link.ask({"op": "warm_up"})

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        link = self._link
        with link.turn:
            try:
                slots = link.requests.write(inputs)
            except (TensorsTooLarge, UnsendableTensor) as error:
                raise BadInput(f"model {link.model_id}: {error}") from error
            reply = link.ask({"op": "infer", "inputs": slots, "outputs": list(outputs)})
            try:
                answer = link.responses.read(reply.get("outputs"), copy=True)
            except BadSlot as error:
                raise link.crashed(f"it answered nonsense: {error}") from error
            link.requests.release_above(SEGMENT_KEPT_BYTES)
            link.responses.release_above(SEGMENT_KEPT_BYTES)
        self._check_known(answer)
        return answer

    def _check_known(self, answer: Mapping[str, Array]) -> None:
        if self._metadata.unchecked:
            return
        link = self._link
        unknown = answer.keys() - self._output_names
        if unknown:
            names = ", ".join(sorted(unknown))[:200]
            raise ModelRaised(f"model {link.model_id}: it returned outputs that its metadata does not have: {names}")

    def infer_stream(self, inputs: Tensors, outputs: Sequence[str] = ()) -> Generator[dict[str, Array], None, None]:
        """The copy is this run's until it ends: what is not closed keeps all others waiting."""
        link = self._link
        with link.turn:
            try:
                slots = link.requests.write(inputs)
            except (TensorsTooLarge, UnsendableTensor) as error:
                raise BadInput(f"model {link.model_id}: {error}") from error
            reply = link.ask({"op": "infer_stream", "inputs": slots, "outputs": list(outputs)})
            while "ended" not in reply:
                try:
                    answer = link.responses.read(reply.get("outputs"), copy=True)
                except BadSlot as error:
                    raise link.crashed(f"it answered nonsense: {error}") from error
                self._check_known(answer)
                try:
                    yield answer
                except GeneratorExit:
                    link.ask({"op": "stop"})
                    raise
                reply = link.ask({"op": "next"})
            link.requests.release_above(SEGMENT_KEPT_BYTES)
            link.responses.release_above(SEGMENT_KEPT_BYTES)

    def size(self) -> Size:
        """The child's own pages, its share of the pages that it shares with others, and the shared tensors."""
        link = self._link
        if not link.child.alive or self._unloaded:
            return Size(host_bytes=0)
        shared_bytes = link.requests.resident_bytes() + link.responses.resident_bytes()
        return Size(process_bytes(link.child.pid) + shared_bytes, device_bytes=link.device_bytes)

    def kill(self, because: str) -> None:
        """End the process even in the middle of a run, which then raises ModelCrashed. `unload` has still to follow."""
        self._link.child.kill(because)

    def unload(self) -> None:
        with self._link.turn:
            if self._unloaded:
                return
            self._unloaded = True
            self._link.close()


def load_isolated(
    adapter_format: str,
    artifact: Path,
    options: LoadOptions,
    *,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    infer_timeout_s: float = INFER_TIMEOUT_S,
    memory_limit_bytes: int | None = None,
    jailed: bool,
    require_jail: bool = True,
    tensor_bytes_max: int = TENSOR_BYTES_MAX,
    cancellation: Cancellation | None = None,
) -> IsolatedModel:
    """Load the artifact in a child process. Blocks; call it on a worker thread.

    `jailed` confines the child before it reads the artifact, and lets a format that runs code load from a prefix
    that is not trusted. `require_jail` then refuses the model when network or files could not be confined.
    `memory_limit_bytes` is what the model may take beyond Python, NumPy and its framework.
    Raises what the adapter raises, LoadFailed, UntrustedArtifact.
    """
    began_s = time.monotonic()
    deadline_s = began_s + load_timeout_s
    link = _Link.open(options, infer_timeout_s, tensor_bytes_max)
    try:
        if cancellation is not None:
            cancellation.watch(link.child)
        start = {
            "format": adapter_format,
            "artifact": str(artifact.resolve()),
            "options": describe_options(options),
            "packages": None if options.packages is None else str(options.packages.resolve()),
            "jailed": jailed,
            "require_jail": require_jail,
            "file_bytes_max": max(tensor_bytes_max, memory_limit_bytes or 0),
            "memory_limit_bytes": memory_limit_bytes,
        }
        started = link.exchange_in_load(start, deadline_s, load_timeout_s)
        started_s = time.monotonic()
        jail = JailReport.from_json(started["jail"]) if isinstance(started.get("jail"), Mapping) else None
        link.exchange_in_load(None, deadline_s, load_timeout_s)
        imported_s = time.monotonic()
        loaded = link.exchange_in_load(None, deadline_s, load_timeout_s)
        link.note_device_bytes(loaded)
        try:
            metadata = metadata_from(loaded.get("metadata"))
        except MalformedMessage as error:
            raise LoadFailed(f"model {options.model_id}: its process sent {error}") from error
    except BaseException:
        link.child.kill("its load failed")
        link.close()
        raise
    finally:
        if cancellation is not None:
            cancellation.release()
    cost = StartCost(started_s - began_s, imported_s - started_s, time.monotonic() - imported_s)
    _log.info(
        "model %s: isolated in process %d after %.0f ms (process %.0f, runtime %.0f, load %.0f)",
        options.model_id,
        link.child.pid,
        1e3 * (cost.process_s + cost.runtime_s + cost.load_s),
        1e3 * cost.process_s,
        1e3 * cost.runtime_s,
        1e3 * cost.load_s,
    )
    return IsolatedModel(link, metadata, jail, cost)


def estimate_isolated(adapter_format: str, estimate: Size) -> Size:
    """The adapter's estimate of a model, as a copy in a process of its own."""
    process = _PROCESS_BYTES.get(adapter_format, _PROCESS_BYTES_OTHERWISE)
    return replace(estimate, host_bytes=estimate.host_bytes + process)


class _Link:
    """Channel, shared memory and process of one child; who holds `turn` speaks."""

    def __init__(
        self,
        model_id: str,
        infer_timeout_s: float,
        channel: Channel,
        requests: TensorSegment,
        responses: TensorSegment,
        child: ChildProcess,
    ) -> None:
        self.model_id = model_id
        self.requests = requests
        self.responses = responses
        self.child = child
        self.turn = threading.Lock()
        self.device_bytes = 0
        self._infer_timeout_s = infer_timeout_s
        self._channel = channel

    @classmethod
    def open(cls, options: LoadOptions, infer_timeout_s: float, tensor_bytes_max: int) -> _Link:
        with contextlib.ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.callback(theirs.close)
                on_failure = undo.enter_context(contextlib.ExitStack())
                on_failure.callback(ours.close)
                requests = TensorSegment.create("hexcomb-requests", tensor_bytes_max)
                on_failure.callback(requests.close)
                responses = TensorSegment.create("hexcomb-responses", tensor_bytes_max)
                on_failure.callback(responses.close)
                fds = (theirs.fileno(), requests.fd, responses.fd)
                arguments = [str(number) for number in (*fds, tensor_bytes_max, os.getpid())]
                child = start_child(options.model_id, options.threads, arguments, fds)
            except OSError as error:
                reason = f"{error.strerror or error}"
                raise LoadFailed(f"model {options.model_id}: no process could be started for it: {reason}") from error
            on_failure.pop_all()
        return cls(options.model_id, infer_timeout_s, Channel(ours), requests, responses, child)

    def exchange_in_load(
        self, message: Mapping[str, Any] | None, deadline_s: float, load_timeout_s: float
    ) -> dict[str, Any]:
        """One step of the load. Raises what the child's adapter raised, LoadFailed, UntrustedArtifact."""
        try:
            if message is not None:
                self._channel.send(message, deadline_s)
            return self._reply(self._channel.receive(deadline_s))
        except ChannelTimedOut as error:
            self.child.kill(f"it did not load within {load_timeout_s:g} s")
            raise LoadFailed(
                f"model {self.model_id}: it did not load within {load_timeout_s:g} s and its process was stopped; "
                "raise the load timeout if it needs longer"
            ) from error
        except ChannelClosed as error:
            self.child.wait_ended(_END_TIMEOUT_S)
            raise (LoadCrashed if self.child.ended_by_itself else LoadFailed)(
                f"model {self.model_id}: its process {self.child.how_it_ended()} while loading; "
                "the pod's log holds what it printed"
            ) from error
        except MalformedMessage as error:
            raise LoadFailed(f"model {self.model_id}: its process sent {error}") from error

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """One request of a loaded model. Raises what the model raised, ModelCrashed."""
        deadline_s = time.monotonic() + self._infer_timeout_s
        try:
            self._channel.send(message, deadline_s)
            reply = self._reply(self._channel.receive(deadline_s))
        except ChannelTimedOut as error:
            raise self.crashed(f"it did not answer within {self._infer_timeout_s:g} s") from error
        except ChannelClosed as error:
            self.child.wait_ended(_END_TIMEOUT_S)  # its exit status says more than we can
            raise self.crashed("it closed its channel") from error
        except MalformedMessage as error:
            raise self.crashed(f"it sent {error}") from error
        self.note_device_bytes(reply)
        return reply

    def crashed(self, because: str) -> ModelCrashed:
        """Make sure that the child is gone; the error to raise."""
        self.child.kill(because)
        self.child.wait_ended(_END_TIMEOUT_S)
        return ModelCrashed(
            f"model {self.model_id}: its process {self.child.how_it_ended()}; this copy is gone, load it again"
        )

    def note_device_bytes(self, reply: Mapping[str, Any]) -> None:
        device_bytes = reply.get("device_bytes")
        if type(device_bytes) is int and device_bytes >= 0:
            self.device_bytes = device_bytes

    def close(self) -> None:
        """Ask the child to end, then see to it. Idempotent."""
        if self.child.alive:
            with contextlib.suppress(ChannelClosed, ChannelTimedOut):
                self._channel.send({"op": "unload"}, time.monotonic() + _UNLOAD_TIMEOUT_S)
                self.child.wait_ended(_UNLOAD_TIMEOUT_S)
            self.child.kill("it was unloaded")
            self.child.wait_ended(_END_TIMEOUT_S)
        self._channel.close()
        self.requests.close()
        self.responses.close()

    def _reply(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "error" not in reply:
            return reply
        error, traceback = error_from(reply["error"])
        _log.warning("model %s in process %d: %s\n%s", self.model_id, self.child.pid, error, traceback)
        raise type(error)(f"model {self.model_id}: {error}")


def process_bytes(pid: int) -> int:
    """RAM that a process adds: its private pages and its share of shared files; 0 when it is gone.

    Shared memory is left out: the tensors' segments are counted by who created them.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    kilobytes = {}
    for line in rollup.splitlines()[1:]:
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    return (kilobytes.get("Pss", 0) - kilobytes.get("Pss_Shmem", 0)) * 1024
