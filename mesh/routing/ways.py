"""How requests go to a copy that serves elsewhere: worked out once for all that are alike, while nothing changes.

Who answers a request follows from the view of the pool, from which pods answer and from which are slow; what goes with
it follows from its metadata and its model. None of that changes between two requests of a busy client, and some of it
twice a second for each pod. So *ways* are kept while these are the very objects that they were made from, and all are
dropped together once one is another: an old view must not stay in memory for a model that nobody asks for any more.
What does change with every request, the choice between two copies, is made each time.

Deliberately absent: requests for which anything is out of the ordinary (`mesh.routing.router`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from mesh.transport.base import Metadata
from placement.policy.routing import choose_copy
from placement.policy.snapshot import Copy, ModelName, PoolView
from placement.records import ModelRecord

WAYS_MAX = 4096
"""Kinds of requests that are remembered: what their clients send with them, times their models."""
METADATA_BYTES_MAX = 1024
"""What goes with requests of a kind that is remembered: some 4 MiB in all, whatever clients send."""


@dataclass(slots=True)
class Way:
    """Of the requests of one kind, to the copies of one model."""

    record: ModelRecord
    """The registered generation."""
    name: ModelName
    view: PoolView
    copies: tuple[Copy, ...]
    """Those that answer; at least one."""
    generation: int
    """Theirs."""
    metadata: Metadata
    """What goes with each request."""
    owner_trailers: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """What says to the client that this pod has answered, by pod."""

    def pod(self, in_flight: Mapping[str, int], ordinal: int) -> str:
        """Who is asked this time."""
        if len(self.copies) == 1:
            return self.copies[0].pod
        return choose_copy(self.view, self.name, self.copies, in_flight, ordinal)

    def incarnation_of(self, pod: str) -> str:
        """Of a pod, when the way was made."""
        known = self.view.pods.get(pod)
        return "" if known is None else known.incarnation


class Ways:
    """Those of a pod, by kind of request and model. Belongs to the event loop."""

    def __init__(self) -> None:
        self._ways: dict[tuple[object, str], Way] = {}
        self._view: PoolView | None = None
        self._down: Container[str] = ()
        self._slow: Container[str] = ()

    def get(
        self, kind: object, record: ModelRecord, view: PoolView, down: Container[str], slow: Container[str]
    ) -> Way | None:
        """The one that was made for such requests from all this; None: there is none yet."""
        if view is not self._view or down is not self._down or slow is not self._slow:
            self._ways.clear()
            self._view, self._down, self._slow = view, down, slow
        way = self._ways.get((kind, record.id))
        return way if way is not None and way.record is record else None

    def keep(self, kind: object, way: Way) -> None:
        """This is the way for such requests now, made from what `get` was given last."""
        if sum(len(key) + len(value) for key, value in way.metadata) > METADATA_BYTES_MAX:
            return
        if len(self._ways) >= WAYS_MAX:
            self._ways.clear()
        self._ways[kind, way.name.id] = way
