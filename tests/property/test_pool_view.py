"""The picture of the pool against plain dictionaries: random histories, cut into batches anywhere.

Questions: does the order of keys within a revision, or where batches end, change the picture? Is the picture the
store's content once nothing fades? Is a pod's copy ever missing while its owner holds it and comes back in time?
And of the map underneath: is it a dictionary?
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from placement.layered_map import LayeredMap
from placement.policy.snapshot import Copy, ModelName, Parked, Pod, PoolView
from placement.pool_view import CopyEvent, ParkedEvent, PodEvent, PoolEvent, advance, faded, let_go

PODS = ("p", "q", "r")
NAMES = tuple(ModelName("t", letter) for letter in "abcd")


class Store:
    """Pods that write, lose their leases and come back, and the events that a watch would show."""

    def __init__(self) -> None:
        self.revision = 0
        self.pods: dict[str, tuple[Pod, bool]] = {}
        self.copies: dict[tuple[ModelName, str], Copy] = {}
        self.held: dict[str, dict[ModelName, Copy]] = {}
        """What living processes have in memory."""
        self.incarnations = 0
        self.returning: dict[str, Pod] = {}
        self.history: list[list[PoolEvent]] = []

    def _write(self, *events: PoolEvent) -> None:
        self.history.append(list(events))

    def put_pod(self, pod: Pod, settled: bool) -> None:
        self.revision += 1
        self.pods[pod.id] = (pod, settled)
        self._write(PodEvent(self.revision, pod.id, pod, settled))

    def begin(self, pod_id: str) -> None:
        if pod_id not in self.pods:
            self.incarnations += 1
            self.returning.pop(pod_id, None)
            self.held[pod_id] = {}
            self.put_pod(Pod(pod_id, str(self.incarnations), "h:1"), True)

    def say(self, pod_id: str, name: ModelName, generation: int | None) -> None:
        """Load, replace or evict a copy, and write it if there is a lease."""
        if pod_id not in self.held:
            return
        if generation is None:
            if self.held[pod_id].pop(name, None) is None:
                return
        else:
            self.held[pod_id][name] = Copy(pod_id, generation, 0, 1, 0.0)
        if pod_id in self.pods and pod_id not in self.returning:
            self._put_copy(pod_id, name)

    def _put_copy(self, pod_id: str, name: ModelName) -> None:
        copy = self.held[pod_id].get(name)
        before = self.copies.pop((name, pod_id), None)
        if copy is not None:
            self.copies[name, pod_id] = copy
        if copy is not None or before is not None:
            self.revision += 1
            self._write(CopyEvent(self.revision, name, pod_id, copy))

    def lapse(self, pod_id: str) -> None:
        if pod_id in self.pods:
            self.revision += 1
            gone = [name for name, holder in self.copies if holder == pod_id]
            for name in gone:
                del self.copies[name, pod_id]
            self.returning[pod_id] = self.pods.pop(pod_id)[0]
            events: list[PoolEvent] = [CopyEvent(self.revision, name, pod_id, None) for name in gone]
            self._write(PodEvent(self.revision, pod_id, None), *events)

    def come_back(self, pod_id: str) -> None:
        """The same process, on another lease: unsettled, copies, settled."""
        if pod_id in self.returning and pod_id not in self.pods:
            pod = self.returning[pod_id]
            self.put_pod(pod, not self.held[pod_id])
            for name in tuple(self.held[pod_id]):
                self._put_copy(pod_id, name)
            del self.returning[pod_id]
            if self.held[pod_id]:
                self.put_pod(pod, True)


Steps = list[tuple[str, str, ModelName, int | None]]
STEPS: st.SearchStrategy[Steps] = st.lists(
    st.tuples(
        st.sampled_from(["begin", "say", "say", "say", "lapse", "come_back"]),
        st.sampled_from(PODS),
        st.sampled_from(NAMES),
        st.one_of(st.none(), st.integers(1, 3)),
    ),
    max_size=60,
)


def played(steps: Steps) -> Store:
    store = Store()
    for action, pod_id, name, generation in steps:
        if action == "say":
            store.say(pod_id, name, generation)
        else:
            getattr(store, action)(pod_id)
    return store


def apply(view: PoolView, revisions: Iterable[list[PoolEvent]]) -> PoolView:
    """What is loaded in these histories is on the disk as well, and must never be told of differently."""
    events = [event for revision in revisions for event in revision]
    parked = [
        ParkedEvent(event.revision, event.name, event.pod, event.copy and Parked(event.pod, event.copy.servable))
        for event in events
        if isinstance(event, CopyEvent)
    ]
    revision = max((event.revision for event in events), default=view.revision)
    view = advance(view, [*events, *parked], revision, now_s=1.0)[0]
    assert {name: [(copy.pod, copy.servable) for copy in held] for name, held in view.copies.items()} == {
        name: [(parked.pod, parked.disk) for parked in held] for name, held in view.parked.items()
    }
    assert view.parked_unconfirmed == view.unconfirmed
    return view


@given(steps=STEPS, seed=st.integers(0, 1000))
def test_neither_the_order_within_a_revision_nor_where_batches_end_changes_the_picture(steps: Steps, seed: int) -> None:
    history = played(steps).history
    whole = apply(PoolView(), history)
    random = Random(seed)
    view = PoolView()
    position = 0
    while position < len(history):
        size = random.randint(1, 5)
        batch = [random.sample(events, len(events)) for events in history[position : position + size]]
        view = apply(view, batch)
        view = apply(view, batch)  # it may come twice
        position += size
    assert view == whole


@given(steps=STEPS)
def test_once_nothing_fades_the_picture_is_what_the_store_holds(steps: Steps) -> None:
    store = played(steps)
    view = apply(PoolView(), store.history)
    view, _ = let_go(view, faded(view, 100.0, 20.0))
    assert view.pods == {pod_id: pod for pod_id, (pod, _) in store.pods.items()}
    assert {(name, copy.pod): copy for name, held in view.copies.items() for copy in held} == store.copies
    assert (view.fading, view.unconfirmed) == ({}, {})
    for held in view.copies.values():
        assert [copy.pod for copy in held] == sorted(copy.pod for copy in held)


@given(steps=STEPS)
def test_a_living_pods_copy_is_never_missing_if_it_was_ever_written(steps: Steps) -> None:
    store = Store()
    view = PoolView()
    for action, pod_id, name, generation in steps:
        before = len(store.history)
        if action == "say":
            store.say(pod_id, name, generation)
        else:
            getattr(store, action)(pod_id)
        for events in store.history[before:]:
            shown = {(n, c.pod) for n, held in view.copies.items() for c in held}
            view = apply(view, [events])
            for n, holder in shown:
                if n in store.held.get(holder, {}):
                    assert holder in [c.pod for c in view.copies.get(n, ())], (n, holder)


class LayeredMapIsADictionary(RuleBasedStateMachine):
    """Edits of a map and of a dictionary, and every version that was ever made."""

    def __init__(self) -> None:
        super().__init__()
        self.map: LayeredMap[str, int] = LayeredMap({f"k{number}": number for number in range(100)})
        self.expected = dict(self.map.items())
        self.versions: list[tuple[LayeredMap[str, int], dict[str, int]]] = []

    @rule(changes=st.lists(st.tuples(st.integers(0, 150), st.one_of(st.none(), st.integers(0, 9))), max_size=60))
    def edit(self, changes: list[tuple[int, int | None]]) -> None:
        edit = self.map.edit()
        for number, value in changes:
            key = f"k{number}"
            if value is None:
                edit.discard(key)
                self.expected.pop(key, None)
            else:
                edit.set(key, value)
                self.expected[key] = value
            assert edit.get(key) == value
        self.map = edit.finish()

    @precondition(lambda self: len(self.versions) < 10)
    @rule()
    def keep(self) -> None:
        self.versions.append((self.map, dict(self.expected)))

    @invariant()
    def equal(self) -> None:
        for found, expected in [(self.map, self.expected), *self.versions]:
            assert found == expected
            assert len(found) == len(expected)
            assert sorted(found) == sorted(expected)
            assert sorted(found.values()) == sorted(expected.values())
            for number in range(0, 151, 7):
                key = f"k{number}"
                assert (key in found) == (key in expected)
                assert found.get(key, -1) == expected.get(key, -1)


TestLayeredMapIsADictionary = LayeredMapIsADictionary.TestCase
