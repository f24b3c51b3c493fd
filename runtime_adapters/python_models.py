"""Custom Python models (`format: python`): always in a supervised process, jailed unless their prefix is trusted.

An artifact is a directory with a `model.py` (see `runtime_adapters.custom` for what is in it). In the pod this adapter
only starts and drives a child; in that child `load_in_this_process` imports the file and checks, at each run, that the
model keeps to what it declared. The pod itself never imports a model's code, not even to read its metadata.

The spec's parameters are the model's own, apart from three that this adapter takes: `load_timeout_s`,
`infer_timeout_s` and `memory_limit_bytes`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import math
import os
import platform
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
    SEQUENCE_END,
    SEQUENCE_ID,
    SEQUENCE_START,
    Array,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
    is_explanation,
)
from runtime_adapters.custom import Model
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised, UntrustedArtifact
from runtime_adapters.isolation import INFER_TIMEOUT_S, LOAD_TIMEOUT_S, load_isolated
from runtime_adapters.isolation_messages import summary_of
from runtime_adapters.sequences import OpenSequences
from runtime_adapters.validation import refuse_unknown_parameters

MODEL_FILE = "model.py"
OWN_PARAMETERS = ("load_timeout_s", "infer_timeout_s", "memory_limit_bytes")

_PROCESS_BYTES = 30 << 20
"""Python and NumPy in a child: its private pages and its share of the libraries' (measured)."""
_MODULE_NAME = "hexcomb_custom_model"
_SOURCE_BYTES_MAX = 4 << 20
"""A model.py larger than this is data in the wrong place."""


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
        own = {name: options.parameters[name] for name in OWN_PARAMETERS if name in options.parameters}
        numbers = {name: _positive(name, text) for name, text in own.items()}
        memory_limit_bytes = numbers.get("memory_limit_bytes")
        return load_isolated(
            self.format,
            artifact,
            options,
            load_timeout_s=numbers.get("load_timeout_s", LOAD_TIMEOUT_S),
            infer_timeout_s=numbers.get("infer_timeout_s", INFER_TIMEOUT_S),
            memory_limit_bytes=None if memory_limit_bytes is None else int(memory_limit_bytes),
            jailed=not options.trusted,
        )

    def load_in_this_process(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        """For the isolated child: runs the model's code here and now."""
        if not options.trusted:
            raise UntrustedArtifact(
                "a Python model runs code and its prefix is not trusted; trust the prefix, or load it jailed"
            )
        return LocalPythonModel(_make_model(artifact, options))


class LocalPythonModel:
    """A custom model in this process, held to what it declared."""

    def __init__(self, model: Model) -> None:
        self._model: Model | None = model
        self._metadata = _metadata_of(model)
        self._outputs = {spec.name: spec for spec in self._metadata.outputs}
        self._sequences = OpenSequences() if self._metadata.sequences else None

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        zeros = {spec.name: _zeros(spec) for spec in self._metadata.inputs if not spec.optional}
        if self._metadata.sequences:  # one that a client's first request would not go on with
            zeros |= {
                SEQUENCE_ID: np.array([b""], np.object_),
                SEQUENCE_START: np.array([True]),
                SEQUENCE_END: np.array([True]),
            }
        with contextlib.suppress(ModelRaised, BadInput):  # a model that does not like zeros is not broken
            self.infer(zeros)

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Of a model that is decoupled: its first answer."""
        if self._metadata.decoupled:
            with contextlib.closing(self.infer_stream(inputs, outputs)) as answers:
                return next(answers, {})
        wanted = outputs or [spec.name for spec in self._metadata.outputs if not spec.optional]
        found: dict[str, Array] = {}
        for method, names in (
            ("predict", [name for name in wanted if not is_explanation(name)]),
            ("explain", [name for name in wanted if is_explanation(name)]),
        ):
            if names:
                found |= self._checked(method, self._asked(method, inputs), names)
        return {name: found[name] for name in wanted}

    def infer_stream(self, inputs: Tensors, outputs: Sequence[str] = ()) -> Generator[dict[str, Array], None, None]:
        wanted = outputs or [spec.name for spec in self._metadata.outputs if not spec.optional]
        returned = self._asked("predict", inputs)
        assert isinstance(returned, Generator)
        with contextlib.closing(returned):
            while True:
                try:
                    answer = next(returned)
                except StopIteration:
                    return
                except BadInput:
                    raise
                except (Exception, SystemExit) as error:
                    raise ModelRaised(f"predict raised {summary_of(error)}") from error
                yield self._checked("predict", answer, wanted)

    def _asked(self, method: str, inputs: Tensors) -> object:
        """What `predict` or `explain` returns."""
        assert self._model is not None
        # Copies: what lies in shared memory is overwritten by the next request, and a model may keep its inputs.
        copied = {name: array.copy() for name, array in inputs.items()}
        if self._sequences is not None:
            self._model.sequence = self._sequences.position(copied)
        try:
            return getattr(self._model, method)(copied)
        except BadInput:
            raise
        except (Exception, SystemExit) as error:
            raise ModelRaised(f"{method} raised {summary_of(error)}") from error

    def _checked(self, method: str, returned: object, wanted: Sequence[str]) -> dict[str, Array]:
        """What it returned, held to what was declared."""
        own = [name for name in self._outputs if is_explanation(name) == (method == "explain")]
        answer = self._by_name(method, returned, own)
        missing = [name for name in wanted if name not in answer]
        if missing:
            raise ModelRaised(f"{method} returned {_names(answer)}, without the output {_names(missing)}")
        return {name: _checked_output(method, self._outputs[name], answer[name]) for name in wanted}

    def size(self) -> Size:
        return Size(host_bytes=0)  # the pod measures the whole process

    def unload(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.unload()

    def _by_name(self, method: str, returned: object, own: list[str]) -> Mapping[str, object]:
        """`own`: the outputs that are this method's."""
        if isinstance(returned, Mapping):
            strangers = [name for name in returned if name not in own]
            if strangers:
                raise ModelRaised(f"{method} returned {_names(strangers)}; its outputs are {_names(own)}")
            return returned
        if isinstance(returned, np.ndarray | np.generic):
            if len(own) == 1:
                return {own[0]: returned}
            raise ModelRaised(f"{method} returned one array; return a dict with {_names(own)}")
        raise ModelRaised(f"{method} returned a {type(returned).__name__}; return a dict of arrays, or one array")


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
        if isinstance(node, ast.ImportFrom) and node.module == "runtime_adapters.custom":
            class_names |= {alias.asname or alias.name for alias in node.names if alias.name == "Model"}
        elif isinstance(node, ast.ImportFrom) and node.module == "runtime_adapters":
            module_names |= {alias.asname or alias.name for alias in node.names if alias.name == "custom"}
        elif isinstance(node, ast.Import):
            module_names |= {alias.asname or alias.name for alias in node.names if alias.name.endswith(".custom")}
    bases = class_names | {f"{name}.Model" for name in module_names}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes if any(ast.unparse(base) in bases for base in node.bases)]


