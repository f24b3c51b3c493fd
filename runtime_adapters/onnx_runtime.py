"""ONNX models on onnxruntime: thousands of sessions in one process, loaded in a millisecond.

Defaults of onnxruntime are made for one model per process: a thread pool per session that spins, an arena per session
that never shrinks, an optimiser at each load, weights copied and then copied again into a packed layout. Here:

* **Threads.** With `threads=1` (the default) a session owns no thread at all: operators run on the calling worker
  thread, and the process has as many threads with ten thousand sessions as with one. With more, all sessions share one
  global pool. That choice is made once per process, by the first load, because onnxruntime refuses ordinary sessions
  once a global pool exists (which is also why one thread does not use it: a user's own sessions keep working).
* **No CPU arena.** What a run needs goes back to malloc after it; except in hot copies, which are few, run much, and
  are up to 18 % slower without (32 rows of a 6 MB network).
* **Optimised once.** `prepare` writes the optimised graph; loading it skips the optimiser. The file may be specific
  to the CPU, so the instruction set is part of `runtime_version`.
* **Weights stay in the file.** From 1 MiB of weights on, `prepare` writes them beside the graph (`onnx_weights`), and
  the load maps them: it costs milliseconds whatever their size, evicting costs nothing, and two sessions of one file
  share its pages. The price is that matrix kernels run unpacked (a third slower for single rows, up to twice for a
  few). A copy that is used much is packed while it serves (`onnx_model`); a spec that prefers speed from the first
  request on says `weights: packed`.

* **As fetched, for the first answer.** Writing the prepared form takes several times what a load takes. So a model of
  weights is loaded from the fetched file first, optimised but not packed, and goes on as its prepared form
  (`size_as_fetched`), which answers the same to the last bit. Trees are not: unprepared they take five times the
  memory.

* **Trees once.** onnxruntime keeps the protobuf of every operator beside the kernel that was made from it, and a tree
  ensemble is all operator: five times its file in RAM. Its own `.ort` format has no protobuf to keep, so ensembles
  are prepared as that: a fifth of the memory, half the load time. The format checks less than ONNX does; therefore
  only files that `prepare` wrote are loaded as such, and an artifact that brings one of those names is refused there.

On CUDA the prepared form holds only what every provider may run (basic optimisations); the rest is done at load.

Strings cross as `bytes` and must be UTF-8, because ONNX strings are. Sequences and maps have no V2 datatype.

Deliberately absent: custom operator libraries (they are native code of the artifact), IO binding, quantisation.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import stat
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from runtime_adapters.base import (
    CPU,
    DYNAMIC,
    SHARED_FORM,
    Device,
    LoadedModel,
    LoadOptions,
    ModelMetadata,
    Size,
    TensorSpec,
    Trust,
)
from runtime_adapters.errors import BadArtifact, LoadFailed, OutOfMemory
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.malloc import trim
from runtime_adapters.onnx_errors import clipped, sentence
from runtime_adapters.onnx_graph import GraphOutline, inputs_without_rank, is_onnx_file, outline_of_file
from runtime_adapters.onnx_model import OnnxModel, OtherForm
from runtime_adapters.onnx_weights import shared_files, take_apart
from runtime_adapters.out_of_memory import ran_out
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
        if mapped and options.device.kind == "cpu":
            return _mapped_size(outline, graph)
        return _size(outline, 0, options.device)

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
        # What is written is not packed; packing for this one session would double its time and memory.
        settings.add_session_config_entry("session.disable_prepacking", "1")
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
        if not trees:
            del session
            take_apart(into / _PREPARED_GRAPH, into / _PREPARED_WEIGHTS)
        return True

    def size_as_fetched(self, artifact: Path, options: LoadOptions) -> Size | None:
        refuse_unknown_parameters(options.parameters, _PARAMETERS)
        graph = _graph_file(artifact)
        if graph.name in (_PREPARED_GRAPH, _PREPARED_TREES) or options.device.kind != "cpu":
            return None  # `prepare` refuses these names
        outline = _checked_outline(graph, artifact)
        large = outline.inline_bytes + outline.external_bytes >= EXTERNAL_MIN_BYTES
        if not large or outline.tree_nodes or not _weights_are_mapped(options):
            return None
        return _size(outline, outline.external_bytes, options.device)

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        refuse_unknown_parameters(options.parameters, _PARAMETERS)
        runtime = _onnxruntime()
        graph = _graph_file(artifact)
        if graph.name == _PREPARED_TREES and artifact.is_dir():
            return _load_trees(runtime, graph, options)
        outline = _checked_outline(graph, artifact)
        on_cpu = options.device.kind == "cpu"
        can_be_mapped = on_cpu and outline.external_bytes > 0
        mapped = can_be_mapped and _weights_are_mapped(options)

        def open_session(packed: bool) -> Any:
            settings = _session_options(runtime, options)
            if graph.name == _PREPARED_GRAPH and on_cpu:
                settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
            if can_be_mapped and packed:
                # What a run needs is kept for the next: mapped and zeroed anew, it takes a fifth of a batch's time.
                settings.enable_cpu_mem_arena = True
            if not packed:
                # The kernels then read the weights where they lie, which is in the mapped file.
                settings.add_session_config_entry("session.disable_prepacking", "1")
            return _create_session(runtime, graph, settings, _providers(runtime, options.device))

        session = open_session(packed=not mapped and not options.as_fetched)
        if not on_cpu and "CUDAExecutionProvider" not in session.get_providers():
            raise LoadFailed(
                f"model {options.model_id}: onnxruntime could not start on {options.device}; "
                "see the pod's log for CUDA or cuDNN libraries that are missing"
            )
        metadata = _metadata(session, graph, options)
        if options.as_fetched:
            return OnnxModel(session, metadata, _size(outline, outline.external_bytes, options.device))
        packed_size = _size(outline, 0, options.device)
        weight_files = tuple(graph.parent / location for location in sorted(outline.external_locations))
        if not mapped:
            return OnnxModel(
                session,
                metadata,
                packed_size,
                is_hot=can_be_mapped,
                reopen=partial(open_session, packed=True),
                weight_files=weight_files,
            )
        return OnnxModel(
            session,
            metadata,
            _mapped_size(outline, graph),
            reopen=partial(open_session, packed=False),
            other=OtherForm(partial(open_session, packed=True), packed_size),
            weight_files=weight_files,
        )


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
        if graph.parent == artifact and (plain_bytes := _plain_file_bytes(artifact, location)) is not None:
            attainable_bytes += plain_bytes
            continue
        try:
            weights = (graph.parent / location).resolve()
            inside = not os.path.isabs(location) and weights.is_relative_to(root)
        except (OSError, ValueError):  # ValueError: a null byte in the name
            inside = False
        if not inside:
            raise BadArtifact(
                f"{graph.name}: external data at {clipped(location)!r} lies outside the artifact; "
                "only relative paths within its directory are allowed"
            )
        if not weights.is_file():
            raise BadArtifact(
                f"{graph.name}: external data at {clipped(location)!r} is missing; upload it with the model"
            )
        attainable_bytes += weights.stat().st_size
    if outline.external_bytes > attainable_bytes and graph.name != _PREPARED_GRAPH:
        raise BadArtifact(
            f"{graph.name}: its weights take {outline.external_bytes:,} bytes, but the external files hold "
            f"{attainable_bytes:,}; one is cut short, upload it again"
        )
    return outline


def _plain_file_bytes(directory: Path, location: str) -> int | None:
    """The size of a file that lies in this directory, or in its SHARED_FORM, under its very name; else None.

    What `prepare` writes is of this kind, and has hundreds of files: resolving each path takes as long as the load.
    """
    parts = location.split("/")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != SHARED_FORM) or parts[-1] in ("", ".", ".."):
        return None
    try:
        if len(parts) == 2 and not stat.S_ISDIR(os.lstat(directory / SHARED_FORM).st_mode):
            return None
        found = os.lstat(f"{directory}/{location}")
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


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


def _mapped_size(outline: GraphOutline, graph: Path) -> Size:
    """On the CPU, with the external weights mapped. In the prepared form, equal tensors of one model are one file."""
    if graph.name != _PREPARED_GRAPH:
        return _size(outline, outline.external_bytes, CPU)
    shared = shared_files(graph.parent)
    private = graph.with_name(_PREPARED_WEIGHTS)
    file_bytes = sum(size for _, size in shared) + (private.stat().st_size if private.exists() else 0)
    outline = replace(outline, external_bytes=min(outline.external_bytes, file_bytes))
    return replace(_size(outline, outline.external_bytes, CPU), shared=shared)


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
        raise BadArtifact(f"parameter {name}: {clipped(value)!r} found, {' or '.join(allowed)} allowed")
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
    except Exception as error:
        if ran_out(error):
            raise OutOfMemory(f"{graph.name}: onnxruntime found no memory to load it") from error
        message = sentence(error).replace(str(graph.parent) + "/", "")
        if any(sign in message.lower() for sign in _TRANSIENT_SIGNS):
            raise LoadFailed(
                f"{graph.name}: onnxruntime could not load it now: {message}; it will be tried again"
            ) from error
        raise BadArtifact(
            f"{graph.name}: onnxruntime refuses it: {message}; correct the model and upload it"
        ) from error


_TRANSIENT_SIGNS = ("no space left", "too many open files", "cuda failure")


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


def _some(names: frozenset[str]) -> str:
    return ", ".join(repr(clipped(name)) for name in sorted(names)[:3])


ADAPTER = OnnxAdapter()
