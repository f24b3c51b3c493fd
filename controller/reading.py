"""Reading parts of an object that somebody else wrote, by path.

The API server has checked objects against a schema, but maybe not against ours: beside KServe its CRDs are in force,
older or newer than what we know, and annotations are free text. So nothing is taken on trust: a `Part` knows where in
the object it lies, hands out values of the type that was asked for, and what does not fit raises `InvalidField`, which
names the path, what was found and what is allowed. Whoever decides turns that into the object's status.

Absent and null are the same, as they are for the API server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

SHOWN_LENGTH_MAX = 80

Manifest = Mapping[str, Any]
"""An object as the API server's JSON. Never changed."""

NOTHING: Manifest = MappingProxyType({})


class InvalidField(Exception):
    """A field of an object cannot be what it is."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Part:
    """An object within an object. Every method raises InvalidField."""

    value: Manifest
    path: str

    def at(self, name: str) -> str:
        """Where a field of this part lies."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether the field is there, and not null."""
        return self.value.get(name) is not None

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        value = self.value.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be text")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], default: str = "") -> str:
        """One of a few words."""
        value = self.text(name, default)
        if value != default and value not in allowed:
            raise InvalidField(self.at(name), f"is {shown(value)}; allowed are {', '.join(allowed)}")
        return value

    def whole(self, name: str, low: int = 0, high: int = 2**31 - 1) -> int | None:
        """A whole number from `low` to `high`, or None where there is none."""
        value = self.value.get(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is not said."""
        value = self.value.get(name)
        if value is None:
            return False
        if type(value) is not bool:
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be true or false")
        return value

    def part(self, name: str) -> Part:
        """An object within this one; an empty one where there is none."""
        value = self.value.get(name)
        if value is None:
            return Part(NOTHING, self.at(name))
        if not isinstance(value, Mapping):
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be an object")
        return Part(value, self.at(name))

    def texts(self, name: str) -> dict[str, str]:
        """An object of texts, such as labels."""
        part = self.part(name)
        return {str(key): part.text(str(key)) for key in part.value}

    def parts(self, name: str) -> Iterator[Part]:
        """A list of objects."""
        value = self.value.get(name)
        if value is None:
            return
        if not isinstance(value, list | tuple):
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be a list")
        for index, item in enumerate(value):
            path = f"{self.at(name)}[{index}]"
            if not isinstance(item, Mapping):
                raise InvalidField(path, f"is {shown(item)}; it must be an object")
            yield Part(item, path)

    def words(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.value.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise InvalidField(self.at(name), f"is {shown(value)}; it must be a list of texts")
        return tuple(value)


def shown(value: object) -> str:
    """A value for a message: short, and on one line."""
    text = repr(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_LENGTH_MAX else text[: SHOWN_LENGTH_MAX - 3] + "..."
