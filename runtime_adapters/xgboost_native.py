"""An XGBoost model's trees as XGBoost keeps and runs them, on the CPU or on a CUDA device, without a DMatrix.

One prediction does use a DMatrix: XGBoost 3.2 adds a row's `base_margin` once per tree when it predicts a dart model in
place (seen: 53 off where 7 was right), and the DMatrix way adds it once.

**Parked.** XGBoost keeps the trees in RAM in any case; a device holds a second copy of them, which each tree owns and
keeps after `device` is set to the CPU. So a parked model is a new Booster on the CPU, read from the old one's bytes,
and the old one is gone with what it had on the device. It comes back by setting its device and predicting once, which
copies the trees.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from runtime_adapters import ubjson
from runtime_adapters.base import CPU, Array, Device, LoadOptions, Size
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised, OutOfMemory
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.heap_churn import heap_freed
from runtime_adapters.interruption import slices
from runtime_adapters.out_of_memory import ran_out
from runtime_adapters.xgboost_format import XgboostFacts, depth_of

EXPLAINED_DEPTH_MAX = 512
"""Of trees whose contributions are computed: XGBoost walks them by recursion, with room for the depth squared."""
_DEVICE_NODE_BYTES = 53
"""Trees are copied to the device as they lie on the host; not measured on a device."""


def import_xgboost() -> Any:
    """The framework. Raises MissingRuntime."""
    try:
        with importing("xgboost"):
            import xgboost
    except ImportError as error:
        raise missing_runtime("xgboost", "xgboost", error) from error
    return xgboost


def native_size(facts: XgboostFacts, device_kind: str) -> Size:
    """What XGBoost takes for such a model."""
    on_device = _DEVICE_NODE_BYTES * facts.nodes if device_kind == "cuda" else 0
    return Size(host_bytes=facts.resident_bytes, device_bytes=on_device)


class NativeTrees:
    """A Booster in this process."""

    def __init__(self, ubj: bytes, facts: XgboostFacts, options: LoadOptions) -> None:
        """`ubj` has been checked. Raises BadArtifact, LoadFailed, MissingRuntime, OutOfMemory."""
        xgboost = import_xgboost()
        if options.device.kind == "cuda" and not xgboost.build_info().get("USE_CUDA"):
            raise LoadFailed(
                f"xgboost {xgboost.__version__} on this pod is built without CUDA, so {options.device} cannot be used; "
                "install the package xgboost in place of xgboost-cpu, or load on the CPU"
            )
        self.facts = facts
        self._xgboost = xgboost
        self._device = options.device
        self._threads = options.threads
        self._rounds = (0, facts.rounds_used)
        self._depth: int | None = None
        self._resting: Any = None
        """The Booster while it is parked."""
        try:
            self._booster = self._read(bytearray(ubj), options.device)
            self._predict_once()
        except (xgboost.core.XGBoostError, MemoryError) as error:
            raise _load_error(error) from error

    def _read(self, ubj: bytearray, device: Device) -> Any:
        # Reading a file knows nothing of the Booster's own `nthread`: each loading thread would start an OpenMP team,
        # whose threads then wait for one another (8 ms in place of 1 on a busy machine). Holds for this thread only.
        self._xgboost.set_config(nthread=self._threads)
        return self._xgboost.Booster({"nthread": self._threads, "device": str(device)}, model_file=ubj)

    def _predict_once(self) -> None:
        """XGBoost refuses here what it would refuse in its first predict, and copies the trees to its device."""
        self._predict(np.zeros((1, self.facts.features), np.float32), None, raw=False)

    def values(self, rows: Array, margin: Array | None) -> Array:
        """What `Booster.predict` answers."""
        return self._answer(rows, margin, raw=False)

    def sums(self, rows: Array, margin: Array | None) -> Array:
        """The same before the objective's transformation."""
        return self._answer(rows, margin, raw=True)

    def contributions(self, rows: Array, margin: Array | None) -> Array:
        """What each feature contributed to the sums, and what they began with: exact TreeSHAP, FP32 [-1, features + 1],
        or [-1, groups, features + 1]. Raises BadInput where a tree is too deep for XGBoost's recursion, NobodyWaits."""
        booster = self._booster
        if booster is None:
            raise ModelRaised("the copy was unloaded or parked before this run; ask for the model again")
        if self._depth is None:
            self._depth = depth_of(ubjson.read(bytes(booster.save_raw("ubj"))))
        if self._depth > EXPLAINED_DEPTH_MAX:
            raise BadInput(
                f"explanation: a tree is {self._depth} levels deep; up to {EXPLAINED_DEPTH_MAX} are explained: limit "
                "max_depth in training"
            )
        found = [
            self._contributions(booster, rows[part], None if margin is None else margin[part])
            for part in slices(len(rows))
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _contributions(self, booster: Any, rows: Array, margin: Array | None) -> Array:
        try:
            matrix = self._xgboost.DMatrix(
                np.ascontiguousarray(rows), base_margin=margin, nthread=self._threads, missing=np.nan
            )
            found = booster.predict(matrix, pred_contribs=True, iteration_range=self._rounds, validate_features=False)
        except (self._xgboost.core.XGBoostError, MemoryError) as error:
            if ran_out(error):
                raise OutOfMemory("xgboost found no memory for this request; send fewer rows") from error
            raise BadInput(f"xgboost refuses the input: {_first_line(error)}") from error
        return np.asarray(found, np.float32)

    def size(self) -> Size:
        return native_size(self.facts, self._device.kind)

    def parked_size(self) -> Size:
        """What `leave_device` leaves."""
        return native_size(self.facts, "cpu")

    def leave_device(self) -> None:
        """The trees in RAM alone. Raises OutOfMemory, LoadFailed; then they are where they were."""
        if self._booster is None:
            raise LoadFailed("the copy was unloaded or parked before; there is nothing to park")
        try:
            self._resting = self._in_ram(self._booster)
        except (self._xgboost.core.XGBoostError, MemoryError) as error:
            raise _move_error(error) from error
        self._booster = None

    def return_to(self, device: Device) -> None:
        """The trees on this device again. Raises OutOfMemory, LoadFailed; then they are in RAM alone."""
        booster = self._resting
        if booster is None:
            raise LoadFailed("the parked copy was unloaded before; load the model again")
        try:
            booster.set_param({"device": str(device)})
            self._booster = booster
            self._predict_once()
        except (self._xgboost.core.XGBoostError, MemoryError) as error:
            self._booster = None
            with contextlib.suppress(self._xgboost.core.XGBoostError, MemoryError):  # what it has on the device goes
                self._resting = self._in_ram(booster)
            raise _move_error(error) from error
        self._resting = None

    def _in_ram(self, booster: Any) -> Any:
        """The same trees, with nothing on any device."""
        return self._read(booster.save_raw("ubj"), CPU)

    def unload(self) -> None:
        if self._booster is not None or self._resting is not None:
            self._booster = self._resting = None
            heap_freed(self.facts.resident_bytes)

    def _answer(self, rows: Array, margin: Array | None, *, raw: bool) -> Array:
        if self._booster is None:
            raise ModelRaised("the copy was unloaded or parked before this run; ask for the model again")
        try:
            return np.asarray(self._predict(rows, margin, raw=raw), np.float32)
        except (self._xgboost.core.XGBoostError, MemoryError) as error:
            if ran_out(error):
                raise OutOfMemory("xgboost found no memory for this request; send fewer rows") from error
            raise BadInput(f"xgboost refuses the input: {_first_line(error)}") from error

    def _predict(self, rows: Array, margin: Array | None, *, raw: bool) -> Any:
        if self._device.kind == "cuda" or (self.facts.booster == "dart" and margin is not None):
            matrix = self._xgboost.DMatrix(rows, base_margin=margin, nthread=self._threads)
            return self._booster.predict(
                matrix, output_margin=raw, iteration_range=self._rounds, validate_features=False
            )
        return self._booster.inplace_predict(
            np.ascontiguousarray(rows),
            iteration_range=self._rounds,
            predict_type="margin" if raw else "value",
            base_margin=None if margin is None else np.ascontiguousarray(margin),
            validate_features=False,
        )


def _load_error(error: Exception) -> BadArtifact | OutOfMemory:
    if ran_out(error):
        return OutOfMemory("xgboost found no memory to load the model")
    return BadArtifact(f"xgboost refuses the model: {_first_line(error)}; save it again with this version of xgboost")


def _move_error(error: Exception) -> LoadFailed | OutOfMemory:
    if ran_out(error):
        return OutOfMemory("xgboost found no memory to move the model")
    return LoadFailed(f"xgboost could not move the model: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """XGBoost appends a stack trace with paths of its build machine; the reason is in the first line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return lines[0].split("Check failed:")[-1].strip()[:300]
