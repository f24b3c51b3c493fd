"""ONNX models on onnxruntime: thousands of sessions in one process, loaded in a millisecond.

Defaults of onnxruntime are made for one model per process: a thread pool per session that spins, an arena per session
that never shrinks, an optimiser at each load, weights copied and then copied again into a packed layout. Here:

* **Threads.** With `threads=1` (the default) a session owns no thread at all: operators run on the calling worker
  thread, and the process has as many threads with ten thousand sessions as with one. With more, all sessions share one
  global pool. That choice is made once per process, by the first load, because onnxruntime refuses ordinary sessions
  once a global pool exists (which is also why one thread does not use it: a user's own sessions keep working).
* **No CPU arena.** What a run needs goes back to malloc after it.
* **Optimised once.** `prepare` writes the optimised graph; loading it skips the optimiser. The file may be specific
  to the CPU, so the instruction set is part of `runtime_version`.
* **Weights stay in the file.** From 1 MiB of weights on, `prepare` writes them beside the graph, and the load maps
  them: it costs milliseconds whatever their size, evicting costs nothing, and two sessions of one file share its
  pages. The price is that matrix kernels run unpacked (a third slower for single rows, up to twice for a few). A spec
  that prefers speed says `weights: packed`.

* **Trees once.** onnxruntime keeps the protobuf of every operator beside the kernel that was made from it, and a tree
  ensemble is all operator: five times its file in RAM. Its own `.ort` format has no protobuf to keep, so ensembles
  are prepared as that: a fifth of the memory, half the load time. The format checks less than ONNX does; therefore
  only files that `prepare` wrote are loaded as such, and an artifact that brings one of those names is refused there.

On CUDA the prepared form holds only what every provider may run (basic optimisations); the rest is done at load.

Strings cross as `bytes` and must be UTF-8, because ONNX strings are. Sequences and maps have no V2 datatype.

Deliberately absent: custom operator libraries (they are native code of the artifact), IO binding, quantisation.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import (
    DYNAMIC,
    Array,
    Device,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    Tensors,
    TensorSpec,
    Trust,
)
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.memory import trim
from runtime_adapters.onnx_graph import GraphOutline, inputs_without_rank, is_onnx_file, outline_of_file
from runtime_adapters.validation import refuse_unknown_parameters

logger = logging.getLogger(__name__)

EXTERNAL_MIN_BYTES = 1 << 20
"""Weights of this size or more are mapped from a file of their own. Below, a second file costs more than it saves."""

MAPPED_TENSOR_MIN_BYTES = 16 << 10
"""Each mapped tensor is a mapping of its own, and the kernel allows a process 65,530: small ones stay inline."""
TREE_NODES_MIN = 500
"""Tree ensembles of this size are prepared in onnxruntime's own format; see the top of this file."""
TRIM_MIN_BYTES = 1 << 20
"""Loading trees of this size leaves as much freed memory in the heap as they take: give it back at once."""

# RAM of a session, fitted to sums over 60 to 300 sessions of eight graphs (1 to 79 operators), onnxruntime 1.31.1,
# malloc set as in a pod; residues within 15 % per model where weights do not dominate.
SESSION_BYTES = 24 << 10
NODE_BYTES = 5_300
TENSOR_BYTES = 2_100
GRAPH_FACTOR = 3.6
"""RAM per byte of the file that is not weights: names, shapes, attributes."""
TREE_NODE_BYTES = 25
TREE_LEAF_WEIGHT_BYTES = 17
"""24 and 16 in the kernel's structures, and 5 % for what malloc adds; measured on four forests within 3 %."""

_PREPARED_GRAPH = "optimised.onnx"
_PREPARED_TREES = "optimised.ort"
_PREPARED_SIZE = "size.json"
_PREPARED_WEIGHTS = "weights.bin"
_PARAMETERS = ("batch_dimension", "weights")
_MESSAGE_CHARS_MAX = 300
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_FATAL = 4  # onnxruntime's log level above all that it prints: errors come as exceptions, once

