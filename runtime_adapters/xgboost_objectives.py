"""What an XGBoost objective makes of the sums of the trees: probabilities, counts, class numbers.

XGBoost does this itself when it runs a model; trees that run elsewhere end as sums. The formulas are XGBoost's (3.2,
`src/objective`), in float32 and in its order of operations. Exponentials are taken in float64 and rounded, which gives
what a good float32 `expf` gives; NumPy's own float32 `exp` is up to two and a half units in the last place off.

Deliberately absent: objectives whose values depend on more than the row's own sums. A name that is not here is not
guessed at: such a model stays with XGBoost.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtime_adapters.base import Array

ValuesOf = Callable[[Array], Array]
"""Sums, FP32 [-1] or [-1, outputs], to what `Booster.predict` answers."""

_ONE = np.float32(1)
_SIGMOID_MAX = np.float32(88.7)
"""XGBoost's own limit against an overflow of `expf`."""


def values_of(objective: str) -> ValuesOf | None:
    """The objective's transformation; None for one that is not known here."""
    return _VALUES_OF.get(objective)


def _as_they_are(sums: Array) -> Array:
    return sums


def _exponential(sums: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(sums.astype(np.float64)).astype(np.float32))


def _sigmoid(sums: Array) -> Array:
    # The most common one, in as few steps as there can be: for one row each costs more than its arithmetic.
    values: Array = np.exp(np.minimum(-sums, _SIGMOID_MAX), dtype=np.float64).astype(np.float32)
    values += _ONE
    return np.reciprocal(values, out=values)


def _hinge(sums: Array) -> Array:
    return np.asarray((sums > 0).astype(np.float32))


def _softmax(sums: Array) -> Array:
    powers = _exponential(sums - sums.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True, dtype=np.float64).astype(np.float32))


def _largest(sums: Array) -> Array:
    return np.asarray(sums.argmax(axis=1).astype(np.float32))


_VALUES_OF: dict[str, ValuesOf] = {
    **dict.fromkeys(
        (
            "reg:squarederror",
            "reg:squaredlogerror",
            "reg:pseudohubererror",
            "reg:absoluteerror",
            "reg:quantileerror",
            "binary:logitraw",
            "rank:pairwise",
            "rank:ndcg",
            "rank:map",
        ),
        _as_they_are,
    ),
    **dict.fromkeys(("reg:gamma", "reg:tweedie", "count:poisson", "survival:cox", "survival:aft"), _exponential),
    **dict.fromkeys(("reg:logistic", "binary:logistic"), _sigmoid),
    "binary:hinge": _hinge,
    "multi:softprob": _softmax,
    "multi:softmax": _largest,
}
