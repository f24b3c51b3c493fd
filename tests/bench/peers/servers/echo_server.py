"""The ceiling: the transport that a pod serves on, with a handler that answers its request."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from mesh.transport.base import Call, ListenAddress, Reply, Routes
from mesh.transport.grpcio_transport import GrpcioTransport
from mesh.wire import messages


async def _echo(call: Call) -> Reply:
    return bytes(call.body)


async def _serve(port: int) -> None:
    routes = Routes({messages.MODEL_INFER.path: _echo})
    transport = GrpcioTransport(routes, [ListenAddress(f"127.0.0.1:{port}")])
    await transport.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
