"""A service moves between the mesh and pods of its own, and somebody serves it at every step."""

from __future__ import annotations

from dataclasses import replace

from controller.policy import Mode, Policy
from tests.unit.controller.builders import World, message, model, reason, service, sklearn
from tests.unit.controller.test_dedicated import SKLEARN_SERVER

FRONT = ("Service", "iris-predictor")
DEPLOYMENT = ("Deployment", "iris-predictor")


def settled(mode: str, **world: object) -> World:
    made = World(service(mode=mode), runtimes=(SKLEARN_SERVER,), **world)  # type: ignore[arg-type]
    made.rest()
    return made


def asks_for(world: World, mode: str) -> None:
    world.apply(service(annotations={"hexcomb.dev/mode": mode}))


def test_from_the_mesh_to_pods_the_name_turns_when_they_answer() -> None:
    world = settled("ModelMesh", pods_answer=False)
    asks_for(world, "Standard")
    for _ in range(5):
        world.turn()
        world.goes_on()
        assert world.served_by() == "mesh"
        assert reason(world.status, "Ready") == ("True", "")
    assert "to Standard" in message(world.status, "Moving")
    assert world.status["deploymentMode"] == "ModelMesh"
    world.pods_answer = True
    world.goes_on()
    world.turn()
    assert world.served_by() == "pods"
    assert world.mesh.aliases, "callers whose DNS is old still come to the mesh"
    assert world.status["deploymentMode"] == "Standard"
    world.now_s += 61
    world.rest()
    assert not world.mesh.models
    assert world.served_by() == "pods"
    assert reason(world.status, "Ready") == ("True", "")


def test_from_pods_to_the_mesh_they_stand_until_nobody_calls_them() -> None:
    world = settled("Standard")
    asks_for(world, "ModelMesh")
    while world.served_by() == "pods":
        assert world.turn().requeue_after_s == Policy().requeue_while_loading_s
        world.goes_on()
        assert DEPLOYMENT in world.children
    assert world.served_by() == "mesh"
    assert DEPLOYMENT in world.children
    world.now_s += 61
    world.rest()
    assert set(world.children) == {FRONT}
    assert world.status["deploymentMode"] == "ModelMesh"


def test_a_place_that_does_not_become_ready_changes_nothing() -> None:
    world = settled("Standard", bad=frozenset({"s3://models/iris"}))
    asks_for(world, "ModelMesh")
    world.rest()
    assert world.served_by() == "pods"
    assert reason(world.status, "Ready") == ("True", "")
    assert reason(world.status, "Moving") == ("True", "ModelLoadFailed")
    asks_for(world, "Standard")
    world.rest()
    assert not world.mesh.models
    assert world.served_by() == "pods"


def test_a_transformer_that_is_down_turns_no_name_early() -> None:
    transformer = {"containers": [{"image": "example/transformer:1"}]}
    world = World(service(transformer=transformer), runtimes=(SKLEARN_SERVER,), broken=frozenset({"iris-transformer"}))
    world.rest()
    assert reason(world.status, "Ready")[0] != "True"
    world.pods_answer = False
    world.apply(service(annotations={"hexcomb.dev/mode": "Standard"}, transformer=transformer))
    # The cluster has given it up.
    conditions = [{**one, "status": "False"} if one["type"] == "Ready" else one for one in world.status["conditions"]]
    world.object = {**world.object, "status": {**world.status, "conditions": conditions}}
    for _ in range(5):
        world.turn()
        world.goes_on()
        assert world.served_by() == "mesh"


def test_a_service_that_serves_nowhere_moves_at_once() -> None:
    world = settled("ModelMesh", bad=frozenset({"s3://models/iris"}), pods_answer=False)
    asks_for(world, "Standard")
    world.turn()
    assert world.children[FRONT]["spec"]["type"] == "ClusterIP"


def test_there_and_back_again_at_any_step_somebody_serves() -> None:
    for turns in range(6):
        world = settled("ModelMesh")
        asks_for(world, "Standard")
        for _ in range(turns):
            world.turn()
            world.goes_on()
            assert world.served_by()
        asks_for(world, "ModelMesh")
        for _ in range(8):
            world.turn()
            world.goes_on()
            assert world.served_by()
        world.now_s += 200
        world.rest()
        assert (world.served_by(), set(world.children)) == ("mesh", {FRONT})


def test_auto_leaves_the_mesh_when_the_object_needs_pods_and_comes_back_when_it_does_not() -> None:
    world = World(service(mode=None), runtimes=(SKLEARN_SERVER,))
    world.rest()
    world.apply(service(model(args=["--debug"]), mode=None))
    for _ in range(6):
        world.turn()
        world.goes_on()
        assert world.served_by()
    assert world.served_by() == "pods"
    world.now_s += 61
    world.rest()
    world.apply(service(mode=None))
    for _ in range(6):
        world.turn()
        world.goes_on()
        assert world.served_by()
    assert world.served_by() == "mesh"


def test_a_pool_that_is_away_or_lost_a_format_moves_nobody() -> None:
    world = World(service(mode=None), runtimes=(SKLEARN_SERVER,))
    world.rest()
    world.mesh = replace(world.mesh, formats=frozenset({"onnx"}))
    decided = world.turn()
    assert decided.hold
    assert "it stays on the mesh" in message(world.status)
    world.mesh = replace(world.mesh, reachable=False)
    assert world.turn().hold


def test_a_format_that_comes_to_the_mesh_moves_nobody_who_did_not_ask() -> None:
    world = World(service(mode=None), runtimes=(SKLEARN_SERVER,))
    mesh = world.mesh
    world.mesh = replace(mesh, formats=frozenset({"onnx"}))
    world.rest()
    assert world.status["deploymentMode"] == "Standard"
    world.mesh = mesh
    world.rest()
    assert world.status["deploymentMode"] == "Standard"
    world.apply(service(sklearn(minReplicas=1), mode=None))
    world.now_s += 61
    for _ in range(4):
        world.turn()
        world.goes_on()
    assert world.status["deploymentMode"] == "ModelMesh"


def test_beside_kserve_the_status_goes_on_saying_modelmesh() -> None:
    said = service(annotations={"hexcomb.dev/mode": "Standard"})
    world = World(said, runtimes=(SKLEARN_SERVER,), policy=Policy(beside_kserve=True))
    world.rest()
    assert world.status["deploymentMode"] == "ModelMesh"
    assert world.decide().mode is Mode.DEDICATED
    assert message(world.status, "ModeChosen") == "Standard"
