"""The pod's transport with nothing behind it: the floor under every request. Prints its port; ends on SIGTERM."""

from __future__ import annotations

import asyncio

import uvloop

from mesh.transport.base import Call, ListenAddress, Reply, Routes
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.wire import messages


async def _echo(call: Call) -> Reply:
    return bytes(call.body)


async def _serve() -> None:
    routes = Routes({messages.MODEL_INFER.path: _echo})
    transport = GrpcioTransport(routes, [ListenAddress("127.0.0.1:0")])
    port = await transport.start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())
