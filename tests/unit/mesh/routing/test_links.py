"""Lines to peers: counted, bounded, and cut when a pod is found dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.routing.links import Links
from mesh.transport.base import Heard, LineBroken, Metadata, PeerWays, Reply, StatusCode, TransportError
from mesh.wire.messages import PEER_KEY_METADATA
from placement.policy.snapshot import Pod

POD = Pod("p1", "one", "h:1", peer_key="key")


class Wire:
    """A line whose calls wait until the test answers."""

    def __init__(self, ways: PeerWays) -> None:
        self.ways = ways
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.cancelled = 0
        self.shown: list[Metadata] = []
        self.closed = False
        self.takes = True
        self.begun: list[Heard] = []

    async def call(self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None) -> Reply:
        self.shown.append(metadata)
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def begin(
        self, path: str, body: bytes | memoryview, metadata: Metadata, deadline_s: float | None, heard: Heard
    ) -> Callable[[], None] | None:
        if not self.takes:
            return None
        self.shown.append(metadata)
        self.begun.append(heard)
        return lambda: self.begun.remove(heard)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def wires() -> list[Wire]:
    return []


@pytest.fixture
async def links(wires: list[Wire]) -> Links:
    def dial(ways: PeerWays) -> Wire:
        wires.append(Wire(ways))
        return wires[-1]

    links = Links(dial, "me", calls_per_pod_max=2)
    links.follow([POD, Pod("me", "x", "h:0")])
    return links


async def started(links: Links) -> asyncio.Task[Reply]:
    task = asyncio.create_task(links.call("p1", "/m", b"body", (), None))
    await asyncio.sleep(0)
    return task


async def test_calls_in_flight_are_counted_by_pod(links: Links, wires: list[Wire]) -> None:
    task = await started(links)
    assert links.in_flight == {"p1": 1}
    wires[0].answer.set_result(b"ok")
    assert await task == b"ok"
    assert links.in_flight == {"p1": 0}


async def test_each_call_shows_the_key_that_the_pod_has_now(links: Links, wires: list[Wire]) -> None:
    wires[0].answer.set_result(b"ok")
    await links.call("p1", "/m", b"", (("a", "b"),), None)
    links.follow([replace(POD, incarnation="two", peer_key="another")])
    await links.call("p1", "/m", b"", (), None)
    assert wires[0].shown == [
        (("a", "b"), (PEER_KEY_METADATA, "key")),
        ((PEER_KEY_METADATA, "another"),),
    ]


async def test_a_pod_that_is_found_dead_fails_its_calls_at_once(links: Links, wires: list[Wire]) -> None:
    first, second = await started(links), await started(links)
    links.cut("p1")
    links.cut("p1")
    for task in (first, second):
        with pytest.raises(LineBroken) as broken:
            await task
        assert (broken.value.sent, broken.value.cut) == (True, True)
        assert not task.cancelled()
    assert wires[0].cancelled == 2
    assert links.in_flight == {"p1": 0}


async def test_a_caller_that_leaves_is_cancelled_and_not_told_of_a_broken_line(links: Links, wires: list[Wire]) -> None:
    task = await started(links)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wires[0].cancelled == 1
    assert links.in_flight == {"p1": 0}


async def test_a_caller_that_leaves_in_the_moment_of_the_cut_stays_cancelled(links: Links) -> None:
    task = await started(links)
    links.cut("p1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_full_line_refuses_with_a_hint(links: Links) -> None:
    tasks = [await started(links), await started(links)]
    with pytest.raises(TransportError) as refused:
        await links.call("p1", "/m", b"", (), None)
    assert refused.value.status is StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.retry_after_s is not None
    links.cut("p1")
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_pod_that_left_cannot_be_called_and_was_not_asked(links: Links, wires: list[Wire]) -> None:
    links.follow([])
    with pytest.raises(LineBroken) as broken:
        await links.call("p1", "/m", b"", (), None)
    assert broken.value.sent is False
    await links.close()
    assert wires[0].closed


async def test_a_pod_that_moved_is_dialled_anew_and_its_old_calls_end(links: Links, wires: list[Wire]) -> None:
    task = await started(links)
    links.follow([replace(POD, address="h:2")])
    with pytest.raises(LineBroken):
        await task
    assert [wire.ways for wire in wires] == [PeerWays("h:1"), PeerWays("h:2")]
    assert links.in_flight == {"p1": 0}


Outcomes = list[Reply | TransportError | LineBroken]


def begun(links: Links, heard: Outcomes) -> Callable[[], None] | None:
    return links.begin("p1", "/m", b"body", (("a", "b"),), None, heard.append)


async def test_a_call_that_is_not_waited_for_counts_until_its_answer_is_heard(links: Links, wires: list[Wire]) -> None:
    heard: Outcomes = []
    assert begun(links, heard) is not None
    assert links.in_flight == {"p1": 1}
    assert wires[0].shown == [(("a", "b"), (PEER_KEY_METADATA, "key"))]
    wires[0].begun.pop()(b"ok")
    assert heard == [b"ok"]
    assert links.in_flight == {"p1": 0}


async def test_a_call_that_is_not_waited_for_is_cancelled_once_and_hears_nothing(
    links: Links, wires: list[Wire]
) -> None:
    heard: Outcomes = []
    cancel = begun(links, heard)
    assert cancel is not None
    cancel()
    assert (heard, wires[0].begun, links.in_flight) == ([], [], {"p1": 0})


async def test_a_pod_that_is_found_dead_fails_calls_that_nobody_waits_for(links: Links, wires: list[Wire]) -> None:
    heard: Outcomes = []
    begun(links, heard)
    begun(links, heard)
    links.cut("p1")
    links.cut("p1")
    assert [isinstance(each, LineBroken) and each.cut for each in heard] == [True, True]
    assert (wires[0].begun, links.in_flight) == ([], {"p1": 0})


async def test_what_cannot_be_begun_is_not_counted(links: Links, wires: list[Wire]) -> None:
    heard: Outcomes = []
    wires[0].takes = False
    assert begun(links, heard) is None
    assert links.in_flight == {"p1": 0}
    wires[0].takes = True
    assert None not in (begun(links, heard), begun(links, heard))
    assert begun(links, heard) is None, "the line is full"
    links.follow([])
    assert begun(links, heard) is None, "the pod has left"
    assert len(heard) == 2
