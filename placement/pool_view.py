"""All pods and copies as one immutable picture, and the next picture after some events.

`PoolView` (placement.policy.snapshot) is what decisions and requests read. Here is how it comes about: `advance` makes
the next one of the events of a batch. Pods and their copies are a function of the store's content, whatever the order
in which keys of one revision are told; only what fades also depends on when this pod heard of it.

**Fading.** When a pod's lease runs out its record and all its copies vanish in one revision. The pod may be alive all
the same: the store was away from it or restarted, or the pod was frozen for a moment. Dropping it at once would turn
every request for its models into a load elsewhere, for the whole pool if the store was away from all. So:

* A pod whose record vanishes stays in `pods`, and is in `fading`; its copies that vanish in that revision stay in
  `copies`, and are in `unconfirmed`. What it deletes in other revisions is gone at once: that was the pod's own doing.
* A pod whose last record said `draining` has said goodbye: it and its copies are gone at once.
* A copy that a fading pod publishes again is no longer unconfirmed. Its record with `settled` says that all are
  published again: the pod is as any other, and copies still unconfirmed are gone. So they are when it is another
  incarnation, which begins with no copies and is settled from the first.
* `let_go` ends it: after the time for fading, or because the mesh finds that the pod does not answer. Copies that it
  has published again stay: they are in the store.

A copy may be there a moment before or after its pod's record; whoever picks a holder looks for the pod.

Events that are not newer than the view are ignored, so a batch may come twice.

**A list** of the whole store is read in pages, while pods go on writing: the pods first (`list_pods`), so that a pod
that is settled there has all its copies in the pages that follow; then the rest, as events of the list's revision;
at its end what was known and did not come (`vanished`). Pods that are missing or not settled begin to fade with all
their copies, and copies that come end that for themselves.

Deliberately absent: whether pods answer (the mesh's probes), JSON and keys (`placement.pool_following`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from placement.layered_map import LayeredMap, MapEdit
from placement.policy.snapshot import Copy, LoadFailure, ModelName, Pod, PoolView, Suspicion

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class PodEvent:
    """A pod's record was put, or vanished (`record` is None)."""

    revision: int
    pod: str
    record: Pod | None
    settled: bool = True
    """All copies of this incarnation are published."""


@dataclass(frozen=True, slots=True)
class CopyEvent:
    """A pod's copy of a model was put or vanished."""

    revision: int
    name: ModelName
    pod: str
    copy: Copy | None


@dataclass(frozen=True, slots=True)
class FailureEvent:
    """A pod's failure to load a model was put or vanished."""

    revision: int
    name: ModelName
    pod: str
    failure: LoadFailure | None


@dataclass(frozen=True, slots=True)
class SuspicionEvent:
    """A model came under suspicion, or was released."""

    revision: int
    name: ModelName
    suspicion: Suspicion | None


PoolEvent = PodEvent | CopyEvent | FailureEvent | SuspicionEvent


@dataclass(frozen=True, slots=True)
class PodChange:
    """A pod appeared (`before` is None), said something new, or went (`after` is None)."""

    pod: str
    before: Pod | None
    after: Pod | None


@dataclass(frozen=True, slots=True)
class PoolChanges:
    """All that one batch changed; names in no order that means anything, each once."""

    revision: int
    pods: tuple[PodChange, ...] = ()
    copies: tuple[ModelName, ...] = ()
    failures: tuple[ModelName, ...] = ()
    suspicions: tuple[ModelName, ...] = ()
    began_fading: tuple[str, ...] = ()
    """Pods: whoever probes them should say soon whether they answer."""
    intents: bool = False
    leader: bool = False
    hot: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.pods
            or self.copies
            or self.failures
            or self.suspicions
            or self.began_fading
            or self.intents
            or self.leader
            or self.hot
        )


def advance(
    view: PoolView, events: Iterable[PoolEvent], revision: int, *, now_s: float = 0.0
) -> tuple[PoolView, PoolChanges]:
    """The picture after these events, and what differs. `now_s`: this pod's monotonic clock, for what fades."""
    draft = _Draft(view, now_s)
    newer = sorted((event for event in events if event.revision > view.revision), key=_revision)
    for _, together in groupby(newer, key=_revision):
        draft.apply_revision(list(together))
    return draft.finish(max(view.revision, revision))


def let_go(view: PoolView, pods: Iterable[str]) -> tuple[PoolView, PoolChanges]:
    """Without these fading pods, and the copies that they have not published again. Others are left as they are."""
    draft = _Draft(view, 0.0)
    for pod in pods:
        if pod in view.fading:
            draft.end_fading(pod)
            draft.set_pod(pod, None)
    return draft.finish(view.revision)


