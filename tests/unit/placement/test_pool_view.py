"""The picture of the pool as a function of events: what fades, what is gone, and what comes back."""

from __future__ import annotations

from dataclasses import replace

from placement.policy.snapshot import Copy, LoadFailure, ModelName, Parked, Pod, PoolView, Suspicion, Verdict
from placement.pool_view import (
    CopyEvent,
    FailureEvent,
    ParkedEvent,
    PodEvent,
    PoolEvent,
    SuspicionEvent,
    advance,
    faded,
    let_go,
    list_pods,
    vanished,
)

A, B, C = (ModelName("t", letter) for letter in "abc")


def pod(pod_id: str, incarnation: str = "1", *, draining: bool = False) -> Pod:
    return Pod(pod_id, f"{pod_id}-{incarnation}", f"{pod_id}:8033", draining=draining)


def here(revision: int, pod_id: str, incarnation: str = "1", *, settled: bool = True) -> PodEvent:
    return PodEvent(revision, pod_id, pod(pod_id, incarnation), settled)


def copy(pod_id: str, generation: int = 1) -> Copy:
    return Copy(pod_id, generation, 0, 10, 0.0)


def has(revision: int, name: ModelName, pod_id: str, generation: int = 1) -> CopyEvent:
    return CopyEvent(revision, name, pod_id, copy(pod_id, generation))


def lapse(revision: int, pod_id: str, *names: ModelName) -> list[PoolEvent]:
    """A lease ran out: the store deletes its keys in their order."""
    return [*(CopyEvent(revision, name, pod_id, None) for name in names), PodEvent(revision, pod_id, None)]


def view_of(*events: PoolEvent, now_s: float = 0.0) -> PoolView:
    return advance(PoolView(), events, max(event.revision for event in events), now_s=now_s)[0]


def after(view: PoolView, *events: PoolEvent, now_s: float = 0.0) -> PoolView:
    return advance(view, events, max(event.revision for event in events), now_s=now_s)[0]


def pods_of(view: PoolView, name: ModelName) -> list[str]:
    return [held.pod for held in view.copies.get(name, ())]


# Plain events -------------------------------------------------------------------------------------------------------


def test_copies_of_a_model_stand_in_the_order_of_pods() -> None:
    view = view_of(has(1, A, "z"), has(2, A, "b"), has(3, A, "m"), has(4, A, "b", 2))
    assert view.copies[A] == (copy("b", 2), copy("m"), copy("z"))
    assert pods_of(after(view, CopyEvent(5, A, "m", None)), A) == ["b", "z"]


def test_a_model_without_copies_or_failures_leaves_nothing() -> None:
    failure = LoadFailure("p", 1, False, "m", 0.0, 1.0)
    view = view_of(
        has(1, A, "p"), FailureEvent(2, A, "p", failure), SuspicionEvent(3, A, Suspicion(1, Verdict.SUSPECT, ()))
    )
    view = after(view, CopyEvent(4, A, "p", None), FailureEvent(5, A, "p", None), SuspicionEvent(6, A, None))
    assert (view.copies, view.failures, view.suspicions) == ({}, {}, {})
    assert after(view, CopyEvent(7, A, "p", None)).copies == {}


def test_a_view_once_taken_never_changes() -> None:
    before = view_of(here(1, "p"), has(2, A, "p"))
    kept = replace(before, copies=dict(before.copies), pods=dict(before.pods))
    after(before, here(3, "q"), has(4, A, "q"), has(5, B, "p"), *lapse(6, "p", A))
    assert before == kept


def test_what_is_not_newer_than_the_view_is_ignored() -> None:
    view = view_of(has(5, A, "p", 2))
    again, changes = advance(view, [has(5, A, "p", 1), CopyEvent(4, A, "p", None)], 5)
    assert not changes
    assert again == view


def test_changes_name_what_differs_and_nothing_else() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"))
    view, changes = advance(view, [has(3, A, "p"), has(4, B, "p", 2), here(5, "p"), here(6, "q")], 6)
    assert changes.copies == (B,)
    assert [(change.pod, change.before, change.after) for change in changes.pods] == [("q", None, pod("q"))]
    _, changes = advance(view, [has(7, C, "q"), CopyEvent(8, C, "q", None)], 8)
    assert not changes


def keeps(revision: int, name: ModelName, pod_id: str, generation: int = 1) -> ParkedEvent:
    return ParkedEvent(revision, name, pod_id, Parked(pod_id, generation))


