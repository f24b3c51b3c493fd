"""From one artifact to the next: what is registered, and where the service's name leads meanwhile."""

from __future__ import annotations

from dataclasses import replace

from controller.mesh_view import MeshView, ModelState
from controller.policy import Policy
from tests.unit.controller.builders import FORMATS, World, message, reason, service, sklearn

FIRST, SECOND, THIRD = (f"s3://models/{version}" for version in ("1", "2", "3"))


def world_with(uri: str = FIRST, bad: frozenset[str] = frozenset()) -> World:
    world = World(service(sklearn(uri)), bad=bad)
    world.rest()
    return world


def share(world: World) -> dict[str, int]:
    """URI -> its share of the requests of the service's name."""
    alias = world.mesh.aliases["iris"]
    uri_of = {model.id: model.spec["uri"] for model in world.mesh.models.values()}
    return {uri_of[model]: weight for model, weight in (alias.weights or {alias.active: 100}).items()}


def test_a_new_service_is_registered_loaded_and_ready() -> None:
    world = world_with()
    (model,) = world.mesh.models.values()
    assert model.id.startswith("iris__isvc-")
    assert len(model.id) == len("iris__isvc-") + 10
    assert model.spec["labels"] == {"managed-by": "hexcomb-controller", "inferenceservice": "iris"}
    assert reason(world.status, "Ready") == ("True", "")
    assert world.status["modelStatus"]["states"] == {"activeModelState": "Loaded"}
    assert world.status["components"]["predictor"]["latestRolledoutRevision"] == model.id


def test_a_new_artifact_is_loaded_beside_the_old_one_which_goes_when_requests_have_moved() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND)))
    world.turn()
    assert share(world) == {FIRST: 100}
    assert len(world.mesh.models) == 2
    assert world.status["modelStatus"]["transitionStatus"] == "InProgress"
    assert reason(world.status, "Ready") == ("True", "")
    world.rest()
    assert share(world) == {SECOND: 100}
    assert len(world.mesh.models) == 1
    assert world.status["components"]["predictor"]["previousRolledoutRevision"] != next(iter(world.mesh.models))


def test_an_artifact_that_does_not_load_leaves_the_last_good_one_serving() -> None:
    world = world_with(bad=frozenset({SECOND}))
    world.apply(service(sklearn(SECOND)))
    world.rest()
    assert share(world) == {FIRST: 100}
    assert reason(world.status, "Ready") == ("True", "")
    assert world.status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert world.status["modelStatus"]["lastFailureInfo"]["message"] == "the artifact is bad"
    world.apply(service(sklearn(THIRD)))
    world.rest()
    assert share(world) == {THIRD: 100}
    assert world.status["modelStatus"]["transitionStatus"] == "UpToDate"


def test_another_number_of_copies_is_the_same_model() -> None:
    world = world_with()
    (before,) = world.mesh.models
    world.apply(service(sklearn(FIRST, minReplicas=2, maxReplicas=5)))
    world.rest()
    (model,) = world.mesh.models.values()
    assert (model.id, model.spec["copies_min"], model.spec["copies_max"]) == (before, 2, 5)


def test_a_canary_gets_its_share_once_it_has_been_servable() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.turn()
    assert share(world) == {FIRST: 100}
    world.rest()
    assert share(world) == {FIRST: 90, SECOND: 10}
    traffic = {entry["revisionName"]: entry["percent"] for entry in world.status["components"]["predictor"]["traffic"]}
    assert sorted(traffic.values()) == [10, 90]


def test_a_canary_that_does_not_load_gets_nothing() -> None:
    world = world_with(bad=frozenset({SECOND}))
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    assert share(world) == {FIRST: 100}
    assert world.status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"


def test_without_the_percent_a_canary_is_promoted_and_with_none_it_is_taken_back() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=0)))
    world.rest()
    assert share(world) == {FIRST: 100}
    world.apply(service(sklearn(SECOND)))
    world.rest()
    assert share(world) == {SECOND: 100}


def test_a_second_canary_takes_the_place_of_the_first_and_the_first_serves_until_then() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    world.apply(service(sklearn(THIRD, canaryTrafficPercent=20)))
    world.turn()
    assert share(world) == {FIRST: 90, SECOND: 10}
    world.rest()
    assert share(world) == {FIRST: 80, THIRD: 20}
    assert len(world.mesh.models) == 2


