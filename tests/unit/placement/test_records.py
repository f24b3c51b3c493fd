"""Specs and records: what is refused and how it is said, and that JSON carries everything."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from placement.errors import InvalidSpec, UnsupportedRecord
from placement.records import (
    AliasRecord,
    AliasState,
    ModelRecord,
    ModelSpec,
    Tombstone,
    alias_from_json,
    alias_to_json,
    model_from_json,
    model_to_json,
    spec_from_mapping,
    spec_to_mapping,
    tombstone_from_json,
    tombstone_to_json,
)

FULL_SPEC = ModelSpec(
    uri="s3://bucket/models/iris v1/ž",
    format="onnx",
    storage_key="prod",
    capacity_hint_bytes=25 * 2**20,
    labels={"team": "a", "stage": "živě"},
    priority=-3,
    pinned=True,
    copies_min=1,
    copies_max=4,
    ttl_s=600.5,
    checksum="sha256:" + "0af1" * 16,
    isolation="process",
    parameters={"threads": "2"},
    load_timeout_s=30,
)

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"uri": ""}, "uri is empty; say where"),
    ({"uri": 7}, "uri is int; it must be text"),
    ({"uri": "x" * 5000}, "uri has 5000 characters; at most 4096"),
    ({"uri": "file:///a\nb"}, "uri holds '\\\\n' at position 9"),
    ({"uri": "https://user:hunter2@host/x"}, "put credentials under a storage key"),
    ({"format": ""}, "format has 0 characters"),
    ({"format": 3}, "format is int"),
    ({"storage_key": "a\x00"}, "storage_key holds"),
    ({"capacity_hint_bytes": 0}, "capacity_hint_bytes is 0; allowed is 1 to"),
    ({"capacity_hint_bytes": 2**63}, "allowed is 1 to"),
    ({"capacity_hint_bytes": 1.5}, "capacity_hint_bytes is '1.5'; it must be a whole number"),
    ({"capacity_hint_bytes": True}, "whole number"),
    ({"priority": 2**31}, "priority is 2147483648"),
    ({"priority": False}, "priority is 'False'"),
    ({"pinned": 1}, "pinned is 1; it must be true or false"),
    ({"copies_min": -1}, "copies_min is -1; allowed is 0 to"),
    ({"copies_max": 0}, "copies_max is 0; allowed is 1 to"),
    ({"copies_min": 3, "copies_max": 2}, "copies_max is 2, below copies_min 3"),
    ({"ttl_s": 0}, "ttl_s is 0; allowed is above 0"),
    ({"ttl_s": float("nan")}, "ttl_s is nan"),
    ({"ttl_s": "60"}, "ttl_s is '60'; it must be a number of seconds"),
    ({"load_timeout_s": -1.0}, "load_timeout_s is -1.0"),
    ({"checksum": "md5:abc"}, "checksum is 'md5:abc'; write sha256:"),
    ({"checksum": "sha256:" + "AB" * 32}, "64 lower-case hex digits"),
    ({"isolation": "vm"}, "isolation is 'vm'; allowed are 'none' and 'process'"),
    ({"labels": ["a"]}, "labels is \"\\['a'\\]\"; it must map"),
    ({"labels": {"a": 1}}, "labels\\['a'\\] is int; it must be text: put it in quotes"),
    ({"labels": {"": "x"}}, "a name in labels has 0 characters"),
    ({"labels": {str(i): "" for i in range(129)}}, "labels has 129 entries; at most 128"),
    ({"parameters": {"a": "x" * 5000}}, "parameters\\['a'\\] has 5000 characters"),
    ({"parameters": {"a": "\ud800"}}, "is no character"),
    ({"capacity_hint": 5}, "field 'capacity_hint' does not exist in a model's spec; known are uri, format"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_a_wrong_field_is_named_with_what_was_found_and_what_is_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        spec_from_mapping({"uri": "file:///m", **fields})


def test_a_password_in_a_uri_is_not_repeated_in_the_error() -> None:
    with pytest.raises(InvalidSpec) as caught:
        ModelSpec("https://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_a_spec_without_uri_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="uri is missing"):
        spec_from_mapping({"format": "onnx"})


@pytest.mark.parametrize("spec", [ModelSpec("file:///m"), FULL_SPEC])
def test_a_model_survives_its_json(spec: ModelSpec) -> None:
    record = ModelRecord("t", "m", spec, 7, 1.5, 2.5, auto_delete=True, revision=99)
    assert model_from_json("t", "m", model_to_json(record), 99) == record
    assert spec_from_mapping(spec_to_mapping(spec)) == spec


def test_defaults_are_not_written() -> None:
    assert spec_to_mapping(ModelSpec("file:///m", labels={}, priority=0)) == {"uri": "file:///m"}


@pytest.mark.parametrize(
    "record",
    [
        AliasRecord("t", "a", "m1", "m1"),
        AliasRecord("t", "a", "m1", "m2", "ctl", {"m1": 9, "m2": 1}, "disk full", 3.5, 42),
    ],
)
def test_an_alias_survives_its_json(record: AliasRecord) -> None:
    assert alias_from_json("t", "a", alias_to_json(record), record.revision) == record


def test_a_tombstone_survives_its_json() -> None:
    stone = Tombstone("t", "m", 3, 12.5)
    assert tombstone_from_json("t", "m", tombstone_to_json(stone)) == stone


def test_a_newer_record_is_refused_with_the_cure() -> None:
    data = json.loads(model_to_json(ModelRecord("t", "m", FULL_SPEC, 1, 0, 0)))
    data["v"] = 2
    with pytest.raises(UnsupportedRecord, match=r"model 'm' \(tenant 't'\) has version 2.*reads up to 1.*upgrade"):
        model_from_json("t", "m", json.dumps(data).encode())


def test_fields_that_a_later_minor_version_added_are_ignored() -> None:
    record = ModelRecord("t", "m", FULL_SPEC, 1, 0, 0)
    data = json.loads(model_to_json(record))
    data["colour"] = "blue"
    data["spec"]["shape"] = [1]
    assert model_from_json("t", "m", json.dumps(data).encode()) == record


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b'{"v":"1"}',
        b'{"v":1}',
        b'{"v":1,"spec":3,"generation":1,"registered_at_s":0,"generation_at_s":0}',
        b'{"v":1,"spec":{"uri":""},"generation":1,"registered_at_s":0,"generation_at_s":0}',
        b'{"v":1,"spec":{"uri":"x"},"generation":0,"registered_at_s":0,"generation_at_s":0}',
        b'{"v":1,"spec":{},"generation":1,"registered_at_s":0,"generation_at_s":0}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_record_that_is_none_says_which_and_what_to_do(value: bytes) -> None:
    for read in (model_from_json, alias_from_json, tombstone_from_json):
        with pytest.raises(UnsupportedRecord, match=r"'m' \(tenant 't'\).*delete its key"):
            read("t", "m", value)


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"b": "", "a": "x\x00y\ny", "ž": "𝄞"}},
        {"labels": {"b": "1"}, "checksum": "sha256:" + "ff" * 32},
        {"labels": {f"name-{number}": "v" for number in range(100)}, "checksum": "sha256:" + "00" * 32},
        {"labels": {"n" * 200: "v" * 4096}, "parameters": {"p": "v" * 4096}},
    ],
)
def test_a_spec_says_again_what_it_was_made_of(fields: dict[str, Any]) -> None:
    spec = ModelSpec("file:///models/ž", **fields)
    assert spec.uri == "file:///models/ž"
    assert {name: getattr(spec, name) for name in fields} == fields
    for name, value in fields["labels"].items():
        assert spec.label(name) == value
    assert spec.label("absent") is None
    assert spec == ModelSpec("file:///models/ž", **fields)
    assert spec.replaced(priority=1).replaced(priority=0) == spec


def test_the_order_of_labels_makes_no_other_spec() -> None:
    one = ModelSpec("file:///m", labels={"a": "1", "b": "2"})
    other = ModelSpec("file:///m", labels={"b": "2", "a": "1"})
    assert (one, hash(one), repr(one)) == (other, hash(other), repr(other))
    assert one != ModelSpec("file:///m", labels={"a": "2", "b": "1"})


def test_a_spec_cannot_be_changed() -> None:
    spec = ModelSpec("file:///m")
    with pytest.raises(AttributeError):
        spec.priority = 3  # type: ignore[misc]


def test_differences_name_the_fields() -> None:
    plain = ModelSpec("file:///m", labels={"a": "1"})
    relabelled = ModelSpec("file:///m", labels={"a": "2"}, pinned=True)
    assert plain.differences(relabelled) == ("labels", "pinned")


def test_an_alias_has_a_state() -> None:
    assert AliasRecord("t", "a", "m", "m").state is AliasState.DEFINED
    assert AliasRecord("t", "a", "m", "n").state is AliasState.TRANSITIONING
    assert AliasRecord("t", "a", "m", "n", failure="no").state is AliasState.TRANSITION_FAILED


def test_weights_split_the_draws_in_their_proportion() -> None:
    alias = AliasRecord("t", "a", "m1", "m1", weights={"m1": 3, "m2": 1, "m3": 0})
    drawn = [alias.choose(i / 100) for i in range(100)]
    assert drawn.count("m1") == 75
    assert drawn.count("m2") == 25


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"m2": 1}, "leave out the active model 'm1'"),
        ({"m1": 0}, "all 0"),
        ({"m1": -1}, "weights\\['m1'\\] is -1"),
        ({"m1": 1, "": 1}, "cannot exist"),
        ({f"m{i}": 1 for i in range(17)}, "at most 16"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        AliasRecord("t", "a", "m1", "m1", weights=weights)


def test_records_are_read_fast_enough_for_a_start_with_many() -> None:
    value = model_to_json(ModelRecord("t", "m", FULL_SPEC, 1, 0, 0))
    began_s = time.process_time()
    for _ in range(2000):
        model_from_json("t", "m", value)
    # The aim is 20,000 a second for ordinary records; this is the fullest one, on a busy machine.
    assert time.process_time() - began_s < 1.0
