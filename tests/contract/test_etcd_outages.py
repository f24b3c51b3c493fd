"""What the etcd store does when etcd dies, goes silent, forgets, or is replaced under it.

Each test breaks an etcd of its own, or the line to it. What must hold: a watch delivers each change once and in
order over any number of breaks, or says why it cannot; a read finds whoever can answer; a write is never done twice,
and one that may have been done says so.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.demo.etcd_server import EtcdCluster, EtcdServer
from placement.errors import Compacted, LeaseNotFound, LimitExceeded, StoreReplaced, StoreUnavailable
from placement.store.base import Delete, Event, Put, WatchBatch, absent
from placement.store.etcd import EtcdStore
from placement.store.etcd_options import EtcdOptions
from placement.store.etcd_watch import answers_truly
from placement.store.format import open_format
from tests.contract.conftest import QUICK, ask_etcd
from tests.contract.tcp_proxy import TcpProxy

pytestmark = pytest.mark.etcd

PATIENCE_S = 30.0


@pytest.fixture
def own_etcd(etcd_binary: Path, tmp_path: Path) -> Iterator[EtcdServer]:
    """One to break."""
    server = EtcdServer(etcd_binary, tmp_path / "etcd", options=QUICK).start()
    yield server
    server.kill()


@pytest.fixture
def cluster(etcd_binary: Path, tmp_path: Path) -> Iterator[EtcdCluster]:
    members = EtcdCluster(etcd_binary, tmp_path / "cluster", options=QUICK).start()
    yield members
    members.stop()


def options(endpoints: str, **changes: Any) -> EtcdOptions:
    """As a pod has them, but sooner impatient."""
    sooner: dict[str, Any] = {"watch_check_s": 0.3, "watch_silence_max_s": 0.5, "connect_timeout_s": 1.0}
    return dataclasses.replace(EtcdOptions.from_url(f"etcd://{endpoints}/pool"), **(sooner | changes))


@asynccontextmanager
async def opened(endpoints: str, **changes: Any) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.open(options(endpoints, **changes))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def behind_line(server: EtcdServer, **changes: Any) -> AsyncIterator[tuple[TcpProxy, EtcdStore, EtcdStore]]:
    """A line to break, the store behind it, and another one that is not."""
    async with (
        TcpProxy(server.client_port) as line,
        opened(server.endpoint) as other,
        opened(line.endpoint, **changes) as store,
    ):
        yield line, store, other


class Watcher:
    """Collects what a watch delivers, in a task."""

    def __init__(self, store: EtcdStore, prefixes: list[str], from_revision: int) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._run(store.watch(prefixes, from_revision)))

    async def _run(self, batches: AsyncGenerator[WatchBatch, None]) -> None:
        async with aclosing(batches):
            async for batch in batches:
                async with self._news:
                    self.events.extend(batch.events)
                    self._news.notify_all()

    @property
    def keys(self) -> list[str]:
        return [event.kv.key for event in self.events]

    async def wait_for(self, key: str) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: key in self.keys or self._task.done())
        assert key in self.keys, self._task.exception()

    async def error(self) -> BaseException | None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait({self._task})
        return self._task.exception()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def watching(store: EtcdStore, prefixes: list[str], from_revision: int) -> AsyncIterator[Watcher]:
    watcher = Watcher(store, prefixes, from_revision)
    try:
        yield watcher
    finally:
        await watcher.close()


async def put(store: EtcdStore, key: str, value: bytes = b"v") -> int:
    """Written, whatever it takes: what may have been written is looked up."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return (await store.txn([], [Put(key, value)])).revision
            except StoreUnavailable:
                found = await store.get(key)
                if found is not None and found.value == value:
                    return found.mod_revision


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a log or a counter of somebody else's has no event to wait for
            await asyncio.sleep(0.01)


# etcd dies and comes back -------------------------------------------------------------------------------------------