_DATATYPE_OF = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_INSTRUCTION_SETS = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""What onnxruntime's kernels choose by; a file optimised with one set may not fit another."""


class OnnxAdapter:
    """The `onnx` format: a file, or a directory with one `.onnx` file and the external data that it names."""

    format = "onnx"
    trust = Trust.SAFE
    device_kinds = ("cpu", "cuda")
    extra = "onnx"

    def runtime_version(self) -> str:
        runtime = _onnxruntime()
        parts = ["onnxruntime", runtime.__version__, platform.machine(), *_instruction_sets()]
        if "CUDAExecutionProvider" in runtime.get_available_providers():
            parts.append("cuda")
        return "-".join(parts)

    def detect(self, artifact: Path) -> bool:
        if artifact.is_dir():
            candidates = _onnx_files(artifact)
            return len(candidates) == 1 and is_onnx_file(candidates[0])
        return artifact.is_file() and is_onnx_file(artifact)

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        refuse_unknown_parameters(options.parameters, _PARAMETERS)
        graph = _graph_file(artifact)
        if graph.name == _PREPARED_TREES and artifact.is_dir():
            return _read_size(artifact)
        outline = _checked_outline(graph, artifact)
        if graph.name != _PREPARED_GRAPH and _is_tree_ensemble(outline, options.device):
            return _tree_size(outline)
        mapped = _weights_are_mapped(options)
        if graph.name != _PREPARED_GRAPH and mapped and outline.inline_bytes >= EXTERNAL_MIN_BYTES:
            # `prepare` will move the weights out of the file; estimate the copy that will be loaded.
            return _size(outline, outline.inline_bytes + outline.external_bytes, options.device)
        return _size(outline, outline.external_bytes if mapped else 0, options.device)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        refuse_unknown_parameters(options.parameters, _PARAMETERS)
        runtime = _onnxruntime()
        graph = _graph_file(artifact)
        if graph.name in (_PREPARED_GRAPH, _PREPARED_TREES) and artifact.is_dir():
            raise BadArtifact(f"artifact {artifact.name!r}: the name {graph.name} is reserved; rename it to model.onnx")
        outline = _checked_outline(graph, artifact)
        settings = _session_options(runtime, options)
        levels = runtime.GraphOptimizationLevel
        settings.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if options.device.kind == "cpu" else levels.ORT_ENABLE_BASIC
        )
        trees = _is_tree_ensemble(outline, options.device)
        settings.optimized_model_filepath = str(into / (_PREPARED_TREES if trees else _PREPARED_GRAPH))
        if trees:
            settings.add_session_config_entry("session.save_model_format", "ORT")
            (into / _PREPARED_SIZE).write_text(json.dumps({"host_bytes": _tree_size(outline).host_bytes}))
        elif outline.inline_bytes + outline.external_bytes >= EXTERNAL_MIN_BYTES:
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", _PREPARED_WEIGHTS
            )
            settings.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(MAPPED_TENSOR_MIN_BYTES)
            )
        session = _create_session(runtime, graph, settings, ["CPUExecutionProvider"])
        _metadata(session, graph, options)  # what cannot be served is refused now, not at the first load
        return True

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        refuse_unknown_parameters(options.parameters, _PARAMETERS)
        runtime = _onnxruntime()
        graph = _graph_file(artifact)
        if graph.name == _PREPARED_TREES and artifact.is_dir():
            return _load_trees(runtime, graph, options)
        outline = _checked_outline(graph, artifact)
        settings = _session_options(runtime, options)
        on_cpu = options.device.kind == "cpu"
        if graph.name == _PREPARED_GRAPH and on_cpu:
            settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        mapped_bytes = 0
        if on_cpu and outline.external_bytes and _weights_are_mapped(options):
            # Without packing the kernels read the weights where they lie, which is in the mapped file.
            settings.add_session_config_entry("session.disable_prepacking", "1")
            mapped_bytes = outline.external_bytes
        session = _create_session(runtime, graph, settings, _providers(runtime, options.device))
        if not on_cpu and "CUDAExecutionProvider" not in session.get_providers():
            raise LoadFailed(
                f"model {options.model_id}: onnxruntime could not start on {options.device}; "
                "see the pod's log for CUDA or cuDNN libraries that are missing"
            )
        return OnnxModel(session, _metadata(session, graph, options), _size(outline, mapped_bytes, options.device))


