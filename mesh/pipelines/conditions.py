"""Conditions of steps: does a path exist in a JSON document? The part of gjson's language that KServe's graphs use.

KServe's router asks gjson whether a path exists in the body that a step would get (Switch), or that the step before
gave (Sequence). So a condition is a path:

    instances.0.kind            keys and indexes; `\\.` for a dot within a key; `*` and `?` in keys
    predictions.#               the number of elements: exists for any array
    predictions.#(=="dog")      the first element that compares: == = != < <= > >= % (like) !% (unlike)
    rows.#(label=="a")#.score   all that compare, and of each its score (an array, so it exists even if it is empty)
    [@this].#(kind=="credit")   the document itself, compared: an array of what the paths in it give

As in gjson, numbers compare with numbers, texts with texts, a value may stand without quotes, and nothing compares
with null, arrays and objects. Where gjson reads a value that is no number as 0, nothing is equal here. Refused where
a condition is read, in place of never existing: modifiers other than `@this`, `{...}`, `!literals`, `..` and `~`.

A document is what `json.loads` gives; arrays of NumPy may stand for flat lists, and bytes for texts, so that a tensor
is looked at where it lies.

Deliberately absent: the value. Only whether there is one is ever asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

LENGTH_MAX = 1024
"""Characters of a condition."""
NESTED_MAX = 16
"""Queries and arrays of paths in one another."""
LOOKS_MAX = 50_000
"""Values that the conditions of one request may look at: it is done on the event loop, and takes some 50 ms."""

_OPERATORS = ("!%", "!=", "<=", ">=", "==", "=", "<", ">", "%")
_ABSENT: Final = object()
_Pattern = tuple[str, ...]
"""One entry for each character; wildcards are those two."""
_ANY, _ONE = "any", "one"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class InvalidCondition(ValueError):
    """The text is no condition; the message says what stands where."""


class TooMuchToLookAt(Exception):
    """The document has more values for this condition than are looked at."""


class Looks:
    """What the conditions of one request may still look at."""

    def __init__(self) -> None:
        self._left = LOOKS_MAX

    def spend(self, looks: int) -> None:
        """Raises TooMuchToLookAt."""
        self._left -= looks
        if self._left < 0:
            raise TooMuchToLookAt(f"the request's conditions would have to look at more than {LOOKS_MAX} values")


@dataclass(frozen=True, slots=True)
class _Key:
    text: str
    """Without escapes."""
    pattern: _Pattern | None = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class _Count:
    """`#`: each element, if something follows a dot; else how many there are."""


@dataclass(frozen=True, slots=True)
class _Query:
    path: tuple[_Part, ...]
    operator: str
    value: str
    every: bool


@dataclass(frozen=True, slots=True)
class _Paths:
    """`[a,b]`: an array of what these give."""

    paths: tuple[tuple[_Part, ...], ...]


@dataclass(frozen=True, slots=True)
class _This:
    """`@this`."""


@dataclass(frozen=True, slots=True)
class _Part:
    step: _Key | _Count | _Query | _Paths | _This
    piped: bool = False
    """It follows `|`: it is for the array that stands before it, not for each of its elements."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition, read."""

    text: str
    parts: tuple[_Part, ...]

    def holds(self, document: Any, looks: Looks) -> bool:
        """Whether the path exists. Raises TooMuchToLookAt."""
        return _Look(looks).follow(self.parts, document) is not _ABSENT


def parse_condition(text: str) -> Condition:
    """Raises InvalidCondition."""
    if not text.strip():
        raise InvalidCondition("is empty, so it would never hold; `@this` always does")
    if len(text) > LENGTH_MAX:
        raise InvalidCondition(f"has {len(text)} characters; at most {LENGTH_MAX} are allowed")
    return Condition(text, _Reader(text).path(0))


