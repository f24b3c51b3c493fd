"""What a case of the suite is.

A case is a test with a `case` mark: an id that stays the same for good, how much it weighs, and where the protocol says
so. Its docstring is what the protocol says, in our words. Parameters of a test are cases of their own (`id:parameter`).

* `must`: the protocol's text says so, or a client cannot work without it.
* `should`: the text leaves it open, and servers that people use agree, or a client would be misled otherwise.
* `extension`: said by the text of an extension; holds for servers that advertise it, or do it, and for no others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NoReturn

import pytest


class Severity(StrEnum):
    """How much a deviation weighs."""

    MUST = "must"
    SHOULD = "should"
    EXTENSION = "extension"


MUST, SHOULD, EXTENSION = Severity.MUST, Severity.SHOULD, Severity.EXTENSION


def case(case_id: str, severity: Severity, section: str) -> pytest.MarkDecorator:
    """The mark of a case. `section`: of the protocol's text, or of the extension's."""
    return pytest.mark.case(id=case_id, severity=severity, section=section)


def not_applicable(why: str) -> NoReturn:
    """The case asks what this server does not claim, or has no model for."""
    pytest.skip(why)


def id_of(item: pytest.Item) -> str:
    """The case's id, with its parameter; empty: the item is no case."""
    mark = item.get_closest_marker("case")
    if mark is None:
        return ""
    callspec: Any = getattr(item, "callspec", None)
    return str(mark.kwargs["id"]) + (f":{callspec.id}" if callspec is not None else "")