def _make_model(artifact: Path, options: LoadOptions) -> Model:
    source = _read_source(artifact)
    _model_classes(source)
    module = _import(artifact, source)
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Model) and item.__module__ == _MODULE_NAME
    ]
    # A base that the author derived from is not meant itself.
    leaves = [item for item in found if not any(other is not item and issubclass(other, item) for other in found)]
    if len(leaves) != 1:
        names = ", ".join(item.__name__ for item in leaves) or "none"
        raise BadArtifact(
            f"{MODEL_FILE} must hold exactly one subclass of runtime_adapters.custom.Model; found {names}"
        )
    try:
        model: Model = leaves[0]()
        defaults = dict(model.parameters)
        refuse_unknown_parameters(options.parameters, (*defaults, *OWN_PARAMETERS))
        model.parameters = {
            **defaults,
            **{name: options.parameters[name] for name in defaults if name in options.parameters},
        }
        model.artifact, model.device, model.threads = artifact, options.device, options.threads
        _metadata_of(model)
        model.load()
    except (BadArtifact, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise LoadFailed(f"{MODEL_FILE}: load raised {summary_of(error)}") from error
    return model


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


def _metadata_of(model: Model) -> ModelMetadata:
    for side, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
        if not isinstance(specs, list | tuple) or not all(isinstance(spec, TensorSpec) for spec in specs):
            raise BadArtifact(f"{type(model).__name__}.{side} must be a tuple of TensorSpec; found {str(specs)[:200]}")
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names) or not all(names):
            raise BadArtifact(f"{type(model).__name__}.{side} must have names that differ; found {names}")
        for spec in specs:
            if spec.datatype not in DTYPE_OF:
                raise BadArtifact(
                    f"{type(model).__name__}.{side}: {spec.name} has datatype {spec.datatype!r}; "
                    f"allowed are {', '.join(DTYPE_OF)}"
                )
            if is_explanation(spec.name) and not spec.optional:
                raise BadArtifact(f"{type(model).__name__}.{side}: {spec.name} must be optional: who wants it, asks")
    if not model.outputs:
        raise BadArtifact(f"{type(model).__name__}.outputs is empty; declare what predict returns")
    return ModelMetadata(
        platform="hexcomb_python",
        inputs=tuple(_with_tuple_shape(spec) for spec in model.inputs),
        outputs=tuple(_with_tuple_shape(spec) for spec in model.outputs),
        batch_dimension=model.batch_dimension,
        batch_rows_max=_checked_rows_max(model),
        decoupled=inspect.isgeneratorfunction(model.predict),
        sequences=model.sequences is True,
    )


