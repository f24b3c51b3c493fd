"""A pod's transport with nothing behind it: the floor under every request. Prints its port; ends on SIGTERM.

python -m tests.bench.echo_server native|grpcio [PORT]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import uvloop

from mesh.transport.base import Call, ListenAddress, Reply, Routes, TransportLimits
from mesh.transport.choosing import Choice
from mesh.wire import messages
from mesh.world import World


async def _echo(call: Call) -> Reply:
    return bytes(call.body)


def _echo_at_once(calls: Sequence[Call]) -> Sequence[Reply]:
    return [bytes(call.body) for call in calls]


async def _serve(name: str, port: int) -> None:
    path = messages.MODEL_INFER.path
    routes = Routes({path: _echo}, quick={path: _echo_at_once})
    choice = Choice("native" if name == "native" else "grpcio", "as was asked for")
    transport = World().listen(choice, routes, [ListenAddress(f"127.0.0.1:{port}")], TransportLimits(), None)
    port = await transport.start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0))