def test_what_lies_on_disks_stands_beside_the_copies_and_is_shared_in_memory() -> None:
    view, changes = advance(PoolView(), [keeps(1, A, "q"), keeps(2, A, "p"), keeps(3, B, "q"), keeps(4, C, "q")], 4)
    assert view.parked == {A: (Parked("p", 1), Parked("q", 1)), B: (Parked("q", 1),), C: (Parked("q", 1),)}
    assert view.parked[B] is view.parked[C]
    assert (changes.parked, changes.copies, view.copies) == ((A, B, C), (), {})
    view, changes = advance(view, [ParkedEvent(5, B, "q", None), keeps(6, C, "q")], 6)
    assert (changes.parked, B in view.parked) == ((B,), False)


# Fading -------------------------------------------------------------------------------------------------------------


def test_a_pod_whose_lease_ran_out_fades_with_all_its_copies() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"), has(3, A, "q"))
    view, changes = advance(view, lapse(4, "p", A, B), 4, now_s=50.0)
    assert view.fading == {"p": 50.0}
    assert changes.began_fading == ("p",)
    assert "p" in view.pods
    assert (pods_of(view, A), pods_of(view, B)) == (["p", "q"], ["p"])
    assert view.unconfirmed == {"p": {A, B}}
    assert faded(view, 69.9, 20.0) == ()
    assert faded(view, 70.0, 20.0) == ("p",)
    view, changes = let_go(view, ["p"])
    assert (dict(view.pods), view.fading, view.unconfirmed) == ({}, {}, {})
    assert (pods_of(view, A), pods_of(view, B)) == (["q"], [])
    assert set(changes.copies) == {A, B}


def test_the_order_of_keys_within_the_revision_does_not_matter() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"))
    events = lapse(3, "p", A, B)
    assert after(view, *events) == after(view, *reversed(events))


def test_what_a_pod_deletes_itself_is_gone_at_once_also_while_it_fades() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"), CopyEvent(3, A, "p", None), *lapse(4, "p", B))
    assert pods_of(view, A) == []
    view = after(view, has(5, A, "p"), CopyEvent(6, A, "p", None))
    assert pods_of(view, A) == []
    view = after(view, CopyEvent(7, B, "p", None))
    assert pods_of(view, B) == []
    assert view.unconfirmed == {}


def test_a_pod_that_said_it_drains_is_gone_with_its_lease() -> None:
    view = view_of(PodEvent(1, "p", pod("p", draining=True)), has(2, A, "p"), *lapse(3, "p", A))
    assert (dict(view.pods), view.copies, view.fading) == ({}, {}, {})


def test_a_pod_that_comes_back_keeps_its_copies_until_it_has_said_which_it_still_has() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"), *lapse(3, "p", A, B))
    view = after(view, here(4, "p", settled=False))
    assert "p" in view.fading
    assert (pods_of(view, A), pods_of(view, B)) == (["p"], ["p"])
    view = after(view, has(5, A, "p", 2), has(5, C, "p"))
    assert view.unconfirmed == {"p": {B}}
    view = after(view, here(6, "p"))
    assert (view.fading, view.unconfirmed) == ({}, {})
    assert (view.copies[A], pods_of(view, B), pods_of(view, C)) == ((copy("p", 2),), [], ["p"])


def test_copies_of_the_revision_in_which_a_pod_is_settled_are_confirmed() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), *lapse(3, "p", A))
    view = after(view, here(4, "p"), has(4, A, "p"))
    assert pods_of(view, A) == ["p"]


def test_another_incarnation_begins_without_its_predecessors_copies() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), *lapse(3, "p", A), here(4, "p", "2"))
    assert view.pods["p"].incarnation == "p-2"
    assert (view.copies, view.fading, view.unconfirmed) == ({}, {}, {})


def test_a_pod_that_is_let_go_while_it_returns_keeps_what_it_has_published_again() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"), *lapse(3, "p", A, B))
    view = after(view, here(4, "p", settled=False), has(5, A, "p"))
    view, _ = let_go(view, ["p"])
    assert (pods_of(view, A), pods_of(view, B)) == (["p"], [])
    view = after(view, here(6, "p"))
    assert set(view.pods) == {"p"}


def test_a_pod_that_does_not_fade_is_not_let_go() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"))
    assert let_go(view, ["p", "unknown"])[0] == view


def test_a_lease_lost_twice_fades_from_the_first_time_on() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), *lapse(3, "p", A), now_s=10.0)
    view = after(view, here(4, "p", settled=False), has(5, B, "p"), now_s=12.0)
    view = after(view, *lapse(6, "p", B), now_s=15.0)
    assert view.fading == {"p": 10.0}
    assert view.unconfirmed == {"p": {A, B}}


