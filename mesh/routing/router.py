"""A request whose model this pod cannot answer at once: who answers it, and what happens when that one cannot either.

Where to go is decided by pure functions (`placement.policy.routing`, `placement.policy.load_choice`) over this pod's
view of the pool; this module carries it out, once per try, and learns from each try:

* A pod that does not answer is left out for the rest of this request, and probed at once.
* A pod that answers "not here" is left out too; the holder it names is tried next.
* A cold model is claimed in the store by the pod that will load it, so that a thousand requests on all pods cause one
  load. Whoever loses the claim goes to the winner and waits there. With the store away, every pod may load.
* What a pod lets it wait for room, in vain, the pods after it have the less of: all pods together may cost it hardly
  more than one.

The client sees an error only when every pod was left out, the deadline passed, or trying again would not be right: the
model itself refused, or two pods died over this very request (`policy.quarantine` hears of it, and the model runs in a
process of its own from then on).

Deliberately absent: what runs here (the caller passes it in), and gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple, Protocol

from cache.types import RefusalKind
from mesh.endpoint.status import as_transport_error
from mesh.loading.loading import Refused
from mesh.routing.hop import ABSENT, HELD, Hop, forwarded_metadata, not_here, why_not_here
from mesh.routing.links import Links
from mesh.routing.losses import Losses
from mesh.routing.names import WAIT_S, Names
from mesh.routing.probes import Probes
from mesh.routing.ways import Way, Ways
from mesh.transport.base import Call, LineBroken, Reply, ReplyWithTrailers, StatusCode, TransportError
from mesh.wire import messages
from placement.expected import ExpectedPool
from placement.membership import HeldBy, Membership
from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.no_pod import Cause, NoPod
from placement.policy.obstacles import Why
from placement.policy.quarantine import Refused as Quarantined
from placement.policy.quarantine import may_load
from placement.policy.routing import (
    Forward,
    Load,
    Mode,
    NotHere,
    Route,
    RunHere,
    choose_route,
    serving_elsewhere,
)
from placement.policy.snapshot import ModelFacts, ModelName, PoolView
from placement.records import ModelRecord
from placement.registry import Registry

log = logging.getLogger("hexcomb.routing")

RunLocally = Callable[[float], Awaitable[Reply]]
"""Runs the request on this pod, loading the model if need be; the load waits for room at most so many seconds. Raises
Refused and errors of the request itself."""

ELSEWHERE_HELPS = frozenset(
    {
        RefusalKind.TOO_BIG,
        RefusalKind.FULL,
        RefusalKind.OVERLOADED,
        RefusalKind.LOAD_FAILED_PERMANENT,
        RefusalKind.LOAD_FAILED_TRANSIENT,
        RefusalKind.DRAINING,
    }
)
"""What one pod cannot do and another may. A deadline that is too short is so everywhere; a model that has gone, too."""
NO_ROOM = RefusalKind.FULL.name.lower()
"""The word of a pod that did not load a model for want of room (`hop.not_here`)."""
SPACE_WAIT_MAX_S = 10.0
"""What a request may lose to pods without room, all together: as much as one pod alone may take (`cache.limits`)."""
SPACE_WAIT_MIN_S = 1.5
"""Of which each pod that is asked has at least so much: half a second more than a request must have waited before
copies that were loaded a moment ago may leave for it."""
DEATHS_MAX = 2
"""Pods that may die over one request: after the first it is tried once more, after the second it is the suspect."""


class HereNow(Protocol):
    """What this pod has of a model at this moment, which its own view of the pool learns a little later."""

    def servable_generation(self, name: ModelName) -> int:
        """The generation that answers here; 0: none."""

    def is_loading(self, name: ModelName, generation: int) -> bool:
        """Whether this generation is on its way in."""

    def in_flight(self, name: ModelName) -> int:
        """Requests that hold the copy here."""

    def limit(self, name: ModelName) -> int:
        """Runs that the copy here takes at a time; 0: as many as come."""

    def publish(self, name: ModelName) -> None:
        """Tell the pool what is here of this model now."""


@dataclass(slots=True)
class _Tries:
    """What one request has been through."""

    excluded: set[str] = field(default_factory=set)
    """Pods that are not asked again."""
    gone: set[str] = field(default_factory=set)
    """Pods whose copy turned out to be gone, which this pod's view does not know yet. They may load the model."""
    denied: list[str] = field(default_factory=list)
    """Each time that a pod said so."""
    insists: bool = False
    """The store says that this pod loads the model, and it does not (any more): whoever is chosen loads it."""
    named: tuple[str, int] | None = None
    """A pod that the last one named as holding the model, and the generation to ask it for: the next try."""
    space_wait_s: float = inf
    """How long the next pod may have it wait for room; infinite: as long as that pod thinks right."""
    last: Exception | None = None
    deaths: list[tuple[str, str]] = field(default_factory=list)
    """(pod, incarnation) of pods that died over it."""

    def told(self, error: Exception) -> Exception:
        """The last error, for a client: it knows of no pods, so a refusal that speaks of `this pod` must name them."""
        if not isinstance(error, Refused) or not self.excluded:
            return error
        tried = f"{error.refusal.message} (Tried on {', '.join(sorted(self.excluded))}; no other pod may load it.)"
        return Refused(replace(error.refusal, message=tried))

    def found_no_room(self, after_s: float) -> None:
        """A pod has refused it as full. Not all of the time need have been spent on waiting for room: near enough."""
        left_s = min(self.space_wait_s, SPACE_WAIT_MAX_S) - after_s
        self.space_wait_s = max(SPACE_WAIT_MIN_S, left_s)


