"""Inference without a task: requests that this pod answers at once, from a copy that it has, on the event loop.

Most requests of a busy pod are alike: small, from clients that send the same metadata with each, for a model that
serves here and runs in less time than a hand-over to a thread. Such a request takes five looks into dictionaries
(who asks, which model, which copy, which plan, which metrics), one comparison of bytes, the run, and one join. All that
`mesh.endpoint.v2` promises holds here, since anything out of the ordinary is left to it: this module answers None, and
nothing has happened. Requests that arrived together for one copy share its run, where the model allows that
(`mesh.batching`).

A request for a copy that does not run on the loop, or that is large, is read here all the same, and then answered by a
task that has little left to do: V2 would read the message field by field.

A request for a model that serves on another pod is sent on at once, over a line that does not need anybody to wait for
it; the answer goes to the client as it comes. Only if the first try fails does a task go on with it.

What is out of the ordinary: a model that is unknown, that serves nowhere, or is busier here than its other copies; a
message that has no pattern, or a timeout, a priority or a sequence; ModelMesh's headers; a view that is behind what the
client has seen; a pod that drains.

Belongs to the event loop; nothing awaits between the look and a run there, so nothing changes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from cache.types import ModelKey
from mesh.batching.joining import Request
from mesh.endpoint.access import Access
from mesh.endpoint.revisions import revision_seen
from mesh.endpoint.status import as_transport_error, guarded_unary
from mesh.endpoint.v2 import from_draining
from mesh.generations import key_of
from mesh.plans import Plan, plan_request
from mesh.request import Tensors
from mesh.resident import Resident
from mesh.routing.hop import Hop, hop_of, previous_attempts
from mesh.routing.router import FirstTry, Router
from mesh.serving import Serving, UnknownModel
from mesh.transport.base import Call, Later, Metadata, QuickReply, Reply, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.patterns import PATTERN_BYTES_MAX, RequestPattern, envelope_pattern
from mesh.wire.peek import peek
from placement.errors import PlacementError
from placement.records import ModelRecord
from placement.registry import Registry
from placement.view import RegistryView
from runtime_adapters.base import Array

ASKERS_MAX = 4096
"""Kinds of metadata that are remembered; a client sends the same with all its calls, a pod the same for a model."""
ASKER_BYTES_MAX = 1024
"""Longer metadata are read with each call: some 4 MiB are remembered in all, whatever clients send."""
NAMED_MAX = 16_384
"""Names that are remembered with what they mean, by who says them: some 4 MiB."""
SENT_ON_MAX = 1024
"""Kinds of requests that are remembered of those for other pods, each with at most 4 KiB."""
PLANS_MAX = 16
"""Kinds of requests that are remembered per copy: its clients', and the numbers of rows that they send."""

TOGETHER_MIN = 8
"""Requests for one copy that arrived together, from which on sharing runs costs less than a run each: 5.2 for 6.8 µs a
request of a tiny ONNX model at 8, 2.4 for 7.1 at 64, but 8.4 for 6.9 at 4."""

_NAME_TAG = 0x0A
_ONE_BYTE_LENGTHS = 128
_LEFT_TO_V2 = frozenset(
    f"{key}{form}" for key in (messages.MODEL_ID_METADATA, messages.VMODEL_ID_METADATA) for form in ("", "-bin")
)


@dataclass(frozen=True, slots=True, eq=False)
class _Asker:
    """What a call's metadata say of it: one for all calls that carry the same."""

    tenant: str
    hop: Hop | None
    revision: int
    """Of the registry, that the client has seen."""
    has_tried: bool
    """The client has sent this call before."""


_UNMET = _Asker("", None, 0, has_tried=False)
"""In place of one that is not remembered."""


class _Named(NamedTuple):
    """What a name means."""

    registered: ModelRecord
    key: ModelKey


class _Asked(NamedTuple):
    """A request, and the copy that answers it."""

    record: ModelRecord
    resident: Resident
    plan: Plan
    inputs: dict[str, Array]
    request_id: str
    size_bytes: int


