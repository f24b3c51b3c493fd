"""Custom Python models (`format: python`): always in a supervised process, jailed unless their prefix is trusted.

An artifact is a directory with a `model.py` (see `runtime_adapters.custom` and `runtime_adapters.kserve` for what is in
it). In the pod this adapter
only starts and drives a child; in that child `load_in_this_process` imports the file and checks, at each run, that the
model keeps to what it declared. The pod itself never imports a model's code, not even to read its metadata.

The spec's parameters are the model's own, apart from three that this adapter takes: `load_timeout_s`,
`infer_timeout_s` and `memory_limit_bytes`.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from runtime_adapters import custom, kserve
from runtime_adapters.base import LoadedModel, LoadOptions, Size, Trust
from runtime_adapters.declared_models import DeclaredModel
from runtime_adapters.errors import BadArtifact, LoadFailed, UntrustedArtifact
from runtime_adapters.isolation import INFER_TIMEOUT_S, LOAD_TIMEOUT_S, load_isolated
from runtime_adapters.isolation_messages import summary_of
from runtime_adapters.kserve_models import KServeModel
from runtime_adapters.validation import refuse_unknown_parameters

MODEL_FILE = "model.py"
OWN_PARAMETERS = ("load_timeout_s", "infer_timeout_s", "memory_limit_bytes")

_PROCESS_BYTES = 30 << 20
"""Python and NumPy in a child: its private pages and its share of the libraries' (measured)."""
_MODULE_NAME = "hexcomb_custom_model"
_PACKAGE = "runtime_adapters"
_BASE_MODULES = (custom.__name__, kserve.__name__)
_SOURCE_BYTES_MAX = 4 << 20
"""A model.py larger than this is data in the wrong place."""


@dataclass(frozen=True, slots=True)
class OwnLimits:
    """What one model may take, where its spec says; None: it does not. For less than the pod allows, never for more."""

    load_timeout_s: float | None = None
    infer_timeout_s: float | None = None
    """Of one run, or of one answer of a stream."""
    memory_limit_bytes: int | None = None
    """Beyond Python and NumPy."""