class _Reader:
    """Reads one path."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._at = 0

    def path(self, depth: int) -> tuple[_Part, ...]:
        if depth > NESTED_MAX:
            raise InvalidCondition(f"has more than {NESTED_MAX} queries or arrays in one another")
        parts: list[_Part] = []
        piped = False
        while True:
            parts.append(_Part(self._step(depth), piped))
            if self._at == len(self._text):
                return tuple(parts)
            separator = self._text[self._at]
            if separator not in ".|":
                raise self._error("a dot or | was expected")
            piped = separator == "|"
            self._at += 1

    def _step(self, depth: int) -> _Key | _Count | _Query | _Paths | _This:
        here = self._text[self._at : self._at + 1]
        if here == "":
            raise self._error("a key was expected")
        if here == "@":
            end = self._end_of_word()
            if self._text[self._at : end] != "@this":
                raise self._error("the only modifier that is read is @this")
            self._at = end
            return _This()
        if here == "[":
            inner = self._enclosed("[", "]")
            return _Paths(tuple(_Reader(part).path(depth + 1) for part in _split(inner)))
        if here in "{!~":
            raise self._error(f"{here!r} is not read")
        if here != "#":
            return self._key()
        self._at += 1
        opening = self._text[self._at : self._at + 1]
        if opening not in ("(", "["):
            return _Count()
        inner = self._enclosed(opening, ")" if opening == "(" else "]")
        every = self._text.startswith("#", self._at)
        self._at += every
        return self._query(inner, every, depth)

    def _query(self, text: str, every: bool, depth: int) -> _Query:
        text = text.strip()
        for at in _outside(text):
            operator = next((each for each in _OPERATORS if text.startswith(each, at)), None)
            if operator is None:
                continue
            path, value = text[:at].strip(), text[at + len(operator) :].strip()
            if not value:
                raise InvalidCondition(f"the query {text!r} compares with nothing")
            if value.startswith("~"):
                raise InvalidCondition(f"the query {text!r} compares with {value!r}, which is not read")
            compared = "=" if operator == "==" else operator
            return _Query(_Reader(path).path(depth + 1) if path else (), compared, _unquoted(value), every)
        return _Query(_Reader(text).path(depth + 1) if text else (), "", "", every)

    def _key(self) -> _Key:
        begin = self._at
        while self._at < len(self._text) and self._text[self._at] not in ".|":
            self._at += 2 if self._text[self._at] == "\\" else 1
        self._at = min(self._at, len(self._text))
        pattern = _pattern(self._text[begin : self._at])
        if not pattern:
            raise self._error("a key was expected")
        if _ANY in pattern or _ONE in pattern:
            return _Key("", pattern)
        key = "".join(pattern)
        return _Key(key, None, int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else None)

    def _end_of_word(self) -> int:
        end = self._at
        while end < len(self._text) and self._text[end] not in ".|":
            end += 1
        return end

    def _enclosed(self, opening: str, closing: str) -> str:
        """What stands between a bracket and its other half; reading goes on after that."""
        depth, begin = 0, self._at
        for at in _unquoted_places(self._text, begin):
            depth += (self._text[at] == opening) - (self._text[at] == closing)
            if depth == 0:
                self._at = at + 1
                return self._text[begin + 1 : at]
        raise self._error(f"{opening!r} has no {closing!r}")

    def _error(self, what: str) -> InvalidCondition:
        return InvalidCondition(f"{self._text[:80]!r} at character {self._at}: {what}")


def _unquoted_places(text: str, begin: int) -> Iterator[int]:
    """Positions outside of quotes, without what a backslash stands before."""
    quoted, escaped = False, False
    for at in range(begin, len(text)):
        char = text[at]
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif not quoted:
            yield at


def _outside(text: str) -> Iterator[int]:
    """Positions outside of quotes and brackets."""
    depth = 0
    for at in _unquoted_places(text, 0):
        depth += (text[at] in "([") - (text[at] in ")]")
        if depth == 0 and text[at] not in ")]":
            yield at


def _split(text: str) -> list[str]:
    commas = [at for at in _outside(text) if text[at] == ","]
    begins, ends = [0, *(at + 1 for at in commas)], [*commas, len(text)]
    return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _pattern(text: str) -> _Pattern:
    return tuple(
        _ANY if each == "*" else _ONE if each == "?" else each[-1] for each in re.findall(r"\\.|.", text, re.DOTALL)
    )


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    return value


class _Look:
    """One look at one document."""

    def __init__(self, looks: Looks) -> None:
        self._spend = looks.spend

    def follow(self, parts: tuple[_Part, ...], value: Any) -> Any:
        """What stands at the path, or _ABSENT."""
        for at, part in enumerate(parts):
            self._spend(1)
            match part.step:
                case _This():
                    continue
                case _Key():
                    value = self._member(part.step, value)
                case _Paths(paths):
                    found = [self.follow(path, value) for path in paths]
                    value = [each for each in found if each is not _ABSENT]
                case _Count() | _Query():
                    if not _is_array(value):
                        return _ABSENT
                    step = part.step
                    if isinstance(step, _Query) and not step.every:
                        value = next((each for each in value if self._fits(step, each)), _ABSENT)
                    else:
                        rest = parts[at + 1 :]
                        after = next((i for i, each in enumerate(rest) if each.piped), len(rest))
                        value = self._of_each(step, rest[:after], value)
                        return self.follow(rest[after:], value)
            if value is _ABSENT:
                return _ABSENT
        return value

    def _of_each(self, step: _Count | _Query, rest: tuple[_Part, ...], array: Sequence[Any]) -> Any:
        if isinstance(step, _Count) and not rest:
            return len(array)
        kept = (each for each in array if isinstance(step, _Count) or self._fits(step, each))
        found = (self.follow(rest, each) for each in kept) if rest else kept
        return [each for each in found if each is not _ABSENT]

    def _fits(self, query: _Query, element: Any) -> bool:
        self._spend(1)
        value = self.follow(query.path, element)
        return value is not _ABSENT and (not query.operator or self._compares(value, query.operator, query.value))

    def _member(self, key: _Key, value: Any) -> Any:
        if isinstance(value, Mapping):
            if key.pattern is not None:
                return next((value[name] for name in value if self._is_like(name, key.pattern)), _ABSENT)
            return value.get(key.text, _ABSENT)
        if key.index is not None and _is_array(value) and key.index < len(value):
            return value[key.index]
        return _ABSENT

    def _compares(self, value: Any, operator: str, with_text: str) -> bool:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bytes):
            if operator in ("%", "!%"):
                self._spend(len(value))
            else:  # what comes after decides nothing; a character takes at most four bytes
                value = value[: 4 * (len(with_text) + 1)]
            value = value.decode(errors="replace")
        if isinstance(value, str):
            if operator in ("%", "!%"):
                return self._is_like(value, _pattern(with_text)) is (operator == "%")
            return _ordered(value, operator, with_text)
        if operator in ("%", "!%"):
            return False
        if isinstance(value, bool):
            if with_text in ("true", "false"):
                return _ordered(value, operator, with_text == "true")
            return operator == "!="
        if isinstance(value, int | float):
            if _NUMBER.fullmatch(with_text):
                return _ordered(value, operator, float(with_text))
            return operator == "!="
        return False

    def _is_like(self, text: str, pattern: _Pattern) -> bool:
        """Whether a text is like a pattern, which takes as many looks as the two are long, multiplied."""
        self._spend(len(text) * len(pattern))
        at = place = 0
        back = again = -1
        while place < len(text):
            wanted = pattern[at] if at < len(pattern) else ""
            if wanted == _ANY:
                back, again = at, place
                at += 1
            elif wanted in (_ONE, text[place]):
                at += 1
                place += 1
            elif back >= 0:
                again += 1
                at, place = back + 1, again
            else:
                return False
        return all(each == _ANY for each in pattern[at:])


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _ordered(left: Any, operator: str, right: Any) -> bool:
    match operator:
        case "=":
            return bool(left == right)
        case "!=":
            return bool(left != right)
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
    return bool(left >= right)
