"""A pool as a test says it is, for what is shown of one: pods, copies, who answers, and what they answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field

from mesh.transport.base import LineBroken, Metadata, Reply
from placement.decisions import Decision
from placement.policy.snapshot import ModelFacts, ModelName, Pod, PoolView
from placement.records import ModelRecord, ModelSpec
from tests.unit.placement.policy import builders

OWN = "here"
Peer = Callable[[str, bytes, Metadata], Awaitable[Reply]]
"""(path, body, metadata) -> its answer."""


def record(model_id: str = "m", *, tenant: str = "t", generation: int = 1) -> ModelRecord:
    return ModelRecord(tenant, model_id, ModelSpec(uri="file:///m.onnx", format="onnx"), generation, 1.0, 1.0)


@dataclass
class FakeOverview:
    """`mesh.overview.Overview`; every pod of `view` answers but those in `silent`."""

    view: PoolView = field(default_factory=PoolView)
    own_pod: str = OWN
    silent: Mapping[str, str] = field(default_factory=dict)
    avoided: Mapping[str, str] = field(default_factory=dict)
    in_flight: Mapping[str, int] = field(default_factory=dict)
    limit: int = 0
    on_disk: frozenset[str] = frozenset()
    """Pods whose disk has the artifact of any model."""
    leader: str = ""
    store_away_for_s: float | None = None
    loud: tuple[str, ...] = ()
    decided: Mapping[str, tuple[Decision, ...]] = field(default_factory=dict)
    peers: Mapping[str, Peer] = field(default_factory=dict)
    released: list[ModelName] = field(default_factory=list)

    def own_record(self) -> Pod:
        return self.view.pods.get(self.own_pod) or builders.pod(self.own_pod)

    def healthy(self) -> Container[str]:
        return {self.own_pod, *self.view.pods} - set(self.silent)

    def why_unreachable(self, pod: str) -> str:
        return self.silent.get(pod, "")

    def why_avoided(self, pod: str) -> str:
        return self.avoided.get(pod, "")

    def run_limit(self, name: ModelName) -> int:
        return self.limit

    def facts(self, record: ModelRecord) -> ModelFacts:
        return ModelFacts(ModelName(record.tenant, record.id), record.generation, 100, on_disk=self.on_disk)

    def notices(self) -> tuple[str, ...]:
        return self.loud

    def decisions(self, name: ModelName) -> tuple[Decision, ...]:
        return self.decided.get(name.id, ())

    async def call(self, pod: str, path: str, body: bytes, metadata: Metadata, deadline_s: float) -> Reply:
        peer = self.peers.get(pod)
        if peer is None:
            raise LineBroken(f"pod {pod!r} has left the pool", sent=False)
        return await peer(path, body, metadata)

    async def release(self, name: ModelName) -> None:
        self.released.append(name)
