"""What a load request of Triton's may bring along: another configuration, and the files of the model.

`config` is a model configuration in JSON. Of its fields these become a new spec: `backend` or `platform` (the format),
`max_batch_size`, `dynamic_batching.max_queue_delay_microseconds`, `parameters`. Fields that describe what a model's
file says itself (inputs, outputs, versions) are not needed, and ignored; others are refused, since a load that leaves
them out would not be the one that was asked for. With `file:<path>` parameters the model is made of these files; a
leading version directory (`file:1/model.onnx`) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mesh.wire.errors import InvalidMessage
from mesh.wire.json_tensors import parse_object

CONFIG, FILE = "config", "file:"
_FORMATS: Mapping[str, str] = {
    "onnxruntime": "onnx",
    "onnxruntime_onnx": "onnx",
    "pytorch": "torch",
    "pytorch_libtorch": "torch",
}
"""Triton's names of backends and platforms; other names are formats of our own."""
_OF_THE_FILE = frozenset(
    {
        "name", "platform", "backend", "runtime", "version_policy", "input", "output", "default_model_filename",
        "cc_model_filenames", "model_transaction_policy", "sequence_batching", "instance_group", "max_batch_size",
        "dynamic_batching", "parameters", "optimization", "batch_input", "batch_output",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Override:
    """Fields of a spec, and an artifact's files by path; empty: those of the registration."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def override_of(parameters: Mapping[str, Any]) -> Override:
    """Of a RepositoryModelLoadRequest. Raises InvalidMessage."""
    spec: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if key == CONFIG and kind == "string_param":
            spec = _spec_of(parse_object(parameter.string_param.encode(), "the config"))
        elif key.startswith(FILE) and kind == "bytes_param":
            files[_without_version(key.removeprefix(FILE))] = parameter.bytes_param
        else:
            raise InvalidMessage(
                f"a load has no parameter {key[:80]!r} of this kind; there are config (text) and file:<path> (bytes)"
            )
    if files and CONFIG not in parameters:
        raise InvalidMessage("a load with files needs a config beside them; {} will do")
    return Override(spec, files)


def _spec_of(config: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(config.keys() - _OF_THE_FILE):
        raise InvalidMessage(f"the config has {unknown[0]!r}, which cannot be set here")
    spec: dict[str, Any] = {}
    runs = config.get("backend") or config.get("platform")
    if runs:
        if not isinstance(runs, str):
            raise InvalidMessage("backend and platform must be text")
        spec["format"] = _FORMATS.get(runs, runs)
    rows_max = config.get("max_batch_size")
    if rows_max:
        spec["batch_rows_max"] = rows_max
    batching = config.get("dynamic_batching")
    if isinstance(batching, dict) and "max_queue_delay_microseconds" in batching:
        try:
            spec["batch_delay_s"] = int(batching["max_queue_delay_microseconds"]) / 1e6
        except (TypeError, ValueError) as error:
            raise InvalidMessage("max_queue_delay_microseconds must be a whole number") from error
    parameters = config.get("parameters")
    if parameters:
        try:
            spec["parameters"] = {key: str(value["string_value"]) for key, value in parameters.items()}
        except (AttributeError, TypeError, KeyError) as error:
            raise InvalidMessage('parameters must be objects {"string_value": "..."} by name') from error
    return spec


def _without_version(path: str) -> str:
    version, slash, rest = path.partition("/")
    return rest if slash and version.isdecimal() else path
