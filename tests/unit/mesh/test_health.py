"""What a watcher of a pod's health hears, and when its stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mesh.endpoint.access import Access
from mesh.endpoint.health import HealthEndpoint
from mesh.transport.base import Call
from mesh.wire import messages
from mesh.wire.generated import health_pb2

STATES = health_pb2.HealthCheckResponse


async def asked() -> AsyncIterator[bytes]:
    yield health_pb2.HealthCheckRequest().SerializeToString()
    await asyncio.Event().wait()


def watch(health: HealthEndpoint) -> tuple[list[str], asyncio.Task[None]]:
    heard: list[str] = []

    async def listen() -> None:
        async for message in health.watch(Call(messages.HEALTH_WATCH.path, b""), asked()):
            status = STATES.FromString(message).status
            heard.append(STATES.ServingStatus.Name(status))

    return heard, asyncio.create_task(listen())


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_watcher_hears_each_state_once_and_its_stream_ends_with_the_pod() -> None:
    health = HealthEndpoint(Access())
    heard, listening = watch(health)
    await turns()
    health.set_serving(True)
    await turns()
    health.set_serving(False)  # it drains, for a while
    await turns()
    health.close()
    await listening
    assert heard == ["NOT_SERVING", "SERVING", "NOT_SERVING"]


async def test_a_stop_without_draining_is_told_before_the_stream_ends() -> None:
    health = HealthEndpoint(Access())
    health.set_serving(True)
    heard, listening = watch(health)
    await turns()
    health.close()
    await listening
    assert heard == ["SERVING", "NOT_SERVING"]