def test_what_lies_on_a_pods_disk_fades_and_comes_back_as_its_copies_do() -> None:
    view = view_of(here(1, "p"), keeps(2, A, "p"), keeps(2, B, "p"))
    gone: list[PoolEvent] = [ParkedEvent(3, A, "p", None), PodEvent(3, "p", None), ParkedEvent(3, B, "p", None)]
    view = after(view, *gone)
    assert (set(view.parked), view.parked_unconfirmed) == ({A, B}, {"p": {A, B}})
    returned = after(view, here(4, "p", settled=False), keeps(5, A, "p"), here(6, "p"))
    assert (set(returned.parked), returned.parked_unconfirmed) == ({A}, {})
    assert let_go(view, ["p"])[0].parked == {}
    restarted = after(view, here(4, "p", "2"))
    assert (restarted.parked, restarted.fading) == ({}, {})


# Lists --------------------------------------------------------------------------------------------------------------


def listed_anew(view: PoolView, pods: list[PodEvent], copies: list[CopyEvent], revision: int) -> PoolView:
    """As `PoolFollower.read_all` does it."""
    view, _ = list_pods(replace(view, revision=revision - 1), pods, now_s=99.0)
    view, _ = advance(view, copies, revision - 1)
    there = {(event.name, event.pod) for event in copies}
    gone = vanished(view, list(view.copies), lambda kind, name, pod_id: (name, pod_id) in there, revision)
    return advance(view, gone, revision)[0]


def test_a_list_takes_away_what_lies_on_no_disk_any_more() -> None:
    view = view_of(here(1, "p"), keeps(2, A, "p"), keeps(2, B, "p"))
    view, _ = list_pods(replace(view, revision=8), [here(9, "p")], now_s=99.0)
    asked: list[tuple[str, ModelName, str]] = []

    def is_listed(kind: str, name: ModelName, pod_id: str) -> bool:
        asked.append((kind, name, pod_id))
        return name == A

    view, _ = advance(view, vanished(view, list(view.parked), is_listed, 9), 9)
    assert (set(view.parked), asked) == ({A}, [("parked", A, "p"), ("parked", B, "p")])


def test_a_list_takes_away_what_settled_pods_do_not_have() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"))
    view = listed_anew(view, [here(9, "p")], [has(9, B, "p", 3), has(9, C, "p")], 9)
    assert (pods_of(view, A), view.copies[B], pods_of(view, C)) == ([], (copy("p", 3),), ["p"])
    assert (view.revision, view.fading) == (9, {})


def test_pods_that_a_list_does_not_show_fade_unless_they_had_said_goodbye() -> None:
    leaving = PodEvent(1, "q", pod("q", draining=True))
    view = view_of(here(1, "p"), leaving, has(2, A, "p"), has(2, B, "q"))
    view = listed_anew(view, [], [], 9)
    assert view.fading == {"p": 99.0}
    assert set(view.pods) == {"p"}
    assert (pods_of(view, A), pods_of(view, B)) == (["p"], [])
    again = listed_anew(view, [], [], 20)
    assert again == replace(view, revision=20)


def test_a_pod_that_a_list_shows_half_returned_keeps_what_it_has_not_written_yet() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"))
    view = listed_anew(view, [here(9, "p", settled=False)], [has(9, A, "p")], 9)
    assert view.unconfirmed == {"p": {B}}
    view = after(view, here(10, "p"))
    assert (pods_of(view, A), pods_of(view, B)) == (["p"], [])


def test_a_list_of_a_wiped_store_begins_revisions_anew() -> None:
    view = view_of(here(1000, "p"), has(2000, A, "p"))
    view = listed_anew(view, [], [], 3)
    assert view.revision == 3
    view = after(view, here(4, "p", settled=False), has(5, A, "p"), here(6, "p"))
    assert (pods_of(view, A), view.fading) == (["p"], {})


def test_a_fading_pod_that_a_list_shows_settled_loses_only_what_the_list_lacks() -> None:
    view = view_of(here(1, "p"), has(2, A, "p"), has(2, B, "p"), *lapse(3, "p", A, B))
    halfway, _ = list_pods(view, [here(9, "p")], now_s=99.0)
    assert (pods_of(halfway, A), pods_of(halfway, B), halfway.fading) == (["p"], ["p"], {})
    view = listed_anew(view, [here(9, "p")], [has(9, B, "p")], 9)
    assert (pods_of(view, A), pods_of(view, B)) == ([], ["p"])
