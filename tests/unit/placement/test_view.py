"""The view as a function of events: order, repetition, and who is touched."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import NotFound, UnsupportedRecord
from placement.records import AliasRecord, ModelRecord, ModelSpec
from placement.view import NameEvent, RegistryView, advance

SPEC = ModelSpec("file:///m")


def put(name: str, revision: int, tenant: str = "t") -> NameEvent:
    return NameEvent(False, tenant, name, revision, ModelRecord(tenant, name, SPEC, revision, 0, 0, revision=revision))


def gone(name: str, revision: int, tenant: str = "t") -> NameEvent:
    return NameEvent(False, tenant, name, revision, None)


def alias(name: str, revision: int, active: str, target: str | None = None) -> NameEvent:
    record = AliasRecord("t", name, active, target or active, revision=revision)
    return NameEvent(True, "t", name, revision, record)


def view_of(*events: NameEvent) -> RegistryView:
    view, _ = advance(RegistryView(), events, max(event.revision for event in events))
    return view


def test_what_is_older_than_what_is_known_is_ignored() -> None:
    listed = view_of(put("m", 15))
    view, changes = advance(listed, [put("m", 12), gone("m", 13)], 13)
    assert not changes
    assert view.tenants == listed.tenants
    aliased = view_of(put("m", 1), alias("x", 15, "m"))
    view, changes = advance(aliased, [NameEvent(True, "t", "x", 13, None)], 13)
    assert not changes
    assert view.tenants == aliased.tenants


def test_what_was_not_listed_is_put_and_taken_away_by_the_events_that_follow() -> None:
    listed = view_of(put("other", 10))
    view, changes = advance(listed, [put("m", 12), gone("m", 14)], 14)
    assert not changes
    assert view.tenants == listed.tenants


def test_a_batch_leaves_untouched_tenants_as_they_are_and_forgets_empty_ones() -> None:
    before = view_of(put("m", 1, "a"), put("m", 1, "b"), put("m", 1, "c"))
    after, changes = advance(before, [put("n", 2, "b"), gone("m", 3, "c")], 3)
    assert after.tenants["a"] is before.tenants["a"]
    assert after.tenants["b"] is not before.tenants["b"]
    assert set(after.tenants) == {"a", "b"}
    assert [(change.tenant, change.id) for change in changes.models] == [("b", "n"), ("c", "m")]
    assert "n" not in before.tenants["b"].models


def test_aliases_are_found_from_their_models() -> None:
    view = view_of(put("m", 1), put("n", 1), alias("x", 2, "m"), alias("y", 3, "m", "n"))
    assert view.tenant("t").aliases_of == {"m": {"x", "y"}, "n": {"y"}}
    view, _ = advance(view, [alias("y", 4, "n"), NameEvent(True, "t", "x", 5, None)], 5)
    assert view.tenant("t").aliases_of == {"n": {"y"}}


def test_an_unreadable_record_speaks_for_itself_until_it_is_replaced() -> None:
    bad = NameEvent(False, "t", "m", 2, UnsupportedRecord("from the future"))
    view = view_of(put("m", 1), put("n", 1), bad, alias("x", 3, "m"))
    for name in ("m", "x"):
        with pytest.raises(UnsupportedRecord, match="from the future"):
            view.resolve("t", name)
    assert view.resolve("t", "n").record.id == "n"
    view, _ = advance(view, [put("m", 4)], 4)
    assert view.resolve("t", "x").record.generation == 4


def test_an_unknown_name_is_not_found_by_tenant() -> None:
    view = view_of(put("m", 1, "a"))
    with pytest.raises(NotFound, match=r"model 'm' is not registered \(tenant 'b'\)"):
        view.resolve("b", "m")


def test_an_alias_whose_model_is_missing_says_which() -> None:
    with pytest.raises(NotFound, match=r"alias 'x' .* points at model 'm', which is not registered"):
        view_of(alias("x", 1, "m")).resolve("t", "x")


def test_a_view_can_be_read_by_a_thread_while_it_is_replaced() -> None:
    view = view_of(*(put(f"m{i}", i + 1) for i in range(100)))
    wrong: list[str] = []

    def read() -> None:
        wrong.extend(f"m{i % 100}" for i in range(5000) if view.resolve("t", f"m{i % 100}").record.id != f"m{i % 100}")

    thread = threading.Thread(target=read)
    thread.start()
    newer = view
    for i in range(100):
        newer, _ = advance(newer, [gone(f"m{i}", 1000 + i)], 1000 + i)
    thread.join()
    assert not wrong
    assert newer.tenants == {}


EVENTS = st.lists(st.tuples(st.sampled_from(["put", "gone", "alias"]), st.sampled_from("abc")), max_size=30)


@given(EVENTS, st.integers(0, 30), st.integers(0, 30))
def test_however_a_stream_is_cut_or_repeated_the_end_is_the_same(
    steps: list[tuple[str, str]], cut: int, back: int
) -> None:
    events = []
    for revision, (kind, name) in enumerate(steps, 1):
        if kind == "alias":
            events.append(alias(f"alias-{name}", revision, name))
        else:
            events.append(put(name, revision) if kind == "put" else gone(name, revision))
    whole, _ = advance(RegistryView(), events, len(events))
    view, _ = advance(RegistryView(), events[:cut], cut)
    # A list that was read in pages is followed by events that it holds already.
    view, _ = advance(view, events[max(0, cut - back) :], len(events))
    assert view.tenants == whole.tenants
