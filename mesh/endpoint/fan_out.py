"""One call for several models: ModelMesh's `mm-required: all`.

The model's header is sent once for each model, and each gets the same message. The answers are joined as protobuf joins
messages: what repeats in one stands there once for each model, in the order of the headers; of anything else the last
word counts. One error is the error of all.

Without `mm-required: all` a repeated header is one name: the last.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mesh.transport.base import Call, Metadata, Reply, ReplyWithTrailers, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage

REQUIRED_METADATA = "mm-required"
PARALLEL_MAX = 4
"""Models that are asked at a time, as in ModelMesh: one client's call is not to be worth fifty."""
MODELS_MAX = 64

_NAMING = frozenset(
    f"{key}{form}" for key in (messages.MODEL_ID_METADATA, messages.VMODEL_ID_METADATA) for form in ("", "-bin")
)


def fanning_out(handler: UnaryHandler) -> UnaryHandler:
    """The handler, asked once for each model that must answer."""

    async def answer(call: Call) -> Reply:
        if not call.metadata or call.metadata_value(REQUIRED_METADATA) != "all":
            return await handler(call)
        names = [entry for entry in call.metadata if entry[0] in _NAMING]
        if len(names) < 2:
            return await handler(call)
        if len(names) > MODELS_MAX:
            raise InvalidMessage(f"{len(names)} models are named; {MODELS_MAX} is the most that one call may ask")
        return await _ask_all(handler, call, tuple(names))

    return answer


async def _ask_all(handler: UnaryHandler, call: Call, names: Metadata) -> Reply:
    rest = tuple(entry for entry in call.metadata if entry[0] not in _NAMING and entry[0] != REQUIRED_METADATA)
    gate = asyncio.Semaphore(PARALLEL_MAX)

    async def ask(name: tuple[str, str | bytes]) -> Reply:
        async with gate:
            return await handler(replace(call, metadata=(*rest, name)))

    asked = [asyncio.ensure_future(ask(name)) for name in names]
    try:
        replies = await asyncio.gather(*asked)
    except BaseException:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        raise
    bodies = [reply.body if isinstance(reply, ReplyWithTrailers) else reply for reply in replies]
    trailers = [pair for reply in replies if isinstance(reply, ReplyWithTrailers) for pair in reply.trailers]
    joined = b"".join(bodies)
    return ReplyWithTrailers(joined, tuple(dict.fromkeys(trailers))) if trailers else joined