class OnnxModel:
    """One session. Threads may run it at the same time."""

    __slots__ = ("_default_outputs", "_device", "_metadata", "_run", "_size")

    def __init__(self, session: Any, metadata: ModelMetadata, size: Size) -> None:
        self._metadata = metadata
        self._size = size
        self._default_outputs = tuple(spec.name for spec in metadata.outputs)
        self._run: Callable[[tuple[str, ...], Tensors], dict[str, Array]] | None = _runner(session, metadata)

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        zeros: dict[str, Array] = {}
        for spec in self._metadata.inputs:
            shape = tuple(1 if size == DYNAMIC else size for size in spec.shape)
            empty = b"" if spec.datatype == "BYTES" else 0
            zeros[spec.name] = np.full(shape, empty, dtype=DTYPE_OF[spec.datatype])
        try:
            self.infer(zeros)
        except (BadInput, ModelRaised):
            logger.debug("warm-up on zeros was refused by the model", exc_info=True)

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        run = self._run
        if run is None:
            raise ModelRaised("the copy was unloaded before this run; load the model again")
        return run(tuple(outputs) or self._default_outputs, inputs)

    def size(self) -> Size:
        return self._size

    def unload(self) -> None:
        self._run = None


# --- running ----------------------------------------------------------------------------------------------------------


def _runner(session: Any, metadata: ModelMetadata) -> Callable[[tuple[str, ...], Tensors], dict[str, Array]]:
    """The run function for these datatypes: most models need neither strings nor BF16, and pay for neither."""
    tensors = (*metadata.inputs, *metadata.outputs)
    strings = any(spec.datatype == "BYTES" for spec in tensors)
    if any(spec.datatype == "BF16" for spec in tensors):
        run_arrays = _bfloat16_runner(session)
    else:

        def run_arrays(names: tuple[str, ...], inputs: Tensors) -> list[Any]:
            answer: list[Any] = session.run(names, inputs)
            return answer

    def run(names: tuple[str, ...], inputs: Tensors) -> dict[str, Array]:
        if strings:
            inputs = {name: _decoded(name, array) for name, array in inputs.items()}
        try:
            arrays = run_arrays(names, inputs)
        except Exception as error:
            raise _run_error(error) from error
        if strings:
            arrays = [_encoded(array) for array in arrays]
        return dict(zip(names, arrays, strict=True))

    return run


def _bfloat16_runner(session: Any) -> Callable[[tuple[str, ...], Tensors], list[Any]]:
    """NumPy has no bfloat16 that onnxruntime knows: the bits cross as OrtValues, in and out."""
    from onnxruntime import OrtValue

    bfloat16 = DTYPE_OF["BF16"]

    def run(names: tuple[str, ...], inputs: Tensors) -> list[Any]:
        feed: dict[str, Any] = {}
        for name, array in inputs.items():
            if array.dtype == bfloat16:
                bits = np.ascontiguousarray(array).view(np.uint16)
                feed[name] = OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
            else:
                feed[name] = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        return [to_array(value) for value in session.run_with_ort_values(names, feed)]

    def to_array(value: Any) -> Array:
        if value.data_type() != "tensor(bfloat16)":
            array: Array = value.numpy()
            return array
        bits = np.empty(value.shape(), np.uint16)
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
        return bits.view(bfloat16)

    return run


