"""What every store promises, on each one that ships.

A store is opened through a `StoreCase`, which also knows how to let time pass and leases run out; the suite itself
knows no implementation. On etcd, whose clock is the machine's, the seconds of leases are shorter than they say, and
each test has a prefix of its own in one etcd.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh.demo.etcd_server import EtcdServer
from placement.errors import Compacted, LeaseNotFound, LimitExceeded, StoreClosed
from placement.store.base import (
    Compare,
    Condition,
    Delete,
    DeleteUnder,
    Event,
    Get,
    KeyValueStore,
    NoneUnder,
    Operation,
    Put,
    StoreLimits,
    WatchBatch,
    absent,
    present,
    unchanged,
)
from placement.store.embedded import EmbeddedStore
from placement.store.etcd import EtcdStore
from placement.store.etcd_options import EtcdOptions
from placement.store.memory import MemoryStore
from tests.contract.conftest import ask_etcd, wait_leases_gone

LIMITS = StoreLimits(value_bytes_max=10_000, txn_bytes_max=50_000, history_events_max=2_000)


ETCD_SECOND_S = 0.3
"""What a second of a test's lease takes on etcd, whose shortest lease is 2 s."""


@dataclass
class StoreCase:
    """A store, and the leases that a test has on it. `pass_time` returns once those whose time is up are gone."""

    store: KeyValueStore
    pass_time: Callable[[float], Awaitable[None]]
    second_s: float = 1.0
    ttl_s: dict[int, float] = field(default_factory=dict)
    until_s: dict[int, float] = field(default_factory=dict)

    async def grant_lease(self, ttl_s: float) -> int:
        lease = await self.store.grant_lease(ttl_s * self.second_s)
        self.ttl_s[lease] = ttl_s * self.second_s
        self.until_s[lease] = time.monotonic() + self.ttl_s[lease]
        return lease

    async def keep_lease_alive(self, lease: int) -> None:
        await self.store.keep_lease_alive(lease)
        self.until_s[lease] = time.monotonic() + self.ttl_s[lease]


@asynccontextmanager
async def in_process_case(kind: str, directory: Path) -> AsyncIterator[StoreCase]:
    now_s = [1000.0]
    store: Any
    if kind == "memory":
        store = MemoryStore(clock=lambda: now_s[0], limits=LIMITS)
    else:
        store = await EmbeddedStore.open(directory, clock=lambda: now_s[0], limits=LIMITS, lease_check_s=None)

    async def pass_time(seconds: float) -> None:
        now_s[0] += seconds
        await store.expire_leases()

    yield StoreCase(store, pass_time)
    await store.close()


@asynccontextmanager
async def etcd_case(server: EtcdServer) -> AsyncIterator[StoreCase]:
    options = EtcdOptions.from_url(f"etcd://{server.endpoint}/test-{uuid.uuid4().hex}")
    store = await EtcdStore.open(options, limits=LIMITS)

    async def pass_time(seconds: float) -> None:
        await asyncio.sleep(seconds * ETCD_SECOND_S)  # it is time that passes here, not a condition
        overdue = [lease for lease, until_s in case.until_s.items() if until_s <= time.monotonic()]
        await asyncio.to_thread(wait_leases_gone, server, overdue)

    case = StoreCase(store, pass_time, ETCD_SECOND_S)
    yield case
    await store.close()
    for lease in ask_etcd(server, "lease/leases").get("leases", ()):
        # One that ran out later would raise the revision under another test.
        ask_etcd(server, "lease/revoke", ID=lease["ID"])


@pytest.fixture(params=["memory", "embedded", pytest.param("etcd", marks=pytest.mark.etcd)])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StoreCase]:
    if request.param == "etcd":
        opened = etcd_case(request.getfixturevalue("etcd"))
    else:
        opened = in_process_case(request.param, tmp_path)
    async with opened as opened_case:
        yield opened_case


@pytest.fixture(params=["memory", "embedded"])
async def in_process_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyValueStore]:
    async with in_process_case(request.param, tmp_path) as opened:
        yield opened.store


@pytest.fixture
def store(case: StoreCase) -> KeyValueStore:
    return case.store


async def put(store: KeyValueStore, key: str, value: bytes = b"v", lease: int = 0) -> int:
    return (await store.txn([], [Put(key, value, lease)])).revision