class _Sent(NamedTuple):
    """One try elsewhere."""

    record: ModelRecord
    """The registered generation."""
    pod: str
    incarnation: str
    generation: int
    mode: Mode
    began_s: float


class FirstTry(NamedTuple):
    """A try that failed of a request that was sent on without waiting."""

    sent: _Sent
    failure: LineBroken | TransportError


@dataclass(slots=True, eq=False)
class _SentOn:
    """A request that was sent on without waiting."""

    router: Router
    way: Way
    pod: str
    began_s: float
    heard: Callable[[Reply | FirstTry], None]

    def answered(self, outcome: Reply | LineBroken | TransportError) -> None:
        """That pod's answer, or none."""
        way = self.way
        if isinstance(outcome, Exception):
            incarnation = way.incarnation_of(self.pod)
            sent = _Sent(way.record, self.pod, incarnation, way.generation, Mode.HIT, self.began_s)
            self.heard(FirstTry(sent, outcome))
        else:
            self.heard(self.router.answered_on(way, self.pod, self.began_s, outcome))


class _Healthy:
    """Pods that answer, as a container: everybody but those that the probes, or the outlier rule, put out."""

    def __init__(self, out: Container[str], slow: Container[str]) -> None:
        self._out = out
        self._slow = slow

    def __contains__(self, pod: object) -> bool:
        return pod not in self._out and pod not in self._slow


