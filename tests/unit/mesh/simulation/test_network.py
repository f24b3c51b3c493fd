"""The simulated network, seen through the transport seam."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from mesh.simulation.chance import stream
from mesh.simulation.network import CLIENTS, Network, NetworkConditions, SimulatedLine, SimulatedTransport
from mesh.simulation.virtual_loop import Process, VirtualLoop
from mesh.transport.base import Call, LineBroken, PeerWays, Reply, Routes, StatusCode, TransportError, TransportLimits

CONDITIONS = NetworkConditions(slow_share=0.0)
PATH = "/test/Echo"


class Server:
    """A process that listens, and answers after as many seconds as the message says."""

    def __init__(self, network: Network) -> None:
        self.process = Process(network.loop, "server")
        self.cancelled = 0
        self.transport = SimulatedTransport(
            network, self.process, "server", "server:1", Routes({PATH: self.echo}), TransportLimits()
        )
        network.listen(self.transport)

    async def echo(self, call: Call) -> Reply:
        try:
            await asyncio.sleep(float(bytes(call.body)))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"done"


Story = Callable[[Network, Server, SimulatedLine], Awaitable[None]]
Play = Callable[[Story], None]


@pytest.fixture
def play() -> Iterator[Play]:
    loop = VirtualLoop()
    network = Network(loop, stream(1, "network"), CONDITIONS)

    def run(story: Story) -> None:
        async def main() -> None:
            await story(network, Server(network), SimulatedLine(network, "caller", PeerWays("server:1")))

        loop.run(main())

    yield run
    loop.discard()


def test_a_call_is_answered_after_its_way_there_and_back(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        assert await line.call(PATH, b"1", (), None) == b"done"
        assert 1 < network.loop.time() < 1.01

    play(story)


def test_nobody_there_is_refused_at_once(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        with pytest.raises(LineBroken) as broken:
            await SimulatedLine(network, "caller", PeerWays("nowhere:1")).call(PATH, b"1", (), None)
        assert not broken.value.sent
        assert network.loop.time() < 0.1

    play(story)


def test_the_line_to_a_process_that_dies_is_reset(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        calling = asyncio.create_task(line.call(PATH, b"10", (), None))
        await asyncio.sleep(1)
        server.process.kill()
        network.machine_died("server")
        with pytest.raises(LineBroken) as broken:
            await calling
        assert broken.value.sent
        assert network.loop.time() < 1.1

    play(story)


def test_a_frozen_process_says_nothing_until_the_deadline(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        server.process.freeze()
        with pytest.raises(TransportError) as error:
            await line.call(PATH, b"0", (), network.loop.time() + 3)
        assert error.value.status is StatusCode.DEADLINE_EXCEEDED
        assert network.loop.time() == 3

    play(story)


def test_a_cut_way_is_silent_until_the_keep_alive_gives_up(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        network.cut("caller", "server")
        with pytest.raises(LineBroken) as broken:
            await line.call(PATH, b"0", (), None)
        assert broken.value.sent
        assert network.loop.time() >= CONDITIONS.keepalive_s
        network.mend("caller", "server")
        assert await line.call(PATH, b"0", (), None) == b"done"

    play(story)


def test_a_way_that_is_cut_backwards_loses_the_answer_of_what_was_done(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        network.cut("server", "caller")
        with pytest.raises(LineBroken):
            await line.call(PATH, b"0", (), None)
        assert server.transport.calls_in_flight == 0
        assert server.cancelled == 0

    play(story)


def test_a_caller_that_leaves_cancels_the_call_at_the_peer(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        calling = asyncio.create_task(line.call(PATH, b"10", (), None))
        await asyncio.sleep(1)
        calling.cancel()
        await asyncio.sleep(0.1)
        assert server.cancelled == 1
        assert server.transport.calls_in_flight == 0

    play(story)


def test_a_deadline_ends_the_call_on_both_sides(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        with pytest.raises(TransportError):
            await line.call(PATH, b"10", (), network.loop.time() + 1)
        await asyncio.sleep(0.1)
        assert server.cancelled == 1

    play(story)


def test_a_transport_that_stops_finishes_what_runs_and_refuses_what_comes(play: Play) -> None:
    async def story(network: Network, server: Server, line: SimulatedLine) -> None:
        calling = asyncio.create_task(line.call(PATH, b"2", (), None))
        await asyncio.sleep(1)
        stopping = server.process.start(server.transport.stop(10))
        await asyncio.sleep(0.1)
        with pytest.raises(TransportError) as error:
            await SimulatedLine(network, CLIENTS, PeerWays("server:1")).call(PATH, b"0", (), None)
        assert error.value.status is StatusCode.UNAVAILABLE
        assert await calling == b"done"
        await asyncio.sleep(0.1)
        assert stopping.done()
        with pytest.raises(LineBroken):
            await line.call(PATH, b"0", (), None)

    play(story)
