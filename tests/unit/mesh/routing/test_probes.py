"""Peers are asked, and what they answer decides who is in the routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.routing.links import Links
from mesh.routing.probes import Probes
from mesh.routing.reachability import Reachability
from mesh.transport.base import LineBroken, Metadata, Reply, StatusCode, TransportError
from mesh.wire.generated import hexcomb_pb2
from placement.policy.snapshot import Pod

POD = Pod("p1", "one", "h:1")
TIMEOUT_S = 0.05


class Peer:
    """A pod at the other end: it answers, is silent, or is gone."""

    def __init__(self) -> None:
        self.incarnation = "one"
        self.awake = asyncio.Event()
        self.awake.set()
        self.gone = False
        self.busy = False
        self.foreign: bytes | None = None
        self.asked = 0
        self.asks = asyncio.Semaphore(0)

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        self.asked += 1
        self.asks.release()
        if self.gone:
            raise LineBroken("refused", sent=False)
        await self.awake.wait()
        if self.busy:
            raise TransportError(StatusCode.RESOURCE_EXHAUSTED, "busy")
        if self.foreign is not None:
            return self.foreign
        return hexcomb_pb2.ProbeResponse(pod="p1", incarnation=self.incarnation).SerializeToString()

    async def close(self) -> None: ...


class Watched:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.changes: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def changed(pod: str, now: Reachability) -> None:
            self.changes.put_nowait((pod, now.up))

        self.links = Links(lambda address: peer, "me", 100)
        self.probes = Probes(self.links, "me", interval_s=0.01, timeout_s=TIMEOUT_S, clock=loop.time, on_change=changed)

    def follow(self, *pods: Pod) -> None:
        self.links.follow(pods)
        self.probes.follow(pods)

    async def next_change(self) -> tuple[str, bool]:
        async with asyncio.timeout(10):
            return await self.changes.get()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    watched = Watched(Peer())
    watched.follow(POD)
    yield watched
    await watched.probes.close()
    await watched.links.close()


async def test_a_silent_peer_leaves_the_routes_and_comes_back_when_it_answers(watched: Watched) -> None:
    watched.peer.awake.clear()
    assert await watched.next_change() == ("p1", False)
    assert watched.probes.down == {"p1"}
    watched.peer.awake.set()
    assert await watched.next_change() == ("p1", True)
    assert watched.probes.down == frozenset()


async def test_a_peer_that_refuses_is_out_at_the_first_refusal(watched: Watched) -> None:
    watched.peer.gone = True
    assert await watched.next_change() == ("p1", False)


async def test_calls_to_a_peer_that_is_found_dead_end(watched: Watched) -> None:
    watched.peer.awake.clear()
    call = asyncio.create_task(watched.links.call("p1", "/infer", b"", (), None))
    with pytest.raises(LineBroken):
        await asyncio.wait_for(call, 10)


async def test_a_peer_that_is_too_busy_is_there(watched: Watched) -> None:
    watched.peer.busy = True
    async with asyncio.timeout(10):
        for _ in range(4):
            await watched.peer.asks.acquire()
    assert watched.probes.down == frozenset()


async def test_another_process_at_its_address_is_not_the_peer(watched: Watched) -> None:
    watched.peer.incarnation = "two"
    assert await watched.next_change() == ("p1", False)
    watched.follow(replace(POD, incarnation="two"))
    assert watched.probes.down == frozenset(), "a restarted pod begins anew"


async def test_a_broken_line_is_looked_into_at_once() -> None:
    peer = Peer()
    watched = Watched(peer)
    watched.probes._interval_s = 3600.0
    watched.follow(POD)
    await asyncio.sleep(0)
    peer.gone = True
    watched.probes.broke("p1")
    assert await watched.next_change() == ("p1", False)
    await watched.probes.close()
    await watched.links.close()


@pytest.fixture
async def unhurried(watched: Watched) -> Watched:
    """Its next probe is an hour away."""
    watched.probes._interval_s = 3600.0
    watched.follow()
    watched.follow(POD)
    await asyncio.sleep(0)
    return watched


async def test_who_asks_all_peers_waits_until_each_has_answered(unhurried: Watched) -> None:
    unhurried.peer.asked = 0
    unhurried.probes._clock = lambda: asyncio.get_running_loop().time() + 1
    async with asyncio.timeout(10):
        await unhurried.probes.ask_all(lambda: False)
    assert unhurried.peer.asked == 1


async def test_who_asks_all_peers_hears_of_one_that_is_gone(unhurried: Watched) -> None:
    unhurried.peer.gone = True
    async with asyncio.timeout(10):
        await unhurried.probes.ask_all(lambda: False)
    assert unhurried.probes.down == {"p1"}


async def test_who_asks_all_peers_does_not_wait_for_the_silent_once_the_answer_is_there(unhurried: Watched) -> None:
    other = Pod("p2", "one", "h:2")
    unhurried.peer.awake.clear()
    asking = asyncio.create_task(unhurried.probes.ask_all(lambda: "p2" in unhurried.probes.peers))
    await asyncio.sleep(0)
    assert not asking.done()
    unhurried.follow(POD, other)
    await asking
    assert unhurried.probes.down == frozenset()


async def test_a_server_that_is_no_pod_is_not_the_peer_and_it_is_asked_again(watched: Watched) -> None:
    watched.peer.foreign = b"\xff\xff"
    assert await watched.next_change() == ("p1", False)
    watched.peer.foreign = None
    assert await watched.next_change() == ("p1", True)


async def test_calls_that_keep_breaking_do_not_keep_the_probe_from_its_answer() -> None:
    peer = Peer()
    watched = Watched(peer)
    watched.probes._interval_s = 3600.0
    watched.follow(POD)
    peer.awake.clear()
    for _ in range(50):
        watched.probes.broke("p1")
        await asyncio.sleep(0)
    assert peer.asked == 1
    peer.gone = True
    assert await watched.next_change() == ("p1", False)
    peer.asked = 0
    watched.probes.broke("p1")
    await asyncio.sleep(0)
    assert peer.asked == 0, "that it is out is known"
    await watched.probes.close()
    await watched.links.close()


async def test_a_broken_line_is_looked_into_in_a_pool_too_large_to_watch_every_pod() -> None:
    peer = Peer()
    watched = Watched(peer)
    watched.probes._interval_s = 3600.0
    watched.follow(*(Pod(f"p{number}", "one", f"h:{number}") for number in range(200)))
    await asyncio.sleep(0)
    peer.gone = True
    for number in range(200):
        watched.probes.broke(f"p{number}")
    for _ in range(200):
        assert not (await watched.next_change())[1]
    assert len(watched.probes.down) == 200
    await watched.probes.close()
    await watched.links.close()


async def test_a_pod_that_left_is_not_asked_any_more(watched: Watched) -> None:
    watched.follow()
    assert watched.probes.peers == {}
    asked = watched.peer.asked
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(watched.changes.get(), 0.1)
    assert watched.peer.asked <= asked + 1
