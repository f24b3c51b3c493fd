"""Kubernetes' quantities, such as `512Mi`, `1.5Gi` or `100m`: as bytes, and in the one form that the API server keeps.

That form has the largest unit that leaves a whole number, powers of 1024 for what was said in such, else of 1000:
`1024Mi` is kept as `1Gi`, `1000m` as `1`, `0.5` as `500m`. A child that said it otherwise would never be as wanted.
"""

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


def canonical(quantity: object) -> object:
    """The same amount in the form that the API server keeps; what is no quantity, as it is."""
    if isinstance(quantity, bool) or not isinstance(quantity, str | int | float):
        return quantity
    matched = _QUANTITY.fullmatch(str(quantity).strip())
    if matched is None or matched[3] is not None:
        return quantity
    number, unit, _ = matched.groups()
    amount = Decimal(number) * _FACTORS[unit]
    if amount == 0:
        return "0"
    base, letters = (1024, "KMGTPE") if unit is not None and unit.endswith("i") else (1000, "kMGTPE")
    for power in range(len(letters), 0, -1):
        if amount % base**power == 0:
            return f"{int(amount / base**power)}{letters[power - 1]}{'i' if base == 1024 else ''}"
    if amount == amount.to_integral_value():
        return str(int(amount))
    return f"{int(amount * 1000)}m" if base == 1000 and (amount * 1000) % 1 == 0 else quantity
