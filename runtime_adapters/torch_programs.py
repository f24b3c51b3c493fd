"""PyTorch programs: torch.export archives (.pt2), and TorchScript (.pt) as the legacy that people still have.

Loading either can run code: `torch.export.load` unpickles, and a TorchScript program may read and write files. So both
load from trusted prefixes only, or in the jailed subprocess (`runtime_adapters.isolation`), where the worker sets
`trusted`. The form that runs no code is ONNX.

An exported program says itself what it takes: the names, datatypes and shapes of its placeholders, where a symbolic
size is -1. Inputs nested in dicts or lists appear flat, under the names that export gave them (`d_p` for
`d["p"]`). Outputs have the keys of the returned dict, else `output_0`, `output_1`, ... in flattened order. TorchScript
knows no shapes, so the spec says them: parameters `inputs` and `outputs`, JSON lists of
`{"name", "datatype", "shape"}`, or a `config.json` or `metadata.json` beside the file with those two keys.

Parameters: `inputs`, `outputs` (for .pt2: `outputs` alone, a JSON list of names), `batch_dimension` = `true` promises
that rows do not influence one another.

A program that changes its own buffers (a counter, a cache) runs one request at a time and answers with copies.

Threads: torch has one global number for the process; it is the largest that any load has asked for, 1 by default.

Deliberately absent: `torch.compile` (minutes of load time), AOTInductor, and a `prepare`: a .pt2 loads in its own
form; what there is to gain is the ONNX adapter's.
"""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from runtime_adapters.errors import (
    AdapterError,
    BadArtifact,
    BadInput,
    LoadFailed,
    ModelRaised,
    OutOfMemory,
    UntrustedArtifact,
)
from runtime_adapters.frameworks import importing, missing_runtime
from runtime_adapters.out_of_memory import ran_out
from runtime_adapters.torch_archive import ProgramFile, ProgramKind, find_program, looks_like_program
from runtime_adapters.torch_effects import Effects, effects_of
from runtime_adapters.torch_weights import WeightsInRam, parked_bytes, weights_size
from runtime_adapters.validation import refuse_unknown_parameters

PARAMETERS = ("inputs", "outputs", "batch_dimension")
SIDECAR_NAMES = ("config.json", "metadata.json")

_SIDECAR_BYTES_MAX = 1 << 20
_MESSAGE_CHARS_MAX = 500

_TORCH_NAME_OF = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
}

_reading = threading.Lock()
"""torch keeps the reader of an exported program in a global: a second one at the same time fails."""
_threads_guard = threading.Lock()
_threads_now = 0


class TorchPrograms:
    """The adapter."""

    format = "torch"
    trust = Trust.RUNS_CODE
    device_kinds = ("cpu", "cuda")
    extra = "torch"

    def runtime_version(self) -> str:
        return f"torch-{_torch().__version__}"

    def detect(self, artifact: Path) -> bool:
        return looks_like_program(artifact)

    def estimate(self, artifact: Path, options: LoadOptions) -> Size:
        program = find_program(artifact)
        if options.device.kind == "cuda":
            return Size(host_bytes=program.program_bytes, device_bytes=program.weight_bytes)
        return Size(host_bytes=program.program_bytes + program.weight_bytes)

    def prepare(self, artifact: Path, into: Path, options: LoadOptions) -> bool:
        return False

    def load(self, artifact: Path, options: LoadOptions) -> LoadedModel:
        program = find_program(artifact)
        if not options.trusted:
            raise UntrustedArtifact(
                f"{program.path.name}: loading {program.kind.value} runs code and its prefix is not trusted; trust the "
                "prefix, set isolation to process in the spec (jailed), or export the model to ONNX"
            )
        refuse_unknown_parameters(options.parameters, PARAMETERS)
        torch = _torch()
        _use_threads(torch, options.threads)
        device = _torch_device(torch, options.device)
        if program.kind is ProgramKind.EXPORTED:
            return _load_exported(torch, program, device, options)
        return _load_script(torch, program, device, options)