def _decoded(name: str, array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    texts = np.empty(array.size, np.object_)
    for index, item in enumerate(array.ravel()):
        try:
            texts[index] = item.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"input {name!r}: element {index} is not UTF-8 ({error.reason} at byte {error.start}); "
                "ONNX strings are UTF-8 text"
            ) from None
    return texts.reshape(array.shape)


def _encoded(array: Array) -> Array:
    if array.dtype.kind not in "OUS":
        return array
    items = np.empty(array.size, np.object_)
    items[:] = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return items.reshape(array.shape)


def _run_error(error: Exception) -> BadInput | ModelRaised:
    """onnxruntime says INVALID_ARGUMENT when a kernel refuses a value (an index out of bounds, an axis)."""
    if type(error).__name__ == "InvalidArgument":
        return BadInput(f"onnxruntime refuses these values: {_sentence(error)}")
    return ModelRaised(f"onnxruntime failed on this request: {_sentence(error)}")


# --- loading ----------------------------------------------------------------------------------------------------------


def _graph_file(artifact: Path) -> Path:
    if not artifact.exists():
        raise BadArtifact(f"artifact {artifact.name!r}: nothing is there; check the URI, then register again")
    if not artifact.is_dir():
        return artifact
    candidates = _onnx_files(artifact)
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(path.name for path in candidates[:5]) or "none"
    raise BadArtifact(
        f"artifact {artifact.name!r}: a directory must hold one .onnx file, or one named model.onnx; found {found}"
    )


def _onnx_files(directory: Path) -> list[Path]:
    for preferred in (_PREPARED_TREES, _PREPARED_GRAPH, "model.onnx"):
        if (directory / preferred).is_file():
            return [directory / preferred]
    return sorted(path for path in directory.glob("*.onnx") if path.is_file())


def _checked_outline(graph: Path, artifact: Path) -> GraphOutline:
    """The outline, with every external file proved to lie inside the artifact, and no larger than it is.

    onnxruntime checks the same, in recent versions; the rule is ours and does not depend on which one is installed.
    """
    outline = outline_of_file(graph)
    if not outline.external_locations:
        return outline
    if not artifact.is_dir():
        raise BadArtifact(
            f"{graph.name}: its weights lie in other files ({_some(outline.external_locations)}); "
            "register the directory that holds them all"
        )
    root = artifact.resolve()
    attainable_bytes = 0
    for location in sorted(outline.external_locations):
        try:
            weights = (graph.parent / location).resolve()
            inside = not os.path.isabs(location) and weights.is_relative_to(root)
        except (OSError, ValueError):  # ValueError: a null byte in the name
            inside = False
        if not inside:
            raise BadArtifact(
                f"{graph.name}: external data at {_clipped(location)!r} lies outside the artifact; "
                "only relative paths within its directory are allowed"
            )
        if not weights.is_file():
            raise BadArtifact(
                f"{graph.name}: external data at {_clipped(location)!r} is missing; upload it with the model"
            )
        attainable_bytes += weights.stat().st_size
    if outline.external_bytes > attainable_bytes:
        raise BadArtifact(
            f"{graph.name}: its weights take {outline.external_bytes:,} bytes, but the external files hold "
            f"{attainable_bytes:,}; one is cut short, upload it again"
        )
    return outline


def _size(outline: GraphOutline, mapped_bytes: int, device: Device) -> Size:
    host_bytes = (
        SESSION_BYTES
        + outline.nodes * NODE_BYTES
        + outline.tensors * TENSOR_BYTES
        + int(outline.graph_bytes * GRAPH_FACTOR)
    )
    if outline.tree_nodes:  # trees that were not prepared: the kernel's copy beside the file's
        host_bytes += _tree_size(outline).host_bytes
    weights_bytes = outline.inline_bytes + outline.external_bytes
    if device.kind != "cpu":
        return Size(host_bytes=host_bytes, device_bytes=weights_bytes)
    return Size(host_bytes=host_bytes + weights_bytes - mapped_bytes, mapped_bytes=mapped_bytes)


