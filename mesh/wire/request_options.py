"""What a request says beside its tensors, in Triton's parameters: when it is too late, how urgent it is, its sequence.

Other parameters mean nothing here and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh.wire.errors import InvalidMessage

_MICROSECOND_S = 1e-6


@dataclass(frozen=True, slots=True)
class SequencePart:
    """Which sequence a request belongs to, and whether it is its first or last."""

    id: str
    start: bool
    end: bool


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """`timeout_s`: 0: none. `priority`: 1 before 2 before ..., before 0, which is all that say nothing."""

    timeout_s: float = 0.0
    priority: int = 0
    sequence: SequencePart | None = None


NO_OPTIONS = RequestOptions()


def options_of(parameters: Mapping[str, Any]) -> RequestOptions:
    """Of a ModelInferRequest. Raises InvalidMessage."""
    if not parameters:
        return NO_OPTIONS
    sequence = None
    if "sequence_id" in parameters:
        value = _value(parameters, "sequence_id", (int, str))
        if value not in (0, ""):  # as clients say that there is none
            start, end = (_value(parameters, f"sequence_{which}", (bool,), False) for which in ("start", "end"))
            sequence = SequencePart(str(value), bool(start), bool(end))
    timeout_us = _value(parameters, "timeout", (int,), 0)
    priority = _value(parameters, "priority", (int,), 0)
    if timeout_us < 0 or priority < 0:
        raise InvalidMessage("the request's timeout and priority must not be below 0")
    return RequestOptions(timeout_us * _MICROSECOND_S, priority, sequence)


def _value(parameters: Mapping[str, Any], key: str, kinds: tuple[type, ...], default: Any = None) -> Any:
    if key not in parameters:
        return default
    parameter = parameters[key]
    kind = parameter.WhichOneof("parameter_choice")
    value = None if kind is None else getattr(parameter, kind)
    if type(value) not in kinds:
        names = " or ".join({int: "a whole number", str: "text", bool: "true or false"}[each] for each in kinds)
        raise InvalidMessage(f"the request's parameter {key} must be {names}")
    return value
