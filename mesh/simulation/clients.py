"""Those who use the pool: they call one pod each time, with the operations of the real client, over simulated lines.

A call is tried once, at one pod, and no other: what a retry would hide, the checkers want to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mesh.client import operations
from mesh.client.errors import HexcombError
from mesh.client.operations import Operation
from mesh.simulation.machine import Machine
from mesh.simulation.network import CLIENTS, Network, SimulatedLine
from mesh.transport.base import LineBroken, PeerWays, Reply, ReplyWithTrailers, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from placement.policy.snapshot import ModelName

T = TypeVar("T")

_X = np.ones((1, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Failed:
    """A call without a useful answer."""

    status: StatusCode
    message: str
    broken: bool = False
    """The line broke: nobody answered."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request for a prediction, from beginning to end."""

    name: ModelName
    """As it was asked for: a model's or an alias's."""
    machine: str
    began_s: float
    ended_s: float
    deadline_s: float | None
    """When the client stopped waiting."""
    factor: float = 0.0
    """What the model multiplied by: tells whose artifact it was."""
    failed: Failed | None = None
    cold: bool = False


class Clients:
    """All clients. Belongs to the world."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._lines: dict[str, SimulatedLine] = {}
        self._bodies: dict[str, bytes] = {}

    async def infer(self, machine: Machine, name: ModelName, timeout_s: float | None) -> Answered:
        """Ask one pod for one prediction."""
        loop = self._network.loop
        body = self._bodies.get(name.id)
        if body is None:
            body = self._bodies[name.id] = operations.infer(name.id, {"x": _X}, (), "", "").body
        began_s = loop.time()
        deadline_s = None if timeout_s is None else began_s + timeout_s
        outcome = await self._call(machine, name.tenant, messages.MODEL_INFER.path, body, deadline_s)
        if isinstance(outcome, Failed):
            return Answered(name, machine.name, began_s, loop.time(), deadline_s, failed=outcome)
        cold = isinstance(outcome, ReplyWithTrailers)
        answer = outcome.body if isinstance(outcome, ReplyWithTrailers) else outcome
        message = inference_pb2.ModelInferResponse.FromString(answer)
        factor = float(np.frombuffer(message.raw_output_contents[0], np.float32)[0])
        return Answered(name, machine.name, began_s, loop.time(), deadline_s, factor, cold=cold)

    async def manage(self, machine: Machine, tenant: str, operation: Operation[T], timeout_s: float) -> T | Failed:
        """Carry out one operation of the management interface."""
        deadline_s = self._network.loop.time() + timeout_s
        outcome = await self._call(machine, tenant, operation.path, operation.body, deadline_s)
        if isinstance(outcome, Failed):
            return outcome
        try:
            return operation.decode(outcome.body if isinstance(outcome, ReplyWithTrailers) else outcome)
        except HexcombError as error:
            return Failed(error.status, error.message)

    async def _call(
        self, machine: Machine, tenant: str, path: str, body: bytes, deadline_s: float | None
    ) -> Reply | Failed:
        line = self._lines.get(machine.address)
        if line is None:
            line = self._lines[machine.address] = SimulatedLine(self._network, CLIENTS, PeerWays(machine.address))
        try:
            return await line.call(path, body, ((messages.TENANT_METADATA, tenant),), deadline_s)
        except LineBroken as broken:
            return Failed(StatusCode.UNAVAILABLE, str(broken), broken=True)
        except TransportError as error:
            return Failed(error.status, error.message)
