"""Which adapters there are, and which of them fits an artifact.

The table below is the whole plug-in mechanism: one line per module, each exposing `ADAPTER`, or `ADAPTERS` when
one framework answers for several formats. Importing an adapter's module imports no framework; the framework comes
with the first load, so a pod that serves no torch model never pays for torch.

Detection asks every adapter, not the first that says yes. A file that two adapters accept is an error that names
both: to guess would serve wrong numbers on the day the order of this table changes.

Deliberately absent: entry points of other distributions. A custom model is a `python` artifact, not an adapter.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from runtime_adapters.base import RuntimeAdapter
from runtime_adapters.errors import BadArtifact

_MODULES = (
    "onnx_runtime",
    "xgboost_trees",
    "lightgbm_trees",
    "sklearn_models",
    "torch_programs",
    "python_models",
)

_FAKE_MODULE = "fake"
"""Registered only when asked for: nobody should be able to serve made-up numbers by a slip in a spec."""

_SEEN_BYTES_MAX = 16
_SEEN_NAMES_MAX = 5


def adapters(*, include_fake: bool = False) -> Mapping[str, RuntimeAdapter]:
    """Format name -> adapter, in the order of the table above. Imports no framework."""
    return _adapters(include_fake)


def adapter_for(format_name: str, *, include_fake: bool = False) -> RuntimeAdapter:
    """The adapter of a format that a spec declares. Raises BadArtifact for a name that nobody answers to."""
    known = adapters(include_fake=include_fake)
    try:
        return known[format_name]
    except KeyError:
        raise BadArtifact(
            f"format: {format_name!r} is not known; known formats are {', '.join(known)}; "
            "name one of them, or leave the format out to have it detected"
        ) from None


def detect_format(artifact: Path, *, include_fake: bool = False) -> str:
    """The one format that fits the artifact's content. Raises BadArtifact when none or several fit."""
    if not artifact.exists():
        raise BadArtifact(f"artifact {artifact.name!r}: nothing is there; check the URI, then register again")
    known = adapters(include_fake=include_fake)
    fits = [name for name, adapter in known.items() if adapter.detect(artifact)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise BadArtifact(
            f"artifact {artifact.name!r} fits {len(fits)} formats: {' and '.join(fits)}; "
            "name the right one in the spec's format field"
        )
    raise BadArtifact(
        f"artifact {artifact.name!r} fits no known format ({', '.join(known)}); found {_what_is_there(artifact)}; "
        "check the URI, or name the format in the spec for a precise error"
    )


@functools.cache
def _adapters(include_fake: bool) -> Mapping[str, RuntimeAdapter]:
    found: dict[str, RuntimeAdapter] = {}
    for module_name in (*_MODULES, _FAKE_MODULE) if include_fake else _MODULES:
        for adapter in _adapters_of_module(module_name):
            if adapter.format in found:
                raise RuntimeError(f"two adapters answer to the format {adapter.format!r}; rename one in {module_name}")
            found[adapter.format] = adapter
    return MappingProxyType(found)


def _adapters_of_module(module_name: str) -> tuple[RuntimeAdapter, ...]:
    full_name = f"runtime_adapters.{module_name}"
    try:
        module = importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if error.name != full_name:
            raise
        return ()  # an image may leave an adapter's file out
    several: tuple[RuntimeAdapter, ...] | None = getattr(module, "ADAPTERS", None)
    if several is not None:
        return several
    one: RuntimeAdapter = module.ADAPTER
    return (one,)


def _what_is_there(artifact: Path) -> str:
    if artifact.is_dir():
        names = sorted(path.name for path in artifact.iterdir())
        if not names:
            return "an empty directory"
        shown = ", ".join(names[:_SEEN_NAMES_MAX])
        more = f" and {len(names) - _SEEN_NAMES_MAX} more" if len(names) > _SEEN_NAMES_MAX else ""
        return f"a directory with {shown}{more}"
    size_bytes = artifact.stat().st_size
    if size_bytes == 0:
        return "an empty file"
    with artifact.open("rb") as file:
        head = file.read(_SEEN_BYTES_MAX)
    return f"a file of {size_bytes:,} bytes that begins with {head!r}"