async def collect(store: KeyValueStore, prefixes: list[str], from_revision: int, events: int) -> list[WatchBatch]:
    """Batches until they hold so many events."""
    batches: list[WatchBatch] = []
    async with asyncio.timeout(20), aclosing(store.watch(prefixes, from_revision)) as watch:
        async for batch in watch:
            batches.append(batch)
            if sum(len(b.events) for b in batches) >= events:
                return batches
    raise AssertionError("the watch ended")


def flat(batches: list[WatchBatch]) -> list[Event]:
    return [event for batch in batches for event in batch.events]


# Keys and revisions -------------------------------------------------------------------------------------------------


async def test_a_key_remembers_when_it_was_made_and_changed_and_how_often(store: KeyValueStore) -> None:
    assert await store.get("a") is None
    first = await put(store, "a", b"1")
    second = await put(store, "a", b"2")
    kv = await store.get("a")
    assert kv is not None
    assert (kv.value, kv.create_revision, kv.mod_revision, kv.version) == (b"2", first, second, 2)
    assert second == first + 1


async def test_a_key_deleted_and_made_again_begins_anew(store: KeyValueStore) -> None:
    await put(store, "a")
    await put(store, "a")
    await store.txn([], [Delete("a")])
    revision = await put(store, "a")
    kv = await store.get("a")
    assert kv is not None
    assert (kv.create_revision, kv.mod_revision, kv.version) == (revision, revision, 1)


async def test_all_writes_of_a_transaction_share_one_revision(store: KeyValueStore) -> None:
    before = await put(store, "gone")
    result = await store.txn([], [Put("a", b""), Put("b", b""), Delete("gone")])
    assert result.revision == before + 1
    assert result.deleted == 1
    a, b = await store.get("a"), await store.get("b")
    assert a is not None
    assert b is not None
    assert a.mod_revision == b.mod_revision == result.revision


async def test_a_transaction_that_changes_nothing_raises_no_revision(store: KeyValueStore) -> None:
    before = await put(store, "a")
    result = await store.txn([], [Delete("never-was"), Get("a"), DeleteUnder("none/")])
    assert result.revision == before
    assert result.deleted == 0


async def test_delete_under_takes_the_prefix_and_nothing_beside_it(store: KeyValueStore) -> None:
    for key in ("p/a", "p/b", "p", "p0", "p-"):
        await put(store, key)
    result = await store.txn([], [DeleteUnder("p/")])
    assert result.deleted == 2
    assert [kv.key for kv in (await store.range("")).items] == ["p", "p-", "p0"]


async def test_values_may_be_any_bytes_and_empty(store: KeyValueStore) -> None:
    for value in (b"", b"\x00\xff" * 100, "žluť".encode()):
        await put(store, "a", value)
        kv = await store.get("a")
        assert kv is not None
        assert kv.value == value


# Ranges -------------------------------------------------------------------------------------------------------------


async def test_pages_cover_a_prefix_once_and_in_order(store: KeyValueStore) -> None:
    keys = sorted(f"m/{i:03}" for i in range(25))
    await store.txn([], [Put(key, b"") for key in keys])
    await store.txn([], [Put("l/z", b""), Put("n/a", b"")])
    found: list[str] = []
    from_key: str | None = ""
    while from_key is not None:
        page = await store.range("m/", limit=10, from_key=from_key)
        assert len(page.items) <= 10
        found += [kv.key for kv in page.items]
        from_key = page.next_key
    assert found == keys


async def test_a_full_last_page_says_that_it_is_the_last(store: KeyValueStore) -> None:
    await store.txn([], [Put(f"m/{i}", b"") for i in range(4)])
    page = await store.range("m/", limit=4)
    assert len(page.items) == 4
    assert page.next_key is None


async def test_a_page_tells_the_revision_it_was_read_at(store: KeyValueStore) -> None:
    revision = await put(store, "m/a")
    assert (await store.range("m/")).revision == revision
    assert (await store.range("nothing/")).revision == revision


# Conditions ---------------------------------------------------------------------------------------------------------


async def _prepare(store: KeyValueStore) -> dict[str, int]:
    made = await put(store, "k", b"old")
    changed = await put(store, "k", b"m")
    under = await put(store, "dir/x")
    return {"made": made, "changed": changed, "under": under}


