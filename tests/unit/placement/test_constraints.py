"""Label rules by format: what is read, which rule holds for a model, and what a typing error is answered with."""

from __future__ import annotations

import json

import pytest

from placement.constraints import ANY_POD, NO_CONSTRAINTS, LabelRule, parse_constraints
from placement.errors import InvalidSpec

RULES = parse_constraints(
    json.dumps(
        {
            "tensorflow": {"required": ["gpu", "disk=ssd"], "preferred": ["zone-a"]},
            "onnx": {"preferred": ["avx512"]},
            "_default": {"required": ["general"]},
        }
    )
)


def test_a_named_format_has_its_own_rule() -> None:
    assert RULES.rule("tensorflow", {}.get) == LabelRule(frozenset({"gpu", "disk=ssd"}), frozenset({"zone-a"}))
    assert RULES.rule("onnx", {}.get) == LabelRule(preferred=frozenset({"avx512"}))


@pytest.mark.parametrize("format_name", ["xgboost", ""])
def test_every_other_format_has_the_default_rule(format_name: str) -> None:
    assert RULES.rule(format_name, {}.get) == LabelRule(frozenset({"general"}))
    assert NO_CONSTRAINTS.rule(format_name, {}.get) == ANY_POD


def test_a_model_says_for_itself_and_an_empty_text_means_none() -> None:
    labels = {"hexcomb/required-labels": " big , gpu,", "team": "a"}
    assert RULES.rule("tensorflow", labels.get) == LabelRule(frozenset({"big", "gpu"}), frozenset({"zone-a"}))
    assert RULES.rule("xgboost", {"hexcomb/required-labels": ""}.get) == ANY_POD
    assert RULES.rule("xgboost", {"hexcomb/preferred-labels": "x"}.get) == LabelRule(
        frozenset({"general"}), frozenset({"x"})
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "a list; write an object"),
        ('{"onnx": ["gpu"]}', "of 'onnx' are a list"),
        ('{"onnx": {"require": ["gpu"]}}', "'onnx' have a field 'require'"),
        ('{"onnx": {"required": "gpu"}}', "`required` in the type constraints of 'onnx' is text"),
        ('{"_default": {"preferred": [1]}}', "`preferred` in the type constraints of '_default' holds 1"),
        ('{"onnx": {"required": ["a,b"]}}', "holds 'a,b'"),
    ],
)
def test_a_typing_error_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message.replace("[", r"\[")):
        parse_constraints(text)