class TorchModel:
    """A loaded program."""

    def __init__(self, torch: Any, call: _Call, metadata: ModelMetadata, device: Any, program_bytes: int) -> None:
        self._torch = torch
        self._call: _Call | None = call
        self._metadata = metadata
        self._output_names = tuple(spec.name for spec in metadata.outputs)
        self._device = device
        self._program_bytes = program_bytes
        self._size = weights_size(call.module, program_bytes)

    @property
    def metadata(self) -> ModelMetadata:
        return self._metadata

    def warm_up(self) -> None:
        for size in (1, 2):  # torch.export treats a size of 1 as a case of its own unless told otherwise
            try:
                self.infer({spec.name: _zeros(spec, size) for spec in self._metadata.inputs})
            except (BadInput, ModelRaised):
                continue
            return

    def infer(self, inputs: Tensors, outputs: Sequence[str] = ()) -> dict[str, Array]:
        call, torch = self._call, self._torch
        if call is None:
            raise ModelRaised("the copy was unloaded or parked before this run; ask for the model again")
        wanted = outputs or self._output_names
        with call.turn if call.changes_itself else contextlib.nullcontext():
            try:
                with torch.inference_mode():
                    given = [
                        _to_torch(torch, inputs[spec.name], self._device, copy=call.changes_inputs)
                        for spec in self._metadata.inputs
                    ]
                    leaves = call.run(given)
                if len(leaves) != len(self._output_names):
                    raise ModelRaised(
                        f"the program returned {len(leaves)} tensors; its outputs are {', '.join(self._output_names)}"
                    )
                by_name = dict(zip(self._output_names, leaves, strict=True))
                return {name: _to_numpy(torch, name, by_name[name], copy=call.changes_itself) for name in wanted}
            except AdapterError:
                raise
            except Exception as error:
                raise _run_error(error) from error

    def size(self) -> Size:
        return self._size

    def parked_size(self) -> Size | None:
        if self._call is None:
            return None
        on_device_bytes = self._size.device_bytes or weights_size(self._call.module, 0).host_bytes
        elsewhere_bytes = self._size.total_bytes - on_device_bytes
        return Size(host_bytes=elsewhere_bytes + parked_bytes(self._call.module, self._device))

    def park(self) -> ParkedProgram:
        size, call = self.parked_size(), self._call
        if size is None or call is None:
            raise LoadFailed("the copy was unloaded or parked before; there is nothing to park")
        try:
            weights = WeightsInRam(self._torch, call.module, self._device)
        except Exception as error:
            raise _move_error(error) from error
        self._call = None
        self._give_back()
        return ParkedProgram(self, call, weights, size)

    def resumed(self, call: _Call) -> TorchModel:
        """This model, with its weights where they were."""
        self._call = call
        self._size = weights_size(call.module, self._program_bytes)
        return self

    def unload(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.release()
        self._size = Size(host_bytes=0)
        self._give_back()

    def _give_back(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()


class ParkedProgram:
    """A program whose weights lie in RAM; the module stays as it is."""

    def __init__(self, model: TorchModel, call: _Call, weights: WeightsInRam, size: Size) -> None:
        self._model = model
        self._call: _Call | None = call
        self._weights = weights
        self._size = size

    def size(self) -> Size:
        return self._size

    def unpark(self, device: Device) -> TorchModel:
        """The device is the one that it was loaded on: an exported program names it in its operations."""
        call = self._call
        if call is None:
            raise LoadFailed("the parked copy was unloaded before; load the model again")
        try:
            self._weights.bring_up()
        except Exception as error:
            raise _move_error(error) from error
        self._call = None
        return self._model.resumed(call)

    def unload(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.release()
            self._weights.free()


class _Call:
    """How to run the module on a flat list of tensors, and what it touches while it runs."""

    module: Any
    changes_itself = False
    changes_inputs = False

    def __init__(self) -> None:
        self.turn = threading.Lock()

    def run(self, given: list[Any]) -> list[Any]:
        raise NotImplementedError

    def release(self) -> None:
        """Let go of the weights now."""


# --- torch.export -----------------------------------------------------------------------------------------------------


class _ExportedCall(_Call):
    def __init__(self, program: Any, effects: Effects, input_leaves: list[Any], output_leaves: list[int]) -> None:
        super().__init__()
        from torch.utils import _pytree

        self.module = program.module()
        # The program is part of a cycle, like the module; the module alone keeps the weights.
        program.state_dict.clear()
        program.constants.clear()
        self.changes_itself = effects.state
        self.changes_inputs = effects.inputs
        self._tree = _pytree
        self._in_spec = program.call_spec.in_spec
        self._input_leaves = input_leaves
        self._output_leaves = output_leaves

    def run(self, given: list[Any]) -> list[Any]:
        rest = iter(given)
        flat = [next(rest) if leaf is _TENSOR else leaf for leaf in self._input_leaves]
        args, kwargs = self._tree.tree_unflatten(flat, self._in_spec)
        leaves = self._tree.tree_leaves(self.module(*args, **kwargs), is_leaf=lambda leaf: leaf is None)
        return [leaves[index] for index in self._output_leaves]

    def release(self) -> None:
        # A graph module refers to itself: dropped as it is, its weights would stay until Python looks for cycles, and
        # four evicted models of 25 MB were still there. An array that a client still gets keeps its own tensor alive.
        for part in self.module.modules():
            part._parameters.clear()
            part._buffers.clear()
            for name in [name for name, value in vars(part).items() if type(value).__name__ == "Tensor"]:
                delattr(part, name)


_TENSOR = object()
"""Stands for a tensor among a program's input leaves; the others are constants."""


def _load_exported(torch: Any, file: ProgramFile, device: Any, options: LoadOptions) -> TorchModel:
    if "inputs" in options.parameters:
        raise BadArtifact("parameters: inputs is for TorchScript; a .pt2 file says its inputs itself; leave it out")
    # The first one to be read brings a thousand more modules along, this one among the last.
    with _reading, importing("torch._dynamo"), _load_errors(file):
        program = torch.export.load(file.path)
        if device.type != "cpu" or any(t.device.type != "cpu" for t in program.state_dict.values()):
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        signature = program.graph_signature
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        kinds = type(signature.input_specs[0].kind) if signature.input_specs else None
        inputs: list[TensorSpec] = []
        input_leaves: list[Any] = []
        for item in signature.input_specs:
            if kinds is None or item.kind is not kinds.USER_INPUT:
                continue
            if type(item.arg).__name__ == "ConstantArgument":
                input_leaves.append(item.arg.value)
                continue
            inputs.append(_spec_of(torch, item.arg, values, "input", item.arg.name))
            input_leaves.append(_TENSOR)
        results = [item.arg for item in signature.output_specs if item.kind.name in ("USER_OUTPUT", "LOSS_OUTPUT")]
        output_leaves = [index for index, arg in enumerate(results) if type(arg).__name__ != "ConstantArgument"]
        names = _output_names(program, len(results), output_leaves, options.parameters)
        outputs = [
            _spec_of(torch, results[index], values, "output", name)
            for index, name in zip(output_leaves, names, strict=True)
        ]
        call = _ExportedCall(program, effects_of(torch, program), input_leaves, output_leaves)
    metadata = _metadata("pytorch_export", inputs, outputs, options)
    return TorchModel(torch, call, metadata, device, file.program_bytes)


def _spec_of(torch: Any, argument: Any, values: Mapping[str, Any], side: str, name: str) -> TensorSpec:
    value = values.get(argument.name)
    scalar = {"SymIntArgument": "INT64", "SymFloatArgument": "FP64", "SymBoolArgument": "BOOL"}
    if side == "output" and type(argument).__name__ in scalar:
        return TensorSpec(name, scalar[type(argument).__name__], ())
    if not isinstance(value, torch.Tensor):
        raise BadArtifact(f"{side} {name} is not a tensor; export a program that takes and returns tensors")
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape)
    return TensorSpec(name, _datatype_of(value.dtype, side, name), shape)


def _output_names(program: Any, leaves: int, kept: list[int], parameters: Mapping[str, str]) -> list[str]:
    if "outputs" in parameters:
        names = _json_list(parameters["outputs"], "outputs")
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(kept):
            raise BadArtifact(
                f"parameters: outputs is {parameters['outputs'][:200]!r}; allowed is a JSON list of {len(kept)} names "
                "that differ, one per tensor that the program returns"
            )
        return names
    from torch.utils import _pytree

    # Unflattening the positions shows what the program returns: {"logits": 0, "labels": 1}.
    returned = _pytree.tree_unflatten(list(range(leaves)), program.call_spec.out_spec)
    if isinstance(returned, Mapping) and all(isinstance(position, int) for position in returned.values()):
        keys = {position: str(key) for key, position in returned.items()}
        if len(set(keys.values())) == leaves and all(keys.values()):
            return [keys[index] for index in kept]
    return [f"output_{order}" for order in range(len(kept))]


# --- TorchScript ------------------------------------------------------------------------------------------------------


class _ScriptCall(_Call):
    changes_inputs = True
    """It cannot be known; a copy of the inputs is the price of that."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def run(self, given: list[Any]) -> list[Any]:
        return list(_leaves(self.module(*given)))


def _load_script(torch: Any, file: ProgramFile, device: Any, options: LoadOptions) -> TorchModel:
    declared = _declaration(file, options.parameters)
    inputs, outputs = (_declared_specs(declared, side) for side in ("inputs", "outputs"))
    with _load_errors(file), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(str(file.path), map_location=device)
        module.eval()
        takes = [argument.name for argument in module.forward.schema.arguments[1:]]
    if len(takes) < len(inputs):
        raise BadArtifact(f"{file.path.name}: forward takes {len(takes)} tensors, inputs declares {len(inputs)}")
    metadata = _metadata("pytorch_libtorch", inputs, outputs, options)
    return TorchModel(torch, _ScriptCall(module), metadata, device, file.program_bytes)


def _declaration(file: ProgramFile, parameters: Mapping[str, str]) -> Mapping[str, Any]:
    """`inputs` and `outputs` from the spec's parameters, else from a file beside the program."""
    if "inputs" in parameters and "outputs" in parameters:
        return {side: _json_list(parameters[side], side) for side in ("inputs", "outputs")}
    for name in SIDECAR_NAMES:
        path = file.path.with_name(name)
        try:
            if path.stat().st_size > _SIDECAR_BYTES_MAX:
                continue
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, Mapping) and isinstance(content.get("inputs"), list | tuple):
            return content
    raise BadArtifact(
        f"{file.path.name} is TorchScript, which does not say its shapes; give the spec the parameters inputs and "
        'outputs (JSON: [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]), or put a config.json with both '
        "beside it"
    )


def _declared_specs(declared: Mapping[str, Any], side: str) -> list[TensorSpec]:
    specs = []
    for item in declared.get(side) or ():
        match item:
            case {"name": str(name), "datatype": str(datatype), "shape": [*shape]} if (
                name and datatype in _TORCH_NAME_OF and all(type(size) is int and size >= DYNAMIC for size in shape)
            ):
                specs.append(TensorSpec(name, datatype, tuple(shape)))
            case _:
                raise BadArtifact(
                    f"{side}: {str(item)[:200]} is no tensor; allowed is an object with name, datatype (one of "
                    f"{', '.join(_TORCH_NAME_OF)}) and shape (sizes, -1 for any)"
                )
    if not specs or len({spec.name for spec in specs}) != len(specs):
        raise BadArtifact(f"{side}: the names must differ and there must be one at least; found {len(specs)} tensors")
    return specs


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


# --- tensors ----------------------------------------------------------------------------------------------------------


def _to_torch(torch: Any, array: Array, device: Any, *, copy: bool) -> Any:
    if copy or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    if array.dtype == DTYPE_OF["BF16"]:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device)