CONDITIONS: list[tuple[str, Callable[[dict[str, int]], Condition], bool]] = [
    ("absent key is absent", lambda r: absent("none"), True),
    ("present key is absent", lambda r: absent("k"), False),
    ("present key is present", lambda r: present("k"), True),
    ("absent key is present", lambda r: present("none"), False),
    ("unchanged since", lambda r: unchanged("k", r["changed"]), True),
    ("changed since", lambda r: unchanged("k", r["made"]), False),
    ("absent is unchanged since 0", lambda r: unchanged("none", 0), True),
    ("created at", lambda r: Compare("k", "create_revision", "==", r["made"]), True),
    ("created after", lambda r: Compare("k", "create_revision", ">", r["made"]), False),
    ("created before", lambda r: Compare("k", "create_revision", "<", r["changed"]), True),
    ("version", lambda r: Compare("k", "version", "==", 2), True),
    ("version differs", lambda r: Compare("k", "version", "!=", 2), False),
    ("version of an absent key", lambda r: Compare("none", "version", "==", 0), True),
    ("value equal", lambda r: Compare("k", "value", "==", b"m"), True),
    ("value differs", lambda r: Compare("k", "value", "!=", b"m"), False),
    ("value below", lambda r: Compare("k", "value", "<", b"n"), True),
    ("value above", lambda r: Compare("k", "value", ">", b"n"), False),
    ("value of an absent key equals", lambda r: Compare("none", "value", "==", b""), False),
    ("value of an absent key differs", lambda r: Compare("none", "value", "!=", b"x"), False),
    ("none under an empty prefix", lambda r: NoneUnder("dix/"), True),
    ("one under", lambda r: NoneUnder("dir/"), False),
    ("none newer under", lambda r: NoneUnder("dir/", newer_than=r["under"]), True),
    ("one newer under", lambda r: NoneUnder("dir/", newer_than=r["under"] - 1), False),
]


@pytest.mark.parametrize(("condition", "holds"), [c[1:] for c in CONDITIONS], ids=[c[0] for c in CONDITIONS])
async def test_a_condition_chooses_the_branch(
    store: KeyValueStore, condition: Callable[[dict[str, int]], Condition], holds: bool
) -> None:
    revisions = await _prepare(store)
    result = await store.txn([condition(revisions)], [Put("yes", b"")], [Put("no", b"")])
    assert result.succeeded is holds
    assert (await store.get("yes") is not None) is holds
    assert (await store.get("no") is not None) is not holds


async def test_one_condition_that_fails_fails_the_transaction(store: KeyValueStore) -> None:
    await put(store, "k")
    result = await store.txn([present("k"), absent("none"), absent("k")], [Put("x", b"")])
    assert not result.succeeded
    assert await store.get("x") is None


async def test_reads_see_what_was_there_before_the_writes_and_keep_their_order(store: KeyValueStore) -> None:
    await put(store, "a", b"old")
    result = await store.txn([], [Put("b", b"new"), Get("b"), Get("a"), Delete("a")])
    assert result.reads[0] is None
    assert result.reads[1] is not None
    assert result.reads[1].value == b"old"


async def test_a_failed_transaction_brings_the_truth_back(store: KeyValueStore) -> None:
    revision = await put(store, "a", b"theirs")
    result = await store.txn([absent("a")], [Put("a", b"mine")], [Get("a")])
    assert not result.succeeded
    assert result.revision == revision
    assert result.reads[0] is not None
    assert result.reads[0].value == b"theirs"


async def test_of_many_that_race_for_a_key_one_wins(store: KeyValueStore) -> None:
    results = await asyncio.gather(*(store.txn([absent("k")], [Put("k", b"%d" % i)]) for i in range(100)))
    assert sum(result.succeeded for result in results) == 1
    winner = next(i for i, result in enumerate(results) if result.succeeded)
    kv = await store.get("k")
    assert kv is not None
    assert kv.value == b"%d" % winner


async def test_counting_by_compare_and_set_loses_no_step(store: KeyValueStore) -> None:
    await put(store, "n", b"0")

    async def step() -> None:
        while True:
            kv = await store.get("n")
            assert kv is not None
            value = b"%d" % (int(kv.value) + 1)
            if (await store.txn([unchanged("n", kv.mod_revision)], [Put("n", value)])).succeeded:
                return

    await asyncio.gather(*(step() for _ in range(20)))
    kv = await store.get("n")
    assert kv is not None
    assert kv.value == b"20"


# Limits -------------------------------------------------------------------------------------------------------------