def faded(view: PoolView, now_s: float, fading_s: float) -> tuple[str, ...]:
    """Pods that have been fading for so long that they are not awaited any more."""
    return tuple(pod for pod, since_s in view.fading.items() if now_s - since_s >= fading_s)


def list_pods(view: PoolView, listed: Collection[PodEvent], *, now_s: float) -> tuple[PoolView, PoolChanges]:
    """The picture when a list of the store has shown the pods, and nothing else yet."""
    draft = _Draft(view, now_s)
    settled = {event.pod for event in listed if event.record is not None and event.settled}
    draft.suspend(settled)
    for event in listed:
        if event.record is not None:
            draft.set_pod(event.pod, event.record)
    there = {event.pod for event in listed if event.record is not None}
    for pod, record in view.pods.items():
        if pod not in there and record.draining:
            draft.set_pod(pod, None)
    return draft.finish(view.revision)


def vanished(
    view: PoolView, names: Iterable[ModelName], is_listed: Callable[[str, ModelName, str], bool], revision: int
) -> list[PoolEvent]:
    """What ends a list: events, as of its revision, for what is known of these models and did not come.

    `is_listed` is asked with `copies` or `failures`, the model and the pod. Suspicions are not among the events: a
    list cannot tell a release from a store that lost them; whoever lists decides.
    """
    gone: list[PoolEvent] = []
    for name in names:
        gone.extend(
            CopyEvent(revision, name, copy.pod, None)
            for copy in view.copies.get(name, ())
            if name not in view.unconfirmed.get(copy.pod, ()) and not is_listed("copies", name, copy.pod)
        )
        gone.extend(
            FailureEvent(revision, name, failure.pod, None)
            for failure in view.failures.get(name, ())
            if not is_listed("failures", name, failure.pod)
        )
    return gone


_revision = attrgetter("revision")


class _Draft:
    """The next picture while it is made; each part is copied on its first change."""

    def __init__(self, view: PoolView, now_s: float) -> None:
        self._view = view
        self._now_s = now_s
        self._pods: dict[str, Pod] | None = None
        self._suspicions: dict[ModelName, Suspicion] | None = None
        self._copies: MapEdit[ModelName, tuple[Copy, ...]] | None = None
        self._failures: MapEdit[ModelName, tuple[LoadFailure, ...]] | None = None
        self._fading = dict(view.fading)
        self._unconfirmed: dict[str, set[ModelName]] = {}
        """Of the fading pods that this batch touches; the others' are in the view."""
        self._touched_pods: dict[str, None] = {}
        self._touched_copies: dict[ModelName, None] = {}
        self._touched_failures: dict[ModelName, None] = {}
        self._touched_suspicions: dict[ModelName, None] = {}

    def apply_revision(self, events: list[PoolEvent]) -> None:
        """All that happened in one revision."""
        # 1. whose lease ran out; 2. copies, kept if they went with their pod; 3. pods, whose `settled` counts after
        # the copies of the same revision; 4. the rest.
        pods = [event for event in events if isinstance(event, PodEvent)]
        lost = {event.pod for event in pods if event.record is None and self._may_fade(event.pod)}
        for pod in lost:
            self._fading.setdefault(pod, self._now_s)
        for event in events:
            if isinstance(event, CopyEvent):
                self._apply_copy(event, kept=event.pod in lost)
        for event in pods:
            if event.pod not in lost:
                self._apply_pod(event)
        for event in events:
            if isinstance(event, FailureEvent):
                self._apply_failure(event)
            elif isinstance(event, SuspicionEvent):
                self._apply_suspicion(event)

    def _may_fade(self, pod: str) -> bool:
        known = self._pod(pod)
        return known is not None and not known.draining

    def _apply_copy(self, event: CopyEvent, *, kept: bool) -> None:
        if event.copy is None and kept:
            if any(copy.pod == event.pod for copy in self._holders(event.name)):
                self._unconfirmed_of(event.pod).add(event.name)
            return
        if event.pod in self._fading:
            self._unconfirmed_of(event.pod).discard(event.name)
        self._set_copy(event.name, event.pod, event.copy)

    def _apply_pod(self, event: PodEvent) -> None:
        if event.record is None or event.settled:
            self.end_fading(event.pod)
        self.set_pod(event.pod, event.record)

    def _apply_failure(self, event: FailureEvent) -> None:
        if self._failures is None:
            self._failures = LayeredMap.of(self._view.failures).edit()
        self._touched_failures[event.name] = None
        _put_of_pod(self._failures, event.name, event.pod, event.failure)

    def _apply_suspicion(self, event: SuspicionEvent) -> None:
        if self._suspicions is None:
            self._suspicions = dict(self._view.suspicions)
        self._touched_suspicions[event.name] = None
        if event.suspicion is None:
            self._suspicions.pop(event.name, None)
        else:
            self._suspicions[event.name] = event.suspicion

    def suspend(self, settled: Collection[str]) -> None:
        """A list begins. Of pods that are not settled nothing is certain; what the others have, the list will show."""
        for pod in self._view.fading:
            if pod in settled:
                self._unconfirmed_of(pod).clear()
                del self._fading[pod]
        unsure = {pod for pod, record in self._view.pods.items() if pod not in settled and not record.draining}
        for pod in sorted(unsure):
            self._fading.setdefault(pod, self._now_s)
        if unsure:
            for name, holders in self._view.copies.items():
                for copy in holders:
                    if copy.pod in unsure:
                        self._unconfirmed_of(copy.pod).add(name)

    def end_fading(self, pod: str) -> None:
        """The pod fades no more; what it has not published again is gone."""
        if pod not in self._fading:
            return
        for name in sorted(self._unconfirmed_of(pod)):
            self._set_copy(name, pod, None)
        del self._fading[pod]

    def set_pod(self, pod: str, record: Pod | None) -> None:
        if self._pods is None:
            self._pods = dict(self._view.pods)
        self._touched_pods[pod] = None
        if record is None:
            self._pods.pop(pod, None)
        else:
            self._pods[pod] = record

    def _set_copy(self, name: ModelName, pod: str, copy: Copy | None) -> None:
        if self._copies is None:
            self._copies = LayeredMap.of(self._view.copies).edit()
        self._touched_copies[name] = None
        _put_of_pod(self._copies, name, pod, copy)

    def _pod(self, pod: str) -> Pod | None:
        return (self._view.pods if self._pods is None else self._pods).get(pod)

    def _holders(self, name: ModelName) -> tuple[Copy, ...]:
        return (self._view.copies.get(name) if self._copies is None else self._copies.get(name)) or ()

    def _unconfirmed_of(self, pod: str) -> set[ModelName]:
        if pod not in self._unconfirmed:
            self._unconfirmed[pod] = set(self._view.unconfirmed.get(pod, ()))
        return self._unconfirmed[pod]

    def finish(self, revision: int) -> tuple[PoolView, PoolChanges]:
        before = self._view
        after = replace(before, revision=revision)
        if self._pods is not None:
            after = replace(after, pods=self._pods)
        if self._copies is not None:
            after = replace(after, copies=self._copies.finish())
        if self._failures is not None:
            after = replace(after, failures=self._failures.finish())
        if self._suspicions is not None:
            after = replace(after, suspicions=self._suspicions)
        if self._fading != before.fading or self._unconfirmed:
            unconfirmed = {pod: frozenset(names) for pod, names in self._unconfirmed.items()}
            unconfirmed = {**before.unconfirmed, **unconfirmed}
            left = {pod: names for pod, names in unconfirmed.items() if names and pod in self._fading}
            after = replace(after, fading=self._fading, unconfirmed=left)
        changes = PoolChanges(
            revision,
            tuple(
                PodChange(pod, before.pods.get(pod), after.pods.get(pod))
                for pod in self._touched_pods
                if before.pods.get(pod) != after.pods.get(pod)
            ),
            _differing(self._touched_copies, before.copies, after.copies),
            _differing(self._touched_failures, before.failures, after.failures),
            _differing(self._touched_suspicions, before.suspicions, after.suspicions),
            tuple(pod for pod in self._fading if pod not in before.fading),
        )
        return after, changes


OfPod = TypeVar("OfPod", Copy, LoadFailure)


def _put_of_pod(edit: MapEdit[ModelName, tuple[OfPod, ...]], name: ModelName, pod: str, entry: OfPod | None) -> None:
    """Replace what one pod has of a model; the tuple stays in the order of pods."""
    known = edit.get(name) or ()
    if entry is not None and entry in known:
        return
    left = [other for other in known if other.pod != pod]
    if entry is not None:
        left.append(entry)
        left.sort(key=_pod_of)
    if left:
        edit.set(name, tuple(left))
    elif known:
        edit.discard(name)


_pod_of = attrgetter("pod")


def _differing(
    touched: Iterable[ModelName], before: Mapping[ModelName, V], after: Mapping[ModelName, V]
) -> tuple[ModelName, ...]:
    return tuple(name for name in touched if before.get(name) != after.get(name))
