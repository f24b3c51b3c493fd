"""Asking other pods what only they know, for people who wait: all at once, for two seconds at most.

A pod that does not answer must cost its line in a table, not the table. So every question has the same short limit,
pods that are known not to answer are not asked, and what comes back for each is its answer or why there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.overview import Overview
from mesh.transport.base import LineBroken, Metadata, ReplyWithTrailers, TransportError
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.messages import Method, Request, Response

TIMEOUT_S = 2.0
GRACE_S = 0.2
"""For a line that does not keep its own deadline."""


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Why a pod said nothing."""

    why: str


class Asking:
    """Asks the pods of one pool. Belongs to the event loop."""

    def __init__(self, overview: Overview, clock: Callable[[], float]) -> None:
        self._overview = overview
        self._clock = clock

    async def ask_each(
        self, requests: Mapping[str, Request], method: Method[Request, Response], tenant: str, revision: int = 0
    ) -> dict[str, Response | NoAnswer]:
        """What each of these pods says to its question. `revision`: of the store, that the pods should know of."""
        answers = await asyncio.gather(
            *(self._answer_of(pod, method, request, tenant, revision) for pod, request in requests.items())
        )
        return dict(zip(requests, answers, strict=True))

    async def _answer_of(
        self, pod: str, method: Method[Request, Response], request: Request, tenant: str, revision: int
    ) -> Response | NoAnswer:
        why = self._overview.why_unreachable(pod)
        if why:
            return NoAnswer(why)
        try:
            return await self.ask(pod, method, request, tenant, revision)
        except LineBroken as broken:
            return NoAnswer(f"it went away ({broken})")
        except TransportError as error:
            return NoAnswer(str(error))
        except TimeoutError:
            return NoAnswer(f"no answer within {TIMEOUT_S:g} s")

    async def ask(
        self, pod: str, method: Method[Request, Response], request: Request, tenant: str, revision: int = 0
    ) -> Response:
        """What one pod says. Raises LineBroken, TransportError, TimeoutError."""
        metadata: Metadata = ((messages.TENANT_METADATA, tenant),)
        if revision:
            metadata = (*metadata, (messages.REVISION_METADATA, str(revision)))
        sent, deadline_s = request.SerializeToString(), self._clock() + TIMEOUT_S
        async with asyncio.timeout(TIMEOUT_S + GRACE_S):
            reply = await self._overview.call(pod, method.path, sent, metadata, deadline_s)
        body = reply.body if isinstance(reply, ReplyWithTrailers) else reply
        try:
            return messages.parse_response(method, body)
        except InvalidMessage as error:
            raise LineBroken(f"pod {pod!r}: {error}", sent=True) from error
