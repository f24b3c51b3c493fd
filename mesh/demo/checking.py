"""Is the server's answer the framework's answer?

Labels, counts and strings must be equal. Floating-point numbers must be equal within the last digits, since the same
sum taken in another order (a graph optimised offline, a batch cut differently) may end in other bits; how many
answers were equal to the bit is counted besides, and shown. The tolerances are stated here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh.demo.training import ONLY_OUTPUT

Array = NDArray[Any]

TOLERANCE = {np.dtype(np.float32): (1e-5, 1e-6), np.dtype(np.float64): (1e-9, 1e-12)}
"""(relative, absolute), by the coarser dtype of the two that are compared."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is empty when the answer is right. `bit_equal` implies right."""

    bit_equal: bool
    why: str

    @property
    def right(self) -> bool:
        """Whether the answer stands."""
        return not self.why


def compare_answers(expected: Mapping[str, Array], answered: Mapping[str, Array]) -> Verdict:
    """Hold the server's outputs against the framework's."""
    if ONLY_OUTPUT in expected:
        if len(answered) != 1:
            return Verdict(False, f"expected one output, got {sorted(answered)}")
        return _compare("the only output", expected[ONLY_OUTPUT], next(iter(answered.values())))
    if missing := sorted(set(expected) - set(answered)):
        return Verdict(False, f"outputs {missing} are missing; got {sorted(answered)}")
    verdicts = [_compare(name, values, answered[name]) for name, values in expected.items()]
    wrong = [verdict for verdict in verdicts if not verdict.right]
    return wrong[0] if wrong else Verdict(all(verdict.bit_equal for verdict in verdicts), "")


def _compare(name: str, expected: Array, answered: Array) -> Verdict:
    if expected.shape != answered.shape:
        return Verdict(False, f"{name}: shape {list(answered.shape)} in place of {list(expected.shape)}")
    if expected.dtype.kind in "USO" or answered.dtype.kind in "USO":
        same = [_text(one) for one in expected.ravel()] == [_text(one) for one in answered.ravel()]
        return Verdict(same, "" if same else f"{name}: {_shown(answered)} in place of {_shown(expected)}")
    # Equal to the bit, where NaN equals NaN; int64 against int32 is a matter of the wire, not of the answer.
    if np.array_equal(expected, answered, equal_nan=expected.dtype.kind == "f" and answered.dtype.kind == "f"):
        return Verdict(True, "")
    if expected.dtype.kind == "f" and answered.dtype.kind == "f":
        coarser = min(expected.dtype, answered.dtype, key=lambda dtype: dtype.itemsize)
        relative, absolute = TOLERANCE.get(coarser, (0.0, 0.0))
        if np.allclose(answered, expected, rtol=relative, atol=absolute, equal_nan=True):
            return Verdict(False, "")
    return Verdict(False, f"{name}: {_shown(answered)} in place of {_shown(expected)}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _shown(values: Array) -> str:
    return np.array2string(values.ravel()[:4], precision=9, separator=", ") + (" ..." if values.size > 4 else "")
