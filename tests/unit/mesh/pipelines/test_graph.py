"""Graphs: what KServe's InferenceGraph says, and one error with the field for each way that cannot work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.pipelines.graph import DEPTH_MAX, NODES_MAX, STEPS_MAX, RouterType, parse_graph
from mesh.pipelines.spec import URI, document_of, from_kserve, graph_of, parameters_of
from placement.errors import InvalidSpec
from placement.records import PIPELINE_FORMAT, ModelSpec

STEP = {"serviceName": "m"}


def graph(router: str = "Sequence", *steps: Any, **nodes: Any) -> dict[str, Any]:
    return {"nodes": {"root": {"routerType": router, "steps": list(steps) or [STEP]}, **nodes}}


def leading_to(*names: str) -> dict[str, Any]:
    return {"routerType": "Sequence", "steps": [{"nodeName": name} for name in names] or [STEP]}


def test_every_field_of_a_step_is_read() -> None:
    found = parse_graph(
        {
            "nodes": {
                "root": {
                    "routerType": "Sequence",
                    "steps": [
                        {"serviceName": "a", "name": "first", "dependency": "Hard", "outputs": ["p", "p", "q"]},
                        {
                            "nodeName": "either",
                            "data": "$response",
                            "condition": "predictions.0",
                            "dependency": "Soft",
                            "mapPredictionsToInstances": True,
                        },
                        {"serviceName": "a", "data": "$request"},
                    ],
                },
                "either": {
                    "routerType": "Splitter",
                    "steps": [{"serviceName": "b", "weight": 0}, {"serviceName": "c", "weight": 100}],
                },
            },
            "timeout": 5,
        }
    )
    first, second, third = found.root.steps
    assert (first.name, first.service, first.hard, first.outputs) == ("first", "a", True, ("p", "q"))
    assert (second.name, second.node, second.takes_response, second.maps_predictions) == ("1", "either", True, True)
    assert second.condition is not None
    assert second.condition.text == "predictions.0"
    assert (third.name, third.takes_response) == ("2", False)
    assert found.nodes["either"].router is RouterType.SPLITTER
    assert [step.weight for step in found.nodes["either"].steps] == [0, 100]
    assert found.services == ("a", "b", "c")
    assert found.timeout_s == 5.0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "the graph is missing; it must be an object"),
        ([], "the graph is \\[\\]"),
        ({}, "nodes is missing"),
        ({"nodes": {}}, "nodes is {}"),
        ({"nodes": {"root": None}, "other": 1}, "field 'other' does not exist; known are nodes, timeout"),
        ({"nodes": {"top": {}}}, "nodes has no 'root', where requests come in"),
        ({"nodes": {f"n{i}": {} for i in range(NODES_MAX + 1)}}, "at most 64 are allowed"),
        ({"nodes": {"root": leading_to(), "": leading_to()}}, "the name of a node: id is empty"),
        ({"nodes": {"root": leading_to(), 3: leading_to()}}, "the name of a node: id must be text"),
        (graph(**{"root": 3}), "nodes.root is 3"),
        (graph("Loop"), "nodes.root.routerType is 'Loop'; allowed are Sequence, Switch, Ensemble, Splitter"),
        (graph(**{"root": {"routerType": ["Switch"], "steps": [STEP]}}), "routerType is \\['Switch'\\]"),
        (graph(**{"root": {"routerType": "Switch", "steps": []}}), "nodes.root.steps is \\[\\]"),
        (graph(**{"root": {"routerType": "Switch", "steps": "ab"}}), "nodes.root.steps is 'ab'"),
        (graph("Ensemble", *[STEP] * (STEPS_MAX + 1)), "a list of 1 to 64 steps"),
        (graph("Sequence", "a"), "nodes.root.steps\\[0\\] is 'a'; it must be an object"),
        (graph("Sequence", {**STEP, "wait": 1}), "field 'wait' does not exist; known are name, nodeName"),
        (graph("Sequence", {}), "has neither; it must have one of nodeName and serviceName"),
        (graph("Sequence", {**STEP, "nodeName": "b"}), "has nodeName and serviceName; it must have one of"),
        (graph("Sequence", {"serviceUrl": "http://x/y"}), "steps\\[0\\].serviceUrl is 'http://x/y': a pipeline asks"),
        (graph("Sequence", {"serviceName": 3}), "serviceName is 3; it must be text"),
        (graph("Sequence", {"serviceName": "a\n"}), "serviceName: id 'a"),
        (graph("Sequence", {"nodeName": "x"}), "nodes.root.steps\\[0\\].nodeName is 'x', which is no node"),
        (graph("Sequence", {**STEP, "data": "$other"}), "data is '\\$other'; allowed are \\$request and \\$response"),
        (graph("Sequence", {**STEP, "dependency": "hard"}), "dependency is 'hard'; allowed are Soft and Hard"),
        (graph("Sequence", {**STEP, "mapPredictionsToInstances": "yes"}), "it must be true or false"),
        (graph("Sequence", {**STEP, "outputs": "y"}), "outputs is 'y'; it must be a list"),
        (graph("Sequence", {**STEP, "outputs": [1]}), "outputs holds 1; each is the name of an output"),
        (graph("Sequence", {**STEP, "condition": "a"}), "is about the answer of the step before, and there is none"),
        (graph("Sequence", STEP, {**STEP, "condition": "a..b"}), "steps\\[1\\].condition 'a..b' at character 2"),
        (graph("Switch"), "nodes.root.steps\\[0\\].condition is missing, so the Switch would never take this step"),
        (graph("Splitter"), "steps\\[0\\].weight is missing; each step of a Splitter has one"),
        (graph("Splitter", {**STEP, "weight": 101}), "weight is 101"),
        (graph("Splitter", {**STEP, "weight": 50.0}), "weight is 50.0"),
        (graph("Splitter", {**STEP, "weight": True}), "weight is True"),
        (graph("Splitter", {**STEP, "weight": 30}, {**STEP, "weight": 60}), "add up to 90; they must add up to 100"),
        (graph("Ensemble", {**STEP, "name": "x"}, {**STEP, "name": "x"}), "steps\\[1\\].name is 'x', as steps\\[0\\]"),
        (graph("Ensemble", {**STEP, "name": "1"}, STEP), "steps\\[1\\].name is '1', as steps\\[0\\] is called"),
        (graph(**{"root": leading_to("root")}), "nodes.root leads back to 'root' \\(root -> root\\)"),
        (graph(root=leading_to("a"), a=leading_to("b"), b=leading_to("a")), "leads back to 'a' \\(a -> b -> a\\)"),
        (graph(a=leading_to("a")), "nodes.a leads back to 'a'"),
        ({**graph(), "timeout": 0}, "timeout is 0; allowed is above 0"),
        ({**graph(), "timeout": True}, "timeout is True"),
        ({**graph(), "timeout": "5s"}, "timeout is '5s'"),
        ({**graph(), "timeout": float("nan")}, "timeout is nan"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_field(document: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        parse_graph(document)


def test_nodes_may_be_asked_by_several_and_lie_in_one_another_to_a_limit() -> None:
    shared = graph(
        "Ensemble", {"nodeName": "a"}, {"nodeName": "b"}, a=leading_to("c"), b=leading_to("c"), c=leading_to()
    )
    assert parse_graph(shared).services == ("m",)
    names = [f"n{number}" for number in range(DEPTH_MAX - 1)]
    chain = {name: leading_to(*names[at + 1 : at + 2]) for at, name in enumerate(names)}
    assert parse_graph(graph(**{"root": leading_to("n0"), **chain}))
    too_deep = graph(**{**chain, "root": leading_to("above"), "above": leading_to("n0")})
    with pytest.raises(InvalidSpec, match=f"leads through more than {DEPTH_MAX} nodes"):
        parse_graph(too_deep)


def test_a_graph_lies_in_a_registration_and_comes_back() -> None:
    document = {**graph("Ensemble", {**STEP, "name": "größe"}, {"nodeName": "x"}, x=leading_to()), "timeout": 2.5}
    parameters = parameters_of(document)
    assert set(parameters) == {"nodes.root", "nodes.x", "timeout"}
    assert document_of(parameters) == document
    assert graph_of(ModelSpec(URI, PIPELINE_FORMAT, parameters=parameters)) == parse_graph(document)


def test_the_same_graph_is_the_same_registration_however_it_is_written() -> None:
    one, other = json.loads('{"serviceName": "a", "name": "b"}'), json.loads('{"name": "b", "serviceName": "a"}')
    assert parameters_of(graph("Sequence", one)) == parameters_of(graph("Sequence", other))


def test_a_node_that_does_not_fit_a_registration_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"nodes.root takes \d+ characters; at most 4096 are allowed: divide it"):
        parameters_of(graph("Sequence", *[{"serviceName": "m" * 200}] * 40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uri": "file:///x"}, "uri is 'file:///x'; a pipeline has nothing to fetch"),
        ({"pinned": True}, "pinned says nothing of a pipeline"),
        ({"copies_min": 1}, "copies_min says nothing of a pipeline"),
        ({"isolation": "process"}, "isolation says nothing"),
        ({"parameters": {}}, "nodes is {}"),
        ({"parameters": {"nodes.root": "{"}}, r"parameters\['nodes.root'\] is no JSON"),
        ({"parameters": {"nodes.root": "[" * 3000}}, r"parameters\['nodes.root'\] is no JSON"),
        ({"parameters": {"root": "{}"}}, r"parameters\['root'\]: a pipeline has nodes.<name>, and timeout"),
    ],
)
def test_a_registration_that_is_no_pipelines_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = {"uri": URI, "format": PIPELINE_FORMAT, "parameters": parameters_of(graph()), **changes}
    with pytest.raises(InvalidSpec, match=message):
        graph_of(ModelSpec(**fields))


def test_an_inference_graph_is_taken_as_people_have_it_in_files() -> None:
    spec = {**graph(), "minReplicas": 1, "resources": {"limits": {}}, "timeout": 3}
    whole = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph", "metadata": {}, "spec": spec}
    for document in (whole, spec):
        assert from_kserve(document) == ({**graph(), "timeout": 3}, ("minReplicas", "resources"))
    for bad, message in (
        ("text", "the file holds str"),
        ({"kind": "Pod"}, "kind is 'Pod'; only an InferenceGraph"),
        ({"kind": "InferenceGraph"}, "spec is missing"),
    ):
        with pytest.raises(InvalidSpec, match=message):
            from_kserve(bad)