class QuickInference:
    """The quick handler of ModelInfer (`Routes.quick`)."""

    def __init__(
        self,
        serving: Serving,
        access: Access,
        registry: Registry,
        unready: Callable[[], str],
        otherwise: UnaryHandler,
        router: Router | None = None,
        go_on: Callable[[FirstTry, Call], Awaitable[Reply]] | None = None,
        names_regions: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        """`otherwise`: V2's handler. Of a pod in a pool: `go_on` with a request whose first try on another pod failed;
        whether a request `names_regions` of this machine's memory, and so cannot go elsewhere as it is."""
        self._serving = serving
        self._access = access
        self._registry = registry
        self._unready = unready
        self._otherwise = otherwise
        self._router = router
        self._go_on = go_on
        self._names_regions = names_regions
        self._askers: dict[tuple[Metadata, str | None], _Asker | None] = {}
        self._named_in: RegistryView | None = None
        self._named: dict[tuple[_Asker, str], _Named] = {}
        """What names mean in that view."""
        self._sent_on: dict[tuple[str, int], RequestPattern] = {}
        """What requests that are sent on have in common, by name and bytes."""

    def answer(self, calls: Sequence[Call]) -> Sequence[QuickReply]:
        """For each call its answer, its error, or who answers it: None is `V2Endpoint.model_infer`."""
        draining = bool(self._unready())
        replies: list[QuickReply] = [None] * len(calls)
        of_copies: dict[int, list[tuple[int, _Asked]]] = {}
        try:
            for at, call in enumerate(calls):
                try:
                    asked = self._ask(call, draining, of_copies)
                except Exception as defect:  # it must not cost the calls beside it their answers
                    asked = defect
                if isinstance(asked, _Asked):
                    of_copies.setdefault(id(asked.resident), []).append((at, asked))
                else:
                    replies[at] = asked
            for those in of_copies.values():
                for (at, _), reply in zip(those, self._run([asked for _, asked in those]), strict=True):
                    replies[at] = reply
        finally:
            for those in of_copies.values():
                for _, asked in those:
                    asked.resident.let_go()
        return replies

    def _ask(
        self, call: Call, draining: bool, of_copies: dict[int, list[tuple[int, _Asked]]]
    ) -> _Asked | Exception | Later | None:
        """What a call asks of which copy, which is pinned for it then, or the answer of another pod's; None: it is left
        to V2. `of_copies`: those that arrived with it, of which no copy is any busier."""
        body = call.body
        if len(body) > PATTERN_BYTES_MAX or not isinstance(body, bytes):
            return None
        asker = self._askers.get((call.metadata, call.listener_tenant), _UNMET)
        if asker is _UNMET:
            asker = self._meet(call)
        if asker is None or asker.revision > self._registry.view.revision or (draining and asker.hop is None):
            return None
        name = _first_name(body)
        if name is None:
            return None
        found = self._find(asker, name)
        if found is None:
            return None
        registered, record, key = found
        resident = self._serving.hit(record, key)
        if resident is None:
            return self._forward(call, asker, registered, name, body)
        asked: _Asked | Exception | None = None
        try:
            in_flight = resident.copy.pins - len(of_copies.get(id(resident), ()))
            if asker.hop is not None or self._router is None or not self._router.saturated(record, in_flight):
                asked = self._read_request(record, resident, name, body)
        except Exception as error:
            asked = as_transport_error(error) or error
        if not isinstance(asked, _Asked):
            resident.let_go()
        return asked

    def _forward(self, call: Call, asker: _Asker, registered: ModelRecord, name: str, body: bytes) -> Later | None:
        """Have another pod answer, if that is plain."""
        router = self._router
        if router is None or asker.hop is not None or asker.has_tried or self._names_regions(body):
            return None
        if not registered.spec.has_copies:
            return None  # a pipeline is run where it is asked
        if not self._asks_plainly(name, body):
            return None
        later = Later()
        cancel = router.forward_now(call, asker, asker.tenant, registered, partial(self._forwarded, later))
        if cancel is None:
            return None
        later.cancel = cancel
        return later

    def _asks_plainly(self, name: str, body: bytes) -> bool:
        """Whether it can be read, and asks for the model of this name and for no certain version of it."""
        pattern = self._sent_on.get((name, len(body)))
        try:
            if pattern is not None and pattern.matches(body):
                pattern.request_id(body)
                return True
            envelope = peek(body)
        except (InvalidMessage, UnicodeDecodeError):
            return False
        if envelope.model_name != name or envelope.model_version:
            return False
        pattern = envelope_pattern(body, envelope)
        if pattern is not None:
            if len(self._sent_on) >= SENT_ON_MAX:
                self._sent_on.clear()
            self._sent_on[name, len(body)] = pattern
        return True

    def _forwarded(self, later: Later, outcome: Reply | FirstTry) -> None:
        if isinstance(outcome, FirstTry):
            assert self._go_on is not None
            later.settle(guarded_unary(partial(self._go_on, outcome)))
        else:
            later.settle(from_draining(outcome) if self._unready() else outcome)

    def _read_request(self, record: ModelRecord, resident: Resident, name: str, body: bytes) -> _Asked | None:
        plan = self._plan(resident, name, body)
        if plan is None:
            return None
        try:
            request_id = plan.pattern.request_id(body)
        except UnicodeDecodeError:
            return None
        return _Asked(record, resident, plan, plan.inputs(body), request_id, len(body))

    def _run(self, those: Sequence[_Asked]) -> list[QuickReply]:
        """Requests for one copy, in their order."""
        first = those[0]
        if (
            len(those) < TOGETHER_MIN
            or not self._serving.gathers(first.resident)
            or not self._serving.runs_now(first.resident, max(asked.size_bytes for asked in those))
        ):
            return [self._run_alone(asked) for asked in those]
        requests = [Request(asked.inputs, asked.plan.outputs, asked.size_bytes) for asked in those]
        answers = self._serving.infer_together_now(first.record, first.resident, requests)
        return [self._reply(asked, answer) for asked, answer in zip(those, answers, strict=True)]

    def _run_alone(self, asked: _Asked) -> QuickReply:
        try:
            inputs, outputs = asked.inputs, asked.plan.outputs
            answer = self._serving.infer_now(asked.record, asked.resident, inputs, outputs, asked.size_bytes)
        except Exception as error:
            return as_transport_error(error) or error
        return self._reply(asked, answer)

    def _reply(self, asked: _Asked, answer: dict[str, Array] | Exception | None) -> QuickReply:
        if answer is None:
            return partial(self._answer_later, asked)
        if isinstance(answer, dict):
            try:
                return asked.plan.answer(answer, asked.request_id)
            except Exception as error:
                answer = error
        return as_transport_error(answer) or answer

    async def _answer_later(self, asked: _Asked, call: Call) -> Reply:
        """In a task, which begins when the copy is not pinned for it any more: it may have left."""
        if self._unready() or (resident := self._serving.hit(asked.record)) is None:
            return await self._otherwise(call)
        if resident is not asked.resident:
            resident.let_go()
            return await self._otherwise(call)
        tensors = Tensors(asked.inputs, {}, asked.plan.outputs, asked.size_bytes, checked=True)
        try:
            outputs = await self._serving.infer_here(asked.record, resident, tensors, call.deadline_s)
            return asked.plan.answer(outputs, asked.request_id)
        except Exception as error:
            known = as_transport_error(error)
            if known is None:
                raise
            raise known from error

    def _find(self, asker: _Asker, name: str) -> tuple[ModelRecord, ModelRecord, ModelKey] | None:
        """The registered generation, the one that answers here, and its key; None when that is not plain."""
        view = self._registry.view
        if view is not self._named_in:  # all of them may mean something else now; no old view stays in memory
            self._named.clear()
            self._named_in = view
        named = self._named.get((asker, name))
        if named is None:
            named = self._look_up(asker, name)
            if named is None:
                return None if asker.hop is not None else self._resolve(asker.tenant, name)
        registered = named.registered
        record = self._serving.current(registered)
        return registered, record, named.key if record is registered else key_of(record)

    def _look_up(self, asker: _Asker, name: str) -> _Named | None:
        """The model of that name, if it is none that another name stands for; of a pod's call the one that it means."""
        hop = asker.hop
        registered = self._registry.model(asker.tenant, name if hop is None else hop.model_id)
        if registered is None or (hop is not None and registered.generation < hop.generation):
            return None
        if len(self._named) >= NAMED_MAX:
            self._named.clear()
        named = self._named[asker, name] = _Named(registered, key_of(registered))
        return named

    def _resolve(self, tenant: str, name: str) -> tuple[ModelRecord, ModelRecord, ModelKey] | None:
        """The same of an alias, which may stand for another model each time."""
        try:
            record = self._serving.resolve(tenant, name)
        except (UnknownModel, PlacementError):
            return None
        return self._serving.registered(record) or record, record, key_of(record)

    def _plan(self, resident: Resident, name: str, body: bytes) -> Plan | None:
        plans = resident.plans
        kind = (name, len(body))
        plan = plans.get(kind)
        if plan is None or not plan.pattern.matches(body):
            plan = plan_request(resident.checker, body, name, resident.copy.key.generation)
            if plan is not None:
                if len(plans) >= PLANS_MAX:
                    plans.clear()
                plans[kind] = plan
        return plan

    def _meet(self, call: Call) -> _Asker | None:
        """Read a call's metadata, once for all calls that carry the same; None: they are left to V2."""
        asker = self._read(call)
        if sum(len(key) + len(value) for key, value in call.metadata) <= ASKER_BYTES_MAX:
            if len(self._askers) >= ASKERS_MAX:
                self._askers.clear()
            self._askers[call.metadata, call.listener_tenant] = asker
        return asker

    def _read(self, call: Call) -> _Asker | None:
        if any(key in _LEFT_TO_V2 for key, _ in call.metadata):
            return None
        try:
            tenant = self._access.caller(call).tenant
            hop = hop_of(call) if self._access.is_peer(call) else None
            return _Asker(tenant, hop, revision_seen(call), previous_attempts(call) > 0)
        except TransportError:
            return None


def _first_name(body: bytes) -> str | None:
    """The name in the message's first field. Whether another one follows, its pattern knows."""
    if len(body) < 2 or body[0] != _NAME_TAG or body[1] >= _ONE_BYTE_LENGTHS:
        return None
    try:
        return body[2 : 2 + body[1]].decode() or None
    except UnicodeDecodeError:
        return None
