"""Whatever people write into an InferenceService, and in whatever order: an answer, and rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.desired import desired
from controller.objects import Objects
from controller.policy import Policy
from controller.quantities import bytes_of
from tests.unit.controller.builders import NOW_S, World, runtime, service, sklearn

WORDS = [
    "predictor",
    "model",
    "sklearn",
    "onnx",
    "storageUri",
    "storage",
    "key",
    "path",
    "parameters",
    "modelFormat",
    "name",
    "version",
    "minReplicas",
    "timeout",
    "maxReplicas",
    "canaryTrafficPercent",
    "resources",
    "requests",
    "limits",
    "memory",
    "cpu",
    "containers",
    "batcher",
    "maxBatchSize",
    "canary",
    "transformer",
    "conditions",
    "hexcomb",
    "stable",
    "id",
    "spec",
    "seenLoaded",
    "metadata",
    "annotations",
    "generation",
    "labels",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.text(max_size=6) | st.sampled_from(["s3://b/x", "512Mi"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=25,
)
URIS = tuple(f"s3://models/{version}" for version in range(3))
PODS_WORDS = (
    *("containers", "env", "ports", "containerPort", "args", "image", "name", "value", "volumes", "volumeMounts"),
    *("initContainers", "resources", "limits", "cpu", "readinessProbe", "tcpSocket", "deploymentStrategy", "labels"),
    *("annotations", "storageUri", "runtimeVersion", "tolerations", "minReplicas", "scaleTarget", "transformer"),
)
PODS_JSON = st.recursive(
    st.none()
    | st.integers(0, 9000)
    | st.sampled_from(["kserve-container", "STORAGE_URI", "s3://b/x", "1Gi", "cpu", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PODS_WORDS), inner, max_size=4),
    max_leaves=25,
)
PODS_PART = st.dictionaries(st.sampled_from(PODS_WORDS), PODS_JSON, max_size=4)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(URIS), st.none() | st.integers(0, 100), st.sampled_from(["turn", "rest", "lose", "forget"])
    ),
    min_size=1,
    max_size=8,
)


@given(spec=JSON, status=JSON, annotations=JSON, beside=st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_object_has_an_answer(spec: Any, status: Any, annotations: Any, beside: bool) -> None:
    said = {**service(), "spec": spec, "status": status}
    said["metadata"] = {**said["metadata"], "annotations": annotations}
    before = copy.deepcopy(said)
    world = World()
    for whole in (said, {**service(), "status": status}, {"metadata": spec, "spec": status}):
        decided = desired(Objects(whole), world.mesh, Policy(beside_kserve=beside), NOW_S)
        if decided.acts and decided.status:
            assert {"Ready", "PredictorReady", "IngressReady"} <= {one["type"] for one in decided.status["conditions"]}
    assert said == before


@given(
    predictor=PODS_PART,
    model=PODS_PART,
    container=PODS_PART,
    beside=PODS_PART,
    in_runtime=PODS_PART,
    scaler=st.sampled_from(["hpa", "none", "x"]),
)
@settings(deadline=None, max_examples=200)
def test_any_pod_has_an_answer(
    predictor: dict[str, Any],
    model: dict[str, Any],
    container: dict[str, Any],
    beside: dict[str, Any],
    in_runtime: dict[str, Any],
    scaler: str,
) -> None:
    server = runtime("server", {"name": "sklearn", "autoSelect": True})
    server["spec"] |= {**in_runtime, "containers": [{**in_runtime, "name": "kserve-container"}]}
    for kind in ({"sklearn": {"storageUri": "s3://b/x", **model}}, {"containers": [container]}):
        said = service({**predictor, **kind}, {"serving.kserve.io/autoscalerClass": scaler}, mode="Standard")
        said["spec"]["transformer"] = {"containers": [container], **beside}
        decided = World(said, runtimes=(server,)).decide()
        if not decided.hold:
            assert decided.children[0]["kind"] == "Deployment"
            names = [(child["kind"], child["metadata"]["name"]) for child in decided.children]
            assert len(set(names)) == len(names)


@given(changes=CHANGES, bad=st.frozensets(st.sampled_from(URIS[1:]), max_size=2))
@settings(deadline=None, max_examples=100)
def test_a_name_that_served_goes_on_serving_and_everything_comes_to_rest(
    changes: list[tuple[str, int | None, str]], bad: frozenset[str]
) -> None:
    world = World(service(sklearn(URIS[0])), bad=bad)
    world.rest()
    remembers = True
    for uri, percent, then in changes:
        remembers = remembers and then in ("turn", "rest")
        world.apply(service(sklearn(uri, canaryTrafficPercent=percent)))
        if then == "lose":
            world.mesh = World().mesh
        if then == "forget":
            del world.object["status"]
        if then == "rest":
            world.rest()
        else:
            world.turn()
        alias = world.mesh.aliases["iris"]
        for model_id in alias.weights or (alias.active,):
            assert not remembers or then == "rest" or world.mesh.models[model_id].spec["uri"] not in bad
    last = world.rest()
    # The stable one, a canary that serves, and one that is to take its place and does not load.
    assert len(world.mesh.models) <= 3
    alias = world.mesh.aliases["iris"]
    serving = {world.mesh.models[model_id].spec["uri"] for model_id in alias.weights or (alias.active,)}
    uri, percent, _ = changes[-1]
    if uri not in bad and (percent is None or percent == 100):
        assert serving == {uri}
    assert last.status == world.status


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["ModelMesh", "Standard", "Auto"]),
        st.sampled_from(URIS[:2]),
        st.sampled_from(["ok", "pods fail", "mesh away"]),
        st.integers(0, 4),
        st.sampled_from([1.0, 30.0, 61.0]),
    ),
    min_size=1,
    max_size=6,
)
SERVER = runtime("server", {"name": "sklearn", "autoSelect": True})


@given(moves=MOVES, start=st.sampled_from(["ModelMesh", "Standard"]))
@settings(deadline=None, max_examples=100)
def test_whoever_moves_whereto_somebody_serves_at_every_step(
    moves: list[tuple[str, str, str, int, float]], start: str
) -> None:
    world = World(service(sklearn(URIS[0]), mode=start), runtimes=(SERVER,))
    world.rest()
    for mode, uri, weather, turns, pause_s in moves:
        world.apply(service(sklearn(uri), {"hexcomb.dev/mode": mode}, mode=None))
        # A pod that answers goes on answering: what fails are new ones.
        world.pods_answer = weather != "pods fail" or ("Deployment", "iris-predictor") in world.children
        for _ in range(turns):
            world.mesh = replace(world.mesh, reachable=weather != "mesh away")
            world.turn()
            world.mesh = replace(world.mesh, reachable=True)
            world.goes_on()
            assert world.served_by()
        world.now_s += pause_s
    world.pods_answer = True
    for _ in range(3):
        world.goes_on()
        world.rest()
        world.now_s += 100
    asked = moves[-1][0]
    assert world.served_by()
    if asked != "Auto":
        assert world.status["deploymentMode"] == asked
        assert bool(world.mesh.models) is (asked == "ModelMesh")
        assert (("Deployment", "iris-predictor") in world.children) is (asked == "Standard")


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "Ki", "M", "Mi", "G", "Gi", "m", "e3"]))
def test_a_quantity_is_rounded_up_and_garbage_is_none(number: int, unit: str) -> None:
    size = bytes_of(f"{number}{unit}")
    assert size is not None
    assert size >= (number if unit not in ("m",) else number // 1000)
    assert bytes_of(f"x{number}") is None