class Router:
    """Routes requests. Belongs to the event loop."""

    def __init__(
        self,
        own_pod: str,
        registry: Registry,
        names: Names,
        membership: Membership,
        links: Links,
        probes: Probes,
        losses: Losses,
        here: HereNow,
        facts_of: Callable[[ModelRecord], ModelFacts],
        *,
        slow_pods: Callable[[], frozenset[str]],
        observe: Callable[[str, ModelName, float], None],
        is_draining: Callable[[], bool],
        attempts_max: int,
        tells_owner: bool,
        clock: Callable[[], float],
    ) -> None:
        """`slow_pods`: those that answer too slowly to be asked; `observe(pod, name, seconds)`: an answer came;
        `tells_owner`: an answer of another pod names that pod."""
        self._own_pod = own_pod
        self.names = names
        self._registry = registry
        self._membership = membership
        self._links = links
        self._probes = probes
        self._losses = losses
        self._here = here
        self._facts_of = facts_of
        self._slow_pods = slow_pods
        self._observe = observe
        self._is_draining = is_draining
        self._attempts_max = attempts_max
        self._tells_owner = tells_owner
        self._clock = clock
        self._ordinals = itertools.count()
        self._ways = Ways()
        self._claims: dict[ModelName, asyncio.Task[tuple[str, ...]]] = {}
        self.forwarded = 0
        """Requests answered by other pods."""
        self.retried = 0
        """Tries that did not answer, of requests that were tried again."""

    def healthy(self) -> Container[str]:
        """Pods that can be asked, this one included."""
        return _Healthy(self._probes.down, self._slow_pods())

    async def registered(self, tenant: str, hop: Hop) -> ModelRecord:
        """The model that another pod has resolved, once this pod's view knows it too. Raises `not_here`."""
        record = self._registry.model(tenant, hop.model_id)
        if record is None or record.generation < hop.generation:
            await self._registry.wait_revision(hop.revision, WAIT_S)
            record = self._registry.model(tenant, hop.model_id)
        if record is None:
            raise not_here("unknown", f"model {hop.model_id!r} is not known to pod {self._own_pod!r} (yet)")
        return record

    def saturated(self, record: ModelRecord, in_flight: int) -> bool:
        """Whether the copy here has more to do than it takes at a time, and there are others."""
        name = ModelName(record.tenant, record.id)
        limit = self._here.limit(name)
        return limit > 0 and in_flight > limit and len(self._membership.view.copies.get(name, ())) > 1

    def forward_now(
        self, call: Call, kind: object, tenant: str, record: ModelRecord, heard: Callable[[Reply | FirstTry], None]
    ) -> Callable[[], None] | None:
        """Send a client's first request on to a copy that serves elsewhere, without waiting for the answer. Calls of
        one `kind` have the same metadata and the same tenant.

        Answers how to cancel it; None: it is no such plain case, and left to `from_client`. So it is after a try that
        failed, which `heard` is told of in place of an answer.
        """
        view, down, slow = self._membership.view, self._probes.down, self._slow_pods()
        way = self._ways.get(kind, record, view, down, slow)
        if way is None:
            way = self._find_way(call, tenant, record, view, _Healthy(down, slow))
            if way is None:
                return None
            self._ways.keep(kind, way)
        if self._here.servable_generation(way.name):
            return None  # another generation, which may be the one to answer
        pod = way.pod(self._links.in_flight, next(self._ordinals))
        sent = _SentOn(self, way, pod, self._clock(), heard)
        return self._links.begin(pod, call.method, call.body, way.metadata, call.deadline_s, sent.answered)

    def _find_way(
        self, call: Call, tenant: str, record: ModelRecord, view: PoolView, healthy: Container[str]
    ) -> Way | None:
        name = ModelName(record.tenant, record.id)
        if name in view.suspicions:
            return None
        copies, generation = serving_elsewhere(view, name, self_pod=self._own_pod, healthy=healthy)
        if not copies:
            return None
        hop = Hop(self._own_pod, record.id, generation, record.revision, load=False)
        return Way(record, name, view, copies, generation, forwarded_metadata(call, tenant, hop))

    def answered_on(self, way: Way, pod: str, began_s: float, reply: Reply) -> Reply:
        """The answer of a pod that a request was sent on to, as the client gets it."""
        self._observe(pod, way.name, self._clock() - began_s)
        self.forwarded += 1
        if not self._tells_owner:
            return reply
        trailers = way.owner_trailers.get(pod)
        if trailers is None:
            trailers = way.owner_trailers[pod] = self._owner_trailers(pod)
        return _with_trailers(reply, trailers)

    async def from_client(
        self, call: Call, tenant: str, record: ModelRecord, run_here: RunLocally, first: FirstTry | None = None
    ) -> Reply:
        """Answer a client's request. `record` is the registered generation; `first` was its first try."""
        name = ModelName(record.tenant, record.id)
        tries = _Tries()
        if first is not None:
            await self._learn(*first, tries)
            self.retried += 1
        await self._losses.heed_retries(call, name, record.generation)
        self._refuse_quarantined(name, record.generation)
        for _ in range(self._attempts_max - (first is not None)):
            reply = await self._try_once(call, tenant, record, name, run_here, tries)
            if reply is not None:
                return reply
            self.retried += 1
        raise tries.last or TransportError(
            StatusCode.UNAVAILABLE, f"model {record.id!r} was tried on {self._attempts_max} pods in vain", 1.0
        )

    async def _try_once(
        self, call: Call, tenant: str, record: ModelRecord, name: ModelName, run_here: RunLocally, tries: _Tries
    ) -> Reply | None:
        """One try: an answer, or None with what was learned in `tries`. Raises what no other pod would change."""
        if tries.named is not None:
            (holder, generation), tries.named = tries.named, None
            return await self._forward(call, tenant, record, holder, generation, tries, Mode.JOIN)
        view = self._view(name, tries.gone)
        match self._route(view, name, record.generation, tries.excluded, forwarded=False):
            case RunHere():
                return await self._run_here(run_here, tries)
            case Forward(pod, mode, generation):
                return await self._forward(call, tenant, record, pod, generation, tries, mode)
            case Load():
                return await self._load_somewhere(call, tenant, record, name, run_here, tries)
            case NotHere():
                raise AssertionError("a client's request is not a forwarded one")

    def _view(self, name: ModelName, gone: Iterable[str]) -> PoolView:
        """The pool as this pod sees it, less the copies of a model that it knows to be gone."""
        view = self._membership.view
        if not gone:
            return view
        expected = ExpectedPool(view)
        for pod in gone:
            expected.unload(pod, name)
        return expected.view

    def _route(
        self, view: PoolView, name: ModelName, generation: int, excluded: Container[str], *, forwarded: bool
    ) -> Route:
        here = self._here
        return choose_route(
            view,
            name,
            generation,
            self_pod=self._own_pod,
            servable_here=here.servable_generation(name),
            loading_here=here.is_loading(name, generation),
            here_in_flight=here.in_flight(name),
            here_limit=here.limit(name),
            forwarded=forwarded,
            healthy=self.healthy(),
            in_flight=self._links.in_flight,
            excluded=excluded,
            ordinal=next(self._ordinals),
        )

    async def _run_here(self, run_here: RunLocally, tries: _Tries) -> Reply | None:
        began_s = self._clock()
        try:
            return await run_here(tries.space_wait_s)
        except Refused as refused:
            if refused.refusal.kind not in ELSEWHERE_HELPS:
                raise
            if refused.refusal.kind is RefusalKind.FULL:
                tries.found_no_room(self._clock() - began_s)
            tries.excluded.add(self._own_pod)
            tries.last = refused
            return None

    async def _load_somewhere(
        self, call: Call, tenant: str, record: ModelRecord, name: ModelName, run_here: RunLocally, tries: _Tries
    ) -> Reply | None:
        await self._losses.heed_loads(name, record.generation)
        self._refuse_quarantined(name, record.generation)
        facts = self._facts_of(record)
        # This pod has no copy, whatever the view still says: else another route would have been chosen.
        view = self._view(name, {*tries.gone, self._own_pod})
        choice = choose_load_pod(view, facts, healthy=self.healthy(), excluded=tries.excluded)
        if isinstance(choice, NoPod) and not self._knows_better(choice):
            raise no_place(choice) if tries.last is None else tries.told(tries.last)
        if isinstance(choice, LoadChoice) and choice.pod != self._own_pod:
            return await self._forward(call, tenant, record, choice.pod, record.generation, tries, Mode.LOAD)
        # Of a pod that said that it has no copy, and that the store says to hold one, either may be behind. It is
        # asked once more; what it says then counts.
        believed = tries.excluded.union(pod for pod in tries.denied if tries.denied.count(pod) > 1)
        holder = await self._claim(name, record.generation, facts.size_bytes, believed)
        if holder is not None:
            tries.gone.discard(holder)
            return await self._forward(call, tenant, record, holder, record.generation, tries, Mode.JOIN)
        try:
            return await self._run_here(run_here, tries)
        finally:
            self._here.publish(name)  # a claim that led to no load must not stand

    def _knows_better(self, no_pod: NoPod) -> bool:
        """Whether this very pod is out only for what the store says of it. With the store away that may be long past:
        that it is starting, or that it failed. Its own cache knows whether it did."""
        own = {obstacle.why for of in no_pod.reasons for obstacle in of if obstacle.pod == self._own_pod}
        return bool(own) and own <= {Why.UNREADY, Why.FAILED_HERE} and not self._is_draining()

    async def _claim(
        self, name: ModelName, generation: int, size_bytes: int, excluded: Container[str] = ()
    ) -> str | None:
        """The pod that has or loads the model already; None: this pod may load it. One claim for all who wait."""
        claim = self._claims.get(name)
        if claim is None:
            claim = asyncio.get_running_loop().create_task(self._ask_store(name, generation, size_bytes))
            self._claims[name] = claim
            claim.add_done_callback(lambda _: self._claims.pop(name, None))
        held = await asyncio.shield(claim)
        # Of holders that cannot be reached from here none is any help: one copy more is better than an error.
        healthy = self.healthy()
        return next((pod for pod in held if pod in healthy and pod not in excluded), None)

    async def _ask_store(self, name: ModelName, generation: int, size_bytes: int) -> tuple[str, ...]:
        if self._membership.store_away_since_s is not None:
            return ()  # nobody to ask: what is loaded is published when the store is back
        healthy = self.healthy()
        out = [copy.pod for copy in self._membership.view.copies.get(name, ()) if copy.pod not in healthy]
        answer = await self._membership.claim(name, generation, size_bytes, ignoring=out)
        return tuple(copy.pod for copy in answer.copies) if isinstance(answer, HeldBy) else ()

    async def _forward(
        self,
        call: Call,
        tenant: str,
        record: ModelRecord,
        pod: str,
        generation: int,
        tries: _Tries,
        mode: Mode,
    ) -> Reply | None:
        """One try elsewhere. What it took says something about the pod only where a copy was known to serve."""
        insists = tries.insists or self._own_pod in tries.excluded
        hop = Hop(self._own_pod, record.id, generation, record.revision, mode is Mode.LOAD, insists, tries.space_wait_s)
        sent = self._sent(record, pod, generation, mode)
        try:
            metadata = forwarded_metadata(call, tenant, hop)
            reply = await self._links.call(pod, call.method, call.body, metadata, call.deadline_s)
        except (LineBroken, TransportError) as failure:
            await self._learn(sent, failure, tries)
            return None
        return self._answered(sent, reply)

    def _sent(self, record: ModelRecord, pod: str, generation: int, mode: Mode) -> _Sent:
        return _Sent(record, pod, self._incarnation_of(pod), generation, mode, self._clock())

    def _answered(self, sent: _Sent, reply: Reply) -> Reply:
        """The answer of another pod, as the client gets it."""
        if sent.mode is Mode.HIT:
            name = ModelName(sent.record.tenant, sent.record.id)
            self._observe(sent.pod, name, self._clock() - sent.began_s)
        self.forwarded += 1
        return _with_trailers(reply, self._owner_trailers(sent.pod)) if self._tells_owner else reply

    def _owner_trailers(self, pod: str) -> tuple[tuple[str, str], ...]:
        owner = self._membership.view.pods.get(pod)
        return () if owner is None else ((messages.OWNER_METADATA, owner.address),)

    async def _learn(self, sent: _Sent, failure: LineBroken | TransportError, tries: _Tries) -> None:
        """What a try that failed says to the next one. Raises what no other pod would change."""
        record, pod = sent.record, sent.pod
        name = ModelName(record.tenant, record.id)
        if isinstance(failure, LineBroken):
            await self._learn_of_break(sent, failure, name, tries)
            return
        found = why_not_here(failure)
        full = found is None and failure.status is StatusCode.RESOURCE_EXHAUSTED
        if found is None and not full and failure.status is not StatusCode.UNAVAILABLE:
            if sent.mode is Mode.HIT:
                self._observe(pod, name, self._clock() - sent.began_s)
            raise failure  # the model's own word
        if found == (HELD, self._own_pod) and not tries.insists:
            # A copy has begun to load here meanwhile, and is joined next; or the store knows of one that has gone.
            here = self._here
            tries.insists = not (here.is_loading(name, record.generation) or here.servable_generation(name))
        elif found is not None and found[0] == ABSENT and pod not in tries.gone:
            tries.gone.add(pod)
            tries.denied.append(pod)
        else:
            tries.excluded.add(pod)
        if found is not None and found[0] == NO_ROOM:
            tries.found_no_room(self._clock() - sent.began_s)
        if full and not self._is_served(name, tries.excluded):
            raise failure  # loading it once more would not make the pool less busy
        tries.last = failure
        holder = found[1] if found is not None else ""
        if (
            holder
            and holder not in tries.excluded | tries.gone
            and holder != self._own_pod
            and holder in self.healthy()
        ):
            tries.named = (holder, sent.generation)

    async def _learn_of_break(self, sent: _Sent, broken: LineBroken, name: ModelName, tries: _Tries) -> None:
        pod, deaths = sent.pod, tries.deaths
        self._probes.broke(pod)
        tries.excluded.add(pod)
        tries.last = TransportError(StatusCode.UNAVAILABLE, str(broken), 0.1)
        if not broken.sent or broken.cut:
            return
        deaths.append((pod, sent.incarnation))
        if len(deaths) >= DEATHS_MAX:
            await self._losses.killed(name, sent.generation, deaths)
            raise TransportError(
                StatusCode.INTERNAL,
                f"{len(deaths)} pods died while they worked on this request for model {sent.record.id!r}; it is "
                "not tried again, and the model runs in a process of its own from now on",
            ) from broken
        await self._losses.first_death(name, sent.generation, pod, sent.incarnation)

    def _is_served(self, name: ModelName, excluded: Container[str]) -> bool:
        healthy = self.healthy()
        copies = self._membership.view.copies.get(name, ())
        return any(copy.servable and copy.pod in healthy and copy.pod not in excluded for copy in copies)

    def _incarnation_of(self, pod: str) -> str:
        known = self._membership.view.pods.get(pod)
        return "" if known is None else known.incarnation

    async def from_pod(self, hop: Hop, record: ModelRecord, run_here: RunLocally) -> Reply:
        """Answer a request that another pod forwarded: here, or not at all."""
        name = ModelName(record.tenant, record.id)
        self._refuse_quarantined(name, record.generation)
        view = self._membership.view
        route = self._route(view, name, record.generation, (hop.from_pod,), forwarded=True)
        claimed = isinstance(route, NotHere)
        if isinstance(route, NotHere):
            await self._admit_load(hop, record, name, route.holder or "")
        try:
            return await run_here(hop.space_wait_s)
        except Refused as refused:
            error = as_transport_error(refused)
            if error is None or refused.refusal.kind not in ELSEWHERE_HELPS:
                raise
            # The code is the client's, should no other pod do better; the trailer is for the pod that asked.
            why = refused.refusal.kind.name.lower()
            raise TransportError(
                error.status, error.message, error.retry_after_s, not_here(why, "").trailers
            ) from refused
        finally:
            if claimed:
                self._here.publish(name)

    async def _admit_load(self, hop: Hop, record: ModelRecord, name: ModelName, holder: str) -> None:
        """Raise `not_here` unless this pod may load the model for the one that asks."""
        if not hop.load:
            raise not_here(ABSENT, f"model {record.id!r} is not on pod {self._own_pod!r} any more", holder)
        if self._is_draining():
            raise not_here("draining", f"pod {self._own_pod!r} is draining", holder)
        ignored = (hop.from_pod,) if hop.insists else ()
        named = await self._claim(name, record.generation, self._facts_of(record).size_bytes, ignored)
        if named is not None:
            raise not_here(HELD, f"model {record.id!r} is loaded by pod {named!r}", named)

    def _refuse_quarantined(self, name: ModelName, generation: int) -> None:
        suspicion = self._membership.view.suspicions.get(name)
        if suspicion is None:
            return
        may = may_load(suspicion, generation)
        if isinstance(may, Quarantined):
            raise TransportError(StatusCode.FAILED_PRECONDITION, f"model {name.id!r} is {may.message}")


def _with_trailers(reply: Reply, trailers: tuple[tuple[str, str], ...]) -> Reply:
    if not trailers:
        return reply
    if isinstance(reply, ReplyWithTrailers):
        return ReplyWithTrailers(reply.body, (*reply.trailers, *trailers))
    return ReplyWithTrailers(reply, trailers)


def no_place(no_pod: NoPod) -> TransportError:
    """What a client hears when no pod can load its model."""
    if no_pod.cause is not Cause.FOR_NOW:
        return TransportError(StatusCode.FAILED_PRECONDITION, no_pod.message)
    return TransportError(StatusCode.UNAVAILABLE, no_pod.message, no_pod.retry_after_s or 1.0)
