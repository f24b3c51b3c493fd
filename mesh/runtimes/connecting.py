"""Servers beside the pod, from the setting that names them to links that are ready, and the adapters on top of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.node_settings import CannotStart, read_file
from mesh.runtimes.channel import RuntimeSaid, RuntimeSilent
from mesh.runtimes.config import InvalidRuntimes, RuntimeConfig, parse_runtimes
from mesh.runtimes.repository import RepositoryLink
from mesh.runtimes.spi import SpiLink
from mesh.settings import Settings
from mesh.wire.errors import InvalidMessage
from runtime_adapters.external import ExternalAdapter, RuntimeLink

log = logging.getLogger("hexcomb.runtimes")

_ASK_AGAIN_S = 0.5


class Link(RuntimeLink, Protocol):
    """What a pod does with a server beside having it run models."""

    @property
    def capacity_bytes(self) -> int:
        """Bytes of models that it may hold."""

    @property
    def methods(self) -> frozenset[str]:
        """Methods of its own that name a model, by path."""

    def connect(self) -> bool:
        """Whether it is ready, and empty. Raises RuntimeSilent, RuntimeSaid, InvalidMessage."""

    def is_there(self) -> bool:
        """Whether it answers."""

    def lost(self) -> None:
        """It has lost its models."""

    def tidy(self) -> None:
        """Have it let go of what failed loads may have left. Raises LoadFailed."""

    def close(self) -> None:
        """Hang up."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A server, and the formats that it loads."""

    link: Link
    adapters: tuple[ExternalAdapter, ...]


NOBODY: tuple[Beside, ...] = ()


def adapters_of(beside: Sequence[Beside]) -> Mapping[str, ExternalAdapter]:
    """By format."""
    return {adapter.format: adapter for server in beside for adapter in server.adapters}


async def connect_runtimes(settings: Settings) -> tuple[Beside, ...]:
    """The servers that the settings name, once all of them are ready. Raises CannotStart."""
    if settings.runtimes is None:
        return NOBODY
    try:
        found = parse_runtimes(read_file(settings.runtimes, "runtimes"))
    except InvalidRuntimes as error:
        raise CannotStart(f"runtimes: {settings.runtimes}: {error}") from error
    return tuple(await asyncio.gather(*(_connected(name, config) for name, config in found.items())))


async def _connected(name: str, config: RuntimeConfig) -> Beside:
    link: Link = SpiLink(name, config) if config.kind == "modelmesh" else RepositoryLink(name, config)
    began_s, why = time.monotonic(), "it says that it is starting"
    while True:
        try:
            if await asyncio.to_thread(link.connect):
                break
        except (RuntimeSaid, RuntimeSilent, InvalidMessage) as error:
            why = str(error)
        except OSError as error:
            raise CannotStart(f"runtimes: {name}: {error}") from error
        if time.monotonic() - began_s > config.start_timeout_s:
            raise CannotStart(f"runtimes: {name} at {config.address} was not ready within start_timeout_s: {why}")
        await asyncio.sleep(_ASK_AGAIN_S)
    if not link.capacity_bytes:
        raise CannotStart(f'runtimes: {name} names no capacity; give it one, as in `"capacity": "4GiB"`')
    log.info("runtime %s: %s at %s, %d MiB for models", name, link.version, config.address, link.capacity_bytes >> 20)
    formats = (name, *config.formats)
    return Beside(link, tuple(ExternalAdapter(each, link, confined=config.confined) for each in formats))
