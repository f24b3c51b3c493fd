"""What a pod and an isolated copy tell each other, as JSON: options, metadata, errors.

One place for both ends, so that they cannot disagree. What comes from the child is rebuilt field by field and with
limits on length: it may have been written by a model's own code.

An error keeps its class (one of `runtime_adapters.errors`) and its sentence on the way. The traceback goes with it for
the pod's log, and no further: it shows paths and lines of the model to whoever may call it.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from runtime_adapters.base import Device, LoadOptions, ModelMetadata, TensorSpec
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import (
    AdapterError,
    BadArtifact,
    BadInput,
    LoadFailed,
    MissingRuntime,
    ModelRaised,
    OutOfMemory,
    UntrustedArtifact,
)
from runtime_adapters.isolation_channel import MalformedMessage

ERROR_CHARS_MAX = 2_000
TRACEBACK_CHARS_MAX = 16_000

_TENSORS_MAX = 100_000
_NAME_CHARS_MAX = 1_000
_RANK_MAX = 32

_ERRORS: Mapping[str, type[AdapterError]] = {
    kind.__name__: kind for kind in (BadArtifact, BadInput, LoadFailed, MissingRuntime, ModelRaised, UntrustedArtifact)
}


def describe_options(options: LoadOptions) -> dict[str, Any]:
    return {
        "model_id": options.model_id,
        "device": [options.device.kind, options.device.index],
        "threads": options.threads,
        "trusted": options.trusted,
        "parameters": dict(options.parameters),
    }


def options_from(given: Mapping[str, Any]) -> LoadOptions:
    kind, index = given["device"]
    return LoadOptions(
        model_id=given["model_id"],
        device=Device(kind, index),
        threads=given["threads"],
        trusted=given["trusted"],
        parameters=given["parameters"],
    )


def describe_metadata(metadata: ModelMetadata) -> dict[str, Any]:
    def tensors(specs: Sequence[TensorSpec]) -> list[list[Any]]:
        return [[spec.name, spec.datatype, list(spec.shape), spec.optional] for spec in specs]

    return {
        "platform": metadata.platform,
        "inputs": tensors(metadata.inputs),
        "outputs": tensors(metadata.outputs),
        "any_input_name": metadata.any_input_name,
        "batch_dimension": metadata.batch_dimension,
        "batch_rows_max": metadata.batch_rows_max,
        "decoupled": metadata.decoupled,
        "sequences": metadata.sequences,
        "unchecked": metadata.unchecked,
    }


def metadata_from(given: object) -> ModelMetadata:
    """Raises MalformedMessage."""
    if not isinstance(given, Mapping):
        raise MalformedMessage("metadata that is no object")
    return ModelMetadata(
        platform=str(given.get("platform"))[:_NAME_CHARS_MAX],
        inputs=_specs_from(given.get("inputs")),
        outputs=_specs_from(given.get("outputs")),
        any_input_name=given.get("any_input_name") is True,
        batch_dimension=given.get("batch_dimension") is True,
        batch_rows_max=_rows_max(given.get("batch_rows_max")),
        decoupled=given.get("decoupled") is True,
        sequences=given.get("sequences") is True,
        unchecked=given.get("unchecked") is True,
    )


def _rows_max(given: object) -> int | None:
    return given if type(given) is int and given > 0 else None


def _specs_from(given: object) -> tuple[TensorSpec, ...]:
    if not isinstance(given, list) or len(given) > _TENSORS_MAX:
        raise MalformedMessage("metadata whose tensors are no list")
    specs = []
    for item in given:
        match item:
            case [str(name), str(datatype), [*shape], bool(optional)] if (
                datatype in DTYPE_OF
                and len(name) <= _NAME_CHARS_MAX
                and len(shape) <= _RANK_MAX
                and all(type(size) is int and -1 <= size < 1 << 62 for size in shape)
            ):
                specs.append(TensorSpec(name, datatype, tuple(shape), optional))
            case _:
                raise MalformedMessage("metadata with a tensor that cannot be")
    return tuple(specs)


def describe_error(error: BaseException, otherwise: type[AdapterError]) -> dict[str, str]:
    """`otherwise`: what an error that is none of ours counts as."""
    if isinstance(error, MemoryError | OutOfMemory):
        # Its process has a limit of its own (isolated_memory_max): room in the pod would not help it.
        kind, message = otherwise.__name__, f"not enough memory: {error or 'an allocation was refused'}"
    elif type(error).__name__ in _ERRORS and isinstance(error, AdapterError):
        kind, message = type(error).__name__, str(error)
    else:
        kind, message = otherwise.__name__, summary_of(error)
    text = "".join(traceback.format_exception(error))
    return {"kind": kind, "message": message[:ERROR_CHARS_MAX], "traceback": text[-TRACEBACK_CHARS_MAX:]}


def error_from(given: object) -> tuple[AdapterError, str]:
    """The error to raise, and its traceback for the log. Raises MalformedMessage."""
    if not isinstance(given, Mapping) or given.get("kind") not in _ERRORS:
        raise MalformedMessage("an error of no known kind")
    message = str(given.get("message"))[:ERROR_CHARS_MAX]
    return _ERRORS[given["kind"]](message), str(given.get("traceback", ""))[-TRACEBACK_CHARS_MAX:]


def summary_of(error: BaseException) -> str:
    """Type and message, as the last line of a traceback has them."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text}"[:ERROR_CHARS_MAX] if text else name
