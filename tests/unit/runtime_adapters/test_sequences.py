from __future__ import annotations

import numpy as np
import pytest

from runtime_adapters.base import Array
from runtime_adapters.custom import SequencePosition
from runtime_adapters.errors import BadInput
from runtime_adapters.sequences import OPEN_MAX, OpenSequences


def controls(name: str, *, start: bool = False, end: bool = False) -> dict[str, Array]:
    return {
        "sequence_id": np.array([name.encode()], np.object_),
        "sequence_start": np.array([start]),
        "sequence_end": np.array([end]),
    }


def test_a_sequence_begins_goes_on_and_ends() -> None:
    sequences = OpenSequences()
    inputs = controls("a", start=True) | {"x": np.zeros(1)}
    assert sequences.position(inputs) == SequencePosition("a", True, False)
    assert inputs.keys() == {"x"}
    assert sequences.position(controls("a")) == SequencePosition("a", False, False)
    assert sequences.position(controls("a", end=True)) == SequencePosition("a", False, True)
    with pytest.raises(BadInput, match="'a' has not begun"):
        sequences.position(controls("a"))


def test_a_sequence_may_begin_anew_and_be_of_one_request() -> None:
    sequences = OpenSequences()
    sequences.position(controls("a", start=True))
    assert sequences.position(controls("a", start=True, end=True)).start
    with pytest.raises(BadInput):
        sequences.position(controls("a"))


def test_the_least_lately_used_sequence_is_given_up_beyond_the_limit() -> None:
    sequences = OpenSequences()
    for number in range(OPEN_MAX):
        sequences.position(controls(str(number), start=True))
    sequences.position(controls("0"))
    sequences.position(controls("one more", start=True))
    assert sequences.position(controls("0")).id == "0"
    with pytest.raises(BadInput):
        sequences.position(controls("1"))