async def test_a_watch_goes_on_where_it_was_when_etcd_is_killed_and_comes_back(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            for i in range(1, 4):
                await put(store, f"w/{i}")
                await watcher.wait_for(f"w/{i}")
                own_etcd.kill()
                await asyncio.to_thread(own_etcd.start)
            await put(store, "w/4")
            await watcher.wait_for("w/4")
            assert watcher.keys == [f"w/{i}" for i in range(5)]


async def test_what_others_wrote_while_the_line_was_down_is_delivered_once_and_in_order(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (line, store, other):
        first = await put(other, "w/0")
        async with watching(store, ["w/", "v/"], first) as watcher:
            await watcher.wait_for("w/0")
            for _ in range(5):
                line.cut()
                for i in range(100):
                    await put(other, f"{'vw'[i % 2]}/{i}")
            await put(other, "w/last")
            await watcher.wait_for("w/last")
    revisions = [event.kv.mod_revision for event in watcher.events]
    assert revisions == sorted(set(revisions))
    assert len(revisions) == 502


async def test_calls_ride_over_a_restart_of_etcd_without_an_error(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        await put(store, "k")
        own_etcd.stop()
        calls = [asyncio.create_task(store.get("k")) for _ in range(20)]
        write = asyncio.create_task(store.txn([absent("new")], [Put("new", b"")]))  # sent to nobody, so safe to repeat
        await asyncio.to_thread(own_etcd.start)
        for call in calls:
            found = await call
            assert found is not None
        assert (await write).succeeded


async def test_a_call_without_any_etcd_names_all_that_was_tried_and_why(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint, call_timeout_s=1.0) as store:
        own_etcd.kill()
        with pytest.raises(StoreUnavailable):
            await store.get("k")  # from here on the broken connection is known: what comes next is sent to nobody
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"refused.*nothing was written") as caught:
            await store.txn([], [Put("k", b"")])
        assert time.monotonic() - began_s < 3.0
        assert own_etcd.endpoint in str(caught.value)


async def test_an_etcd_that_is_back_is_found_within_seconds_of_a_long_outage(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            own_etcd.kill()
            await asyncio.sleep(4.0)  # gRPC's own back-off would be at several seconds by now
            await asyncio.to_thread(own_etcd.start)
            began_s = time.monotonic()
            await put(store, "w/1")
            await watcher.wait_for("w/1")
            assert time.monotonic() - began_s < 5.0


# etcd forgets -------------------------------------------------------------------------------------------------------


async def test_a_watch_that_was_away_while_history_was_compacted_says_so(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (line, store, other):
        first = await put(other, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            line.freeze()
            for i in range(1, 10):
                last = await put(other, f"w/{i}")
            await other.compact(last)
            line.cut()
            line.thaw()
            error = await watcher.error()
    assert type(error) is Compacted
    assert (error.asked_revision, error.compacted_revision) == (first + 1, last)


async def test_compaction_behind_a_watch_does_not_disturb_it(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            for i in range(1, 5):
                revision = await put(store, f"w/{i}")
                await watcher.wait_for(f"w/{i}")
                await store.compact(revision)
            assert watcher.keys == [f"w/{i}" for i in range(5)]


async def test_progress_carries_a_quiet_watch_over_a_compaction(etcd_binary: Path, tmp_path: Path) -> None:
    """Nothing happens under its prefix, everything beside it is compacted, the line breaks: it goes on."""
    progress = ("--experimental-watch-progress-notify-interval", "200ms")
    server = EtcdServer(etcd_binary, tmp_path, options=(*QUICK, *progress)).start()
    try:
        async with behind_line(server) as (line, store, other):
            first = await put(other, "w/0")
            async with watching(store, ["w/"], first) as watcher:
                await watcher.wait_for("w/0")
                for i in range(10):
                    last = await put(other, f"beside/{i}")
                (feed,) = store._feeds
                await wait_for(lambda: feed.next_revision > last)
                line.freeze()
                await other.compact(last)
                line.cut()
                line.thaw()
                await put(other, "w/1")
                await watcher.wait_for("w/1")
                assert watcher.keys == ["w/0", "w/1"]
    finally:
        server.stop()


async def test_a_quiet_watch_asks_for_progress_where_the_answer_can_be_believed(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            last = await put(store, "beside/0")
            (feed,) = store._feeds
            if answers_truly(ask_etcd(own_etcd, "maintenance/status")["version"]):
                await wait_for(lambda: feed.next_revision > last)
            else:
                await asyncio.sleep(1.0)  # it is asked several times; the answers are proof of life, no more
                assert feed.next_revision == first + 1
            assert watcher.keys == ["w/0"]


# etcd is replaced ---------------------------------------------------------------------------------------------------


async def test_a_wipe_is_noticed_by_a_watch_and_the_store_goes_on(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        for i in range(5):
            last = await put(store, f"w/{i}")
        async with watching(store, ["w/"], last) as watcher:
            await watcher.wait_for("w/4")
            own_etcd.wipe()
            await asyncio.to_thread(own_etcd.start)
            error = await watcher.error()
        assert isinstance(error, StoreReplaced)
        assert error.asked_revision == last + 1
        assert error.compacted_revision < last
        page = await store.range("w/")
        assert page.items == ()
        async with watching(store, ["w/"], page.revision + 1) as watcher:
            await put(store, "w/again")
            await watcher.wait_for("w/again")
            assert watcher.keys == ["w/again"]


async def test_a_wiped_etcd_that_was_filled_again_is_told_apart_by_the_pools_mark(own_etcd: EtcdServer) -> None:
    """Same flags, so the same cluster id; and more writes than before, so no lower revision either."""
    async with opened(own_etcd.endpoint) as store, TcpProxy(own_etcd.client_port) as line:
        mark = await open_format(store, "test")
        last = await put(store, "w/0")
        cluster_id = ask_etcd(own_etcd, "kv/range", key="eA==")["header"]["cluster_id"]
        async with opened(line.endpoint) as away, watching(away, ["w/"], last) as watcher:
            await watcher.wait_for("w/0")
            line.freeze()
            line.cut()
            own_etcd.wipe()
            await asyncio.to_thread(own_etcd.start)
            async with opened(own_etcd.endpoint) as another:
                assert (await open_format(another, "test")).pool_id != mark.pool_id
                for i in range(10):
                    revision = await put(another, f"w/new{i}")
            assert revision > last
            assert ask_etcd(own_etcd, "kv/range", key="eA==")["header"]["cluster_id"] == cluster_id
            line.thaw()
            line.cut()
            error = await watcher.error()
    assert isinstance(error, StoreReplaced)
    assert "made anew" in str(error)
    assert watcher.keys == ["w/0"]


async def test_every_watch_hears_of_a_wipe_and_not_only_the_first_to_notice(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        await open_format(store, "test")
        last = await put(store, "w/0")
        async with watching(store, ["w/"], last) as one, watching(store, ["w/"], last) as two:
            await one.wait_for("w/0")
            await two.wait_for("w/0")
            own_etcd.wipe()
            await asyncio.to_thread(own_etcd.start)
            errors = [await one.error(), await two.error()]
    assert all(isinstance(error, StoreReplaced) for error in errors), errors


async def test_a_pool_that_gets_its_mark_while_it_is_watched_is_the_same_pool(own_etcd: EtcdServer) -> None:
    async with TcpProxy(own_etcd.client_port) as line, opened(line.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            await open_format(store, "test")
            line.cut()
            await put(store, "w/1")
            await watcher.wait_for("w/1")


async def test_leases_of_a_wiped_etcd_are_gone(own_etcd: EtcdServer) -> None:
    async with opened(own_etcd.endpoint) as store:
        lease = await store.grant_lease(60)
        own_etcd.wipe()
        await asyncio.to_thread(own_etcd.start)
        with pytest.raises(LeaseNotFound):
            await store.keep_lease_alive(lease)
        with pytest.raises(LeaseNotFound, match=str(lease)):
            await store.txn([], [Put("k", b"", lease)])


# etcd has had enough ------------------------------------------------------------------------------------------------


async def test_an_etcd_that_is_full_takes_no_writes_says_so_and_is_still_read(
    etcd_binary: Path, tmp_path: Path
) -> None:
    async def fill(store: EtcdStore) -> None:
        for i in range(100):
            await store.txn([], [Put(f"k/{i}", b"x" * 500_000)])

    server = EtcdServer(etcd_binary, tmp_path, options=(*QUICK, "--quota-backend-bytes", str(16 * 1024 * 1024))).start()
    try:
        async with opened(server.endpoint) as store:
            with pytest.raises(StoreUnavailable, match="has used up its space"):
                await fill(store)
            assert await store.get("k/0") is not None
            with pytest.raises(StoreUnavailable, match="etcdctl alarm disarm"):
                await store.txn([], [Put("k", b"")])
    finally:
        server.kill()


async def test_what_etcd_finds_too_large_is_a_limit_and_not_an_outage(etcd_binary: Path, tmp_path: Path) -> None:
    server = EtcdServer(etcd_binary, tmp_path, options=(*QUICK, "--max-request-bytes", "4096")).start()
    try:
        async with opened(server.endpoint) as store:
            with pytest.raises(LimitExceeded, match="too large"):
                await store.txn([], [Put("k", b"x" * 5_000)])
            await store.txn([], [Put("k", b"x" * 500)])
    finally:
        server.kill()


# The line is broken -------------------------------------------------------------------------------------------------


async def test_a_watch_on_a_line_that_swallows_everything_is_made_anew(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (line, store, other):
        first = await put(other, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            connections = line.connections
            line.freeze()
            await put(other, "w/1")
            await wait_for(lambda: line.connections > connections)  # noticed, without an error from TCP
            line.thaw()
            await put(other, "w/2")
            await watcher.wait_for("w/2")
            assert watcher.keys == ["w/0", "w/1", "w/2"]


async def test_a_quiet_watch_that_is_answered_stays_as_it_is(
    own_etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with TcpProxy(own_etcd.client_port) as line, opened(line.endpoint) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            connections = line.connections
            with caplog.at_level(logging.WARNING):
                await asyncio.sleep(2.5)  # three times what a silent one is given
            assert line.connections == connections
            assert not [record.message for record in caplog.records if record.name.startswith("placement")]


async def test_a_slow_line_is_no_broken_line(own_etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    async with TcpProxy(own_etcd.client_port) as line, opened(line.endpoint) as store:
        line.delay_s = 0.1
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            for i in range(1, 11):
                await put(store, f"w/{i}")
            await watcher.wait_for("w/10")
            assert watcher.keys == [f"w/{i}" for i in range(11)]
    assert not [record.message for record in caplog.records if record.name.startswith("placement")]


async def test_a_write_whose_answer_is_lost_says_that_it_may_have_written(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd, call_timeout_s=1.0) as (line, store, other):
        await put(store, "n", b"before")
        line.freeze_answers()
        with pytest.raises(StoreUnavailable, match="may have written"):
            await store.txn([], [Put("n", b"after")])
        line.thaw()
        found = await other.get("n")
    assert found is not None
    assert (found.value, found.version) == (b"after", 2)


async def test_a_write_is_never_done_twice_whenever_the_line_breaks(own_etcd: EtcdServer) -> None:
    """Each write raises the key's version by one: more than were made would be a repetition."""
    async with behind_line(own_etcd) as (line, store, other):
        acknowledged = unsure = 0
        for i in range(300):
            if i % 10 == 5:
                asyncio.get_running_loop().call_later(0.0002 * (i % 7), line.cut)
            try:
                await store.txn([], [Put("n", b"%d" % i)])
                acknowledged += 1
            except StoreUnavailable as error:
                unsure += "may have written" in str(error)
        found = await other.get("n")
    assert found is not None
    assert acknowledged <= found.version <= acknowledged + unsure
    assert acknowledged + unsure == 300


# Several members ----------------------------------------------------------------------------------------------------


async def test_a_dead_endpoint_is_passed_over(own_etcd: EtcdServer) -> None:
    async with opened(f"127.0.0.1:1,{own_etcd.endpoint}") as store:
        began_s = time.monotonic()
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
        assert time.monotonic() - began_s < 2.0


async def test_an_endpoint_that_takes_connections_and_says_nothing_is_passed_over(own_etcd: EtcdServer) -> None:
    async with TcpProxy(own_etcd.client_port) as silent:
        silent.freeze()
        began_s = time.monotonic()
        async with opened(f"{silent.endpoint},{own_etcd.endpoint}") as store:
            await put(store, "w/0")
        assert time.monotonic() - began_s < 5.0


async def test_when_one_line_goes_silent_a_watch_moves_to_another(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (one, _, other), TcpProxy(own_etcd.client_port) as two:
        first = await put(other, "w/0")
        async with opened(f"{one.endpoint},{two.endpoint}") as store, watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            one.freeze()
            await put(other, "w/1")
            await watcher.wait_for("w/1")
            assert two.connections


async def test_when_one_line_goes_silent_a_read_is_answered_by_another_in_time(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (one, _, other), TcpProxy(own_etcd.client_port) as two:
        await put(other, "k")
        async with opened(f"{one.endpoint},{two.endpoint}", call_timeout_s=4.0) as store:
            one.freeze()
            assert await store.get("k") is not None
            assert two.connections


def leader_of(cluster: EtcdCluster) -> EtcdServer:
    for member in cluster.members:
        status = ask_etcd(member, "maintenance/status")
        if status["leader"] == status["header"]["member_id"]:
            return member
    raise AssertionError("no member leads")


async def test_the_death_of_the_leader_is_no_error_and_no_gap(cluster: EtcdCluster) -> None:
    async with opened(cluster.endpoints) as store:
        lease = await store.grant_lease(30)
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            reading = asyncio.create_task(_read_until(store, "w/60"))
            for i in range(1, 61):
                if i == 20:
                    leader_of(cluster).kill()
                await put(store, f"w/{i}")
            assert await reading > 0
            await watcher.wait_for("w/60")
            await store.keep_lease_alive(lease)
            # A write that was lost on the way and then found missing is written later, so keys may come twice.
            assert list(dict.fromkeys(watcher.keys)) == [f"w/{i}" for i in range(61)]
            revisions = [event.kv.mod_revision for event in watcher.events]
            assert revisions == sorted(set(revisions))


async def _read_until(store: EtcdStore, key: str) -> int:
    """Reads without a single error until the key is there; how many."""
    reads = 0
    while await store.get(key) is None:
        reads += 1
        await asyncio.sleep(0)
    return reads


async def test_without_a_majority_nothing_is_read_or_written_and_watches_know(
    cluster: EtcdCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A member without a leader would keep a watch open and say nothing, unless asked for the truth (`hasleader`)."""
    lonely, *others = cluster.members
    caplog.set_level(logging.DEBUG, "placement.store.etcd_watch")
    async with opened(lonely.endpoint, call_timeout_s=2.0) as store:
        first = await put(store, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            for member in others:
                member.pause()
            with pytest.raises(StoreUnavailable):
                await store.get("w/0")
            with pytest.raises(StoreUnavailable):
                await store.txn([], [Put("w/0", b"")])
            await wait_for(lambda: "no leader" in caplog.text)
            for member in others:
                member.resume()
            await put(store, "w/1")
            await watcher.wait_for("w/1")


async def test_a_follower_that_lags_is_not_taken_for_a_wiped_store(cluster: EtcdCluster) -> None:
    """The revision that counts is the cluster's, not that of the member which happens to be watched."""
    leader = leader_of(cluster)
    follower = next(member for member in cluster.members if member is not leader)
    async with opened(leader.endpoint) as writer, opened(follower.endpoint) as store:
        follower.pause()
        for i in range(50):
            last = await put(writer, f"w/{i}")
        follower.resume()
        async with watching(store, ["w/"], last + 1) as watcher:
            await put(writer, "w/next")
            await watcher.wait_for("w/next")
            assert watcher.keys == ["w/next"]


async def test_deletes_come_through_a_break_like_puts(own_etcd: EtcdServer) -> None:
    async with behind_line(own_etcd) as (line, store, other):
        first = await put(other, "w/0")
        async with watching(store, ["w/"], first) as watcher:
            await watcher.wait_for("w/0")
            line.cut()
            await other.txn([], [Delete("w/0"), Put("w/1", b"")])
            await watcher.wait_for("w/1")
    assert sorted((e.kind, e.kv.key) for e in watcher.events[1:]) == [("delete", "w/0"), ("put", "w/1")]