def _is_tree_ensemble(outline: GraphOutline, device: Device) -> bool:
    """Mostly branches and leaves in attribute lists, and no weights worth mapping."""
    weights_bytes = outline.inline_bytes + outline.external_bytes
    return device.kind == "cpu" and outline.tree_nodes >= TREE_NODES_MIN and weights_bytes < EXTERNAL_MIN_BYTES


def _tree_size(outline: GraphOutline) -> Size:
    """The prepared form: the kernel's own structures."""
    return Size(
        host_bytes=SESSION_BYTES
        + outline.nodes * NODE_BYTES
        + outline.tensors * TENSOR_BYTES
        + outline.inline_bytes
        + outline.tree_nodes * TREE_NODE_BYTES
        + outline.leaf_weights * TREE_LEAF_WEIGHT_BYTES
    )


def _read_size(prepared: Path) -> Size:
    try:
        content = json.loads((prepared / _PREPARED_SIZE).read_bytes())
        return Size(host_bytes=int(content["host_bytes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{prepared.name}: the prepared form is damaged; delete it to have it made again") from error


def _load_trees(runtime: Any, graph: Path, options: LoadOptions) -> LoadedModel:
    size = _read_size(graph.parent)
    settings = _session_options(runtime, options)
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _create_session(runtime, graph, settings, _providers(runtime, options.device))
    if size.host_bytes >= TRIM_MIN_BYTES:
        trim()
    return OnnxModel(session, _metadata(session, graph, options), size)


def _weights_are_mapped(options: LoadOptions) -> bool:
    return _choice(options.parameters, "weights", ("mapped", "packed")) == "mapped"


def _choice(parameters: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """A parameter's value; the first of `allowed` when the spec does not say."""
    value = parameters.get(name, allowed[0])
    if value not in allowed:
        raise BadArtifact(f"parameter {name}: {_clipped(value)!r} found, {' or '.join(allowed)} allowed")
    return value


def _metadata(session: Any, graph: Path, options: LoadOptions) -> ModelMetadata:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    arguments = (*inputs, *outputs)
    is_onnx = graph.suffix != ".ort"
    if is_onnx and any(not argument.shape for argument in inputs) and (unknown := inputs_without_rank(graph)):
        raise BadArtifact(
            f"{graph.name}: input {', '.join(sorted(unknown))} declares no shape, so no request can be checked; "
            "export it with at least its number of dimensions"
        )
    first_sizes = [argument.shape[0] if argument.shape else 0 for argument in arguments]
    same_symbol = all(not isinstance(size, int) for size in first_sizes) and len(set(first_sizes)) == 1
    batch = {"auto": same_symbol, "true": True, "false": False}[
        _choice(options.parameters, "batch_dimension", ("auto", "true", "false"))
    ]
    if batch and any(isinstance(size, int) for size in first_sizes):
        raise BadArtifact(
            "parameter batch_dimension: true found, but dimension 0 of "
            + next(a.name for a, size in zip(arguments, first_sizes, strict=True) if isinstance(size, int))
            + " has a fixed size; leave the parameter out, or export the model with a dynamic batch"
        )
    return ModelMetadata(
        platform="onnxruntime_onnx",
        inputs=tuple(_tensor_spec(argument, graph) for argument in inputs),
        outputs=tuple(_tensor_spec(argument, graph) for argument in outputs),
        batch_dimension=batch,
    )


def _tensor_spec(argument: Any, graph: Path) -> TensorSpec:
    datatype = _DATATYPE_OF.get(argument.type)
    if datatype is None:
        advice = "the V2 protocol has tensors only"
        if argument.type.startswith(("seq", "map")):
            advice += "; convert scikit-learn models with options={'zipmap': False}"
        raise BadArtifact(f"{graph.name}: {argument.name!r} is a {argument.type}; {advice}")
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in argument.shape)
    return TensorSpec(argument.name, datatype, shape)


def _session_options(runtime: Any, options: LoadOptions) -> Any:
    settings = runtime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.enable_cpu_mem_arena = False
    if _uses_global_pool(runtime, options.threads):
        settings.use_per_session_threads = False
    else:
        settings.intra_op_num_threads = 1
        settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if options.device.kind != "cpu":
        # Weights outside the arena, which would round each of them up.
        settings.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return settings


def _create_session(runtime: Any, graph: Path, settings: Any, providers: list[Any]) -> Any:
    try:
        # Without enable_fallback=0 the library prints to stdout and tries again.
        return runtime.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)
    except MemoryError as error:
        raise LoadFailed(f"{graph.name}: not enough memory to load; evict others or try another pod") from error
    except Exception as error:
        message = _sentence(error).replace(str(graph.parent) + "/", "")
        if any(sign in message.lower() for sign in _TRANSIENT_SIGNS):
            raise LoadFailed(
                f"{graph.name}: onnxruntime could not load it now: {message}; it will be tried again"
            ) from error
        raise BadArtifact(
            f"{graph.name}: onnxruntime refuses it: {message}; correct the model and upload it"
        ) from error


# `/onnxruntime_src/…/model.cc:256 onnxruntime::Model::Model(…) `, and the path that our sentence names already
_SOURCE_LOCATION = re.compile(r"^Load model from \S+ failed:|/onnxruntime_src/\S+:\d+ .*?\) ")

_TRANSIENT_SIGNS = (
    "bad_alloc",
    "failed to allocate",
    "out of memory",
    "no space left",
    "too many open files",
    "cannot allocate memory",
    "cuda failure",
)


def _providers(runtime: Any, device: Device) -> list[Any]:
    if device.kind == "cpu":
        return ["CPUExecutionProvider"]
    if device.kind != "cuda":
        raise LoadFailed(f"device {device}: onnxruntime runs on cpu and cuda here; place the model on one of them")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        no_cuda = ImportError("the installed build has no CUDA provider")
        raise missing_runtime("onnx-gpu", "onnxruntime-gpu", no_cuda)
    runtime.preload_dlls()
    cuda = {
        "device_id": str(device.index),
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm at the first run
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles
        "use_tf32": "0",  # the numbers that the model was trained for
    }
    return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]


