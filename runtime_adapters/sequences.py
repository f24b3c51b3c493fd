"""The sequences that one copy of a model is in the middle of.

A request that goes on with a sequence which this copy did not begin would be answered from nothing: it is refused, and
its client begins anew. That happens when the copy was unloaded meanwhile, or so many sequences were begun after it and
never ended that it was given up.
"""

from __future__ import annotations

from runtime_adapters.base import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START, Array
from runtime_adapters.custom import SequencePosition
from runtime_adapters.errors import BadInput

OPEN_MAX = 10_000
"""Sequences that are not given up."""


class OpenSequences:
    """Of one copy, the least lately used first."""

    def __init__(self) -> None:
        self._open: dict[str, None] = {}

    def position(self, inputs: dict[str, Array]) -> SequencePosition:
        """What a request's controls say, which are taken out of its inputs. Raises BadInput."""
        name = inputs.pop(SEQUENCE_ID).item().decode(errors="replace")
        start, end = bool(inputs.pop(SEQUENCE_START).item()), bool(inputs.pop(SEQUENCE_END).item())
        if name not in self._open and not start:
            raise BadInput(
                f"sequence {name[:80]!r} has not begun on this copy of the model, or was given up; its first request "
                "must say sequence_start"
            )
        self._open.pop(name, None)
        if not end:
            self._open[name] = None
        if len(self._open) > OPEN_MAX:
            del self._open[next(iter(self._open))]
        return SequencePosition(name, start, end)
