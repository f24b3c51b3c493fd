"""The simulated store: real contents behind a line that delays, loses and breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

import pytest

from mesh.simulation.chance import stream
from mesh.simulation.store import StoreClient, StoreConditions, StoreServer
from mesh.simulation.virtual_loop import VirtualLoop
from placement.errors import Compacted, LeaseNotFound, StoreReplaced, StoreUnavailable
from placement.store.base import Put, WatchBatch, absent

CONDITIONS = StoreConditions(slow_share=0.0, watch_slow_share=0.0)
Play = Callable[[Callable[[StoreServer, StoreClient], Awaitable[None]]], None]


@pytest.fixture
def play() -> Iterator[Play]:
    loop = VirtualLoop()
    server = StoreServer(loop, stream(1, "store"), CONDITIONS)

    def run(story: Callable[[StoreServer, StoreClient], Awaitable[None]]) -> None:
        async def main() -> None:
            await story(server, server.connect("p"))

        loop.run(main())

    yield run
    loop.discard()


async def first_batch(client: StoreClient, from_revision: int = 1) -> WatchBatch:
    watch = client.watch(["a/"], from_revision)
    try:
        return await anext(watch)
    finally:
        await watch.aclose()


def test_what_is_written_can_be_read_and_is_watched(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        watching = asyncio.create_task(first_batch(client, 2))
        result = await client.txn([absent("a/1")], [Put("a/1", b"one")])
        assert result.succeeded
        kv = await client.get("a/1")
        assert kv is not None
        assert kv.value == b"one"
        batch = await watching
        assert [event.kv.value for event in batch.events] == [b"one"]
        assert asyncio.get_running_loop().time() > 0

    play(story)


def test_a_write_whose_answer_is_lost_was_done(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        writing = asyncio.create_task(client.txn([], [Put("a/1", b"one")]))
        while server.peek("a/1") is None:  # noqa: ASYNC110  # the write is to be caught half way
            await asyncio.sleep(0.0001)
        server.cut("p")
        with pytest.raises(StoreUnavailable):
            await writing
        assert asyncio.get_running_loop().time() >= CONDITIONS.call_timeout_s
        assert server.counts.answers_lost == 1

    play(story)


def test_a_request_into_a_cut_line_is_not_carried_out(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        server.cut("p")
        with pytest.raises(StoreUnavailable):
            await client.txn([], [Put("a/1", b"one")])
        server.mend("p")
        assert await client.get("a/1") is None

    play(story)


def test_a_store_that_refuses_says_so_at_once(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        server.go_away("refusing")
        with pytest.raises(StoreUnavailable):
            await client.get("a/1")
        assert asyncio.get_running_loop().time() < 0.1

    play(story)


def test_a_lease_runs_out_unless_kept_and_takes_its_keys_along(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        lease = await client.grant_lease(3)
        await client.txn([], [Put("a/1", b"one", lease)])
        await asyncio.sleep(2)
        await client.keep_lease_alive(lease)
        await asyncio.sleep(2)
        assert server.peek("a/1") is not None
        await asyncio.sleep(2)
        assert server.peek("a/1") is None
        with pytest.raises(LeaseNotFound):
            await client.keep_lease_alive(lease)

    play(story)


def test_leases_stand_still_while_the_store_is_away(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        lease = await client.grant_lease(3)
        await client.txn([], [Put("a/1", b"one", lease)])
        server.go_away("silent")
        await asyncio.sleep(60)
        server.come_back()
        await client.keep_lease_alive(lease)
        assert server.peek("a/1") is not None

    play(story)


def test_a_watch_goes_on_after_a_cut_or_says_that_it_cannot(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        other = server.connect("other")
        for _ in range(8):
            revision = server.memory.revision
            watching = asyncio.create_task(first_batch(client, revision + 1))
            await asyncio.sleep(0.1)
            server.cut("p")
            await other.txn([], [Put("a/1", b"one")])
            await asyncio.sleep(1)
            assert not watching.done()
            server.mend("p")
            with contextlib.suppress(StoreUnavailable):
                assert (await watching).events

    play(story)


def test_a_watch_of_what_is_forgotten_says_so(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        await client.txn([], [Put("a/1", b"one")])
        await client.txn([], [Put("a/1", b"two")])
        server.compact()
        with pytest.raises(Compacted):
            await first_batch(client, 2)

    play(story)


def test_after_a_wipe_watches_are_told_that_the_store_is_another(play: Play) -> None:
    async def story(server: StoreServer, client: StoreClient) -> None:
        for _ in range(5):
            await client.txn([], [Put("a/1", b"one")])
        watching = asyncio.create_task(first_batch(client, server.memory.revision + 1))
        await asyncio.sleep(0.1)
        server.wipe()
        with pytest.raises(StoreReplaced):
            await watching
        assert await client.get("a/1") is None
        with pytest.raises(StoreReplaced):
            await first_batch(client, 6)  # a position of the old store
        await client.txn([], [Put("a/1", b"new")])
        assert (await first_batch(client, 2)).events

    play(story)
