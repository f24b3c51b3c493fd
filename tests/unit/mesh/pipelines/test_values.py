"""Tensors from step to step: by name, by position, or an error that names both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mesh.pipelines.described import joined
from mesh.pipelines.values import as_document, as_sent, chosen, inputs_for, merged, wanted_of
from runtime_adapters.base import TensorSpec
from runtime_adapters.errors import BadInput


def takes(*names: str) -> tuple[TensorSpec, ...]:
    """`?`: optional."""
    return tuple(TensorSpec(name.rstrip("?"), "FP32", (-1,), name.endswith("?")) for name in names)


def given(*names: str) -> dict[str, Any]:
    return {name: np.array([number]) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("has", "wants", "found"),
    [
        (("x",), ("x",), {"x": 0}),
        (("x",), ("x", "y"), {"x": 0}),  # the model says what is missing
        (("x", "y"), ("y", "x"), {"x": 0, "y": 1}),
        (("x", "y", "z"), ("z", "x"), {"z": 2, "x": 0}),
        (("x", "y", "z"), ("z", "x?"), {"z": 2, "x": 0}),
        (("x", "y"), ("z?", "x"), {"x": 0}),
        (("predict",), ("input",), {"input": 0}),
        (("a", "b"), ("x", "y"), {"x": 0, "y": 1}),
        (("a",), ("x", "y?"), {"x": 0}),
        (("a",), ("x?",), {"x": 0}),
        (("a", "b"), (), {"a": 0, "b": 1}),  # it tells of no input
    ],
)
def test_tensors_are_matched_by_name_then_by_position(has: Any, wants: Any, found: Any) -> None:
    assert {name: int(array[0]) for name, array in inputs_for(given(*has), takes(*wants)).items()} == found


@pytest.mark.parametrize(
    ("has", "wants"), [(("a", "b"), ("x",)), (("a",), ("x", "y")), (("x", "b"), ("x", "y")), (("a", "b"), ("x?",))]
)
def test_what_matches_neither_way_is_refused_naming_both_sides(has: Any, wants: Any) -> None:
    with pytest.raises(BadInput, match=f"it takes 'x'.* and is given '{has[0]}'"):
        inputs_for(given(*has), takes(*wants))


def test_an_ensembles_outputs_have_their_steps_names() -> None:
    answer = merged({"a": given("y"), "b": given("y", "z")})
    assert list(answer) == ["a.y", "b.y", "b.z"]
    assert wanted_of("b", ("a.y", "b.y", "b.z")) == ("y", "z")
    with pytest.raises(BadInput, match=r"two outputs of the Ensemble would be called 'a\.b\.y'"):
        merged({"a": given("b.y"), "a.b": given("y")})


def test_a_client_gets_the_outputs_that_it_names_or_hears_which_there_are() -> None:
    assert list(chosen(given("a", "b"), ())) == ["a", "b"]
    assert list(chosen(given("a", "b"), ("b",))) == ["b"]
    with pytest.raises(BadInput, match="output 'c' is not among those of the pipeline's answer: 'a', 'b'"):
        chosen(given("a", "b"), ("c",))


def test_answers_go_on_as_a_message_would_hold_them_and_nobody_writes_into_them() -> None:
    numbers = np.arange(4.0)
    sent = as_sent({"n": numbers, "texts": np.array([["a", "ü"]]), "mixed": np.array(["a", b"\xff"], object)})
    assert np.shares_memory(sent["n"], numbers)
    assert sent["texts"].tolist() == [[b"a", "ü".encode()]]
    assert sent["texts"].dtype == object
    assert sent["mixed"].tolist() == [b"a", b"\xff"]
    assert numbers.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        sent["n"][0] = 1


def test_conditions_see_tensors_as_v2s_json_without_a_copy() -> None:
    array = np.array([[1, 2], [3, 4]], np.int64)
    (told,) = as_document("outputs", {"y": array})["outputs"]
    assert (told["name"], told["datatype"], told["shape"], told["data"].tolist()) == (
        "y",
        "INT64",
        [2, 2],
        [1, 2, 3, 4],
    )
    assert np.shares_memory(told["data"], array)


def test_steps_that_take_the_same_are_told_once() -> None:
    assert [spec.name for spec in joined([takes("x"), takes("x")])] == ["x"]
    assert [spec.name for spec in joined([takes("x"), takes("input")])] == ["x"], "by position"
    assert [spec.name for spec in joined([takes("x"), takes("a", "b")])] == ["x", "a", "b"]
    assert [spec.name for spec in joined([takes("x", "y"), takes("y")])] == ["x", "y"]
