"""Why a model is where it is, is nowhere, or is refused: everything that one pod knows of it, put into sentences.

The pieces come from those who decide: the cache says what it waits for and what happened here, the router's and the
placement's own functions say what they would do now, with what they considered and why others were out. Nothing is
worked out a second time here, so an explanation cannot differ from what happens.

Everything but `Explaining` is a function of values. What other pods know is asked for and added by the endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cache.machine import CacheMachine
from cache.types import CopyState
from cache.views import CopyView, Explanation, QueueEntry
from mesh.generations import key_of
from mesh.overview import Overview
from mesh.status import CopyStatus, ModelState, ModelStatus, StatusView
from placement.decisions import Decision
from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.no_pod import NoPod
from placement.policy.routing import Forward, Load, Mode, NotHere, Route, RunHere, choose_route
from placement.policy.snapshot import (
    Copy,
    Death,
    LoadFailure,
    ModelFacts,
    ModelName,
    Pod,
    PoolView,
    Suspicion,
    Verdict,
)
from placement.records import ModelRecord
from placement.registry import Registry

PODS_NAMED_MAX = 5
MODELS_NAMED_MAX = 16
DETAILS_SHOWN_MAX = 4
"""Of what one decision considered."""


@dataclass(frozen=True, slots=True)
class Place:
    """A pod as a place for one copy (more)."""

    pod: str
    chosen: bool
    estimate_s: float | None
    """None: it is out."""
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to the model, or was decided about it."""

    at_s: float
    """Unix time, by the clock of `pod`."""
    pod: str
    text: str


@dataclass(frozen=True, slots=True)
class ModelExplanation:
    """What this pod knows; see `Explanation` in hexcomb.proto."""

    status: ModelStatus
    summary: str
    waits_for: str
    route: str
    places: tuple[Place, ...]
    history: tuple[Happening, ...]
    """Oldest first."""
    suspicion: str


