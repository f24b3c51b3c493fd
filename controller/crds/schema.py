"""Structural OpenAPI schemas, in few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

_QUANTITY = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)


def text(**rules: Any) -> Schema:
    """A text; `rules` such as `pattern` and `enum`."""
    return {"type": "string", **rules}


def one_of(*words: str, **rules: Any) -> Schema:
    """One of a few words."""
    return {"type": "string", "enum": list(words), **rules}


def flag(**rules: Any) -> Schema:
    """True or false."""
    return {"type": "boolean", **rules}


def whole(bits: int = 0, **rules: Any) -> Schema:
    """A whole number."""
    return {"type": "integer", **({"format": f"int{bits}"} if bits else {}), **rules}


def quantity() -> Schema:
    """Kubernetes' `512Mi`, or a plain number."""
    return {**number_or_text(), "pattern": _QUANTITY}


def number_or_text() -> Schema:
    """As of a port, or a share of pods."""
    return {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}


def record(fields: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """An object with these fields; others are dropped."""
    return {"type": "object", "properties": dict(fields), **({"required": sorted(required)} if required else {})}


def anything() -> Schema:
    """An object that is kept as it comes."""
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def map_of(values: Schema) -> Schema:
    """An object with keys of the user's."""
    return {"type": "object", "additionalProperties": values}


def texts() -> Schema:
    """Such as labels."""
    return map_of(text())


def list_of(items: Schema, **rules: Any) -> Schema:
    """A list; whoever applies it owns the whole of it."""
    return {"type": "array", "items": items, **rules}


def list_by(keys: Sequence[str], items: Schema) -> Schema:
    """A list whose entries are known by these fields, so that several may each own some."""
    return {"type": "array", "items": items, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
