"""The error for a framework that is not installed: which package, and the command that installs it.

An adapter imports its framework inside its functions and turns the ImportError into ours here:

    try:
        import onnxruntime
    except ImportError as error:
        raise missing_runtime("onnx", "onnxruntime", error) from error

The import statement stays in the adapter, so that a reader (and a type checker) sees who owns which library.
It is repeated in each call rather than cached: after the first it is a dictionary look-up.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from runtime_adapters.errors import MissingRuntime


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
