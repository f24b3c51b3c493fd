"""What a watch concludes: is this the same store, is this member's word on progress good, is it denied for good."""

from __future__ import annotations

import pytest

from placement.errors import StoreRefused
from placement.store.etcd_connection import Connection
from placement.store.etcd_errors import CallFailure
from placement.store.etcd_options import EtcdOptions
from placement.store.etcd_requests import Keyspace
from placement.store.etcd_watch import Lineage, LineageSeen, WatchFeed, answers_truly, lost_history

SAME = Lineage(7, "pool")


@pytest.mark.parametrize(
    ("before", "found", "next_revision", "store_revision", "said"),
    [
        (SAME, SAME, 11, 10, None),
        (SAME, SAME, 11, 500, None),
        (SAME, SAME, 11, 9, "revision 10 was seen"),
        (SAME, Lineage(8, "pool"), 11, 10, "cluster 8 in the place of 7"),
        (SAME, Lineage(7, None), 11, 10, "mark is gone"),
        (SAME, Lineage(7, "other"), 11, 500, "made anew"),
        (Lineage(7, None), SAME, 11, 10, None),
        (Lineage(7, None), Lineage(7, None), 11, 10, None),
    ],
)
def test_history_goes_on_only_in_the_same_cluster_and_pool_at_no_lower_revision(
    before: Lineage, found: Lineage, next_revision: int, store_revision: int, said: str | None
) -> None:
    concluded = lost_history(before, found, next_revision, store_revision)
    assert concluded is None if said is None else concluded is not None and said in concluded


@pytest.mark.parametrize(
    ("version", "truly"),
    [
        ("3.4.23", False),
        ("3.4.25", True),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("3.6.16-rc.1", True),
        ("4.0.0", True),
        ("3.3.99", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_progress_is_believed_from_the_versions_that_mended_it(version: str, truly: bool) -> None:
    assert answers_truly(version) is truly


async def test_a_watch_that_is_denied_is_denied_for_good_only_with_a_fresh_token() -> None:
    connection = Connection(EtcdOptions(("127.0.0.1:1",), "p", user="me", password="pw"))
    feed = WatchFeed(connection, Keyspace("p"), ["w/"], 1, LineageSeen(SAME))
    feed._token = "old"
    denied = CallFailure("127.0.0.1:1", "PERMISSION_DENIED", "etcdserver: permission denied")
    feed._note(denied)
    with pytest.raises(StoreRefused):
        feed._note(denied)
    await connection.close()
