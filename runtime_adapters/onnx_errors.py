"""What onnxruntime says when it refuses, in our words: one sentence, and a class by what the caller does next."""

from __future__ import annotations

import re

from runtime_adapters.errors import BadInput, ModelRaised, OutOfMemory
from runtime_adapters.out_of_memory import ran_out

_MESSAGE_CHARS_MAX = 300

# `/onnxruntime_src/…/model.cc:256 onnxruntime::Model::Model(…) `, and the path that our sentence names already
_SOURCE_LOCATION = re.compile(r"^Load model from \S+ failed:|/onnxruntime_src/\S+:\d+ .*?\) ")


def run_error(error: Exception) -> BadInput | ModelRaised | OutOfMemory:
    """onnxruntime says INVALID_ARGUMENT when a kernel refuses a value (an index out of bounds, an axis)."""
    if type(error).__name__ == "InvalidArgument":
        return BadInput(f"onnxruntime refuses these values: {sentence(error)}")
    if ran_out(error):
        return OutOfMemory("onnxruntime found no memory for this request; send fewer rows")
    return ModelRaised(f"onnxruntime failed on this request: {sentence(error)}")


def sentence(error: Exception) -> str:
    """onnxruntime's message without its prefix, source locations and further lines."""
    message = str(error).strip().split("\n", 1)[0]
    if message.startswith("[ONNXRuntimeError]"):
        message = message.split(" : ", 3)[-1]
    message = _SOURCE_LOCATION.sub("", message)
    return clipped(message, _MESSAGE_CHARS_MAX)


def clipped(text: str, chars_max: int = 80) -> str:
    return text if len(text) <= chars_max else text[:chars_max] + "…"