class Explaining:
    """Gathers what this pod knows of a model."""

    def __init__(
        self,
        overview: Overview,
        status: StatusView,
        cache: CacheMachine,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._overview = overview
        self._status = status
        self._cache = cache
        self._registry = registry
        self._clock = clock
        self._wall_clock = wall_clock

    def explain(self, record: ModelRecord) -> ModelExplanation:
        """One registered model."""
        if not record.spec.has_copies:
            return self._pipeline(record)
        overview, status = self._overview, self._status.model(record)
        name = ModelName(record.tenant, record.id)
        own = [copy for copy in status.copies if copy.pod == overview.own_pod]
        view = with_own_pod(overview.view, overview.own_record(), status, self._wall_clock())
        facts, healthy = overview.facts(record), overview.healthy()
        choice = choose_load_pod(view, facts, healthy=healthy)
        on_disk = facts.on_disk - {copy.pod for copy in status.copies}
        route = route_now(view, facts, own, overview.own_pod, healthy, overview.in_flight, overview.run_limit(name))
        suspicion = overview.view.suspicions.get(name)
        here = self._cache.explain(key_of(record))
        now_s = self._clock()
        return ModelExplanation(
            status=status,
            summary=summary_of(status, suspicion, choice, healthy, self._wall_clock())
            + parked_in_words(here, overview.own_pod)
            + on_disk_in_words(on_disk, healthy)
            + (f" On pod {overview.own_pod} {here.tenant_share}." if here.tenant_share else ""),
            waits_for=waits_for(here, self._cache.queue(), now_s),
            route=route_in_words(route, choice, overview.own_pod),
            places=tuple(places_of(view, choice, on_disk)),
            history=self._history(record, here, now_s),
            suspicion=suspicion_in_words(suspicion, record.generation),
        )

    def _pipeline(self, record: ModelRecord) -> ModelExplanation:
        status, parts = self._status.model(record), self._status.parts(record)
        asked = [f"{model.id} ({self._status.model(model).state.value})" for model in parts.models[:MODELS_NAMED_MAX]]
        more = f" and {len(parts.models) - len(asked)} more" if len(parts.models) > len(asked) else ""
        summary = f"A pipeline, which has no copies. It asks: {', '.join(asked) or 'nothing'}{more}."
        if status.failure is not None:
            summary += f" It cannot answer: {status.failure.message}."
        history = self._decisions(record)
        return ModelExplanation(status, summary, "", "", (), tuple(sorted(history, key=lambda each: each.at_s)), "")

    def _history(self, record: ModelRecord, here: Explanation, now_s: float) -> tuple[Happening, ...]:
        own, offset_s = self._overview.own_pod, self._wall_clock() - now_s
        found = [Happening(note.at_s + offset_s, own, note.text) for note in here.notes]
        return tuple(sorted([*found, *self._decisions(record)], key=lambda each: each.at_s))

    def _decisions(self, record: ModelRecord) -> list[Happening]:
        own = self._overview.own_pod
        return [
            Happening(each.at_s, own, decision_in_words(each))
            for name in (record.id, *sorted(self._registry.aliases_of(record.tenant, record.id)))
            for each in self._overview.decisions(ModelName(record.tenant, name))
        ]


def with_own_pod(view: PoolView, own: Pod, status: ModelStatus, now_s: float) -> PoolView:
    """The picture of the pool with this pod as it is now, which the published one shows a moment later.

    Of copies and failures, only those of the model in question are kept. `now_s` is Unix time.
    """
    name = ModelName(status.record.tenant, status.record.id)
    copies = {copy.pod: copy for copy in view.copies.get(name, ())}
    failures = {failure.pod: failure for failure in view.failures.get(name, ())}
    copies.pop(own.id, None)
    failures.pop(own.id, None)
    here = [copy for copy in status.copies if copy.pod == own.id]
    servable, loading = _servable(here), _loading(here)
    if servable or loading:
        size_bytes = max(copy.size.total_bytes for copy in here)
        copies[own.id] = Copy(own.id, servable, loading, size_bytes, max(copy.since_s for copy in here))
    for failure in status.failures:
        if failure.pod == own.id and (failure.retry_at_s is None or failure.retry_at_s > now_s):
            permanent, pause_s = failure.retry_at_s is None, (failure.retry_at_s or now_s) - now_s
            failures[own.id] = LoadFailure(
                own.id, status.record.generation, permanent, failure.message, failure.failed_at_s, pause_s
            )
    return replace(
        view,
        pods={**view.pods, own.id: own},
        copies={name: tuple(copies[pod] for pod in sorted(copies))} if copies else {},
        failures={name: tuple(failures[pod] for pod in sorted(failures))} if failures else {},
    )


def _servable(copies: Sequence[CopyStatus]) -> int:
    return max((copy.generation for copy in copies if copy.state is ModelState.LOADED), default=0)


def _loading(copies: Sequence[CopyStatus]) -> int:
    return max((copy.generation for copy in copies if copy.state is ModelState.LOADING), default=0)


# Where a request would go ---------------------------------------------------------------------------------------------


def route_now(
    view: PoolView,
    facts: ModelFacts,
    own: Sequence[CopyStatus],
    own_pod: str,
    healthy: Container[str],
    in_flight: Mapping[str, int],
    run_limit: int,
) -> Route:
    """What the router would do with a request that came to this pod now."""
    return choose_route(
        view,
        facts.name,
        facts.generation,
        self_pod=own_pod,
        servable_here=_servable(own),
        loading_here=_loading(own) == facts.generation,
        here_in_flight=sum(copy.requests_in_flight for copy in own),
        here_limit=run_limit,
        forwarded=False,
        healthy=healthy,
        in_flight=in_flight,
        excluded=(),
        ordinal=0,
    )


def route_in_words(route: Route, choice: LoadChoice | NoPod, own_pod: str) -> str:
    """One sentence."""
    match route:
        case RunHere(generation, joins=True):
            return f"pod {own_pod} is loading generation {generation}: a request here waits for that load"
        case RunHere(generation):
            return f"pod {own_pod} answers from its own copy of generation {generation}"
        case Forward(pod, Mode.HIT, generation):
            return f"pod {own_pod} forwards to pod {pod}, which serves generation {generation}"
        case Forward(pod, _, generation):
            return f"pod {own_pod} forwards to pod {pod}, which is loading generation {generation}, and waits there"
        case Load(generation):
            if isinstance(choice, NoPod):
                return f"a request is refused: {choice.message}"
            where = "here" if choice.pod == own_pod else f"on pod {choice.pod}"
            apart = ", in a process of its own" if choice.isolated else ""
            return (
                f"nobody serves or loads it: a request has generation {generation} loaded {where}{apart}, in about "
                f"{choice.estimate_s:.2f} s, and waits for it"
            )
        case NotHere():
            raise AssertionError("a client's request is not a forwarded one")


def places_of(view: PoolView, choice: LoadChoice | NoPod, on_disk: Container[str] = ()) -> Iterator[Place]:
    """Every pod as a place for one more copy: those considered, best first, then the others by name."""
    if isinstance(choice, NoPod):
        yield from _places_of_none(view, choice, on_disk)
        return
    told: set[str] = set()
    for candidate in choice.considered:
        told.add(candidate.pod)
        yield Place(candidate.pod, candidate.pod == choice.pod, candidate.estimate_s, candidate.reasons())
    out = {obstacle.pod: obstacle.detail for obstacle in choice.ruled_out}
    for pod in sorted(view.pods):
        if pod in out:
            yield _out(pod, (out[pod],), on_disk)
        elif pod not in told:
            yield Place(pod, False, None, ("could load it; by hash, others are this model's own",))


def _places_of_none(view: PoolView, choice: NoPod, on_disk: Container[str]) -> Iterator[Place]:
    if choice.reasons:
        for of in choice.reasons:
            yield _out(of[0].pod, tuple(obstacle.detail for obstacle in of), on_disk)
        return
    # The verdict is about the model: no pod was looked at.
    failed = {f.pod: f.message for f in view.failures.get(choice.name, ()) if f.generation == choice.generation}
    for pod in sorted(view.pods):
        why = f"failed to load it: {failed[pod]}" if pod in failed else f"not asked: the model is {choice.cause.value}"
        yield _out(pod, (why,), on_disk)


def _out(pod: str, reasons: tuple[str, ...], on_disk: Container[str]) -> Place:
    return Place(pod, False, None, (*reasons, "although its disk has the artifact") if pod in on_disk else reasons)


# Where it stands ------------------------------------------------------------------------------------------------------


def summary_of(
    status: ModelStatus,
    suspicion: Suspicion | None,
    choice: LoadChoice | NoPod,
    healthy: Container[str],
    now_s: float,
) -> str:
    """One sentence; the first case that applies. `now_s` is Unix time."""
    generation = status.record.generation
    if suspicion is not None and suspicion.generation == generation and suspicion.verdict is Verdict.QUARANTINED:
        failure = status.failure
        return f"No pod loads it: {failure.message if failure is not None else 'it is quarantined'}."
    serving = [copy for copy in status.copies if copy.state is ModelState.LOADED]
    loading = [copy for copy in status.copies if copy.state is ModelState.LOADING]
    if serving:
        current = [copy for copy in serving if copy.generation == generation]
        sentence = f"Served by {_pods(current or serving, healthy)}"
        if not current:
            sentence += f" in generation {serving[0].generation}, while generation {generation} is not there yet"
        if loading:
            sentence += f"; being loaded on {_pods(loading, healthy)}"
        return sentence + "."
    if loading:
        since_s = max(0.0, now_s - min(copy.since_s for copy in loading))
        return f"Being loaded on {_pods(loading, healthy)}, for {since_s:.1f} s now."
    if isinstance(choice, NoPod):
        return "Loaded nowhere, and no pod can load it."
    failure = status.failure
    if failure is not None:
        where = f" on pod {failure.pod}" if failure.pod else ""
        again = "not tried there again until its spec changes or it is released"
        if failure.retry_at_s is not None:
            again = f"tried there again in {max(0.0, failure.retry_at_s - now_s):.0f} s"
        return f"Loaded nowhere: it failed{where} ({again}): {failure.message}"
    return "Registered and loaded nowhere: nobody has wanted it lately, and the next request loads it."


def _pods(copies: Sequence[CopyStatus], healthy: Container[str]) -> str:
    return _named([copy.pod for copy in copies], healthy)


def _named(pod_ids: Iterable[str], healthy: Container[str]) -> str:
    pods = list(dict.fromkeys(pod_ids))
    named = [pod if pod in healthy else f"{pod}, which does not answer" for pod in pods[:PODS_NAMED_MAX]]
    more = f" and {len(pods) - PODS_NAMED_MAX} more" if len(pods) > PODS_NAMED_MAX else ""
    return f"{len(pods)} pod{'s' if len(pods) > 1 else ''} ({', '.join(named)}{more})"


def parked_in_words(here: Explanation, own_pod: str) -> str:
    """A sentence more, where a copy has left its GPU for this pod's RAM."""
    for copy in here.copies:
        if copy.state is CopyState.PARKED:
            return f" On pod {own_pod} it is parked: {copy.charged}, from where it returns without a fetch or a load."
    return ""


def on_disk_in_words(on_disk: Collection[str], healthy: Container[str]) -> str:
    """A sentence more, where pods without a copy need not fetch the artifact."""
    return f" Its artifact is on the disk of {_named(sorted(on_disk), healthy)}." if on_disk else ""


def waits_for(here: Explanation, queue: Sequence[QueueEntry], now_s: float) -> str:
    """What the copy on its way in here waits for; empty when there is none."""
    copy = next(iter(here.copies), None)
    position = next((index for index, entry in enumerate(queue) if entry.key == here.key), None)
    if copy is None or position is None:
        if here.retry_at_s is not None and now_s < here.retry_at_s < float("inf"):
            return f"the pause after its failure, {here.retry_at_s - now_s:.1f} s more"
        return ""
    entry = queue[position]
    what = _stage_in_words(copy, entry, position, len(queue))
    predicted = f", {here.predicted_load_s:.2f} s expected in all" if here.predicted_load_s else ""
    waiters = f"{copy.waiters} request{'s' if copy.waiters != 1 else ''} wait{'s' if copy.waiters == 1 else ''}"
    return f"{what}, for {max(0.0, now_s - copy.since_s):.1f} s now{predicted}; {waiters} for it"


def _stage_in_words(copy: CopyView, entry: QueueEntry, position: int, queued: int) -> str:
    match copy.state:
        case CopyState.QUEUED:
            return f"its turn to be fetched (number {position + 1} of {queued} on their way in)"
        case CopyState.FETCHING:
            return "its artifact to be fetched and prepared"
        case CopyState.WAITING_FOR_SPACE:
            why = entry.blocked or f"number {position + 1} of {queued} on their way in"
            return f"room for {entry.needed} or a free load slot ({why})"
        case CopyState.SETTLING:
            return f"room for what it takes beyond its estimate ({entry.blocked or 'others are leaving'})"
        case _:
            return "its load"


# What happened --------------------------------------------------------------------------------------------------------


def decision_in_words(decision: Decision) -> str:
    """What a leader decided, and the first lines of what it considered."""
    details = decision.details[:DETAILS_SHOWN_MAX]
    considered = f" [{' | '.join(details)}]" if details else ""
    return f"decided: {decision}{considered}"


def suspicion_in_words(suspicion: Suspicion | None, generation: int) -> str:
    """The deaths that a model was seen at, and what follows from them."""
    if suspicion is None or suspicion.generation != generation or not suspicion.deaths:
        return ""
    told = "; ".join(_death_in_words(death) for death in suspicion.deaths)
    if suspicion.verdict is Verdict.QUARANTINED:
        follows = "no pod loads it until it gets another spec or is released"
    elif suspicion.isolate:
        follows = "it runs in a process of its own, which cannot take a pod along"
    else:
        follows = "that may be chance: nothing follows from it, unless it happens again"
    return f"{told}: {follows}"


def _death_in_words(death: Death) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(death.at_s))
    match death.doing:
        case "crashed":
            return f"its own process crashed on pod {death.pod} ({at})"
        case _:
            return f"pod {death.pod} died while {death.doing} it ({at})"
