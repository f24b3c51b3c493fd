"""What a pod says to another beside a request that it forwards: one metadata entry.

The message and the caller's own metadata travel untouched. The entry names the concrete model that the first pod
resolved (an alias with weights must not be drawn twice), the generation and the revision of the registry at which it
is known, so that a pod whose view lags can wait for it instead of answering "unknown".

It is heeded from pods only, which show that they are pods (`mesh.endpoint.access`); from anybody else it means nothing.

A forwarded request is never forwarded again: whoever cannot serve it answers `NotHere`, and the first pod goes on.
The longest way of a request is therefore one hop at a time, from the pod that it came in at.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from urllib.parse import quote, unquote

from mesh.transport.base import Call, Metadata, StatusCode, TransportError
from mesh.wire import messages

FORWARD_METADATA = "hexcomb-forward"
NOT_HERE_METADATA = "hexcomb-not-here"
"""Trailer of a forwarded request that was not run; its value says why, in one word."""
ABSENT = "absent"
"""Such a word: the copy has gone; the pod may load the model again."""
HELD = "held"
"""Such a word: another pod has claimed the model."""
HOLDER_METADATA = "hexcomb-holder"
"""Trailer beside it: a pod that holds or loads the model, as far as the answering pod knows."""
GRPC_PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
"""gRPC's own count of a client's retries of one call."""

GRPC_TRACE = "grpc-trace-bin"
"""The one key of gRPC's own that is the caller's word: the span that its call belongs to. (grpcio, 1.85, sends it and
does not show it to the server's handlers, where it ends; callers behind grpcio use `traceparent`.)"""

_DIGITS_MAX = 9
"""Of a count; beyond it the client is not serious."""
_DROPPED = frozenset(
    {FORWARD_METADATA, messages.PEER_KEY_METADATA, messages.TENANT_METADATA, "user-agent", "te", "content-type"}
)


@dataclass(frozen=True, slots=True)
class Hop:
    """One forwarding."""

    from_pod: str
    model_id: str
    generation: int
    revision: int
    """Of the registry's view in which the first pod found the model."""
    load: bool
    """Load the model if it is not here; else only a copy that is here, or on its way, may answer."""
    insists: bool = False
    """Load it even if the store says that the first pod loads it: that pod does not."""
    space_wait_s: float = inf
    """How long a load may wait for room: what the request has left after pods that had none."""


def encode_hop(hop: Hop) -> str:
    """The entry's value: ASCII."""
    from_pod, model_id = quote(hop.from_pod, safe=""), quote(hop.model_id, safe="")
    space_wait_ms = "" if hop.space_wait_s == inf else int(hop.space_wait_s * 1000)
    return f"1;{from_pod};{model_id};{hop.generation};{hop.revision};{int(hop.load)};{int(hop.insists)};{space_wait_ms}"


def hop_of(call: Call) -> Hop | None:
    """The hop that brought a pod's call; None: there is none. Raises TransportError for one that cannot be read."""
    if not call.metadata:
        return None
    value = call.metadata_value(FORWARD_METADATA)
    if value is None:
        return None
    parts = value.split(";")
    try:
        version, from_pod, model_id, generation, revision, load, *more = parts
        if version != "1":
            raise ValueError(version)
        insists, space_wait_ms = more[:1] == ["1"], "".join(more[1:2])
        return Hop(
            unquote(from_pod),
            unquote(model_id),
            int(generation),
            int(revision),
            load == "1",
            insists,
            int(space_wait_ms) / 1000 if space_wait_ms else inf,
        )
    except ValueError:
        raise TransportError(
            StatusCode.INVALID_ARGUMENT,
            f"metadata {FORWARD_METADATA} is {value[:80]!r}, which no pod of this version writes",
        ) from None


def forwarded_metadata(call: Call, tenant: str, hop: Hop) -> Metadata:
    """The caller's metadata, the tenant that it was found to have, and the hop."""
    kept = tuple(
        (key, value)
        for key, value in call.metadata
        if key not in _DROPPED and not key.startswith(":") and (key == GRPC_TRACE or not key.startswith("grpc-"))
    )
    return (*kept, (messages.TENANT_METADATA, tenant), (FORWARD_METADATA, encode_hop(hop)))


def previous_attempts(call: Call) -> int:
    """How often the client has tried this very call before: gRPC's own count, or our client's."""
    if not call.metadata:
        return 0
    counts = (call.metadata_value(key) for key in (GRPC_PREVIOUS_ATTEMPTS, messages.PREVIOUS_ATTEMPTS_METADATA))
    return max((int(count[:_DIGITS_MAX]) for count in counts if count is not None and count.isdecimal()), default=0)


def not_here(why: str, message: str, holder: str = "", retry_after_s: float | None = 0.1) -> TransportError:
    """The answer to a forwarded request that this pod does not run. It has had no effect."""
    trailers: tuple[tuple[str, str], ...] = ((NOT_HERE_METADATA, why),)
    if holder:
        trailers = (*trailers, (HOLDER_METADATA, quote(holder, safe="")))
    return TransportError(StatusCode.UNAVAILABLE, message, retry_after_s, trailers)


def why_not_here(error: TransportError) -> tuple[str, str] | None:
    """(why, holder) of a `not_here` answer; None for any other."""
    found = dict(error.trailers)
    why = found.get(NOT_HERE_METADATA)
    return None if why is None else (why, unquote(found.get(HOLDER_METADATA, "")))
