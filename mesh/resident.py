"""A copy as the request path sees it: the loaded model and what was worked out about it once, at load.

Each request holds one pin, and each run on a worker thread another: a client that leaves gives back its pin at once,
and the copy stays until the thread is done with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

from cache.copies import Copy
from mesh.batching.lane import Lane
from mesh.batching.rules import ALONE, BatchRules
from mesh.batching.run_place import RunPlace
from mesh.known_sizes import NOTHING, Loadable
from mesh.plans import Plan
from mesh.tally import Tally
from mesh.telemetry import RequestMeter
from runtime_adapters.artifacts.fetch import Artifact
from runtime_adapters.base import Device, LoadedModel, Promotable, Size
from runtime_adapters.validation import InputChecker
from runtime_adapters.workspace import RequestShape

RUN_MEAN_WEIGHT = 0.2
"""Of the newest run in the mean."""
RUN_OUTLIER_FACTOR = 4.0
"""A run counts at most as so many times the mean. One that the kernel interrupted for 20 ms says nothing of the model;
a model that has become slower has said so after a few runs."""
SMALL_RUN_BYTES = 8192
"""Requests whose runs cost about the same: a row of 1,024 numbers, and what describes it, is small."""
SMALL_REQUEST_BYTES = 4096
"""What requests of this size take is lost in the noise, whatever the model makes of them: nearly always."""
LARGER_FACTOR = 1.25
"""A request is larger than those before from this factor on: a copy sees a few of them in its life."""


class Recorder(Protocol):
    """Bytes that outlive the process, or do not."""

    def __setitem__(self, position: int, value: int, /) -> None: ...


@dataclass(slots=True)
class Resident:
    """One servable copy of this pod. Owned by the event loop."""

    copy: Copy
    model: LoadedModel
    format: str
    checker: InputChecker
    meter: RequestMeter
    artifact: Artifact
    """Held while the copy lives: its files may be mapped."""
    device: Device
    size: Size
    """Of the form that it is in."""
    estimated_bytes: int
    """What was reserved for the load."""
    declared_bytes: int | None
    """What the spec says, where it does."""
    run_s: float
    """Mean seconds of a run; of one that requests share, each request's part."""
    load_s: float
    """What the framework took to load it."""
    isolated: bool
    """In a process of its own, which has one run at a time."""
    pin: Callable[[Copy], None] = field(repr=False)
    unpin: Callable[[Copy], None] = field(repr=False)
    recorder: Recorder = field(default_factory=lambda: bytearray(1), repr=False)
    """Where it is noted that the copy is in use (`mesh.flight_recorder`), and at which position."""
    recorder_slot: int = 0
    cold_size: Size | None = None
    """What it took before it was promoted (`mesh.promoting`); None if it never was."""
    tally: Tally = field(default_factory=Tally, repr=False)
    """Where its requests are counted, with those of the model's other copies."""
    loadable: Loadable = NOTHING
    """By which its sizes are known."""
    workspace_bytes: int = 0
    """What a run takes beside it, as far as that was measured; counted with the copy."""
    request_bytes_measured: int = 0
    """Of the request that this was measured with."""
    request_bytes_max: int = SMALL_REQUEST_BYTES
    """Requests up to this size are no news."""
    unmeasured: RequestShape | None = None
    """The largest request, while nobody has measured what it takes (`mesh.size_watch`)."""
    plans: dict[tuple[str, int], Plan] = field(default_factory=dict, repr=False)
    """How requests of the kinds that it has seen are answered, by the model's name in them and their bytes
    (`mesh.endpoint.quick`)."""
    as_fetched: bool = False
    """It answers from what was fetched, until its prepared form takes its place (`mesh.renewing`)."""
    rules: BatchRules = ALONE
    """May its requests share runs?"""
    lane: Lane[Any] | None = None
    """Where requests wait for it (`mesh.running`); None while none has."""
    died: bool = False
    """Its process has."""
    place: RunPlace = field(init=False, repr=False)
    """Where its small requests run, of at most `SMALL_RUN_BYTES`."""
    _larger_places: dict[int, RunPlace] = field(default_factory=dict, repr=False)
    """Where larger ones do, by the bits of their sizes: each doubling may cost more."""
    runs: int = 0
    queued_total_s: float = 0.0
    run_total_s: float = 0.0
    """Since the load: how many requests ran, how long they waited for their runs, and what those took."""

    def __post_init__(self) -> None:
        self.place = RunPlace(self.run_s)

    @property
    def is_hot(self) -> bool:
        """Whether the model is in its fast form."""
        return isinstance(self.model, Promotable) and self.model.is_hot

    def hot_size(self) -> Size | None:
        """What the model's fast form takes; None if it has one form only."""
        return self.model.hot_size() if isinstance(self.model, Promotable) else None

    @property
    def form(self) -> str:
        """`fetched`, `cold` or `hot`; empty where there is no choice."""
        if self.as_fetched:
            return "fetched"
        if self.is_hot:
            return "hot"
        return "" if self.hot_size() is None else "cold"

    def larger_request(self, shape: RequestShape) -> None:
        """A request, or several in one run, is larger than any before: remember the shape until somebody measures what
        it takes."""
        self.request_bytes_max = int(LARGER_FACTOR * shape.request_bytes)
        self.unmeasured = shape

    def hold(self) -> None:
        """Keep the copy from being unloaded until `let_go`."""
        self.pin(self.copy)
        self.recorder[self.recorder_slot] = 1

    def let_go(self) -> None:
        """Give back one `hold`."""
        if self.copy.pins == 1:
            self.recorder[self.recorder_slot] = 0
        self.unpin(self.copy)

    def renewed(self, loadable: Loadable, run_s: float) -> None:
        """It goes on in another form, of which a run takes this long: what was learned of the old one is of no use."""
        self.loadable = loadable
        self.run_s = run_s
        self.place = RunPlace(run_s)
        self._larger_places.clear()

    def place_of(self, request_bytes: int) -> RunPlace:
        """Where requests of about this size run. On threads at first, where they are larger than what was measured when
        the copy was loaded."""
        if request_bytes <= SMALL_RUN_BYTES:
            return self.place
        bits = request_bytes.bit_length()
        place = self._larger_places.get(bits)
        if place is None:
            place = self._larger_places[bits] = RunPlace(inf)
        return place

    def ran(self, queued_s: float, run_s: float, requests: int = 1, *, rows: int = 0) -> None:
        """A run has answered so many requests, which waited `queued_s` together, for `rows` rows; 0: they are not
        counted, of a model whose rows do not share runs."""
        self.runs += requests
        self.tally.ran(queued_s, run_s, requests, rows or requests)
        self.queued_total_s += queued_s
        self.run_total_s += run_s
        self.run_s = _moved(self.run_s, run_s / requests)


def _moved(mean_s: float, run_s: float) -> float:
    return mean_s + RUN_MEAN_WEIGHT * (min(run_s, RUN_OUTLIER_FACTOR * mean_s or run_s) - mean_s)
