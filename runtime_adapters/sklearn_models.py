"""scikit-learn estimators and pipelines: skops files from anybody, pickle and joblib files from trusted prefixes.

Two formats, because they differ in what a stranger's file can do:

* `sklearn`: skops. The types in the file are held against a fixed list before anything is built (`sklearn_archive`,
  `sklearn_allowlist`), and what native code would follow is checked before anything runs (`sklearn_bounds`).
* `pickle`: pickle and joblib. Unpickling runs whatever code the file names, so nothing is read unless the operator
  marked the storage prefix trusted.

A tabular model takes one FP64 input [-1, features], named `input`, under any name; FP64 because that is what users hold
at home, and each estimator rounds from it as it always does. A pipeline that begins with a text vectoriser takes BYTES
[-1], one UTF-8 document per row; an encoder of string categories takes BYTES [-1, columns]. Answers are the estimator's
own methods: `predict` (labels as trained: strings come as BYTES), and when asked `predict_proba`,
`decision_function`, `score_samples`, `transform`. An estimator that only transforms answers `transform`.

What an output looks like is learned by calling each method once on a row of zeros while loading: scikit-learn says it
nowhere else. That is also the warm-up.

`n_jobs` of every part is set to the threads of the load options: with more, a forest adds its trees in another order
on each call.

Memory, measured as anonymous growth in a fresh process (scikit-learn 1.9): 36.5 MB for a forest of 36.7 MB of skops,
8.7 MB for one of 200 shallow trees and 9.6 MB, 11.9 MB for gradient boosting of 16.4 MB, 14.4 MB for a vocabulary of
40,000 words and 26.6 MB. `estimate` was within 18 % of each, `size` within 19 %; what a load leaves scattered over
Python's arenas cannot be told exactly.

Deliberately absent: data frames (a ColumnTransformer must select columns by number), sparse inputs, multi-output
`predict_proba` (a list of arrays), estimators that only `fit_predict`.
"""

from __future__ import annotations

import logging
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
    Array,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
)
from runtime_adapters.datatypes import DTYPE_OF, datatype_of
from runtime_adapters.errors import BadArtifact, BadInput, ModelRaised, OutOfMemory, UntrustedArtifact
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.heap_churn import heap_freed
from runtime_adapters.model_file import find_model_file
from runtime_adapters.sklearn_allowlist import TRUSTED_NAMES
from runtime_adapters.sklearn_archive import ESTIMATOR_BYTES, ArchiveFacts, check_archive, is_skops
from runtime_adapters.sklearn_bounds import check_estimator, objects_within
from runtime_adapters.validation import refuse_unknown_parameters

_LOG = logging.getLogger(__name__)

METHODS = ("predict", "predict_proba", "decision_function", "score_samples", "transform")
_VECTORIZERS = ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer")
_ENCODERS = ("OneHotEncoder", "OrdinalEncoder")
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".joblib")
_TREE_NODE_BYTES = 64
_SMALL_OBJECT_BYTES = 32
"""A boxed number, or the slot of one."""
SCATTERED_SHARE = 0.25
SCATTERED_FROM_BYTES = 1 << 20
"""Below this the holes that one load leaves are filled by the next."""


class SklearnAdapter:
    """Format `sklearn`: skops files."""

    format = "sklearn"
    trust = Trust.SAFE
    device_kinds = ("cpu",)
    extra = "sklearn"

    def runtime_version(self) -> str:
        sklearn, skops = _sklearn(), _skops()
        return f"scikit-learn-{sklearn.__version__}-skops-{skops.__version__}"

    def detect(self, artifact: Path) -> bool:
        try:
            return is_skops(find_model_file("sklearn", artifact, (".skops",)))
        except BadArtifact:
            return False

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """Arrays as long as in the file, objects by the length of their description."""
        _check_options(options, "sklearn")
        return Size(host_bytes=check_archive(find_model_file("sklearn", artifact, (".skops",))).resident_bytes)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """A skops file is its own best form."""
        return False

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        sklearn, skops = _sklearn(), _skops()
        _check_options(options, "sklearn")
        path = find_model_file("sklearn", artifact, (".skops",))
        facts = check_archive(path)
        if facts.sklearn_version not in (None, sklearn.__version__):
            _LOG.warning(
                "model %s was saved with scikit-learn %s, this pod has %s: it may predict differently",
                options.model_id,
                facts.sklearn_version,
                sklearn.__version__,
            )
        try:
            estimator = skops.io.load(path, trusted=list(TRUSTED_NAMES))
            check_estimator(estimator)
        except (BadArtifact, MemoryError) as error:
            raise _load_error(error) from error
        except Exception as error:
            raise BadArtifact(
                f"sklearn: the estimator cannot be built: {type(error).__name__}: {_short(error)}; it was saved with "
                f"scikit-learn {facts.sklearn_version or 'unknown'}, this pod has {sklearn.__version__}; save it again"
            ) from error
        _compact_vocabularies(estimator)
        # skops reads each array into a buffer, then an array; a tree copies it once more.
        heap_freed(2 * facts.array_bytes + 4 * facts.schema_bytes)
        return EstimatorModel(estimator, "sklearn", options, _scattered_bytes(facts))