_pool_lock = threading.Lock()
_pool_threads: int | None = None


def _uses_global_pool(runtime: Any, threads: int) -> bool:
    """Decided by the first load of the process; see the top of this file."""
    global _pool_threads
    with _pool_lock:
        if _pool_threads is None:
            if threads > 1:
                runtime.set_global_thread_pool_sizes(threads, 1)
            _pool_threads = threads
        elif _pool_threads != threads:
            logger.debug("threads=%d asked for; this process already runs onnxruntime on %d", threads, _pool_threads)
        return _pool_threads > 1


def _onnxruntime() -> Any:
    try:
        with importing("onnxruntime"):
            import onnxruntime
    except ImportError as error:
        raise missing_runtime("onnx", "onnxruntime", error) from error
    return onnxruntime


def _instruction_sets() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    present = set(next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split())
    return [name for name in _INSTRUCTION_SETS if name in present]


def _sentence(error: Exception) -> str:
    """onnxruntime's message without its prefix, source locations and further lines."""
    message = str(error).strip().split("\n", 1)[0]
    if message.startswith("[ONNXRuntimeError]"):
        message = message.split(" : ", 3)[-1]
    message = _SOURCE_LOCATION.sub("", message)
    return _clipped(message, _MESSAGE_CHARS_MAX)


def _clipped(text: str, chars_max: int = 80) -> str:
    return text if len(text) <= chars_max else text[:chars_max] + "…"


def _some(names: frozenset[str]) -> str:
    return ", ".join(repr(_clipped(name)) for name in sorted(names)[:3])


ADAPTER = OnnxAdapter()
