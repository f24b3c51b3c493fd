from __future__ import annotations

from typing import Any

import pytest

from mesh.wire.errors import InvalidMessage
from mesh.wire.generated.inference_pb2 import ModelInferRequest
from mesh.wire.request_options import NO_OPTIONS, RequestOptions, SequencePart, options_of


def options(**parameters: tuple[str, Any]) -> RequestOptions:
    request = ModelInferRequest()
    for key, (kind, value) in parameters.items():
        setattr(request.parameters[key], f"{kind}_param", value)
    return options_of(request.parameters)


def test_a_request_that_says_nothing_has_none() -> None:
    assert options() is NO_OPTIONS
    assert options(anything=("string", "else")) == NO_OPTIONS


def test_times_are_in_microseconds_and_sequences_have_numbers_or_names() -> None:
    assert options(timeout=("int64", 1500), priority=("uint64", 2)) == RequestOptions(0.0015, 2)
    assert options(sequence_id=("int64", 7), sequence_start=("bool", True)).sequence == SequencePart("7", True, False)
    assert options(sequence_id=("string", "a"), sequence_end=("bool", True)).sequence == SequencePart("a", False, True)


@pytest.mark.parametrize("none", [("int64", 0), ("string", "")])
def test_no_sequence_has_the_number_zero_or_no_name(none: tuple[str, Any]) -> None:
    assert options(sequence_id=none, sequence_start=("bool", True)).sequence is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timeout", ("string", "1s")),
        ("timeout", ("int64", -1)),
        ("priority", ("bool", True)),
        ("sequence_id", ("double", 1.0)),
    ],
)
def test_what_cannot_be_meant_is_refused(key: str, value: tuple[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match=key):
        options(**{key: value})


def test_the_ends_of_a_sequence_are_true_or_false() -> None:
    with pytest.raises(InvalidMessage, match="sequence_start must be true or false"):
        options(sequence_id=("int64", 1), sequence_start=("int64", 1))