def test_the_first_revision_takes_everything_whatever_the_percent_says() -> None:
    world = World(service(sklearn(FIRST, canaryTrafficPercent=10)))
    world.rest()
    assert share(world) == {FIRST: 100}


def test_tag_routing_gives_each_revision_a_name_of_its_own() -> None:
    routed = {"serving.kserve.io/enable-tag-routing": "true"}
    world = World(service(sklearn(FIRST), routed))
    world.rest()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10), routed))
    world.rest()
    uri_of = {model.id: model.spec["uri"] for model in world.mesh.models.values()}
    assert uri_of[world.mesh.aliases["iris.latest"].active] == SECOND
    assert uri_of[world.mesh.aliases["iris.prev"].active] == FIRST
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    assert set(world.mesh.aliases) == {"iris"}


def test_an_emptied_mesh_is_given_back_the_good_revision_and_then_the_canary() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    world.mesh = MeshView(True, FORMATS, 2**31)
    world.rest()
    assert share(world) == {FIRST: 90, SECOND: 10}


def test_an_emptied_mesh_in_the_middle_of_a_change_serves_the_last_good_one_first() -> None:
    world = world_with(bad=frozenset({SECOND}))
    world.apply(service(sklearn(SECOND)))
    world.rest()
    world.mesh = MeshView(True, FORMATS, 2**31)
    world.rest()
    assert share(world) == {FIRST: 100}


def test_a_lost_status_is_made_up_from_what_the_name_leads_to() -> None:
    world = world_with()
    world.apply(service(sklearn(SECOND, canaryTrafficPercent=10)))
    world.rest()
    del world.object["status"]
    world.rest()
    assert share(world) == {FIRST: 90, SECOND: 10}


def test_an_evicted_model_is_standby_and_its_service_stays_ready() -> None:
    world = world_with()
    (model,) = world.mesh.models.values()
    evicted = replace(model, state=ModelState.NOT_LOADED, copies=())
    world.mesh = replace(world.mesh, models={model.id: evicted})
    world.turn()
    assert reason(world.status, "Ready") == ("True", "")
    assert reason(world.status) == ("True", "Standby")
    assert world.status["modelStatus"]["states"] == {"activeModelState": "Standby"}
    assert not any(entry.load_now for entry in world.decide().registrations)


def test_min_replicas_0_asks_for_no_load_and_is_ready_on_standby() -> None:
    world = World(service(sklearn(FIRST, minReplicas=0)))
    world.rest()
    assert reason(world.status) == ("True", "Standby")
    assert world.mesh.models[world.mesh.aliases["iris"].active].state is ModelState.NOT_LOADED


def test_a_policy_may_leave_the_first_load_to_the_first_request() -> None:
    world = World(service(sklearn(FIRST)), policy=Policy(load_when_applied=False))
    world.rest()
    assert reason(world.status) == ("True", "Standby")


def test_failures_for_good_and_for_now_have_different_reasons() -> None:
    world = world_with(bad=frozenset({FIRST}))
    assert reason(world.status, "Ready") == ("False", "ModelLoadFailed")
    assert world.status["modelStatus"]["states"]["activeModelState"] == "FailedToLoad"
    (model,) = world.mesh.models.values()
    retried = replace(model, failures=(replace(model.failures[0], permanent=False, message="storage is away"),))
    world.mesh = replace(world.mesh, models={model.id: retried})
    world.turn()
    assert reason(world.status) == ("False", "ModelLoadRetrying")
    assert "storage is away" in message(world.status)


def test_a_name_that_leads_elsewhere_is_not_ready_though_the_model_is_loaded() -> None:
    world = world_with()
    world.mesh = replace(world.mesh, aliases={}, refusals={"iris": "alias 'iris' belongs to 'somebody'"})
    decided = world.decide()
    assert reason(decided.status, "Ready") == ("False", "InvalidPredictorSpec")
    assert "belongs to 'somebody'" in message(decided.status)


def test_what_the_mesh_refuses_is_in_the_status() -> None:
    world = World(service(sklearn(FIRST)))
    (entry,) = world.decide().registrations
    world.mesh = replace(world.mesh, refusals={entry.id: "uri is too long"})
    decided = world.decide()
    assert reason(decided.status) == ("False", "InvalidPredictorSpec")
    assert decided.status["modelStatus"]["transitionStatus"] == "InvalidSpec"
    assert decided.status["modelStatus"]["lastFailureInfo"]["message"] == "uri is too long"