def _to_numpy(torch: Any, name: str, value: Any, *, copy: bool) -> Array:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)  # a symbolic number
    tensor = value.detach().cpu().contiguous()
    if copy:
        tensor = tensor.clone()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:
        array: Array = tensor.view(torch.int16).numpy().view(DTYPE_OF["BF16"])
        return array
    array = tensor.numpy()
    if array.dtype not in (DTYPE_OF[datatype] for datatype in _TORCH_NAME_OF):
        raise ModelRaised(f"output {name} is {tensor.dtype}, which the V2 protocol cannot carry; cast it in the model")
    return array


def _datatype_of(dtype: Any, side: str, name: str) -> str:
    short = str(dtype).removeprefix("torch.")
    for datatype, torch_name in _TORCH_NAME_OF.items():
        if torch_name == short:
            return datatype
    raise BadArtifact(f"{side} {name} is {dtype}, which the V2 protocol cannot carry; cast it in the model")


def _zeros(spec: TensorSpec, dynamic_size: int) -> Array:
    return np.zeros([dynamic_size if size == DYNAMIC else size for size in spec.shape], DTYPE_OF[spec.datatype])


# --- torch itself -----------------------------------------------------------------------------------------------------


def _torch() -> Any:
    try:
        with importing("torch", "torch.export"):
            import torch
            import torch.export
    except ImportError as error:
        raise missing_runtime("torch", "torch", error) from error
    return torch