TOO_MUCH: list[tuple[str, list[Condition], list[Operation], str]] = [
    ("value", [], [Put("a", b"x" * 10_001)], "10001 bytes"),
    ("operations", [], [Put(f"k{i}", b"") for i in range(129)], "129 success operations"),
    ("compares", [absent(f"k{i}") for i in range(129)], [], "129 compares"),
    ("total", [], [Put(f"k{i}", b"x" * 9_000) for i in range(6)], "at most 50000"),
    ("empty key", [], [Put("", b"")], "printable ASCII"),
    ("unencoded key", [], [Put("models/žluť", b"")], "printable ASCII"),
    ("long key", [], [Put("k" * 20_000, b"")], "20000 bytes"),
    ("same key twice", [], [Put("a", b"1"), Put("a", b"2")], "twice"),
    ("put and delete", [], [Put("a", b"1"), Delete("a")], "twice"),
    ("put and delete under", [], [Put("a/b", b"1"), DeleteUnder("a/")], "twice"),
]


@pytest.mark.parametrize(("compares", "operations", "message"), [c[1:] for c in TOO_MUCH], ids=[c[0] for c in TOO_MUCH])
async def test_what_is_too_much_is_refused_whole(
    store: KeyValueStore, compares: list[Condition], operations: list[Operation], message: str
) -> None:
    with pytest.raises(LimitExceeded, match=message):
        await store.txn(compares, operations)
    assert (await store.range("")).items == ()


# Watches ------------------------------------------------------------------------------------------------------------


async def test_a_watch_brings_what_was_and_what_comes_in_order(store: KeyValueStore) -> None:
    first = await put(store, "w/a", b"1")
    await put(store, "w/a", b"2")
    watching = asyncio.create_task(collect(store, ["w/"], first, 4))
    await put(store, "w/b", b"3")
    await store.txn([], [Delete("w/a")])
    events = flat(await watching)
    assert [(e.kind, e.kv.key, e.kv.value) for e in events] == [
        ("put", "w/a", b"1"),
        ("put", "w/a", b"2"),
        ("put", "w/b", b"3"),
        ("delete", "w/a", b""),
    ]
    assert [e.kv.mod_revision for e in events] == [first, first + 1, first + 2, first + 3]


async def test_a_watch_keeps_to_its_prefixes_and_its_first_revision(store: KeyValueStore) -> None:
    await put(store, "w/early")
    first = await put(store, "other/x")
    await put(store, "w/a")
    await put(store, "wide")
    await put(store, "v/b")
    events = flat(await collect(store, ["w/", "v/"], first, 2))
    assert [e.kv.key for e in events] == ["w/a", "v/b"]


async def test_a_revision_is_never_split_over_batches(store: KeyValueStore) -> None:
    first = (await store.txn([], [Put(f"a/{i}", b"") for i in range(128)])).revision
    for _ in range(9):
        await store.txn([], [Put(f"{p}/{i}", b"") for i in range(64) for p in ("a", "b")])
    batches = await collect(store, ["a/", "b/"], first, 128 * 10)
    seen: set[int] = set()
    for batch in batches:
        revisions = {event.kv.mod_revision for event in batch.events}
        assert not revisions & seen
        assert max(revisions) <= batch.revision
        seen |= revisions


async def test_two_watches_see_the_same(store: KeyValueStore) -> None:
    first = await put(store, "w/0")
    tasks = [asyncio.create_task(collect(store, ["w/"], first, 50)) for _ in range(2)]
    for i in range(1, 50):
        await put(store, f"w/{i}")
    one, two = [flat(await task) for task in tasks]
    assert one == two


async def test_a_watch_can_be_taken_up_where_another_stopped(store: KeyValueStore) -> None:
    first = await put(store, "w/0")
    batches = await collect(store, ["w/"], first, 1)
    await put(store, "w/1")
    await put(store, "w/2")
    rest = flat(await collect(store, ["w/"], batches[-1].revision + 1, 2))
    assert [e.kv.key for e in rest] == ["w/1", "w/2"]


async def test_watching_forgotten_revisions_is_an_error_that_says_so(store: KeyValueStore) -> None:
    first = await put(store, "w/0")
    second = await put(store, "w/1")
    await put(store, "w/2")
    await store.compact(second)
    with pytest.raises(Compacted) as caught:
        await collect(store, ["w/"], first, 1)
    assert caught.value.compacted_revision == second
    assert [e.kv.key for e in flat(await collect(store, ["w/"], second + 1, 1))] == ["w/2"]
    assert len((await store.range("w/")).items) == 3


