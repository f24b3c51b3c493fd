"""Which labels a pod must or should have to hold a model: by the model's format, as ModelMesh's type constraints.

    {"tensorflow": {"required": ["gpu"]},
     "onnx": {"preferred": ["avx512"]},
     "_default": {"required": ["general"]}}

A format that is named has its own rule, every other one has that of `_default`. A model may say for itself, in the
labels of its spec, `hexcomb/required-labels` and `hexcomb/preferred-labels`, separated by commas; what it says stands
in place of its format's list (an empty text: none). Labels are words; `disk=ssd` is one word.

A required label that no pod has leaves the model without a place, and the refusal names it; a preferred one only moves
pods forward in the order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from placement.errors import InvalidSpec

DEFAULT_FORMAT = "_default"
REQUIRED_LABELS = "hexcomb/required-labels"
PREFERRED_LABELS = "hexcomb/preferred-labels"
_RULE_FIELDS = ("required", "preferred")


@dataclass(frozen=True, slots=True)
class LabelRule:
    """What pods must have, and what they should."""

    required: frozenset[str] = frozenset()
    preferred: frozenset[str] = frozenset()


ANY_POD = LabelRule()


@dataclass(frozen=True, slots=True)
class Constraints:
    """The rules of a pool."""

    by_format: Mapping[str, LabelRule] = field(default_factory=dict)
    default: LabelRule = ANY_POD

    def rule(self, format_name: str, label: Callable[[str], str | None]) -> LabelRule:
        """The rule for a model of this format (empty: not known yet) whose spec has these labels."""
        rule = self.by_format.get(format_name, self.default)
        required, preferred = label(REQUIRED_LABELS), label(PREFERRED_LABELS)
        if required is None and preferred is None:
            return rule
        return LabelRule(
            rule.required if required is None else _words(required),
            rule.preferred if preferred is None else _words(preferred),
        )


NO_CONSTRAINTS = Constraints()


def parse_constraints(text: str) -> Constraints:
    """Rules from JSON. Raises InvalidSpec, naming the format and the field."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidSpec(f"the type constraints are not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidSpec(f"the type constraints are {_kind(data)}; write an object of formats")
    rules = {name: _rule(name, value) for name, value in data.items()}
    default = rules.pop(DEFAULT_FORMAT, ANY_POD)
    return Constraints(rules, default)


def _rule(format_name: str, data: Any) -> LabelRule:
    if not isinstance(data, dict):
        raise InvalidSpec(f"the type constraints of {format_name!r} are {_kind(data)}; {_EXPECTED}")
    if unknown := [name for name in data if name not in _RULE_FIELDS]:
        raise InvalidSpec(f"the type constraints of {format_name!r} have a field {unknown[0]!r}; {_EXPECTED}")
    return LabelRule(
        _labels(format_name, "required", data.get("required", [])),
        _labels(format_name, "preferred", data.get("preferred", [])),
    )


_EXPECTED = 'write {"required": [labels], "preferred": [labels]}, either of which may be left out'


def _labels(format_name: str, field_name: str, data: Any) -> frozenset[str]:
    where = f"`{field_name}` in the type constraints of {format_name!r}"
    if not isinstance(data, list):
        raise InvalidSpec(f"{where} is {_kind(data)}; write a list of labels")
    for label in data:
        if not isinstance(label, str) or not label or label != label.strip() or "," in label:
            raise InvalidSpec(f"{where} holds {label!r}; a label is a word without spaces around it and commas")
    return frozenset(data)


def _words(text: str) -> frozenset[str]:
    return frozenset(word for part in text.split(",") if (word := part.strip()))


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), repr(value))
