"""Texts found, and replaced, in messages whose type is not known."""

from __future__ import annotations

import pytest

from mesh.wire.errors import InvalidMessage
from mesh.wire.field_paths import text_at, with_text_at
from mesh.wire.generated import inference_pb2, mmesh_pb2


def nested(type_name: str = "onnx") -> mmesh_pb2.RegisterModelRequest:
    info = mmesh_pb2.ModelInfo(type=type_name, path="p" * 200, key="k")
    return mmesh_pb2.RegisterModelRequest(modelId="id", modelInfo=info, lastUsedTime=7)


def test_a_text_is_found_at_the_end_of_its_path() -> None:
    message = nested().SerializeToString()
    assert text_at(message, (1,)) == "id"
    assert text_at(message, (2, 1)) == "onnx"
    assert text_at(message, (2, 3)) == "k"
    assert text_at(message, (2, 9)) is None
    assert text_at(b"", (1,)) is None


@pytest.mark.parametrize("text", ["", "x", "é" * 300])
def test_a_text_is_replaced_and_all_else_stays(text: str) -> None:
    changed = with_text_at(nested().SerializeToString(), (2, 1), text)
    assert mmesh_pb2.RegisterModelRequest.FromString(changed) == nested(text)
    changed = with_text_at(nested().SerializeToString(), (2, 3), text)
    expected = nested()
    expected.modelInfo.key = text
    assert mmesh_pb2.RegisterModelRequest.FromString(changed) == expected


def test_a_text_that_is_not_there_is_added_with_the_messages_around_it() -> None:
    changed = with_text_at(mmesh_pb2.RegisterModelRequest(modelId="id").SerializeToString(), (2, 1), "new")
    expected = mmesh_pb2.RegisterModelRequest(modelId="id", modelInfo=mmesh_pb2.ModelInfo(type="new"))
    assert mmesh_pb2.RegisterModelRequest.FromString(changed) == expected
    assert inference_pb2.ModelInferRequest.FromString(with_text_at(b"", (1,), "m")).model_name == "m"
    info = mmesh_pb2.RegisterModelRequest(modelInfo=mmesh_pb2.ModelInfo(path="p")).SerializeToString()
    changed = with_text_at(info, (2, 1), "t")
    assert mmesh_pb2.RegisterModelRequest.FromString(changed).modelInfo == mmesh_pb2.ModelInfo(type="t", path="p")


@pytest.mark.parametrize(
    "second",
    [
        mmesh_pb2.RegisterModelRequest(modelInfo=mmesh_pb2.ModelInfo(type="another")).SerializeToString(),
        b"\x92\x80\x80\x80\x10\x04\x0a\x02xy",  # its number is field 2's in the lowest 32 bits alone
    ],
)
def test_a_message_that_names_two_models_is_refused_since_another_parser_would_take_the_other(second: bytes) -> None:
    message = nested().SerializeToString() + second
    with pytest.raises(InvalidMessage):
        text_at(message, (2, 1))
    with pytest.raises(InvalidMessage):
        with_text_at(message, (2, 1), "new")


def test_two_names_within_one_message_are_refused() -> None:
    twice = 2 * mmesh_pb2.ModelInfo(type="xy").SerializeToString()
    with pytest.raises(InvalidMessage, match="field 1 twice"):
        text_at(b"\x12\x08" + twice, (2, 1))


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x12\x05\x0a\x09abc", b"\x00\x01", b"\x0a", b"\x0a\x02\xff\xfe"])
def test_a_message_that_is_none_is_the_clients_mistake(message: bytes) -> None:
    path = (2, 1) if message.startswith(b"\x12") else (1,)
    with pytest.raises(InvalidMessage):
        text_at(message, path)
