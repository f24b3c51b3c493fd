"""Importing a framework late: by one thread at a time, and with an error that says how to install it.

An adapter imports its framework inside its functions and turns the ImportError into ours here:

    try:
        with importing("onnxruntime"):
            import onnxruntime
    except ImportError as error:
        raise missing_runtime("onnx", "onnxruntime", error) from error

The import statement stays in the adapter, so that a reader (and a type checker) sees who owns which library.
It is repeated in each call rather than cached: after the first it is a dictionary look-up.

**One thread at a time**, because Python locks modules one by one. Where two threads come into a circle of modules from
two sides, each waits for the other, and Python resolves that by showing one of them a half-made module or by an error.
XGBoost, LightGBM, skops and every pickle of an estimator import parts of scikit-learn, which is full of such circles.
Of twelve processes whose first loads came together, one refused a good pickle for good (`_DeadlockError`).

**What an import brings stays**, so Python's garbage collector is told to leave it alone. torch alone brings 360,000
objects; to look through them took 0.1 s and more, in which no thread of the pod does anything.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from runtime_adapters.errors import MissingRuntime

_first_imports = threading.RLock()


@contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Around whatever imports these modules. Waits for nobody once they are there, whole."""
    if all(_is_whole(name) for name in modules):
        yield
        return
    with _first_imports:
        yield
        gc.freeze()


def _is_whole(name: str) -> bool:
    """Is this module imported, to its last line? Python's own mark says so; none has one that is not to be imported."""
    module = sys.modules.get(name)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def missing_runtime(extra: str, package: str, error: ImportError) -> MissingRuntime:
    """The error to raise. A package that is installed but cannot be imported says why."""
    installed_but_broken = not isinstance(error, ModuleNotFoundError)
    why = f"cannot be imported ({error})" if installed_but_broken else "is not installed"
    return MissingRuntime(f"{package} {why} on this pod; install it with: pip install 'hexcomb[{extra}]'")


_DISTRIBUTIONS = {
    "onnx": ("onnxruntime-gpu", "onnxruntime"),
    "xgboost": ("xgboost", "xgboost-cpu"),
    "lightgbm": ("lightgbm",),
    "sklearn": ("scikit-learn",),
    "torch": ("torch",),
}
"""Which distributions bring each extra's framework; the first one that is installed is the one that is imported."""


@functools.cache
def installed_version(extra: str) -> str | None:
    """`onnxruntime 1.31.1`, from the installed packages' metadata: imports nothing. None when it is not installed.

    An extra without a framework of its own (custom Python models) needs none and is always there.
    """
    candidates = _DISTRIBUTIONS.get(extra)
    if candidates is None:
        return "built in"
    for distribution in candidates:
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return None
