"""Reading what one has written, whichever pod one asks.

A write is answered when the pod that took it has it in its view; the views of other pods follow within milliseconds,
or seconds when one of them is stalled. A client that goes round over the pods could be told by the next one that the
model which it has just registered is unknown. So the answer to a write names the revision of the store that has it,
the client sends that with its next calls, and a pod whose view is not there yet waits for it, for a moment.

Deliberately absent: clients that do not send it. They see what a pod knows.
"""

from __future__ import annotations

from mesh.transport.base import Call, Reply, ReplyWithTrailers, UnaryHandler
from mesh.wire.messages import REVISION_METADATA
from placement.registry import Registry

WAIT_MAX_S = 1.0
"""A pod that is behind for longer answers from what it knows."""

_DIGITS_MAX = 19
"""Of a revision: 63 bits."""


def written(body: bytes, registry: Registry) -> Reply:
    """The answer to a write, which this pod's view has by now."""
    return ReplyWithTrailers(body, ((REVISION_METADATA, str(registry.view.revision)),))


def revision_seen(call: Call) -> int:
    """The revision that the client has seen; 0: it does not say, or not in a number that a revision may have."""
    said = call.metadata_value(REVISION_METADATA)
    return int(said) if said is not None and said.isdecimal() and len(said) <= _DIGITS_MAX else 0


def catching_up(handler: UnaryHandler, registry: Registry) -> UnaryHandler:
    """The handler, for calls that may be ahead of this pod's view."""

    async def caught_up(call: Call) -> Reply:
        if call.metadata:
            revision = revision_seen(call)
            if revision > registry.view.revision:
                await registry.wait_revision(revision, WAIT_MAX_S)
        return await handler(call)

    return caught_up
