"""Transformers and explainers beside a predictor, wherever that runs."""

from __future__ import annotations

from typing import Any

import pytest

from controller.policy import Policy
from tests.unit.controller.builders import World, message, model, reason, service
from tests.unit.controller.test_dedicated import SKLEARN_SERVER

TRANSFORMER = {"containers": [{"name": "mine", "image": "me/transformer:1", "args": ["--verbose"]}]}


def main(world: World, name: str) -> dict[str, Any]:
    pod = world.children["Deployment", name]["spec"]["template"]["spec"]
    found: dict[str, Any] = pod["containers"][0]
    return found


def test_a_transformer_finds_the_predictor_by_its_whole_name_on_the_mesh_as_in_pods() -> None:
    found = []
    for mode in ("ModelMesh", "Standard"):
        said = service(model(protocolVersion="v2"), mode=mode, transformer={**TRANSFORMER, "containerConcurrency": 3})
        world = World(said, runtimes=(SKLEARN_SERVER,))
        world.rest()
        assert reason(world.status, "Ready") == ("True", "")
        found.append(main(world, "iris-transformer"))
    assert found[0] == found[1]
    assert found[0]["name"] == "kserve-container"
    assert found[0]["args"] == [
        "--verbose",
        *("--model_name", "iris"),
        *("--predictor_host", "iris-predictor.team-a.svc.cluster.local"),
        *("--http_port", "8080"),
        *("--predictor_protocol", "v2"),
        *("--workers", "3"),
    ]


def test_with_a_transformer_the_services_address_is_the_transformers() -> None:
    world = World(service(transformer=TRANSFORMER))
    world.rest()
    assert world.status["url"] == "http://iris-transformer.team-a.svc.cluster.local"
    components = world.status["components"]
    assert components["transformer"]["url"] == world.status["url"]
    assert components["predictor"]["url"] == "http://iris-predictor.team-a.svc.cluster.local"


@pytest.mark.parametrize(("role", "condition"), [("transformer", "TransformerReady"), ("explainer", "ExplainerReady")])
def test_a_service_is_not_ready_before_what_stands_beside_it(role: str, condition: str) -> None:
    world = World(service(**{role: TRANSFORMER}), broken=frozenset({f"iris-{role}"}))
    world.rest()
    assert reason(world.status) == ("True", "")
    assert reason(world.status, "Ready") == reason(world.status, condition) == ("Unknown", "MinimumReplicas")
    world.broken = frozenset()
    world.rest()
    assert reason(world.status, "Ready") == ("True", "")


def test_a_transformer_that_is_taken_out_goes() -> None:
    world = World(service(transformer=TRANSFORMER))
    world.rest()
    world.apply(service())
    world.rest()
    assert set(world.children) == {("Service", "iris-predictor")}
    assert world.status["url"] == "http://iris-predictor.team-a.svc.cluster.local"


def test_a_transformer_stands_through_a_move_of_its_predictor() -> None:
    world = World(service(transformer=TRANSFORMER), runtimes=(SKLEARN_SERVER,))
    world.rest()
    before = world.children["Deployment", "iris-transformer"]
    world.apply(service(annotations={"hexcomb.dev/mode": "Standard"}, transformer=TRANSFORMER))
    for _ in range(6):
        world.turn()
        world.goes_on()
        assert world.served_by()
        assert reason(world.status, "Ready") == ("True", "")
        spec = world.children["Deployment", "iris-transformer"]["spec"]["template"]["spec"]
        assert spec == before["spec"]["template"]["spec"]
    assert world.served_by() == "pods"


def test_beside_kserve_a_transformer_is_left_to_its_controller() -> None:
    world = World(service(transformer=TRANSFORMER), policy=Policy(beside_kserve=True))
    world.rest()
    assert set(world.children) == {("Service", "iris-predictor")}
    assert reason(world.status, "Ready") == ("True", "")


def test_a_transformer_without_a_container_is_refused_where_it_is_written() -> None:
    decided = World(service(transformer={"minReplicas": 1})).decide()
    assert decided.hold
    assert message(decided.status).startswith("spec.transformer.containers: is missing")
