"""A framework that is not there: loads small JSON files, predicts by rule, and fails, waits or grows on command.

Tests of the loader, the mesh and the demo's plumbing need models whose size, timing and failures they choose. This
adapter passes the same contract suite as the real ones, so what is tested against it holds for them.

An artifact is one JSON file: `{"hexcomb_fake": 1, "factor": 2.0, "size_bytes": 1000000, ...}` (see `FakeSpec`). The
model answers `y = factor * x` for x of FP32 [-1, width]; asked for by name, also `total`, the sum of each row.

On a device other than the CPU, real or not, all its bytes count as the device's, and it can be parked in RAM.

Hooks: `FakeAdapter.on(point, call)` runs `call(model_id)` at one of `POINTS`. A test blocks there
on its own `threading.Event`, counts, or raises; nothing here sleeps. `ADAPTER` is registered only by
`adapters(include_fake=True)`; most tests make a `FakeAdapter` of their own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime_adapters.base import (
    CPU,
    DYNAMIC,
    Array,
    Device,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
)
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelCrashed, ModelRaised
from runtime_adapters.validation import refuse_unknown_parameters

POINTS = (
    "estimate", "prepare", "load", "go_on_as", "warm_up", "infer", "promote", "demote", "park", "unpark", "unload",
)  # fmt: skip
_PREPARED = "prepared.json"
FAILURES = ("", "bad_artifact", "load_failed", "model_raised", "model_crashed", "wrong_shape")
_ARTIFACT_BYTES_MAX = 1 << 16
_MAGIC = "hexcomb_fake"

Hook = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FakeSpec:
    """What the artifact says. `estimate_bytes` 0: as `size_bytes`."""

    factor: float = 1.0
    width: int = 4
    size_bytes: int = 1_000
    estimate_bytes: int = 0
    hot_bytes: int = 0
    """What it takes when it is promoted; 0: it has one form only."""
    fetched_bytes: int = 0
    """What it takes as it was fetched, until it is prepared; 0: it is not loaded like that, and there is no other."""
    fails: str = ""
    """One of FAILURES: in load, or at each infer."""


class FakeAdapter:
    """The adapter; it remembers what was asked of it, in `calls`, as (point, model id)."""

    format = "fake"
    trust = Trust.SAFE
    device_kinds = ("cpu", "cuda")
    extra = "test"

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self._hooks: dict[str, Hook] = {}

    def on(self, point: str, call: Hook) -> None:
        """Run `call(model_id)` at this point, before the work; what it raises, the caller of the adapter sees."""
        if point not in POINTS:
            raise ValueError(f"point: {point!r} found, one of {', '.join(POINTS)} allowed")
        self._hooks[point] = call

    def count(self, point: str, model_id: str | None = None) -> int:
        """How often `point` was reached, by this model or by all."""
        return sum(1 for at, who in self.calls if at == point and model_id in (None, who))

    def runtime_version(self) -> str:
        return "fake-1"

    def detect(self, artifact: Path) -> bool:
        try:
            _read(artifact)
        except BadArtifact:
            return False
        return True

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        self._reach("estimate", options.model_id)
        spec = _read(artifact)
        return _size(spec.estimate_bytes or spec.size_bytes, options.device)

    def size_as_fetched(self, artifact: Path, options: LoadOptions) -> Size | None:
        fetched_bytes = _read(artifact).fetched_bytes
        return _size(fetched_bytes, options.device) if fetched_bytes else None

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        if not _read(artifact).fetched_bytes:
            return False
        self._reach("prepare", options.model_id)
        (into / _PREPARED).write_bytes(artifact.read_bytes())
        return True

    def load(self, artifact: Path, options: LoadOptions) -> FakeModel:
        self._reach("load", options.model_id)
        refuse_unknown_parameters(options.parameters)
        spec = _read(artifact)
        if spec.fails == "bad_artifact":
            raise BadArtifact(f"{artifact.name}: the fake artifact says that it is bad; register another")
        if spec.fails == "load_failed":
            raise LoadFailed(f"{artifact.name}: the fake artifact says that this load fails; try again")
        return FakeModel(spec, options.model_id, self._reach, options.device, as_fetched=options.as_fetched)

    def _reach(self, point: str, model_id: str) -> None:
        self.calls.append((point, model_id))
        hook = self._hooks.get(point)
        if hook is not None:
            hook(model_id)


class FakeModel:
    """A loaded fake."""

    def __init__(
        self,
        spec: FakeSpec,
        model_id: str,
        reach: Callable[[str, str], None],
        device: Device = CPU,
        *,
        as_fetched: bool = False,
    ) -> None:
        self._spec = spec
        self._as_fetched = as_fetched
        self._device = device
        self._model_id = model_id
        self._reach = reach
        self._loaded = True
        self.is_hot = False
        self.metadata = ModelMetadata(
            platform="fake",
            inputs=(TensorSpec("x", "FP32", (DYNAMIC, spec.width)),),
            outputs=(
                TensorSpec("y", "FP32", (DYNAMIC, spec.width)),
                TensorSpec("total", "FP32", (DYNAMIC,), optional=True),
            ),
            any_input_name=True,
            batch_dimension=True,
        )

    def warm_up(self) -> None:
        self._reach("warm_up", self._model_id)

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        self._reach("infer", self._model_id)
        if self._spec.fails == "model_raised":
            raise ModelRaised(f"model {self._model_id}: the fake artifact says that it raises")
        if self._spec.fails == "model_crashed" or not self._loaded:
            raise ModelCrashed(f"model {self._model_id}: this copy is gone; load it again")
        x = inputs["x"]
        if np.isnan(x).any():
            raise BadInput("input 'x': NaN found; the fake model takes numbers only")
        y = x * np.float32(self._spec.factor)
        if self._spec.fails == "wrong_shape":
            y = y[:, :-1]
        answers: dict[str, Callable[[], Array]] = {"y": lambda: y, "total": lambda: x.sum(axis=1, dtype=np.float32)}
        return {name: answers[name]() for name in (outputs or ("y",))}

    def size(self) -> Size:
        if self._as_fetched:
            return _size(self._spec.fetched_bytes, self._device)
        return _size(self._spec.hot_bytes if self.is_hot else self._spec.size_bytes, self._device)

    def hot_size(self) -> Size | None:
        if self._as_fetched or not self._spec.hot_bytes:
            return None
        return _size(self._spec.hot_bytes, self._device)

    def go_on_as(self, prepared: LoadedModel) -> None:
        assert isinstance(prepared, FakeModel)
        self._reach("go_on_as", self._model_id)
        self._as_fetched = prepared._loaded = False

    def promote(self) -> None:
        if self._spec.hot_bytes and not self.is_hot:
            self._reach("promote", self._model_id)
            self.is_hot = True

    def demote(self) -> None:
        if self.is_hot:
            self._reach("demote", self._model_id)
            self.is_hot = False

    def parked_size(self) -> Size | None:
        return Size(host_bytes=self._spec.size_bytes)

    def park(self) -> FakeParked:
        self._reach("park", self._model_id)
        self._loaded = False
        return FakeParked(self._spec, self._model_id, self._reach)

    def unload(self) -> None:
        if self._loaded:
            self._loaded = False
            self._reach("unload", self._model_id)


class FakeParked:
    """A fake that left its device, which was never there."""

    def __init__(self, spec: FakeSpec, model_id: str, reach: Callable[[str, str], None]) -> None:
        self._spec = spec
        self._model_id = model_id
        self._reach = reach
        self._parked = True

    def size(self) -> Size:
        return Size(host_bytes=self._spec.size_bytes)

    def unpark(self, device: Device) -> FakeModel:
        self._reach("unpark", self._model_id)
        self._parked = False
        return FakeModel(self._spec, self._model_id, self._reach, device)

    def unload(self) -> None:
        if self._parked:
            self._parked = False
            self._reach("unload", self._model_id)


def _size(count_bytes: int, device: Device) -> Size:
    return Size(host_bytes=count_bytes) if device.kind == "cpu" else Size(host_bytes=0, device_bytes=count_bytes)


def write_fake_artifact(path: Path, spec: FakeSpec | None = None) -> Path:
    """Write an artifact that the fake adapter loads."""
    path.write_text(json.dumps({_MAGIC: 1, **dataclasses.asdict(spec or FakeSpec())}))
    return path


def _read(artifact: Path) -> FakeSpec:
    if artifact.is_dir():
        artifact = artifact / _PREPARED
    try:
        if artifact.stat().st_size > _ARTIFACT_BYTES_MAX:
            raise BadArtifact(f"{artifact.name}: a fake artifact has at most {_ARTIFACT_BYTES_MAX:,} bytes")
        content = json.loads(artifact.read_bytes())
    except (OSError, ValueError) as error:  # ValueError: not JSON, not UTF-8
        raise BadArtifact(
            f"{artifact.name}: not a readable fake artifact; write one with write_fake_artifact"
        ) from error
    if not isinstance(content, dict) or content.pop(_MAGIC, None) != 1:
        raise BadArtifact(f"{artifact.name}: no {_MAGIC!r}: 1 in it; write one with write_fake_artifact")
    try:
        spec = FakeSpec(**content)
    except TypeError as error:
        raise BadArtifact(f"{artifact.name}: {error}; known fields are those of FakeSpec") from None
    if spec.fails not in FAILURES:
        raise BadArtifact(f"{artifact.name}: fails: {spec.fails!r} found, one of {FAILURES} allowed")
    return spec


ADAPTER = FakeAdapter()
