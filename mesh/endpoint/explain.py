"""Explaining a model over gRPC, and releasing one.

The pod that is asked explains what it knows, asks every other pod for what only that one knows (its own copy in detail,
what it waits for there, what happened there, what it decided while it led), and puts it together.
"""

from __future__ import annotations

from cache.events import Forgive
from mesh.asking import Asking, NoAnswer
from mesh.endpoint.access import Access
from mesh.endpoint.descriptions import Describer
from mesh.explaining import Explaining, ModelExplanation
from mesh.generations import key_of
from mesh.loading.loading import Loading
from mesh.overview import Overview
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.policy.snapshot import ModelName
from placement.records import ModelRecord
from placement.registry import Registry

HISTORY_MAX = 60
"""Lines; the last ones."""


class ExplainEndpoint:
    """Handlers of `Explain` and `ReleaseModel`."""

    def __init__(
        self,
        overview: Overview,
        explaining: Explaining,
        asking: Asking,
        registry: Registry,
        loading: Loading,
        describer: Describer,
        access: Access,
    ) -> None:
        self._overview = overview
        self._explaining = explaining
        self._asking = asking
        self._registry = registry
        self._loading = loading
        self._describer = describer
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.EXPLAIN.path: self.explain,
            messages.RELEASE_MODEL.path: self.release_model,
        }

    async def explain(self, call: Call) -> Reply:
        """Why a model is where it is."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.EXPLAIN, call.body)
        record = self._registry.resolve(tenant, request.id).record
        explained = self._explaining.explain(record)
        into = self._described(explained)
        if not request.here_only:
            await self._add_others(record, into)
        return into.SerializeToString()

    def _described(self, explained: ModelExplanation) -> hexcomb_pb2.Explanation:
        own = self._overview.own_pod
        into = hexcomb_pb2.Explanation(
            model=self._describer.described(explained.status),
            summary=explained.summary,
            waits_for=f"on pod {own}: {explained.waits_for}" if explained.waits_for else "",
            route=explained.route,
            suspicion=explained.suspicion,
        )
        for place in explained.places:
            candidate = into.candidates.add(pod=place.pod, chosen=place.chosen, reasons=place.reasons)
            if place.estimate_s is not None:
                candidate.estimate_s = place.estimate_s
        for happening in explained.history[-HISTORY_MAX:]:
            into.history.add(at_ms=int(happening.at_s * 1e3), pod=happening.pod, text=happening.text)
        return into

    async def _add_others(self, record: ModelRecord, into: hexcomb_pb2.Explanation) -> None:
        pods = sorted(pod for pod in self._overview.view.pods if pod != self._overview.own_pod)
        request = hexcomb_pb2.ExplainRequest(id=record.id, here_only=True)
        answers = await self._asking.ask_each(
            dict.fromkeys(pods, request), messages.EXPLAIN, record.tenant, self._registry.view.revision
        )
        for pod, answer in answers.items():
            if isinstance(answer, NoAnswer):
                into.unanswered.append(f"{pod}: {answer.why}")
                _add_published_failure(into, pod)
                continue
            into.history.extend(answer.history)
            if answer.waits_for:
                into.waits_for += ("; " if into.waits_for else "") + answer.waits_for
            for seen_there in answer.model.copies:
                if seen_there.pod == pod:
                    _put_in_detail(into.model, seen_there)
        lines = sorted(into.history, key=lambda line: (line.at_ms, line.pod))[-HISTORY_MAX:]
        del into.history[:]
        into.history.extend(lines)

    async def release_model(self, call: Call) -> Reply:
        """Forget what is held against a model: its suspicion, and its failures on every pod that published one."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.RELEASE_MODEL, call.body)
        record = self._registry.resolve(tenant, request.id).record
        name = ModelName(record.tenant, record.id)
        self._loading.send(Forgive(key_of(record)))
        if not request.here_only:
            await self._overview.release(name)
            failed = [failure.pod for failure in self._overview.view.failures.get(name, ())]
            others = [pod for pod in failed if pod != self._overview.own_pod]
            there = hexcomb_pb2.ReleaseModelRequest(id=record.id, here_only=True)
            await self._asking.ask_each(dict.fromkeys(others, there), messages.RELEASE_MODEL, tenant)
        return self._describer.model(record).SerializeToString()


def _put_in_detail(model: hexcomb_pb2.ModelDescription, copy: hexcomb_pb2.CopyDescription) -> None:
    """Replace what a copy's pod has published by what it says now."""
    for known in model.copies:
        if (known.pod, known.generation) == (copy.pod, copy.generation):
            known.CopyFrom(copy)
            return
    model.copies.append(copy)


def _add_published_failure(into: hexcomb_pb2.Explanation, pod: str) -> None:
    """All that is known of what happened on a pod that gave no answer."""
    for failure in into.model.failures:
        if failure.pod == pod:
            into.history.add(at_ms=failure.failed_at_ms, pod=pod, text=f"it failed to load: {failure.message}")
