"""Times of single requests, in a file, as Triton's clients ask for them.

Of the requests for a model, every `trace_rate`-th is traced while its `trace_level` is TIMESTAMPS and `trace_count` is
not used up. A trace is a line of JSON in `traces.jsonl` in the pod's data directory:

    {"id": 7, "model_name": "m", "request_id": "r", "timestamps": [
        {"name": "REQUEST_START", "ns": ...}, {"name": "REQUEST_END", "ns": ...}]}

`ns` is on the machine's monotonic clock. What a request spent its time on is in the statistics and in Prometheus;
tensors are never written down.

Settings are those of all models, or a model's own, which begin as a copy of the others and go with its registration. A
file that a client could name is not among them. The pod that is called traces; lines are written by a thread, the file
grows to `BYTES_MAX` at most.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh.threads import InThread, in_thread
from placement.view import Changes

log = logging.getLogger("hexcomb.tracing")

FILE = "traces.jsonl"
BYTES_MAX = 64 << 20
MODELS_MAX = 1024
"""Of a tenant, with settings of their own."""
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    "trace_mode": ("triton",),
}
_FIXED = ("log_frequency", "trace_mode", "trace_file")


class BadTraceSetting(ValueError):
    """A setting that is not there, or cannot have this value."""


@dataclass(slots=True)
class _Tracer:
    """Settings, and how far they have been used."""

    settings: dict[str, tuple[str, ...]]
    rate: int = field(init=False)
    left: int = field(init=False)
    """Traces; -1: no limit."""
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rate, self.left = int(self.settings["trace_rate"][0]), int(self.settings["trace_count"][0])

    @property
    def on(self) -> bool:
        return self.settings["trace_level"] == ("TIMESTAMPS",)

    def takes(self) -> bool:
        """Whether this request is to be traced."""
        if not self.on or not self.left:
            return False
        self.seen += 1
        if self.seen % self.rate:
            return False
        self.left -= self.left > 0
        return True


class Tracing:
    """Of one pod; belongs to the event loop."""

    def __init__(self, directory: Path, start: InThread = in_thread) -> None:
        self._path = directory / FILE
        self._start = start
        self._of_all = _Tracer(dict(DEFAULTS))
        self._of_model: dict[tuple[str, str], _Tracer] = {}
        self._ids = itertools.count(1)
        self._waiting: list[str] = []
        self._writing = False
        self.on = False
        """Whether any request may be traced."""

    def settings(self, tenant: str, model: str = "") -> dict[str, tuple[str, ...]]:
        """Those of a model, or of all."""
        tracer = self._of_model.get((tenant, model), self._of_all) if model else self._of_all
        return {**tracer.settings, "trace_file": (str(self._path),)}

    def change(self, tenant: str, model: str, changed: Mapping[str, Sequence[str]]) -> None:
        """No value: back to what all models have, or to the default. Raises BadTraceSetting."""
        known = (tenant, model)
        if model and known not in self._of_model and sum(of == tenant for of, _ in self._of_model) >= MODELS_MAX:
            raise BadTraceSetting(
                f"{MODELS_MAX} models of tenant {tenant!r} have trace settings of their own, the limit; they keep them "
                "until they are unregistered, so set those of all models in place of more"
            )
        before = self._of_model.get(known, self._of_all) if model else self._of_all
        base = self._of_all.settings if model else DEFAULTS
        settings = dict(before.settings)
        for key, values in changed.items():
            settings[key] = _checked(key, tuple(values)) if values else base.get(key, ())
        tracer = _Tracer({key: settings[key] for key in DEFAULTS})
        if model:
            self._of_model[known] = tracer
        else:
            self._of_all = tracer
        self._see_if_on()

    def follow(self, changes: Changes) -> None:
        """Names that are registered no more have no settings of their own any more."""
        gone = [(model.tenant, model.id) for model in changes.models if model.after is None]
        gone += [(alias.tenant, alias.id) for alias in changes.aliases if alias.after is None]
        for name in gone:
            if self._of_model.pop(name, None) is not None:
                self._see_if_on()

    def _see_if_on(self) -> None:
        self.on = self._of_all.on or any(each.on for each in self._of_model.values())

    def takes(self, tenant: str, model: str) -> bool:
        """Whether this request for a model is to be traced; it counts."""
        return self._of_model.get((tenant, model), self._of_all).takes()

    def write(self, model: str, request_id: str, began_ns: int, ended_ns: int) -> None:
        """One trace."""
        stamps = [{"name": "REQUEST_START", "ns": began_ns}, {"name": "REQUEST_END", "ns": ended_ns}]
        trace = {"id": next(self._ids), "model_name": model, "request_id": request_id, "timestamps": stamps}
        self._waiting.append(json.dumps(trace) + "\n")
        if len(self._waiting) == 1 and not self._writing:
            self._write_waiting()

    def _write_waiting(self) -> None:
        self._writing = True
        lines, self._waiting = self._waiting, []
        self._start("traces", _append, self._path, lines).add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = False
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("traces cannot be written to %s: %s", self._path, error)
        if self._waiting:
            self._write_waiting()


def _append(path: Path, lines: list[str]) -> None:
    if path.exists() and path.stat().st_size > BYTES_MAX:
        return
    with path.open("a") as file:
        file.writelines(lines)


def now_ns() -> int:
    """On the clock of traces."""
    return time.monotonic_ns()


def _checked(key: str, values: tuple[str, ...]) -> tuple[str, ...]:
    if key in _FIXED:
        raise BadTraceSetting(f"{key} cannot be changed here; trace_level, trace_rate and trace_count can")
    if key == "trace_level":
        if values not in (("OFF",), ("TIMESTAMPS",)):
            raise BadTraceSetting(
                f"trace_level is {list(values)}; it is OFF or TIMESTAMPS: tensors are not written down"
            )
        return values
    if key not in DEFAULTS:
        raise BadTraceSetting(f"there is no trace setting {key[:80]!r}; there are {', '.join(DEFAULTS)}")
    least = 1 if key == "trace_rate" else -1
    try:
        number = int(values[0])
    except ValueError:
        number = least - 1
    if len(values) != 1 or not least <= number < 2**31:
        raise BadTraceSetting(f"{key} is {list(values)}; it is a whole number from {least}")
    return (str(number),)
