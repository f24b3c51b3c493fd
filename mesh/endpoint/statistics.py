"""Triton's statistics extension, for the pool: what all pods together have done for a model.

The pod that is asked asks the others for what each has counted (`mesh.tally`) and adds it up. A pod that gives no
answer within two seconds is left out, and with it what it counted, as is one that has ended. Counts begin with each
pod's start and outlive evictions.

What the words mean here: `queue` is the wait for a load and for a run, `compute_infer` the run, which counts for each
request that shares it; `compute_input` is what a request took beside these two, reading and checking it above all, and
its answer's encoding is not told apart. `inference_count` is in rows where rows may share a run. With no name asked
for, the models that some pod has, or has had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cache.types import ModelKey
from mesh.asking import Asking, NoAnswer
from mesh.endpoint.access import Access
from mesh.endpoint.v2 import V2Endpoint, asked_name
from mesh.generations import key_of
from mesh.loading.residents import Residents
from mesh.overview import Overview
from mesh.resident import Resident
from mesh.tally import Tallies, Tally
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import inference_pb2

EXTENSION = "statistics"
_DURATIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class StatisticsEndpoint:
    """The handler of `ModelStatistics`."""

    def __init__(
        self,
        v2: V2Endpoint,
        tallies: Tallies,
        residents: Residents,
        overview: Overview,
        asking: Asking,
        access: Access,
        wall_clock: Callable[[], float],
    ) -> None:
        self._v2 = v2
        self._tallies = tallies
        self._residents = residents
        self._overview = overview
        self._asking = asking
        self._access = access
        self._wall_clock = wall_clock

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {messages.MODEL_STATISTICS.path: self.model_statistics}

    async def model_statistics(self, call: Call) -> Reply:
        """Of one model, or of all that are or were loaded. To another pod: this pod's own part."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.MODEL_STATISTICS, call.body)
        if self._access.is_peer(call):
            return self._response(self._own(tenant, request.name, request.version)).SerializeToString()
        shown = ""
        if request.name:
            name = asked_name(call, request.name)
            record, _ = await self._v2.resolve(call, tenant, name, request.version)
            key = key_of(record)
            shown = request.name if name == request.name else record.id
            request = inference_pb2.ModelStatisticsRequest(name=key.model_id, version=str(key.generation))
        found = list(self._own(tenant, request.name, request.version))
        others = sorted(pod for pod in self._overview.view.pods if pod != self._overview.own_pod)
        answers = await self._asking.ask_each(dict.fromkeys(others, request), messages.MODEL_STATISTICS, tenant)
        for answer in answers.values():
            if not isinstance(answer, NoAnswer):
                found.extend(answer.model_stats)
        response = self._response(found)
        if shown:
            if not response.model_stats:
                response.model_stats.append(_described(ModelKey(tenant, shown, key.generation), Tally(), 0.0))
            response.model_stats[0].name = shown
        return response.SerializeToString()

    def _own(self, tenant: str, name: str, version: str) -> Iterator[inference_pb2.ModelStatistics]:
        wall_s = self._wall_clock()
        loaded: dict[ModelKey, list[Resident]] = {}
        for resident in self._residents.every():
            loaded.setdefault(resident.copy.key, []).append(resident)
        for key, tally in self._tallies.of_tenant(tenant).items():
            if name in ("", key.model_id) and version in ("", str(key.generation)):
                described = _described(key, tally, wall_s)
                for resident in loaded.get(key, ()):
                    _add_memory(described, resident)
                yield described

    def _response(self, parts: Iterable[inference_pb2.ModelStatistics]) -> inference_pb2.ModelStatisticsResponse:
        whole: dict[tuple[str, int], inference_pb2.ModelStatistics] = {}
        for part in parts:
            named = (part.name, int(part.version))
            if named in whole:
                _add(whole[named], part)
            else:
                whole[named] = part
        return inference_pb2.ModelStatisticsResponse(model_stats=[whole[named] for named in sorted(whole)])


def _described(key: ModelKey, tally: Tally, wall_s: float) -> inference_pb2.ModelStatistics:
    described = inference_pb2.ModelStatistics(
        name=key.model_id,
        version=str(key.generation),
        last_inference=int(tally.last_at_s(wall_s) * 1e3),
        inference_count=tally.inferences,
        execution_count=tally.executions,
    )
    beside_s = max(0.0, tally.successes_s - tally.queued_s - tally.requests_s)
    for name, count, seconds in (
        ("success", tally.successes, tally.successes_s),
        ("fail", tally.failures, tally.failed_s),
        ("queue", tally.runs, tally.queued_s),
        ("compute_input", tally.runs, beside_s),
        ("compute_infer", tally.runs, tally.requests_s),
        ("compute_output", tally.runs, 0.0),
    ):
        duration = getattr(described.inference_stats, name)
        duration.count, duration.ns = count, round(seconds * 1e9)
    for name in ("cache_hit", "cache_miss"):  # of answers, which nothing here remembers
        getattr(described.inference_stats, name).SetInParent()
    for size, (runs, seconds) in sorted(tally.of_size.items()):
        of_size = described.batch_stats.add(batch_size=size)
        for name, spent_s in (("compute_input", 0.0), ("compute_infer", seconds), ("compute_output", 0.0)):
            duration = getattr(of_size, name)
            duration.count, duration.ns = int(runs), round(spent_s * 1e9)
    return described


def _add_memory(into: inference_pb2.ModelStatistics, resident: Resident) -> None:
    size, device = resident.size, resident.device
    for kind, index, taken in (
        ("CPU", 0, size.host_bytes + size.mapped_bytes),
        ("GPU", device.index, size.device_bytes),
    ):
        if taken:
            into.memory_usage.add(type=kind, id=index, byte_size=taken)


def _add(into: inference_pb2.ModelStatistics, part: inference_pb2.ModelStatistics) -> None:
    """Another pod's part of the same model."""
    into.last_inference = max(into.last_inference, part.last_inference)
    into.inference_count += part.inference_count
    into.execution_count += part.execution_count
    for name in _DURATIONS:
        _add_duration(getattr(into.inference_stats, name), getattr(part.inference_stats, name))
    of_size = {known.batch_size: known for known in into.batch_stats}
    for other in part.batch_stats:
        known = of_size.get(other.batch_size)
        if known is None:
            into.batch_stats.append(other)
            continue
        for name in ("compute_input", "compute_infer", "compute_output"):
            _add_duration(getattr(known, name), getattr(other, name))
    into.batch_stats.sort(key=lambda each: each.batch_size)
    into.memory_usage.extend(part.memory_usage)


def _add_duration(into: inference_pb2.StatisticDuration, more: inference_pb2.StatisticDuration) -> None:
    into.count += more.count
    into.ns += more.ns
