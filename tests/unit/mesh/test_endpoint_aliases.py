"""Aliases over our own interface: weights, conditions, lists in pages, deletes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.endpoint.access import Access
from mesh.endpoint.aliases import AliasesEndpoint, AliasSetting
from mesh.endpoint.descriptions import Describer
from mesh.pipelines.registered import Pipelines
from mesh.status import ModelState, ModelStatus
from mesh.transport.base import Call, Reply, ReplyWithTrailers
from mesh.wire import messages
from mesh.wire.generated import hexcomb_pb2
from placement.errors import InvalidSpec, NotFound, TargetMismatch
from placement.records import AliasRecord, ModelRecord, ModelSpec
from placement.registry import Registry
from placement.store.memory import MemoryStore
from tests.unit.mesh.overviews import FakeOverview

ALIAS = hexcomb_pb2.AliasDescription


class Pool:
    """A registry with models a, b and c, of which `loaded` are servable; remembers what it is asked to load."""

    def __init__(self) -> None:
        self.registry = Registry(MemoryStore())
        self.loaded: set[str] = set()
        self.asked: list[tuple[str, bool]] = []
        status: Any = SimpleNamespace(model=self._status)
        describer = Describer(self.registry, status, FakeOverview())
        setting = AliasSetting(self, self.registry, describer, Pipelines(self.registry))  # type: ignore[arg-type]
        self.endpoint = AliasesEndpoint(setting, self.registry, describer, Access())

    def _status(self, record: ModelRecord) -> ModelStatus:
        state = ModelState.LOADED if record.id in self.loaded else ModelState.NOT_LOADED
        return ModelStatus(record, "onnx", state, (), ())

    # What the setting asks of `mesh.models.Models`.

    def required(self, tenant: str, name: str) -> ModelRecord:
        record = self.registry.model(tenant, name)
        assert record is not None
        return record

    async def load(self, record: ModelRecord, deadline_s: float | None, *, wait: bool) -> None:
        self.asked.append((record.id, wait))

    def begin_transition(self, alias: AliasRecord) -> Any:
        async def switch() -> None:
            await self.registry.finish_transition(alias.tenant, alias.id, alias.target)

        return asyncio.ensure_future(switch())

    # What a client does.

    async def set(self, **fields: Any) -> hexcomb_pb2.AliasDescription:
        body = hexcomb_pb2.SetAliasRequest(id="x", **fields).SerializeToString()
        reply = await self.endpoint.set_alias(Call(messages.SET_ALIAS.path, body))
        return ALIAS.FromString(_body(reply))

    async def list(self, **fields: Any) -> hexcomb_pb2.ListAliasesResponse:
        body = hexcomb_pb2.ListAliasesRequest(**fields).SerializeToString()
        reply = await self.endpoint.list_aliases(Call(messages.LIST_ALIASES.path, body))
        return hexcomb_pb2.ListAliasesResponse.FromString(_body(reply))

    async def delete(self, name: str = "x", owner: str = "") -> bool:
        body = hexcomb_pb2.DeleteAliasRequest(id=name, owner=owner).SerializeToString()
        reply = await self.endpoint.delete_alias(Call(messages.DELETE_ALIAS.path, body))
        return hexcomb_pb2.DeleteAliasResponse.FromString(_body(reply)).existed


def _body(reply: Reply) -> bytes:
    return reply.body if isinstance(reply, ReplyWithTrailers) else reply


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    pool = Pool()
    await pool.registry.start()
    for model in "abc":
        await pool.registry.register("default", model, ModelSpec(uri=f"file:///{model}.onnx"))
    yield pool
    await pool.registry.close()


async def test_weights_hold_at_once_and_all_their_models_are_loaded_ahead(pool: Pool) -> None:
    alias = await pool.set(target="a", weights={"a": 90, "b": 10})
    assert (alias.active, alias.target, dict(alias.weights), alias.state) == (
        "a",
        "a",
        {"a": 90, "b": 10},
        ALIAS.DEFINED,
    )
    assert pool.asked == [("a", False), ("b", False)]
    await pool.set(target="a", weights={"a": 1, "b": 1}, wait=True)
    assert pool.asked[2:] == [("a", True), ("b", True)]


async def test_a_canary_is_promoted_without_a_gap_and_rolled_back(pool: Pool) -> None:
    pool.loaded = {"a"}
    await pool.set(target="a", weights={"a": 90, "b": 10})
    moving = await pool.set(target="b")
    assert (moving.active, moving.target, moving.state) == ("a", "b", ALIAS.TRANSITIONING)
    assert not moving.weights
    assert (moving.active_state, moving.target_state) == (hexcomb_pb2.LOADED, hexcomb_pb2.NOT_LOADED)
    moved = await pool.set(target="b", wait=True)
    assert (moved.active, moved.state) == ("b", ALIAS.DEFINED)
    back = await pool.set(target="a", force=True)
    assert back.active == "a"


async def test_an_active_model_without_a_copy_has_nothing_to_keep_serving(pool: Pool) -> None:
    await pool.set(target="a")
    assert (await pool.set(target="b")).active == "b"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"target": "nobody"}, NotFound),
        ({"target": "a", "weights": {"b": 1}}, InvalidSpec),
        ({"target": "a", "weights": {"a": 0, "b": 0}}, InvalidSpec),
        ({"target": "a", "weights": {"a": 1, "nobody": 1}}, NotFound),
        ({"target": "a", "update_only": True}, NotFound),
        ({"target": "a", "expected_target": "b"}, TargetMismatch),
        ({"target": "x"}, InvalidSpec),
    ],
)
async def test_what_cannot_be_is_refused(pool: Pool, fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        await pool.set(**fields)
    assert not (await pool.list()).aliases


async def test_aliases_are_listed_by_name_in_pages(pool: Pool) -> None:
    for index in range(7):
        await pool.registry.set_alias("default", f"v{index}", "a")
    await pool.registry.set_alias("default", "w", "a")
    found: list[str] = []
    token = ""
    while True:
        page = await pool.list(id_prefix="v", page_size=3, page_token=token)
        found += [alias.id for alias in page.aliases]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"v{index}" for index in range(7)]
    assert len((await pool.list()).aliases) == 8


async def test_deleting_tells_whether_there_was_one(pool: Pool) -> None:
    await pool.set(target="a", owner="me")
    assert not await pool.delete(owner="you")
    assert await pool.delete(owner="me")
    assert not await pool.delete()
