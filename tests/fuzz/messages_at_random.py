"""Calls at random: for a seed and a number always the same method, bytes and metadata.

Four sorts, because each finds what the others do not: messages with every field drawn from words and numbers that mean
something here; good requests with a few fields changed, which get past the first checks; either of them damaged as
bytes (flipped, cut, spliced, stuffed); and bytes that were never a message, or one of another method's.

Deliberately absent: what would do harm outside the server that is tried. Addresses are files of the test's or a closed
port, nothing is isolated in a process of its own, and no call drains the pod.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2, inference_pb2

METHODS: Sequence[messages.Method[Any, Any]] = sorted(
    (value for value in vars(messages).values() if isinstance(value, messages.Method)), key=lambda method: method.path
)
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 64, 127, 255, 4096, 65535, 2**31 - 1, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
FRACTIONS = (0.0, -0.0, 1.0, 0.5, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
DATATYPES = ("FP32", "FP64", "INT8", "INT64", "UINT64", "BOOL", "BYTES", "FP16", "BF16", "FP31", "")
NAMES = ("scale", "words", "bad", "canary", "fuzz-0", "fuzz-1", "fuzz-2", "fuzz/3", "%2e%2e", "../x", "nobody", "")
WORDS = (
    "x", "y", "text", "same", "input", "default", "onnx", "xgboost", "sklearn", "coreml", "sha256:" + "0" * 64, "auto",
    "classification", "shared_memory_region", "binary_data", "priority", "timeout", "sequence_id", "é", "\0", "\n", "1",
    "a" * 300, "🐝", "-1", "timestamps", "log_info", "trace_level", "http://127.0.0.1:9/m.onnx", "s3://", "file://",
)  # fmt: skip
METADATA_KEYS = (
    "mm-model-id", "mm-vmodel-id", "mm-model-id-bin", "hexcomb-tenant", "hexcomb-forward", "hexcomb-revision",
    "hexcomb-previous-attempts", "hexcomb-peer-key", "traceparent",
)  # fmt: skip
_DEPTH_MAX = 4
_BYTES_MAX = 4000


@dataclass(frozen=True, slots=True)
class Shot:
    """One call."""

    method: messages.Method[Any, Any]
    body: bytes
    metadata: tuple[tuple[str, str | bytes], ...]


class Shots:
    """Makes calls. `uris`: of artifacts that a registration may name."""

    def __init__(self, seed: int, uris: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._uris = tuple(uris)

    def next(self) -> Shot:
        """The next one."""
        chance = self._random
        method = messages.MODEL_INFER if chance.random() < 0.3 else chance.choice(METHODS)
        while True:
            body = self._body(method)
            if not self._would_drain(method, body):
                return Shot(method, body, self._metadata())

    def _body(self, method: messages.Method[Any, Any]) -> bytes:
        chance = self._random
        kind = chance.random()
        if kind < 0.05:
            return chance.randbytes(chance.randrange(0, 120))
        if kind < 0.10:
            method = chance.choice(METHODS)
        if method.request is inference_pb2.ModelInferRequest and chance.random() < 0.7:
            message = self._good_request()
            for _ in range(chance.choice((0, 1, 1, 2, 3))):
                self._change(message)
        else:
            message = method.request()
            self._fill(message, 0)
        body = message.SerializeToString()[:_BYTES_MAX]
        return self._damaged(body) if chance.random() < 0.4 else body

    def _would_drain(self, method: messages.Method[Any, Any], body: bytes) -> bool:
        """Of a pod that is asked to drain itself, by whatever bytes; none is called like a name of ours."""
        if method is not messages.DRAIN_POD:
            return False
        try:
            return not hexcomb_pb2.DrainPodRequest.FromString(body).pod
        except Exception:  # not a message: refused
            return False

    def _metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        chance = self._random
        if chance.random() > 0.1:
            return ()
        key = chance.choice(METADATA_KEYS)
        if key.endswith("-bin"):
            return ((key, chance.randbytes(chance.randrange(12))),)
        return ((key, chance.choice((*NAMES, "1;p;words;1;1;1;0;", "9" * 30, "-1", "~" * 200))),)

    def _good_request(self) -> Any:
        """One that the models answer."""
        chance = self._random
        rows = chance.choice((0, 1, 2, 5))
        request = inference_pb2.ModelInferRequest(model_name="scale", id=chance.choice(("", "r")))
        if chance.random() < 0.4:
            request.model_name = "words"
            request.inputs.add(name="text", datatype="BYTES", shape=[rows])
            words = [chance.randbytes(chance.randrange(6)) for _ in range(rows)]
            if chance.random() < 0.5:
                request.inputs[0].contents.bytes_contents.extend(words)
            else:
                request.raw_input_contents.append(b"".join(len(word).to_bytes(4, "little") + word for word in words))
            return request
        request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
        if chance.random() < 0.5:
            request.inputs[0].contents.fp32_contents.extend(chance.random() for _ in range(4 * rows))
        else:
            request.raw_input_contents.append(chance.randbytes(16 * rows))
        return request

    def _change(self, message: Any) -> None:
        """One field, somewhere in the message, becomes another."""
        chance = self._random
        while True:
            field = chance.choice(message.DESCRIPTOR.fields)
            nested = getattr(message, field.name)
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            if field.message_type is None or is_map or chance.random() < 0.3:
                break
            if not field.is_repeated:
                message = nested
            elif nested:
                message = chance.choice(nested)
            else:
                break
        message.ClearField(field.name)
        if chance.random() < 0.8:
            self._set(message, field, 1)

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._random.random() < 0.6:
                self._set(message, field, depth)

    def _set(self, message: Any, field: Any, depth: int) -> None:
        chance = self._random
        if field.message_type is not None and depth >= _DEPTH_MAX:
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(chance.randrange(3)):
                entries = getattr(message, field.name)
                if value.message_type is not None:
                    self._fill(entries[self._scalar(key)], depth + 1)
                else:
                    entries[self._scalar(key)] = self._scalar(value)
        elif field.message_type is not None:
            for _ in range(chance.randrange(4) if field.is_repeated else 1):
                nested = getattr(message, field.name)
                inner = nested.add() if field.is_repeated else nested
                inner.SetInParent()
                self._fill(inner, depth + 1)
        elif field.is_repeated:
            count = chance.choice((0, 1, 2, 4, 70))
            getattr(message, field.name).extend(self._scalar(field) for _ in range(count))
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: Any) -> Any:
        chance = self._random
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return chance.randbytes(chance.choice((0, 1, 4, 16, 33)))
            case FieldDescriptor.CPPTYPE_STRING if field.name == "uri" or field.name == "path":
                return chance.choice((*self._uris, *WORDS))
            case FieldDescriptor.CPPTYPE_STRING if field.name == "isolation":
                return chance.choice(("", "auto", "sometimes"))
            case FieldDescriptor.CPPTYPE_STRING:
                return chance.choice(chance.choice((NAMES, WORDS, DATATYPES)))
            case FieldDescriptor.CPPTYPE_BOOL:
                return chance.random() < 0.5
            case FieldDescriptor.CPPTYPE_ENUM:
                return chance.choice(field.enum_type.values).number
            case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
                number = chance.choice(FRACTIONS)
                return number if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE or abs(number) != 1e300 else 3e38
            case kind:
                bits = 32 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
                is_signed = kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
                number = chance.choice(NUMBERS) % (1 << bits - is_signed)
                return -number if is_signed and chance.random() < 0.2 else number

    def _damaged(self, body: bytes) -> bytes:
        chance = self._random
        changed = bytearray(body)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(changed) + 1)
            match chance.randrange(6):
                case 0 if at < len(changed):
                    changed[at] = chance.randrange(256)
                case 1 if at < len(changed):
                    changed[at] ^= 1 << chance.randrange(8)
                case 2:
                    changed[at:at] = b"\xff" * chance.choice((1, 9, 10))  # a number without an end
                case 3:
                    del changed[at : at + chance.randrange(1, 9)]
                case 4:
                    changed[at:at] = changed[chance.randrange(len(changed) + 1) :][:40]
                case _:
                    del changed[at:]
        return bytes(changed)