def _checked_rows_max(model: Model) -> int | None:
    rows_max = model.batch_rows_max
    if rows_max is None or (type(rows_max) is int and rows_max > 0):
        return rows_max
    found = f"{type(model).__name__}.batch_rows_max is {str(rows_max)[:40]!r}"
    raise BadArtifact(f"{found}; it must be a whole number from 1, or None")


def _with_tuple_shape(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, tuple(int(size) for size in spec.shape), spec.optional)


def _checked_output(method: str, spec: TensorSpec, value: object) -> Array:
    """What predict or explain returned, if it is what the model declared. Nothing is cast. Raises ModelRaised."""
    if not isinstance(value, np.ndarray | np.generic):
        raise ModelRaised(f"{method} returned a {type(value).__name__} for {spec.name}; return a NumPy array")
    array: Array = np.asarray(value)
    found = datatype_of(array.dtype) or str(array.dtype)
    if found != spec.datatype:
        raise ModelRaised(f"{method} returned {spec.name} as {found}; it declared {spec.datatype}")
    fits = len(array.shape) == len(spec.shape) and all(
        declared in (DYNAMIC, size) for declared, size in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise ModelRaised(
            f"{method} returned {spec.name} with shape {list(array.shape)}; it declared {list(spec.shape)}"
        )
    return _as_bytes(method, spec.name, array) if spec.datatype == "BYTES" else array


def _as_bytes(method: str, name: str, array: Array) -> Array:
    converted = np.empty(array.size, dtype=np.object_)
    for index, item in enumerate(array.ravel().tolist()):
        if not isinstance(item, bytes | str):
            raise ModelRaised(f"{method} returned a {type(item).__name__} in {name}; BYTES holds bytes or str")
        converted[index] = item.encode() if isinstance(item, str) else item
    return converted.reshape(array.shape)


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
    return (
        np.full(shape, b"", dtype=np.object_) if spec.datatype == "BYTES" else np.zeros(shape, DTYPE_OF[spec.datatype])
    )


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise BadArtifact(f"parameters: {name} is {text!r}; allowed is a number above 0; correct the spec")
    return number


def _names(names: object) -> str:
    listed = [str(name)[:80] for name in names] if isinstance(names, Mapping | list) else [str(names)[:80]]
    return ", ".join(listed[:8]) or "nothing"


ADAPTER = PythonModels()
