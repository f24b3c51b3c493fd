"""What pods publish, to JSON and back; and what is refused when somebody else wrote it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import UnsupportedRecord
from placement.policy.snapshot import (
    BusyModel,
    Copy,
    Death,
    Intent,
    LoadFailure,
    ModelName,
    Parked,
    Pod,
    Suspicion,
    Tier,
    Verdict,
)
from placement.pool_records import (
    BUSY_MODELS_MAX,
    DEATHS_MAX,
    HOT_MODELS_MAX,
    MESSAGE_LENGTH_MAX,
    HotModel,
    LeaderRecord,
    copy_from_json,
    copy_to_json,
    failure_from_json,
    failure_to_json,
    hot_from_json,
    hot_to_json,
    intent_from_json,
    intent_to_json,
    leader_from_json,
    leader_to_json,
    parked_from_json,
    parked_to_json,
    pod_from_json,
    pod_to_json,
    suspicion_from_json,
    suspicion_to_json,
)

NAME = ModelName("t", "a/ž")
FULL_POD = Pod(
    "p",
    "i",
    "h:8033",
    version="1.2",
    zone="z",
    labels=frozenset({"gpu", "disk=ssd"}),
    formats=frozenset({"onnx"}),
    capacity_bytes=2**40,
    free_bytes=5,
    tiers=(Tier("device", "cpu", 2**39, 2), Tier("device", "cuda:0", 2**39, 3)),
    pinned_bytes=6,
    eviction_age_s=1.5,
    loads_queued=2,
    load_wait_s=0.5,
    requests_in_flight=3,
    queue_delay_s=0.25,
    rate_per_s=1e4,
    busy=(BusyModel(NAME, 2.0, 1.0, 0.1, 0.2, 4),),
    ready=True,
    draining=True,
    why_unready="it drains",
    peer_key="drawn at the start",
    peer_address="h:2",
    peer_socket="/run/p",
    started_at_s=1.7e9,
    loads=7,
    load_failures=8,
)

DEATHS = (Death("p", "i", "loading", 1.0), Death("q", "j", "running", 2.0))

Read = Callable[[bytes], Any]
READERS: dict[str, tuple[bytes, Read]] = {
    "pod": (pod_to_json(FULL_POD), lambda value: pod_from_json("p", value)),
    "copy": (copy_to_json(Copy("p", 3, 4, 5, 6.0)), lambda value: copy_from_json("p", value)),
    "parked": (parked_to_json(Parked("p", 3, 0.5)), lambda value: parked_from_json("p", value)),
    "failure": (
        failure_to_json(LoadFailure("p", 1, False, "m", 2.0, 3.0)),
        lambda value: failure_from_json("p", value),
    ),
    "intent": (intent_to_json(Intent("p", "i", 1, "loading", 2.0)), lambda value: intent_from_json("p", "i", value)),
    "suspicion": (suspicion_to_json(Suspicion(2, Verdict.QUARANTINED, DEATHS)), suspicion_from_json),
    "leader": (leader_to_json(LeaderRecord("p", "i", 1.0, True)), leader_from_json),
    "hot": (hot_to_json((HotModel(NAME, 1.0),)), hot_from_json),
}


def test_every_record_comes_back_as_it_was() -> None:
    assert pod_from_json("p", pod_to_json(FULL_POD)) == (FULL_POD, True)
    plain = Pod("p", "i", "h:1")
    assert pod_from_json("p", pod_to_json(plain, settled=False)) == (plain, False)
    for copy in (Copy("p", 3, 4, 5, 6.0), Copy("p", 1, 0, 0, 0.0), Copy("p", 0, 2**40, 0, 0.0)):
        assert copy_from_json("p", copy_to_json(copy)) == copy
    for parked in (Parked("p", 3, 0.05), Parked("p", 1)):
        assert parked_from_json("p", parked_to_json(parked)) == parked
    for failure in (LoadFailure("p", 1, True, "ž", 2.0, 0.0), LoadFailure("p", 1, False, "", 2.0, 3.5)):
        assert failure_from_json("p", failure_to_json(failure)) == failure
    intent = Intent("p", "i", 1, "running", 2.0)
    assert intent_from_json("p", "i", intent_to_json(intent)) == intent
    for verdict in Verdict:
        suspicion = Suspicion(2, verdict, DEATHS)
        assert suspicion_from_json(suspicion_to_json(suspicion)) == suspicion
    for leader in (LeaderRecord("p", "i", 1.0), LeaderRecord("p", "i", 1.0, True)):
        assert leader_from_json(leader_to_json(leader)) == leader
    hot = (HotModel(NAME, 9.0), HotModel(ModelName("u", "b"), 1.0))
    assert hot_from_json(hot_to_json(hot)) == hot
    assert hot_from_json(hot_to_json(())) == ()


def test_an_ordinary_copy_is_small() -> None:
    assert len(copy_to_json(Copy("p", 12, 0, 1_234_567_890, 1_790_000_000.25))) < 80


def test_lists_are_cut_and_messages_shortened_when_they_are_written() -> None:
    busy = tuple(BusyModel(ModelName("t", f"m{n}"), 1.0, 1.0, 0.0, 0.0, 1) for n in range(BUSY_MODELS_MAX + 9))
    assert pod_from_json("p", pod_to_json(Pod("p", "i", "h:1", busy=busy)))[0].busy == busy[:BUSY_MODELS_MAX]
    hot = tuple(HotModel(ModelName("t", f"m{n}"), 1.0) for n in range(HOT_MODELS_MAX + 9))
    assert hot_from_json(hot_to_json(hot)) == hot[:HOT_MODELS_MAX]
    deaths = tuple(Death("p", str(n), "loading", 1.0) for n in range(DEATHS_MAX + 9))
    assert suspicion_from_json(suspicion_to_json(Suspicion(1, Verdict.SUSPECT, deaths))).deaths == deaths[-DEATHS_MAX:]
    long = LoadFailure("p", 1, True, "x" * 10_000, 2.0, 0.0)
    assert len(failure_from_json("p", failure_to_json(long)).message) == MESSAGE_LENGTH_MAX


def test_a_message_that_is_not_unicode_is_written_all_the_same() -> None:
    failure = LoadFailure("p", 1, True, "no such file: \udcff.onnx", 2.0, 0.0)
    assert failure_from_json("p", failure_to_json(failure)).message == "no such file: ?.onnx"


def test_fields_that_a_newer_version_added_are_ignored() -> None:
    for value, read in READERS.values():
        data = json.loads(value)
        data["new"] = {"x": [1]}
        assert read(json.dumps(data).encode()) == read(value)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b"[]", "version field"),
        (b'"v"', "version field"),
        (b'{"v":"1"}', "version field"),
        (b'{"v":true}', "version field"),
        (b'{"v":2}', "upgrade this pod"),
    ],
)
def test_what_is_no_record_is_refused(kind: str, value: bytes, message: str) -> None:
    with pytest.raises(UnsupportedRecord, match=message):
        READERS[kind][1](value)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("pod", {"address": ""}, "address is missing"),
        ("pod", {"incarnation": None}, "incarnation is 'None'"),
        ("pod", {"free_bytes": -1}, "free_bytes is '-1'; it must be a whole number from 0"),
        ("pod", {"free_bytes": 1.5}, "whole number"),
        ("pod", {"free_bytes": True}, "whole number"),
        ("pod", {"rate_per_s": float("nan")}, "rate_per_s is 'nan'"),
        ("pod", {"rate_per_s": float("inf")}, "rate_per_s is 'inf'"),
        ("pod", {"ready": 1}, "ready is '1'; it must be true or false"),
        ("pod", {"settled": "no"}, "settled is 'no'"),
        ("pod", {"labels": "gpu"}, "labels must be a list"),
        ("pod", {"labels": [1]}, "labels is '1'"),
        ("pod", {"zone": "\ud800"}, "holds no character"),
        ("pod", {"zone": "z" * 5000}, "at most 4096"),
        ("pod", {"busy": [["t", "m"]]}, "an entry of busy"),
        ("pod", {"busy": [["t", "m", 1, 1, 0, 0, 0]]}, "busy is '0'"),
        ("pod", {"busy": [["t", "m", 1, 1, 0, 0, 1]] * (BUSY_MODELS_MAX + 1)}, "at most 64 entries"),
        ("copy", {"servable": 0, "loading": 0}, "neither serves nor loads"),
        ("copy", {"size_bytes": "1"}, "size_bytes is '1'"),
        ("copy", {"servable": 10**30}, "servable is"),
        ("failure", {"generation": 0}, "whole number from 1"),
        ("failure", {"retry_after_s": None}, "retry_after_s"),
        ("intent", {"doing": "dancing"}, "doing is 'dancing'"),
        ("suspicion", {"verdict": "guilty"}, "guilty"),
        ("suspicion", {"deaths": [["p", "i", "sleeping", 1]]}, "doing is 'sleeping'"),
        ("leader", {"pod": ""}, "pod is missing"),
        ("hot", {"models": [["t", "m", -1]]}, "models is '-1'"),
        ("hot", {"models": {"t": 1}}, "models must be a list"),
    ],
)
def test_a_field_that_is_wrong_is_named(kind: str, changes: dict[str, Any], message: str) -> None:
    value, read = READERS[kind]
    with pytest.raises(UnsupportedRecord, match=message):
        read(json.dumps({**json.loads(value), **changes}).encode())


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


@given(data=st.data())
def test_nothing_that_anybody_writes_raises_anything_else(data: st.DataObject) -> None:
    value, read = READERS[data.draw(st.sampled_from(sorted(READERS)))]
    fields = json.loads(value)
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), JSON, max_size=3))
    for broken in (json.dumps({**fields, **changed}).encode(), data.draw(st.binary(max_size=20))):
        with contextlib.suppress(UnsupportedRecord):
            read(broken)
