"""Servers beside the pod are asked every second whether they are there.

One that is not has lost its models: their copies leave, and requests load them again, here when it is back, or on
another pod. When it is back it is emptied first, as at the start, and what failed for its absence is forgiven.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from mesh.resident import Resident
from mesh.runtimes.channel import RuntimeSaid, RuntimeSilent
from mesh.runtimes.connecting import Beside, Link
from mesh.wire.errors import InvalidMessage
from runtime_adapters.errors import LoadFailed
from runtime_adapters.external import ExternalModel

log = logging.getLogger("hexcomb.runtimes")

LOOK_EVERY_S = 1.0
LOST_AFTER = 2
"""Looks in a row without an answer."""


class Copies(Protocol):
    """What the watch does with loaded copies."""

    def every_resident(self) -> Iterable[Resident]:
        """All loaded copies."""

    def crashed(self, resident: Resident, message: str) -> None:
        """A copy is gone."""


class RuntimeWatch:
    """Belongs to the event loop."""

    def __init__(self, beside: Sequence[Beside], copies: Copies, back: Callable[[frozenset[str]], None]) -> None:
        """`back`: a server that loads these formats is there again."""
        self._beside = beside
        self._copies = copies
        self._back = back
        self._unanswered: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def is_away(self, name: str) -> bool:
        """Whether a server has lost its models and is not back."""
        return self._unanswered.get(name, 0) >= LOST_AFTER

    def start(self) -> None:
        """Begin to look."""
        if self._beside:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            try:
                await self.turn()
            except Exception:
                log.exception("looking after the runtimes failed")
            await asyncio.sleep(LOOK_EVERY_S)

    async def turn(self) -> None:
        """Ask each once."""
        for server in self._beside:
            link = server.link
            if self.is_away(link.name):
                await self._welcome(server)
            elif await asyncio.to_thread(link.is_there):
                self._unanswered[link.name] = 0
                with contextlib.suppress(LoadFailed):  # tried again at the next look
                    await asyncio.to_thread(link.tidy)
            else:
                self._unanswered[link.name] = self._unanswered.get(link.name, 0) + 1
                if self.is_away(link.name):
                    self._lost(link)

    def _lost(self, link: Link) -> None:
        log.error("runtime %s does not answer: its models are lost", link.name)
        link.lost()
        for resident in list(self._copies.every_resident()):
            model = resident.model
            if isinstance(model, ExternalModel) and model.runtime == link.name and not resident.died:
                resident.died = True
                self._copies.crashed(resident, f"runtime {link.name!r} does not answer")

    async def _welcome(self, server: Beside) -> None:
        try:
            if not await asyncio.to_thread(server.link.connect):
                return
        except (RuntimeSaid, RuntimeSilent, InvalidMessage, OSError) as error:
            log.debug("runtime %s is not back: %s", server.link.name, error)
            return
        self._unanswered[server.link.name] = 0
        log.warning("runtime %s is back: %s", server.link.name, server.link.version)
        self._back(frozenset(adapter.format for adapter in server.adapters))