def _use_threads(torch: Any, threads: int) -> None:
    global _threads_now
    with _threads_guard:
        if threads > _threads_now:
            if _threads_now == 0:
                # Arrays of a request are read-only and torch says so once; programs that write get copies.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
                with contextlib.suppress(RuntimeError):  # only before the first parallel work
                    torch.set_num_interop_threads(1)
            torch.set_num_threads(threads)
            _threads_now = threads


def _torch_device(torch: Any, device: Device) -> Any:
    if device.kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
        raise LoadFailed(
            f"device {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices here; load "
            "it on another pod, or install a torch build for this driver"
        )
    return torch.device("cuda", device.index)


@contextlib.contextmanager
def _load_errors(file: ProgramFile) -> Iterator[None]:
    """What torch raises on a broken file is of many kinds. Want of memory is not the file's fault."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        text = _one_line(error)
        if ran_out(error):
            raise OutOfMemory(f"{file.path.name}: torch found no memory to load it: {text}") from error
        raise BadArtifact(
            f"{file.path.name}: torch cannot load it as {file.kind.value}: {text}; fetch it again, or export it with "
            "this pod's version of torch"
        ) from error


def _run_error(error: Exception) -> AdapterError:
    """Guards of an exported program and bad indices are the request's fault; torch does not tell the rest apart."""
    text = _one_line(error)
    refused = isinstance(error, IndexError) or (
        isinstance(error, AssertionError | RuntimeError | ValueError)
        and (text.startswith("Guard failed") or "to be equal to" in text or "to be in range" in text)
    )
    if ran_out(error):
        return OutOfMemory(f"torch found no memory for this request: {text}; send fewer rows")
    if refused:
        return BadInput(f"the program refuses these inputs: {text}")
    return ModelRaised(f"the program raised {type(error).__name__}: {text}")