class PythonModels:
    """The adapter."""

    format = "python"
    trust = Trust.RUNS_CODE
    device_kinds = ("cpu", "cuda")
    extra = ""

    def runtime_version(self) -> str:
        return f"python-{platform.python_version()}-numpy-{np.__version__}"

    def detect(self, artifact: Path) -> bool:
        if not (artifact / MODEL_FILE).is_file():
            return False
        try:
            return bool(_model_classes(_read_source(artifact)))
        except BadArtifact:
            return False

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        _read_source(artifact)
        files = (path for path in artifact.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
        return Size(host_bytes=_PROCESS_BYTES + sum(path.stat().st_size for path in files))

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        return False

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        """In a child; jailed unless trusted. A caller with limits of its own uses `load_isolated` directly."""
        if not _model_classes(_read_source(artifact)):
            raise BadArtifact(f"{MODEL_FILE}: no class in it has the base Model; see runtime_adapters.custom")
        limits = limits_of(options.parameters)
        return load_isolated(
            self.format,
            artifact,
            options,
            load_timeout_s=limits.load_timeout_s or LOAD_TIMEOUT_S,
            infer_timeout_s=limits.infer_timeout_s or INFER_TIMEOUT_S,
            memory_limit_bytes=limits.memory_limit_bytes,
            jailed=not options.trusted,
        )

    def load_in_this_process(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        """For the isolated child: runs the model's code here and now."""
        if not options.trusted:
            raise UntrustedArtifact(
                "a Python model runs code and its prefix is not trusted; trust the prefix, or load it jailed"
            )
        return _loaded(artifact, options)


def limits_of(parameters: Mapping[str, str]) -> OwnLimits:
    """What a spec's parameters say of its model's limits. Raises BadArtifact."""
    own = {name: _positive(name, parameters[name]) for name in OWN_PARAMETERS if name in parameters}
    memory_limit_bytes = own.get("memory_limit_bytes")
    return OwnLimits(
        own.get("load_timeout_s"),
        own.get("infer_timeout_s"),
        None if memory_limit_bytes is None else int(memory_limit_bytes),
    )


def _read_source(artifact: Path) -> str:
    """The text of model.py. Raises BadArtifact."""
    path = artifact / MODEL_FILE
    if not path.is_file():
        found = "a file" if artifact.is_file() else "no such file" if artifact.exists() else "nothing at all"
        raise BadArtifact(f"a Python model is a directory with a {MODEL_FILE}; found {found}; check the URI")
    if not 0 < path.stat().st_size <= _SOURCE_BYTES_MAX:
        raise BadArtifact(
            f"{MODEL_FILE} has {path.stat().st_size:,} bytes; allowed are 1 to {_SOURCE_BYTES_MAX:,}; "
            "keep data in files beside it"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise BadArtifact(f"{MODEL_FILE} cannot be read as UTF-8 text: {error}") from error


def _model_classes(source: str) -> list[str]:
    """Names of the classes that look like models, found without running anything. Raises BadArtifact."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadArtifact(f"{MODEL_FILE} is not valid Python: {summary_of(error)}; correct it") from error
    module_names, class_names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in _BASE_MODULES:
            class_names |= {alias.asname or alias.name for alias in node.names if alias.name == "Model"}
        elif isinstance(node, ast.ImportFrom) and node.module == _PACKAGE:
            in_package = [alias for alias in node.names if f"{_PACKAGE}.{alias.name}" in _BASE_MODULES]
            module_names |= {alias.asname or alias.name for alias in in_package}
        elif isinstance(node, ast.Import):
            module_names |= {alias.asname or alias.name for alias in node.names if alias.name in _BASE_MODULES}
    bases = class_names | {f"{name}.Model" for name in module_names}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if any(ast.unparse(base) in bases for base in node.bases)]


def _loaded(artifact: Path, options: LoadOptions) -> DeclaredModel | KServeModel:
    source = _read_source(artifact)
    _model_classes(source)
    module = _import(artifact, source)
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, custom.Model | kserve.Model) and item.__module__ == _MODULE_NAME
    ]
    # A base that the author derived from is not meant itself.
    leaves = [item for item in found if not any(other is not item and issubclass(other, item) for other in found)]
    if len(leaves) != 1:
        names = ", ".join(item.__name__ for item in leaves) or "none"
        raise BadArtifact(
            f"{MODEL_FILE} must hold exactly one subclass of Model, of {' or '.join(_BASE_MODULES)}; found {names}"
        )
    try:
        if issubclass(leaves[0], kserve.Model):
            refuse_unknown_parameters(options.parameters, OWN_PARAMETERS)
            return KServeModel(_named(leaves[0], options.model_id))
        return DeclaredModel(_made(leaves[0], artifact, options))
    except (BadArtifact, LoadFailed, MemoryError):
        raise
    except (Exception, SystemExit, asyncio.CancelledError) as error:
        raise LoadFailed(f"{MODEL_FILE}: load raised {summary_of(error)}") from error


def _made(kind: type[custom.Model], artifact: Path, options: LoadOptions) -> custom.Model:
    model = kind()
    defaults = dict(model.parameters)
    refuse_unknown_parameters(options.parameters, (*defaults, *OWN_PARAMETERS))
    model.parameters = {
        **defaults,
        **{name: options.parameters[name] for name in defaults if name in options.parameters},
    }
    model.artifact, model.device, model.threads = artifact, options.device, options.threads
    return model


def _named(kind: type[kserve.Model], name: str) -> kserve.Model:
    """KServe's models are made with their name. Raises BadArtifact for one that wants more."""
    try:
        inspect.signature(kind).bind(name)
    except TypeError as error:
        raise BadArtifact(f"{kind.__name__} must be made with its name and nothing else: {error}") from error
    return kind(name)


def _import(artifact: Path, source: str) -> ModuleType:
    sys.path.insert(0, os.fspath(artifact))
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, artifact / MODEL_FILE)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # pickles and dataclasses in it look it up by name
    try:
        exec(compile(source, os.fspath(artifact / MODEL_FILE), "exec"), vars(module))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise BadArtifact(
            f"{MODEL_FILE} cannot be imported: {summary_of(error)}; correct it, or install what it imports on the pod"
        ) from error
    return module


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise BadArtifact(f"parameters: {name} is {text!r}; allowed is a number above 0; correct the spec")
    return number


ADAPTER = PythonModels()