class PickleAdapter:
    """Format `pickle`: what `pickle.dump` and `joblib.dump` wrote, compressed or not."""

    format = "pickle"
    trust = Trust.RUNS_CODE
    device_kinds = ("cpu",)
    extra = "sklearn"

    def runtime_version(self) -> str:
        return f"scikit-learn-{_sklearn().__version__}-joblib-{_joblib().__version__}"

    def detect(self, artifact: Path) -> bool:
        try:
            path = find_model_file("pickle", artifact, _PICKLE_SUFFIXES)
            if path.suffix not in _PICKLE_SUFFIXES:
                return False
            with path.open("rb") as file:
                head = file.read(8)
        except (BadArtifact, OSError):
            return False
        return head.startswith((b"\x80", b"\x78", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x04\x22\x4d\x18"))

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        """The length of the pickle: its arrays are most of it. A compressed one is read through for that."""
        _check_options(options, "pickle")
        path = find_model_file("pickle", artifact, _PICKLE_SUFFIXES)
        return Size(host_bytes=ESTIMATOR_BYTES + _unpacked_bytes(path))

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        """A pickle is its own best form."""
        return False

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        _check_options(options, "pickle")
        path = find_model_file("pickle", artifact, _PICKLE_SUFFIXES)
        if not options.trusted:
            raise UntrustedArtifact(
                "pickle: loading a pickle or joblib file runs code from it, and its storage prefix is not trusted; "
                "`hexcomb convert` makes it skops or ONNX, or let the operator mark the prefix trusted"
            )
        joblib = _joblib()
        _sklearn()
        # joblib does not miss the end of a compressed file that was cut off.
        unpacked_bytes = _unpacked_bytes(path)
        try:
            estimator = joblib.load(path)
        except MemoryError as error:
            raise _load_error(error) from error
        except Exception as error:
            raise BadArtifact(
                f"pickle: the file cannot be unpickled: {type(error).__name__}: {_short(error)}; "
                "save it again with the versions that this pod has"
            ) from error
        heap_freed(2 * unpacked_bytes)
        return EstimatorModel(estimator, "pickle", options)


class EstimatorModel:
    """A fitted estimator in this process."""

    def __init__(self, estimator: Any, format_name: str, options: LoadOptions, scattered_bytes: int = 0) -> None:
        self._estimator = estimator
        methods = [name for name in METHODS if callable(getattr(estimator, name, None))]
        if not methods:
            raise BadArtifact(
                f"{format_name}: {type(estimator).__name__} has none of {', '.join(METHODS)}; save a fitted estimator"
            )
        for part in objects_within(estimator):
            settings = getattr(part, "__dict__", {})
            if "n_jobs" in settings:
                part.n_jobs = options.threads
            if "verbose" in settings:
                part.verbose = 0  # or it writes to the pod's standard output on each predict
        self._input = _input_spec(estimator, format_name)
        self._decode = _decoder(self._input)
        self._empty: dict[str, Array] = {}
        self.metadata = self._describe(methods, format_name)
        self._size = Size(host_bytes=ESTIMATOR_BYTES + _resident_bytes(estimator) + scattered_bytes)

    def _describe(self, methods: Sequence[str], format_name: str) -> ModelMetadata:
        """Ask each method once; what raises or answers no array (a list per output) is not offered."""
        outputs: list[TensorSpec] = []
        why = ""
        for method in methods:
            try:
                answer = self._call_any(method)
            except Exception as error:
                why = f"{method} raised {type(error).__name__}: {_short(error)}"
                continue
            datatype = datatype_of(answer.dtype) if answer.ndim else None
            if datatype is None:
                why = f"{method} answers {answer.dtype}, which is no V2 datatype"
                continue
            self._empty[method] = answer[:0]
            shape = (DYNAMIC, *answer.shape[1:])
            outputs.append(TensorSpec(method, datatype, shape, optional=bool(outputs)))
        if not outputs:
            raise BadArtifact(
                f"{format_name}: {type(self._estimator).__name__} answers to nothing that can be sent: {why}; "
                "save a fitted estimator that takes numbers or text by position"
            )
        return ModelMetadata(
            platform=format_name,
            inputs=(self._input,),
            outputs=tuple(outputs),
            any_input_name=True,
            batch_dimension=True,
        )

    def _call_any(self, method: str) -> Array:
        """One row of zeros; a model that wants positive numbers gets ones."""
        shape = tuple(1 if size == DYNAMIC else size for size in self._input.shape)
        dtype = DTYPE_OF[self._input.datatype]
        if self._input.datatype == "BYTES":
            return self._call(method, np.full(shape, b"", object))
        try:
            return self._call(method, np.zeros(shape, dtype))
        except ValueError:
            return self._call(method, np.ones(shape, dtype))

    def _call(self, method: str, rows: Array) -> Array:
        answer = getattr(self._estimator, method)(self._decode(rows))
        if hasattr(answer, "toarray"):
            answer = answer.toarray()
        if isinstance(answer, list):
            raise TypeError("a list of arrays cannot be sent")
        return _sendable(np.asarray(answer))

    def warm_up(self) -> None:
        """The constructor has called each method once."""

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        (rows,) = inputs.values()
        answer: dict[str, Array] = {}
        for name in outputs or (self.metadata.outputs[0].name,):
            if not len(rows):
                answer[name] = self._empty[name]
                continue
            try:
                answer[name] = self._call(name, rows)
            except (ValueError, UnicodeDecodeError) as error:
                raise BadInput(f"{self.metadata.platform} refuses the input: {_short(error)}") from error
            except MemoryError as error:
                raise OutOfMemory("scikit-learn found no memory for this request; send fewer rows") from error
            except Exception as error:
                raise ModelRaised(f"{name} raised {type(error).__name__}: {_short(error)}") from error
        return answer

    def size(self) -> Size:
        return self._size

    def unload(self) -> None:
        if self._estimator is not None:
            self._estimator = None
            heap_freed(self._size.host_bytes)


def _sendable(answer: Array) -> Array:
    """Strings as an object array of UTF-8 bytes; everything else as it is, in the machine's byte order."""
    if answer.dtype.kind == "U" or (answer.dtype == object and all(isinstance(item, str) for item in answer.flat)):
        texts = np.empty(answer.shape, object)
        texts.ravel()[:] = [str(item).encode() for item in answer.flat]
        return texts
    if answer.dtype == object:
        return answer.astype(np.float64)  # numbers in a box; anything else raises
    return answer.astype(answer.dtype.newbyteorder("="), copy=False)


def _decoder(spec: TensorSpec) -> Callable[[Array], Any]:
    if spec.datatype != "BYTES":
        return lambda rows: rows
    if len(spec.shape) == 1:
        return lambda rows: [item.decode() for item in rows]

    def table(rows: Array) -> Array:
        texts = np.empty(rows.shape, object)
        texts.ravel()[:] = [item.decode() for item in rows.flat]
        return texts

    return table


def _input_spec(estimator: Any, format_name: str) -> TensorSpec:
    first = estimator
    while type(first).__name__ == "Pipeline" and first.steps:
        first = first.steps[0][1]
    kind = type(first).__name__
    if kind in _VECTORIZERS:
        return TensorSpec("input", "BYTES", (DYNAMIC,))
    if kind == "ColumnTransformer" and hasattr(first, "feature_names_in_"):
        raise BadArtifact(
            f"{format_name}: the ColumnTransformer was fitted on a data frame and selects columns by name, but tensors "
            "have positions; fit it on an array, with columns by number"
        )
    columns = getattr(estimator, "n_features_in_", getattr(first, "n_features_in_", None))
    if columns is None:
        raise BadArtifact(
            f"{format_name}: {type(estimator).__name__} does not say how many features it takes; "
            "save a fitted estimator"
        )
    if kind in _ENCODERS and all(_are_texts(categories) for categories in first.categories_):
        return TensorSpec("input", "BYTES", (DYNAMIC, int(columns)))
    return TensorSpec("input", "FP64", (DYNAMIC, int(columns)))


def _are_texts(categories: Array) -> bool:
    return categories.dtype.kind == "U" or (
        categories.dtype == object and all(isinstance(item, str) for item in categories)
    )


def _compact_vocabularies(estimator: Any) -> None:
    """Write each vocabulary anew.

    Its words lie among the remains of the schema that they were read from, one or two to a page, and keep all of those
    pages alive: 40,000 words held 26 MB. Copies fill the holes in as few pages as they need.
    """
    for part in objects_within(estimator):
        vocabulary = getattr(part, "__dict__", {}).get("vocabulary_")
        if isinstance(vocabulary, dict):
            part.vocabulary_ = {(word + " ")[:-1]: column for word, column in vocabulary.items()}


def _scattered_bytes(facts: ArchiveFacts) -> int:
    """Pages that a large model's small objects keep from being given back."""
    return int(facts.schema_bytes * SCATTERED_SHARE) if facts.schema_bytes >= SCATTERED_FROM_BYTES else 0


def _resident_bytes(estimator: Any) -> int:
    total_bytes = 0
    owners: set[int] = set()
    for item in objects_within(estimator):
        if isinstance(item, np.ndarray):
            owner = item if item.base is None else item.base
            if id(owner) not in owners:
                owners.add(id(owner))
                total_bytes += item.nbytes + sys.getsizeof(item, 0) - (item.nbytes if item.base is None else 0)
            continue
        total_bytes += sys.getsizeof(item, _SMALL_OBJECT_BYTES)
        if isinstance(item, dict):
            texts = sum(sys.getsizeof(key) for key in item if isinstance(key, str))
            total_bytes += texts + _SMALL_OBJECT_BYTES * len(item)
        elif isinstance(item, list | tuple | set):
            total_bytes += sum(sys.getsizeof(entry) for entry in item if isinstance(entry, str | int | float))
        elif type(item).__name__ == "Tree":
            total_bytes += int(item.node_count) * _TREE_NODE_BYTES + item.value.nbytes
        else:
            total_bytes += sys.getsizeof(getattr(item, "__dict__", None), 0)
    return total_bytes


def _unpacked_bytes(path: Path) -> int:
    """A file's length, or what zlib (joblib's default) unpacks it to; other compressions are taken as threefold."""
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise BadArtifact(f"pickle: artifact {path.name!r} is empty; upload the model file again")
    with path.open("rb") as file:
        head = file.read(2)
        if head[:1] == b"\x80":
            return size_bytes
        if head[:1] != b"\x78":
            return 3 * size_bytes
        file.seek(0)
        unpacker, total_bytes = zlib.decompressobj(), 0
        try:
            while chunk := file.read(1 << 20):
                total_bytes += len(unpacker.decompress(chunk, 1 << 26))
                while unpacker.unconsumed_tail:
                    total_bytes += len(unpacker.decompress(unpacker.unconsumed_tail, 1 << 26))
        except zlib.error as error:
            raise BadArtifact(f"pickle: artifact {path.name!r} is damaged: {error}; upload it again") from error
        if not unpacker.eof:
            raise BadArtifact(f"pickle: artifact {path.name!r} is cut off; upload it again")
    return total_bytes


def _check_options(options: LoadOptions, format_name: str) -> None:
    refuse_unknown_parameters(options.parameters)
    if options.device.kind != "cpu":
        raise BadArtifact(f"{format_name}: scikit-learn runs on the CPU only, not on {options.device}; load on the CPU")


def _load_error(error: Exception) -> BadArtifact | OutOfMemory:
    return error if isinstance(error, BadArtifact) else OutOfMemory("scikit-learn found no memory to load the model")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _sklearn() -> Any:
    try:
        with importing("sklearn"):
            import sklearn
    except ImportError as error:
        raise missing_runtime("sklearn", "scikit-learn", error) from error
    return sklearn


_TORCH_SHIM = "sklearn.externals.array_api_compat.torch"


def _skops() -> Any:
    """skops, without torch coming along.

    Its import walks through all of scikit-learn for estimators, and one module on the way imports torch where that is
    installed: 440 MiB and seconds for a pod that serves none. That module is shown as missing while skops looks.
    """
    with importing("skops.io"):
        hide = "skops.io" not in sys.modules and _TORCH_SHIM not in sys.modules and "torch" not in sys.modules
        if hide:
            sys.modules[_TORCH_SHIM] = None  # type: ignore[assignment]  # how Python spells: not to be imported
        try:
            import skops
            import skops.io
        except ImportError as error:
            raise missing_runtime("sklearn", "skops", error) from error
        finally:
            if hide:
                sys.modules.pop(_TORCH_SHIM, None)
    return skops


def _joblib() -> Any:
    """joblib, whose unpickler imports what a pickle names by one thread at a time."""
    try:
        with importing("joblib", "joblib.numpy_pickle"):
            import joblib
            from joblib.numpy_pickle import NumpyUnpickler
    except ImportError as error:
        raise missing_runtime("sklearn", "joblib", error) from error
    if "find_class" not in vars(NumpyUnpickler):
        find_class = NumpyUnpickler.find_class

        def find_class_alone(unpickler: Any, module: str, name: str) -> Any:
            with importing(module):
                return find_class(unpickler, module, name)

        NumpyUnpickler.find_class = find_class_alone
    return joblib


ADAPTERS = (SklearnAdapter(), PickleAdapter())

__all__ = ["ADAPTERS", "EstimatorModel", "PickleAdapter", "SklearnAdapter"]
