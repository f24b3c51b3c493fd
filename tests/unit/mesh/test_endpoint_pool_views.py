"""What one pod answers for all of them: status, explanations, draining, releases, and reading one's own writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cache.events import Forgive
from mesh import asking as asking_module
from mesh.asking import Asking
from mesh.endpoint.access import Access
from mesh.endpoint.descriptions import Describer
from mesh.endpoint.explain import HISTORY_MAX, ExplainEndpoint
from mesh.endpoint.pods import PodsEndpoint
from mesh.endpoint.revisions import catching_up, written
from mesh.explaining import Happening, ModelExplanation
from mesh.pod import PodReport, TierReport
from mesh.status import CopyStatus, FailureStatus, ModelState, ModelStatus
from mesh.transport.base import Call, LineBroken, Metadata, Reply, ReplyWithTrailers, StatusCode, TransportError
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.errors import NotFound
from placement.policy.snapshot import Tier
from runtime_adapters.base import Size
from tests.unit.mesh.overviews import OWN, FakeOverview, Peer, record
from tests.unit.placement.policy.builders import busy, copy, failure, name, pod, view

PODS = [pod(OWN), pod("a", zone="z1", busy=(busy(),)), pod("b", draining=True)]

TIERS = (Tier("device", "cpu", 600, 100), Tier("device", "cuda:0", 400, 400))


def answering(answer: messages.Message, seen: list[tuple[str, bytes, Metadata]] | None = None) -> Peer:
    async def answered(path: str, body: bytes, metadata: Metadata) -> Reply:
        if seen is not None:
            seen.append((path, body, metadata))
        return answer.SerializeToString()

    return answered


def failing(error: Exception) -> Peer:
    async def failed(path: str, body: bytes, metadata: Metadata) -> Reply:
        raise error

    return failed


async def hanging(path: str, body: bytes, metadata: Metadata) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def clock() -> float:
    return asyncio.get_running_loop().time()


# The pods -------------------------------------------------------------------------------------------------------------


@dataclass
class Pods:
    overview: FakeOverview
    draining: bool = False
    drains: int = 0

    @property
    def endpoint(self) -> PodsEndpoint:
        def report() -> PodReport:
            return PodReport(
                OWN, "1", ("grpc://here:1",), 1, True, self.draining, (TierReport("device", "cpu", 9, 3),), (),
                models_resident=1, loads_queued=0, requests_in_flight=4, loads=0, load_failures=0, eviction_age_s=0.0,
            )  # fmt: skip

        def request_drain() -> None:
            self.drains += 1

        return PodsEndpoint(
            self.overview,
            Asking(self.overview, clock),
            Access(),
            report,
            is_draining=lambda: self.draining,
            request_drain=request_drain,
        )

    async def status(self, wanted: str = "") -> list[hexcomb_pb2.PodDescription]:
        body = hexcomb_pb2.PodStatusRequest(pod=wanted).SerializeToString()
        reply = await self.endpoint.pod_status(Call(messages.POD_STATUS.path, body))
        assert isinstance(reply, bytes)
        return list(hexcomb_pb2.PodStatusResponse.FromString(reply).pods)

    async def drain(self, wanted: str) -> bool:
        body = hexcomb_pb2.DrainPodRequest(pod=wanted).SerializeToString()
        reply = await self.endpoint.drain_pod(Call(messages.DRAIN_POD.path, body))
        assert isinstance(reply, bytes)
        return hexcomb_pb2.DrainPodResponse.FromString(reply).was_draining


def described(pod_id: str, **fields: Any) -> hexcomb_pb2.PodStatusResponse:
    return hexcomb_pb2.PodStatusResponse(pods=[hexcomb_pb2.PodDescription(pod=pod_id, reachable=True, **fields)])


async def test_every_pod_answers_for_itself_and_this_one_comes_first() -> None:
    seen: list[tuple[str, bytes, Metadata]] = []
    overview = FakeOverview(
        view(PODS),
        peers={"a": answering(described("a", hits=7), seen), "b": answering(described("b", draining=True))},
        avoided={"a": "it answers far more slowly than usual"},
    )
    own, a, b = await Pods(overview).status()
    assert (own.pod, own.reachable, own.requests_in_flight) == (OWN, True, 3), "the question itself does not count"
    assert (a.pod, a.hits, a.reachable, a.why_unreachable) == ("a", 7, True, "it answers far more slowly than usual")
    assert b.draining
    ((_, body, metadata),) = seen
    assert hexcomb_pb2.PodStatusRequest.FromString(body).pod == "a", "so that it does not ask everybody in its turn"
    assert dict(metadata)[messages.TENANT_METADATA] == "default"


@pytest.mark.parametrize(
    ("peer", "silent", "why"),
    [
        (hanging, "", "no answer within"),
        (failing(LineBroken("connection reset", sent=True)), "", "connection reset"),
        (failing(TransportError(StatusCode.RESOURCE_EXHAUSTED, "full")), "", "full"),
        (failing(AssertionError("it must not be asked")), "it does not answer pod here (no answer in time)", "in time"),
    ],
)
async def test_a_pod_that_gives_no_answer_is_described_from_what_it_published(
    peer: Peer, silent: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "TIMEOUT_S", 0.05)
    overview = FakeOverview(
        view(
            [PODS[0], replace(PODS[1], tiers=TIERS)],
            {"m": [copy("a")], "n": [copy("a"), copy(OWN)], "k": [copy("a", 0, 1)]},
        ),
        peers={"a": peer},
        silent={"a": silent} if silent else {},
        leader="a",
    )
    _, a = await Pods(overview).status()
    assert (a.pod, a.reachable, a.zone, a.leader, a.models_resident) == ("a", False, "z1", True, 2)
    assert why in a.why_unreachable
    assert [(tier.device, tier.capacity_bytes, tier.resident_bytes) for tier in a.tiers] == [
        ("cpu", 600, 500), ("cuda:0", 400, 0),
    ]  # fmt: skip
    assert a.addresses[0] == "grpc://a:8033"
    assert [model.id for model in a.busy] == ["m"]


async def test_a_slow_pod_costs_the_others_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking_module, "TIMEOUT_S", 0.3)
    many = [pod(OWN), *(pod(f"p{index}") for index in range(20))]
    overview = FakeOverview(view(many), peers={each.id: hanging for each in many})
    began_s = clock()
    assert len(await Pods(overview).status()) == 21
    assert clock() - began_s < 3.0, "all are asked at once"


async def test_one_pod_may_be_asked_for_alone() -> None:
    pods = Pods(FakeOverview(view(PODS), peers={"a": answering(described("a"))}))
    assert [each.pod for each in await pods.status("a")] == ["a"]
    assert [each.pod for each in await pods.status(OWN)] == [OWN]


@pytest.mark.parametrize("ask", [Pods.status, Pods.drain])
async def test_a_pod_that_nobody_knows_is_not_found_and_the_known_ones_are_named(
    ask: Callable[[Pods, str], Awaitable[Any]],
) -> None:
    with pytest.raises(TransportError, match="'a', 'b', 'here'") as refused:
        await ask(Pods(FakeOverview(view(PODS))), "nobody")
    assert refused.value.status is StatusCode.NOT_FOUND


async def test_draining_is_asked_of_this_pod_or_passed_on() -> None:
    seen: list[tuple[str, bytes, Metadata]] = []
    there = answering(hexcomb_pb2.DrainPodResponse(was_draining=True), seen)
    pods = Pods(FakeOverview(view(PODS), peers={"b": there}))
    assert not await pods.drain(OWN)
    assert not await pods.drain("")
    assert pods.drains == 2
    assert await pods.drain("b")
    assert pods.drains == 2
    assert hexcomb_pb2.DrainPodRequest.FromString(seen[0][1]).pod == "b"


async def test_a_pod_that_cannot_be_told_to_drain_is_an_error_that_says_why() -> None:
    pods = Pods(FakeOverview(view(PODS), silent={"a": "it does not answer"}))
    for wanted, why in (("a", "it does not answer"), ("b", "left the pool")):
        with pytest.raises(TransportError, match=why) as refused:
            await pods.drain(wanted)
        assert refused.value.status is StatusCode.UNAVAILABLE


# Explanations ---------------------------------------------------------------------------------------------------------


@dataclass
class Models:
    """One registered model, explained by whatever the test says."""

    overview: FakeOverview
    explained: ModelExplanation
    sent: list[Any] = field(default_factory=list)

    @property
    def endpoint(self) -> ExplainEndpoint:
        def resolve(tenant: str, wanted: str) -> Any:
            if wanted not in ("m", "alias"):
                raise NotFound(f"model {wanted!r} is not registered")
            return SimpleNamespace(record=record())

        registry: Any = SimpleNamespace(
            resolve=resolve, aliases_of=lambda tenant, model_id: {"alias"}, view=SimpleNamespace(revision=42)
        )
        status: Any = SimpleNamespace(model=lambda record: self.explained.status)
        describer = Describer(registry, status, self.overview)
        explaining: Any = SimpleNamespace(explain=lambda record: self.explained)
        loading: Any = SimpleNamespace(send=self.sent.append)
        asking = Asking(self.overview, clock)
        return ExplainEndpoint(self.overview, explaining, asking, registry, loading, describer, Access())

    async def explain(self, wanted: str = "m", *, here_only: bool = False) -> hexcomb_pb2.Explanation:
        body = hexcomb_pb2.ExplainRequest(id=wanted, here_only=here_only).SerializeToString()
        reply = await self.endpoint.explain(Call(messages.EXPLAIN.path, body, ((messages.TENANT_METADATA, "t"),)))
        assert isinstance(reply, bytes)
        return hexcomb_pb2.Explanation.FromString(reply)

    async def release(self, *, here_only: bool = False) -> None:
        body = hexcomb_pb2.ReleaseModelRequest(id="m", here_only=here_only).SerializeToString()
        await self.endpoint.release_model(Call(messages.RELEASE_MODEL.path, body, ((messages.TENANT_METADATA, "t"),)))


def explained(
    *happenings: Happening, waits_for: str = "", failures: tuple[FailureStatus, ...] = ()
) -> ModelExplanation:
    published = CopyStatus("a", ModelState.LOADED, 1, Size(100), True, 5.0)
    status = ModelStatus(record(), "onnx", ModelState.LOADED, (published,), failures)
    return ModelExplanation(status, "Served.", waits_for, "forwards", (), happenings, "")


def from_a(*, lines: int = 1) -> hexcomb_pb2.Explanation:
    there = hexcomb_pb2.Explanation(waits_for="on pod a: its load")
    there.model.copies.add(pod="a", generation=1, state=hexcomb_pb2.LOADED, requests_in_flight=3, device="cpu")
    there.model.copies.add(pod=OWN, generation=1, state=hexcomb_pb2.LOADED, device="what a thinks of others")
    for index in range(lines):
        there.history.add(at_ms=2000 + index, pod="a", text=f"line {index}")
    return there


async def test_what_every_pod_knows_is_put_together_in_the_order_of_time() -> None:
    seen: list[tuple[str, bytes, Metadata]] = []
    overview = FakeOverview(view(PODS[:2]), peers={"a": answering(from_a(), seen)})
    models = Models(overview, explained(Happening(3.0, OWN, "last"), Happening(1.0, OWN, "first"), waits_for="room"))
    found = await models.explain("alias")
    assert [line.text for line in found.history] == ["first", "line 0", "last"]
    assert found.waits_for == "on pod here: room; on pod a: its load"
    ((copy_at_a,),) = [found.model.copies]
    assert (copy_at_a.pod, copy_at_a.requests_in_flight, copy_at_a.device) == ("a", 3, "cpu")
    ((_, body, metadata),) = seen
    request = hexcomb_pb2.ExplainRequest.FromString(body)
    assert (request.id, request.here_only) == ("m", True)
    assert dict(metadata) == {messages.TENANT_METADATA: "t", messages.REVISION_METADATA: "42"}
    assert not found.unanswered


async def test_who_gave_no_answer_is_named_and_what_it_published_stands_in() -> None:
    overview = FakeOverview(view(PODS[:2]), silent={"a": "it does not answer"})
    failures = (FailureStatus("a", "no memory", 9.0, 12.0),)
    found = await Models(overview, explained(failures=failures)).explain()
    assert list(found.unanswered) == ["a: it does not answer"]
    assert [line.text for line in found.history] == ["it failed to load: no memory"]
    assert found.model.failures[0].pod == "a"


async def test_a_pod_that_is_asked_by_another_asks_nobody() -> None:
    overview = FakeOverview(view(PODS), peers={"a": failing(AssertionError("it must not be asked"))})
    assert (await Models(overview, explained()).explain(here_only=True)).summary == "Served."


async def test_the_history_is_bounded_and_keeps_its_end() -> None:
    overview = FakeOverview(view(PODS[:2]), peers={"a": answering(from_a(lines=3 * HISTORY_MAX))})
    found = await Models(overview, explained()).explain()
    assert len(found.history) == HISTORY_MAX
    assert found.history[-1].text == f"line {3 * HISTORY_MAX - 1}"


async def test_what_is_not_registered_cannot_be_explained() -> None:
    with pytest.raises(NotFound):
        await Models(FakeOverview(), explained()).explain("nobody")


async def test_a_release_clears_the_suspicion_and_the_failures_of_every_pod_that_has_one() -> None:
    seen: list[tuple[str, bytes, Metadata]] = []
    there = answering(hexcomb_pb2.ModelDescription(id="m"), seen)
    overview = FakeOverview(
        view(PODS, failures={"m": [failure(OWN), failure("a", permanent=True)]}), peers={"a": there}
    )
    models = Models(overview, explained())
    await models.release()
    assert overview.released == [name()]
    assert [type(event) for event in models.sent] == [Forgive]
    ((path, body, _),) = seen
    assert path == messages.RELEASE_MODEL.path
    assert hexcomb_pb2.ReleaseModelRequest.FromString(body).here_only
    await models.release(here_only=True)
    assert (len(overview.released), len(models.sent), len(seen)) == (1, 2, 1)


# One's own writes -----------------------------------------------------------------------------------------------------


class Registry:
    def __init__(self) -> None:
        self.view = SimpleNamespace(revision=5)
        self.waited: list[tuple[int, float]] = []

    async def wait_revision(self, revision: int, limit_s: float) -> bool:
        self.waited.append((revision, limit_s))
        self.view.revision = revision
        return True


@pytest.mark.parametrize(
    ("metadata", "waited"),
    [
        ((), []),
        (((messages.TENANT_METADATA, "t"),), []),
        (((messages.REVISION_METADATA, "5"),), []),
        (((messages.REVISION_METADATA, "7"),), [7]),
        (((messages.REVISION_METADATA, "much"),), []),
    ],
)
async def test_a_pod_whose_view_is_behind_a_clients_own_write_waits_for_it(
    metadata: Metadata, waited: list[int]
) -> None:
    registry: Any = Registry()

    async def handler(call: Call) -> Reply:
        return str(registry.view.revision).encode()

    reply = await catching_up(handler, registry)(Call("/m", b"", metadata))
    assert reply == (b"7" if waited else b"5")
    assert [revision for revision, _ in registry.waited] == waited


def test_the_answer_to_a_write_tells_its_revision() -> None:
    registry: Any = Registry()
    assert written(b"done", registry) == ReplyWithTrailers(b"done", ((messages.REVISION_METADATA, "5"),))
