"""What a pipeline takes and gives, out of what its models do; and that no graph makes it long work."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.pipelines.described import PLATFORM, Describing
from mesh.pipelines.errors import TooMuch
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.spec import URI, parameters_of
from placement.records import PIPELINE_FORMAT, ModelRecord, ModelSpec
from runtime_adapters.base import ModelMetadata, TensorSpec

TENSORS = {"a": (("x",), ("y",)), "b": (("u", "v"), ("y", "proba?"))}


def specs(names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name.rstrip("?"), "FP32", (-1, 2), name.endswith("?")) for name in names)


def node(router: str, *steps: Any) -> dict[str, Any]:
    return {
        "routerType": router,
        "steps": [step if isinstance(step, dict) else {"serviceName": step} for step in steps],
    }


class World:
    def __init__(self, **pipelines: Any) -> None:
        self.specs = {
            name: ModelSpec(URI, PIPELINE_FORMAT, parameters=parameters_of({"nodes": nodes}))
            for name, nodes in pipelines.items()
        }
        self.asked = 0

    async def resolve(self, name: str) -> ModelRecord:
        return ModelRecord("t", name, self.specs.get(name, ModelSpec("file:///m.onnx")), 1, 0.0, 0.0)

    async def metadata_of(self, record: ModelRecord) -> ModelMetadata:
        self.asked += 1
        inputs, outputs = TENSORS[record.id]
        return ModelMetadata("onnx", specs(inputs), specs(outputs))

    async def told(self, name: str = "p") -> tuple[list[str], list[str]]:
        unused: Any = None
        found = await Describing(Pipelines(unused), self.resolve, self.metadata_of).describe(await self.resolve(name))
        assert found.platform == PLATFORM
        return [each.name for each in found.inputs], [each.name + "?" * each.optional for each in found.outputs]


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (node("Sequence", "a", "b"), (["x"], ["y", "proba?"])),
        (node("Sequence", "b", "a"), (["u", "v"], ["y"])),
        (node("Ensemble", "a", {"serviceName": "b", "name": "s"}), (["x", "u", "v"], ["0.y", "s.y", "s.proba?"])),
        (node("Sequence", "a", {"serviceName": "b", "outputs": ["proba"]}), (["x"], ["proba"])),
        (node("Sequence", "q", {"nodeName": "n"}), (["u", "v"], ["0.y"])),
    ],
)
async def test_inputs_are_the_first_steps_and_outputs_the_last_ones(root: Any, expected: Any) -> None:
    world = World(p={"root": root, "n": node("Ensemble", "a")}, q={"root": node("Sequence", "b")})
    assert await world.told() == expected


async def test_each_node_is_looked_at_once_however_many_steps_lead_to_it() -> None:
    levels, width = 7, 7
    nodes = {
        f"{level}-{at}": node(
            "Splitter", *({"nodeName": f"{level + 1}-{to}", "weight": 100 if to == 0 else 0} for to in range(width))
        )
        for level in range(1, levels)
        for at in range(width)
    }
    nodes |= {f"{levels}-{at}": node("Sequence", "a") for at in range(width)}
    nodes["root"] = nodes.pop("1-0")
    nodes = {name: each for name, each in nodes.items() if not name.startswith("1-")}
    world = World(p=nodes)
    assert await world.told() == (["x"], ["y"])
    assert world.asked <= 2 * levels * width * width


async def test_ensembles_of_ensembles_have_a_limit() -> None:
    width = 8
    nodes = {
        f"{level}": node("Ensemble", *({"nodeName": f"{level + 1}", "name": str(to)} for to in range(width)))
        for level in range(1, 6)
    }
    nodes["root"], nodes["6"] = nodes.pop("1"), node("Sequence", "a")
    with pytest.raises(TooMuch, match="has more than 1024 inputs or outputs"):
        await World(p=nodes).told()
