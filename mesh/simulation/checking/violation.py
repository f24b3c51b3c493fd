"""What a checker says when a promise is broken."""

from __future__ import annotations


class Violation(Exception):
    """A promise of the architecture does not hold. `promise` names it in a few words; the message tells the story."""

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise
