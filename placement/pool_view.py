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
* What a pod keeps parked fades as its copies do, and is in `parked_unconfirmed` meanwhile.
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
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from placement.pod_entries import OfPod, PodEntries
from placement.policy.snapshot import Copy, LoadFailure, ModelName, Parked, Pod, PoolView, Suspicion
from placement.shared_values import shared_parked_of_model

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
class ParkedEvent:
    """What a pod keeps parked of a model was put or vanished."""

    revision: int
    name: ModelName
    pod: str
    parked: Parked | None


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


PoolEvent = PodEvent | CopyEvent | ParkedEvent | FailureEvent | SuspicionEvent


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
    parked: tuple[ModelName, ...] = ()
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
            or self.parked
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
    """Without these fading pods, and what they hold and have not published again. Others are left as they are."""
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

    `is_listed` is asked with `copies`, `parked` or `failures`, the model and the pod. Suspicions are not among the
    events: a list cannot tell a release from a store that lost them; whoever lists decides.
    """
    gone: list[PoolEvent] = []
    for name in names:
        gone.extend(
            CopyEvent(revision, name, copy.pod, None)
            for copy in view.copies.get(name, ())
            if name not in view.unconfirmed.get(copy.pod, ()) and not is_listed("copies", name, copy.pod)
        )
        gone.extend(
            ParkedEvent(revision, name, parked.pod, None)
            for parked in view.parked.get(name, ())
            if name not in view.parked_unconfirmed.get(parked.pod, ()) and not is_listed("parked", name, parked.pod)
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
        self._copies = PodEntries(view.copies, view.unconfirmed)
        self._parked = PodEntries(view.parked, view.parked_unconfirmed, shared_parked_of_model)
        self._failures = PodEntries(view.failures)
        self._fading = dict(view.fading)
        self._touched_pods: dict[str, None] = {}
        self._touched_suspicions: dict[ModelName, None] = {}

    def apply_revision(self, events: list[PoolEvent]) -> None:
        """All that happened in one revision."""
        # 1. whose lease ran out; 2. what pods hold, kept if it went with its pod; 3. pods, whose `settled` counts after
        # what they hold in the same revision; 4. the rest.
        pods = [event for event in events if isinstance(event, PodEvent)]
        lost = {event.pod for event in pods if event.record is None and self._may_fade(event.pod)}
        for pod in lost:
            self._fading.setdefault(pod, self._now_s)
        for event in events:
            if isinstance(event, CopyEvent):
                self._apply_held(self._copies, event.name, event.pod, event.copy, kept=event.pod in lost)
            elif isinstance(event, ParkedEvent):
                self._apply_held(self._parked, event.name, event.pod, event.parked, kept=event.pod in lost)
        for event in pods:
            if event.pod not in lost:
                self._apply_pod(event)
        for event in events:
            if isinstance(event, FailureEvent):
                self._failures.put(event.name, event.pod, event.failure)
            elif isinstance(event, SuspicionEvent):
                self._apply_suspicion(event)

    def _may_fade(self, pod: str) -> bool:
        known = (self._view.pods if self._pods is None else self._pods).get(pod)
        return known is not None and not known.draining

    def _apply_held(
        self, entries: PodEntries[OfPod], name: ModelName, pod: str, entry: OfPod | None, *, kept: bool
    ) -> None:
        if entry is None and kept:
            entries.vanished(name, pod)
            return
        if pod in self._fading:
            entries.confirmed(name, pod)
        entries.put(name, pod, entry)

    def _apply_pod(self, event: PodEvent) -> None:
        if event.record is None or event.settled:
            self.end_fading(event.pod)
        self.set_pod(event.pod, event.record)

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
                self._copies.all_confirmed(pod)
                self._parked.all_confirmed(pod)
                del self._fading[pod]
        unsure = {pod for pod, record in self._view.pods.items() if pod not in settled and not record.draining}
        for pod in sorted(unsure):
            self._fading.setdefault(pod, self._now_s)
        self._copies.doubt(unsure)
        self._parked.doubt(unsure)

    def end_fading(self, pod: str) -> None:
        """The pod fades no more; what it has not published again is gone."""
        if pod not in self._fading:
            return
        self._copies.drop_unconfirmed(pod)
        self._parked.drop_unconfirmed(pod)
        del self._fading[pod]

    def set_pod(self, pod: str, record: Pod | None) -> None:
        if self._pods is None:
            self._pods = dict(self._view.pods)
        self._touched_pods[pod] = None
        if record is None:
            self._pods.pop(pod, None)
        else:
            self._pods[pod] = record

    def finish(self, revision: int) -> tuple[PoolView, PoolChanges]:
        before = self._view
        pods = before.pods if self._pods is None else self._pods
        after = PoolView(
            revision=revision,
            pods=pods,
            copies=self._copies.finish(),
            parked=self._parked.finish(),
            failures=self._failures.finish(),
            suspicions=before.suspicions if self._suspicions is None else self._suspicions,
            fading=self._fading,
            unconfirmed=self._copies.unconfirmed(self._fading.keys()),
            parked_unconfirmed=self._parked.unconfirmed(self._fading.keys()),
        )
        changes = PoolChanges(
            revision,
            tuple(
                PodChange(pod, before.pods.get(pod), pods.get(pod))
                for pod in self._touched_pods
                if before.pods.get(pod) != pods.get(pod)
            ),
            _differing(self._copies.touched, before.copies, after.copies),
            _differing(self._failures.touched, before.failures, after.failures),
            _differing(self._touched_suspicions, before.suspicions, after.suspicions),
            tuple(pod for pod in self._fading if pod not in before.fading),
            parked=_differing(self._parked.touched, before.parked, after.parked),
        )
        return after, changes


def _differing(
    touched: Iterable[ModelName], before: Mapping[ModelName, V], after: Mapping[ModelName, V]
) -> tuple[ModelName, ...]:
    return tuple(name for name in touched if before.get(name) != after.get(name))