async def test_history_in_this_process_is_bounded_without_being_told(in_process_store: KeyValueStore) -> None:
    first = await put(in_process_store, "w/first")
    for _ in range(20):
        await in_process_store.txn([], [Put(f"w/{i}", b"") for i in range(120)])
    with pytest.raises(Compacted):
        await collect(in_process_store, ["w/"], first, 1)


async def test_a_deletion_that_is_forgotten_is_no_gap_but_an_error(store: KeyValueStore) -> None:
    await put(store, "w/0")
    deleted = (await store.txn([], [Delete("w/0")])).revision
    await store.compact(deleted)
    with pytest.raises(Compacted) as caught:
        await collect(store, ["w/"], deleted, 1)
    assert caught.value.asked_revision == deleted


async def test_compacting_what_is_compacted_or_yet_to_come_is_no_error(store: KeyValueStore) -> None:
    first = await put(store, "w/0")
    second = await put(store, "w/1")
    await store.compact(second)
    await store.compact(first)
    await store.compact(second + 1000)
    third = await put(store, "w/2")
    assert [e.kv.key for e in flat(await collect(store, ["w/"], third, 1))] == ["w/2"]


async def test_closing_the_store_ends_its_watches(store: KeyValueStore) -> None:
    first = await put(store, "w/0")
    watch = store.watch(["w/"], first)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreClosed):
        await waiting


# Leases -------------------------------------------------------------------------------------------------------------


async def test_keys_vanish_together_with_their_lease(case: StoreCase) -> None:
    store = case.store
    lease = await case.grant_lease(10)
    other = await case.grant_lease(100)
    first = await put(store, "l/a", b"", lease)
    await put(store, "l/b", b"", lease)
    await put(store, "l/c", b"", other)
    await put(store, "l/d")
    await case.pass_time(11)
    assert [kv.key for kv in (await store.range("l/")).items] == ["l/c", "l/d"]
    deletes = [e for e in flat(await collect(store, ["l/"], first, 6)) if e.kind == "delete"]
    assert [e.kv.key for e in deletes] == ["l/a", "l/b"]
    assert deletes[0].kv.mod_revision == deletes[1].kv.mod_revision


async def test_a_lease_that_is_kept_alive_holds(case: StoreCase) -> None:
    lease = await case.grant_lease(10)
    await put(case.store, "k", b"", lease)
    for _ in range(3):
        await case.pass_time(8)
        await case.keep_lease_alive(lease)
    assert await case.store.get("k") is not None


async def test_a_lease_that_ran_out_cannot_be_kept_alive_or_used(case: StoreCase) -> None:
    lease = await case.grant_lease(10)
    await case.pass_time(10)
    with pytest.raises(LeaseNotFound):
        await case.store.keep_lease_alive(lease)
    with pytest.raises(LeaseNotFound):
        await case.store.txn([], [Put("a", b""), Put("k", b"", lease)])
    assert await case.store.get("a") is None


async def test_a_revoked_lease_takes_its_keys_at_once_and_twice_is_no_error(store: KeyValueStore) -> None:
    lease = await store.grant_lease(10)
    await put(store, "k", b"", lease)
    await store.revoke_lease(lease)
    await store.revoke_lease(lease)
    assert await store.get("k") is None


async def test_a_key_written_again_without_a_lease_outlives_it(case: StoreCase) -> None:
    lease = await case.grant_lease(10)
    await put(case.store, "k", b"", lease)
    await put(case.store, "k")
    await case.pass_time(11)
    assert await case.store.get("k") is not None


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf")])
async def test_a_lease_needs_a_time_to_live(store: KeyValueStore, ttl_s: float) -> None:
    with pytest.raises(LimitExceeded, match="ttl_s"):
        await store.grant_lease(ttl_s)


# The end ------------------------------------------------------------------------------------------------------------


async def test_a_closed_store_refuses_and_closes_twice(store: KeyValueStore) -> None:
    await store.close()
    await store.close()
    calls: list[Awaitable[Any]] = [
        store.get("a"),
        store.range(""),
        store.txn([], [Put("a", b"")]),
        store.grant_lease(1),
    ]
    for call in calls:
        with pytest.raises(StoreClosed):
            await call


async def test_what_was_accepted_before_closing_is_answered(store: KeyValueStore) -> None:
    writes = [asyncio.ensure_future(store.txn([], [Put(f"k{i}", b"")])) for i in range(300)]
    await asyncio.sleep(0)
    await store.close()
    assert all(result.succeeded for result in await asyncio.gather(*writes))