def _move_error(error: Exception) -> AdapterError:
    if ran_out(error):
        return OutOfMemory(f"torch found no memory to move the weights: {_one_line(error)}")
    return LoadFailed(f"torch could not move the weights: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_MESSAGE_CHARS_MAX] or type(error).__name__


def _metadata(
    platform: str, inputs: list[TensorSpec], outputs: list[TensorSpec], options: LoadOptions
) -> ModelMetadata:
    if not outputs:
        raise BadArtifact("the program returns no tensor; export one that does")
    wish = options.parameters.get("batch_dimension", "false")
    if wish not in ("true", "false"):
        raise BadArtifact(f"parameters: batch_dimension is {wish!r}; allowed are true and false; correct the spec")
    fixed = [spec.name for spec in (*inputs, *outputs) if spec.shape[:1] != (DYNAMIC,)]
    if wish == "true" and fixed:
        raise BadArtifact(
            f"parameters: batch_dimension is true, but dimension 0 of {', '.join(fixed[:5])} has a fixed size; export "
            "with dynamic_shapes, or leave the parameter out"
        )
    return ModelMetadata(platform, tuple(inputs), tuple(outputs), batch_dimension=wish == "true")


def _json_list(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise BadArtifact(f"parameters: {name} is {text[:200]!r}; allowed is a JSON list; correct the spec")
    return value


ADAPTER = TorchPrograms()
