"""Which runtime KServe would take, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from controller.runtimes import NoRuntime, choose_runtime, readable
from controller.service_view import read_service
from tests.unit.controller.builders import model, runtime, service

AUTO = {"name": "sklearn", "autoSelect": True}


def chosen(
    fields: dict[str, Any], of_namespace: tuple[Any, ...] = (), of_cluster: tuple[Any, ...] = ()
) -> str | NoRuntime:
    wanted = read_service(service(model(**fields))).model
    assert wanted is not None
    found = choose_runtime(wanted, readable(of_namespace, of_cluster), multi_model=False)
    return found if isinstance(found, NoRuntime) else found.name


def refusal(fields: dict[str, Any], *of_cluster: dict[str, Any]) -> tuple[str, str]:
    found = chosen(fields, (), of_cluster)
    assert isinstance(found, NoRuntime)
    return found.reason, found.message


def test_one_of_the_namespace_goes_before_a_higher_priority_of_the_cluster() -> None:
    own, common = runtime("own", {**AUTO, "priority": 1}), runtime("common", {**AUTO, "priority": 9})
    assert chosen({}, (own,), (common,)) == "own"


def test_higher_priority_goes_first_and_none_last() -> None:
    low, high, none = (
        runtime("low", {**AUTO, "priority": 1}),
        runtime("high", {**AUTO, "priority": 2}),
        runtime("a-none", AUTO),
    )
    assert chosen({}, (), (low, none, high)) == "high"
    assert chosen({}, (), (none, low)) == "low"


def test_of_equal_priority_the_oldest_protocol_then_the_youngest_then_the_name_decides() -> None:
    v2, both = runtime("a", AUTO, protocolVersions=["v2", "v1"]), runtime("b", AUTO, protocolVersions=["v2", "v1"])
    any_protocol = runtime("0", AUTO)
    assert chosen({}, (), (any_protocol, both, v2)) == "a"
    both["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    assert chosen({}, (), (v2, both)) == "b"


def test_without_a_protocol_v1_is_asked_for_and_v2_alone_is_never_taken() -> None:
    reason, message = refusal({}, runtime("mlserver", AUTO, protocolVersions=["v2"]))
    assert (reason, "mlserver (speaks v2, not v1)" in message) == ("NoSupportingRuntime", True)
    assert chosen({"protocolVersion": "v2"}, (), (runtime("mlserver", AUTO, protocolVersions=["v2"]),)) == "mlserver"


@pytest.mark.parametrize(
    ("asked", "offered", "fits"),
    [(None, "1", True), ("1", "1", True), ("1.0", "1", False), ("2", None, False), (None, None, True)],
)
def test_a_version_fits_by_its_text(asked: str | None, offered: str | None, fits: bool) -> None:
    wanted = {"name": "sklearn", "version": asked}
    found = chosen({"modelFormat": wanted}, (), (runtime("one", {**AUTO, "version": offered}),))
    assert (found == "one") is fits


def test_only_entries_with_auto_select_are_taken_without_a_name() -> None:
    by_hand = runtime("by-hand", {"name": "sklearn"})
    assert "by-hand (not autoSelect)" in refusal({}, by_hand)[1]
    assert chosen({"runtime": "by-hand"}, (), (by_hand,)) == "by-hand"


def test_the_version_that_is_asked_for_needs_auto_select_itself() -> None:
    mixed = runtime("mixed", {**AUTO, "version": "1"}, {"name": "sklearn", "version": "2"})
    assert chosen({"modelFormat": {"name": "sklearn", "version": "1"}}, (), (mixed,)) == "mixed"
    assert isinstance(chosen({"modelFormat": {"name": "sklearn", "version": "2"}}, (), (mixed,)), NoRuntime)


def test_a_name_that_is_not_there_may_come() -> None:
    reason, message = refusal({"runtime": "later"})
    assert (reason, "waiting for runtime 'later'" in message) == ("RuntimeNotRecognized", True)


def test_a_name_of_the_namespace_hides_the_same_of_the_cluster() -> None:
    disabled = runtime("same", AUTO, disabled=True)
    found = chosen({"runtime": "same"}, (disabled,), (runtime("same", AUTO),))
    assert isinstance(found, NoRuntime)
    assert found.reason == "RuntimeDisabled"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"multiModel": True}, "multiModel: true"),
        ({"protocolVersions": ["v1"]}, "speaks v1, not v2"),
    ],
)
def test_a_named_runtime_that_does_not_fit_is_refused_with_the_reason(spec: dict[str, Any], why: str) -> None:
    reason, message = refusal({"runtime": "named", "protocolVersion": "v2"}, runtime("named", AUTO, **spec))
    assert (reason, why in message) == ("NoSupportingRuntime", True)
    assert "spec.predictor.model.runtime" in message


def test_a_runtime_that_cannot_be_read_is_none_and_stops_nobody() -> None:
    assert chosen({}, (), (runtime("odd", disabled="yes"), runtime("good", AUTO))) == "good"


def test_the_order_of_the_list_changes_nothing() -> None:
    three = [runtime(name, {**AUTO, "priority": 3}) for name in "cab"]
    assert {chosen({}, (), tuple(three[at:] + three[:at])) for at in range(3)} == {"a"}
