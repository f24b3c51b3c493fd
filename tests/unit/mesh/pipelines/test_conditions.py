"""Conditions: the part of gjson's paths that is read, each rule on a document, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mesh.pipelines.conditions import LENGTH_MAX, LOOKS_MAX, InvalidCondition, Looks, TooMuchToLookAt, parse_condition

PEOPLE = {
    "friends": [
        {"first": "Dale", "last": "Murphy", "age": 44, "nets": ["ig", "fb"]},
        {"first": "Roger", "last": "Craig", "age": 68, "nets": ["fb"]},
        {"first": "Jane", "last": "Murphy", "age": 47, "nets": []},
    ],
    "fav.movie": "Deer Hunter",
    "children": ["Sara", "Alex"],
    "empty": [],
    "nothing": None,
    "yes": True,
    "no": False,
}
CREDIT = {"instances": [{"modelId": "2", "kind": "credit"}], "amount": 10, "source_type": "credit"}
PREDICTED = {"predictions": ["cat", "dog"], "scores": [0.25, 0.75]}
TENSORS = {
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [2], "data": np.array([b"dog", b"cat"], object)},
        {"name": "score", "datatype": "FP32", "shape": [2], "data": np.array([0.25, 0.75], np.float32)},
        {"name": "sure", "datatype": "BOOL", "shape": [1], "data": np.array([True])},
    ]
}


@pytest.mark.parametrize(
    ("document", "condition", "holds"),
    [
        (PEOPLE, "friends", True),
        (PEOPLE, "enemies", False),
        (PEOPLE, "nothing", True),
        (PEOPLE, "friends.1.first", True),
        (PEOPLE, "friends.3", False),
        (PEOPLE, "friends.first", False),
        (PEOPLE, "fav\\.movie", True),
        (PEOPLE, "fav.movie", False),
        (PEOPLE, "child*", True),
        (PEOPLE, "c?ildren", True),
        (PEOPLE, "c\\?ildren", False),
        (PEOPLE, "child*.2", False),
        (PEOPLE, "friends.#", True),
        (PEOPLE, "empty.#", True),
        (PEOPLE, "yes.#", False),
        (PEOPLE, "friends.#.nope", True),
        (PEOPLE, "friends.#.first|1", True),
        (PEOPLE, "friends.#.first|3", False),
        (PEOPLE, 'friends.#(last=="Murphy").first', True),
        (PEOPLE, 'friends.#(last=="Nobody").first', False),
        (PEOPLE, 'friends.#(last=="Nobody")#', True),
        (PEOPLE, 'friends.#(last=="Nobody")#|0', False),
        (PEOPLE, 'friends.#(last=="Murphy")#.first|1', True),
        (PEOPLE, "friends.#(age>67)", True),
        (PEOPLE, "friends.#(age>68)", False),
        (PEOPLE, "friends.#(age>=68)", True),
        (PEOPLE, "friends.#(age<44)", False),
        (PEOPLE, "friends.#(age<=44)", True),
        (PEOPLE, "friends.#(age!=44).first", True),
        (PEOPLE, 'friends.#(first%"D*")', True),
        (PEOPLE, 'friends.#(first%"X*")', False),
        (PEOPLE, 'friends.#(first!%"*a*")', True),
        (PEOPLE, 'friends.#(nets.#(=="ig"))', True),
        (PEOPLE, 'friends.#(nets.#(=="tw"))', False),
        (PEOPLE, "friends.#(nets.0)", True),
        (PEOPLE, 'children.#(=="Alex")', True),
        (PEOPLE, "children.#(==Alex)", True),
        (PEOPLE, 'children.#(="Alex")', True),
        (PEOPLE, "children.#(>Sara)", False),
        (PEOPLE, 'children.#("Alex")', False),
        (PEOPLE, "[yes,no].#(==false)", True),
        (PEOPLE, "[yes].#(==false)", False),
        (PEOPLE, "[yes].#(>false)", True),
        (PEOPLE, "[no].#(!=x)", True),
        (PEOPLE, "[no].#(<=x)", False),
        (PEOPLE, "[nothing].#(==null)", False),
        (PEOPLE, "[friends].#(==x)", False),
        (PEOPLE, "@this", True),
        (PEOPLE, "@this.friends", True),
        (PEOPLE, "friends|@this|0.first", True),
        # What KServe's own examples ask.
        (CREDIT, "[@this].#(source_type==credit)", True),
        (CREDIT, "[@this].#(source_type==other)", False),
        (CREDIT, '[@this].#(amount>5)', True),
        (CREDIT, "[@this].#(amount==ten)", False),
        (CREDIT, "[@this].#(amount!=ten)", True),
        (CREDIT, 'instances.#(modelId=="2")', True),
        (CREDIT, 'instances.#(modelId=="1")', False),
        (CREDIT, "instances.#(modelId>1)", True),
        (PREDICTED, '[@this].#(predictions.0=="cat")', True),
        (PREDICTED, '[@this].#(predictions.0=="dog")', False),
        (PREDICTED, 'predictions.#(=="dog")', True),
        (PREDICTED, "scores.#(>0.5)", True),
        (PREDICTED, "scores.#(>1e3)", False),
        # Tensors, as V2's JSON shows them.
        (TENSORS, 'outputs.#(name=="label").data.#(=="dog")', True),
        (TENSORS, 'outputs.#(name=="label").data.0', True),
        (TENSORS, '[@this].#(outputs.0.data.0=="cat")', False),
        (TENSORS, 'outputs.#(name=="score").data.#(>=0.75)', True),
        (TENSORS, 'outputs.#(name=="score").data.#(>0.75)', False),
        (TENSORS, 'outputs.#(name=="score").shape.#(==2)', True),
        (TENSORS, 'outputs.#(name=="sure").data.#(==true)', True),
        (TENSORS, 'outputs.#(name=="other")', False),
        ([], "0", False),
        ("text", "a", False),
    ],
)  # fmt: skip
def test_a_condition_holds_where_its_path_exists(document: Any, condition: str, holds: bool) -> None:
    assert parse_condition(condition).holds(document, Looks()) is holds


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "never hold"),
        ("  ", "never hold"),
        ("a" * (LENGTH_MAX + 1), "at most 1024"),
        ("a..b", "a key was expected"),
        (".a", "a key was expected"),
        ("a.", "a key was expected"),
        ("a.@reverse", "the only modifier that is read is @this"),
        ("{a,b}", "'{' is not read"),
        ("!true", "'!' is not read"),
        ('a.#(b=="c"', "has no '\\)'"),
        ("[a", "has no '\\]'"),
        ("[a]b", "a dot or | was expected"),
        ("a.#(b==)", "compares with nothing"),
        ("a.#(b==~true)", "is not read"),
        ("[" * 40 + "a" + "]" * 40, "more than 16"),
        ("a.#(b" + ".#(b" * 20 + ")" * 21, "more than 16"),
    ],
)
def test_what_is_no_condition_is_refused_where_it_is_read(condition: str, message: str) -> None:
    with pytest.raises(InvalidCondition, match=message):
        parse_condition(condition)


@pytest.mark.parametrize(
    ("document", "condition"),
    [
        ({"a": list(range(LOOKS_MAX + 1))}, "a.#(==-1)"),
        ({"a": np.arange(LOOKS_MAX + 1)}, "a.#(==-1)"),
        ({"a": [[[1] * 50] * 50] * 50}, "a.#(#(#(==-1)))"),
        ({"a" * 10_000: 1}, "*a*a*a*a*a*b"),
        ({"a": ["a" * 10_000]}, 'a.#(%"*a*a*a*a*a*b")'),
    ],
)
def test_no_document_keeps_a_condition_looking_for_long(document: Any, condition: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(TooMuchToLookAt, match="more than 50000"):
        parse_condition(condition).holds(document, Looks())
    assert time.perf_counter() - began_s < 20, "it gave up at its limit, and not when it had looked at all"


class OnlyInPart(bytes):
    """Text that nobody should read to its end."""

    def decode(self, *_: Any, **__: Any) -> str:
        raise AssertionError("all of it was decoded")


@pytest.mark.parametrize(
    ("condition", "holds"),
    [("#(==ab)", False), ("#(=ab)", False), ("#(!=ab)", True), ("#(>ab)", True), ("#(<ab)", False), ("#(<=ac)", True)],
)
def test_of_a_long_text_as_much_is_read_as_decides_a_comparison(condition: str, holds: bool) -> None:
    document = [OnlyInPart(b"ab" + "\U0001f41d".encode() * 1000)]
    assert parse_condition(condition).holds(document, Looks()) is holds
