"""The data that ships with scikit-learn, as the demo uses it: rows, a target, and the names of the classes.

Every value is rounded to what a float32 can hold. A V2 client may then send FP32 or FP64 and mean the same number,
so a difference between the server's answer and the framework's own is never a rounding of the input.

Deliberately absent: data sets that scikit-learn downloads. The demo works without a network.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSIFICATION = ("iris", "wine", "breast_cancer", "digits")
REGRESSION = ("diabetes", "linnerud")
FEATURES = {"iris": 4, "wine": 13, "breast_cancer": 30, "digits": 64, "diabetes": 10, "linnerud": 3}


@dataclass(frozen=True, slots=True)
class Dataset:
    """One table. `class_names` is empty for a regression; its target may have several columns."""

    name: str
    rows: NDArray[np.float64]
    target: NDArray[Any]
    class_names: tuple[str, ...]

    @property
    def is_classification(self) -> bool:
        """Whether the target is a class index."""
        return bool(self.class_names)


@functools.cache
def load_dataset(name: str) -> Dataset:
    """One of the data sets named above; reads files that ship with scikit-learn."""
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    rows = np.asarray(bunch.data, np.float32).astype(np.float64)
    if name in CLASSIFICATION:
        class_names = tuple(str(class_name) for class_name in bunch.target_names)
        return Dataset(name, rows, np.asarray(bunch.target, np.int64), class_names)
    return Dataset(name, rows, np.asarray(bunch.target, np.float64), ())
