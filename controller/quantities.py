"""Kubernetes' quantities, such as `512Mi`, `1.5Gi` or `100m`, as bytes."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:(m|k|Ki|[MGTPE]i?)|[eE]([+-]?[0-9]{1,2}))?")
_FACTORS: dict[str | None, Decimal] = {
    None: Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    **{letter: Decimal(1000**power) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGTPE", start=1)},
}


def bytes_of(quantity: object) -> int | None:
    """Rounded up to whole bytes; None for what is no quantity, is below zero, or beyond 2**63."""
    if isinstance(quantity, bool) or not isinstance(quantity, str | int):
        return None
    matched = _QUANTITY.fullmatch(str(quantity).strip())
    if matched is None:
        return None
    number, unit, exponent = matched.groups()
    factor = Decimal(10) ** int(exponent) if exponent else _FACTORS[unit]
    size = (Decimal(number) * factor).to_integral_value(ROUND_CEILING)
    return int(size) if size < 2**63 else None
