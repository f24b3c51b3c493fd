"""Pipelines: any graph is read or refused with an error, shares are what they say, conditions come to an end."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.pipelines.conditions import InvalidCondition, Looks, TooMuchToLookAt, parse_condition
from mesh.pipelines.graph import Graph, parse_graph, split
from mesh.pipelines.spec import document_of, parameters_of
from placement.errors import InvalidSpec

NAMES = st.sampled_from(["root", "a", "b", "c", "", "x\n"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 105), st.text(max_size=4), st.just("$response"), NAMES)
STEPS = st.dictionaries(
    st.sampled_from(
        ["name", "nodeName", "serviceName", "serviceUrl", "data", "weight", "condition", "dependency", "outputs", "x"]
    ),
    VALUES,
    max_size=4,
)
LIKELY_STEPS = st.one_of(
    st.fixed_dictionaries({"serviceName": st.sampled_from("mn")}, optional={"weight": st.sampled_from([50, 100])}),
    st.fixed_dictionaries({"nodeName": NAMES}, optional={"condition": st.sampled_from(["a", "@this"])}),
    STEPS,
)
NODES = st.fixed_dictionaries(
    {
        "routerType": st.sampled_from(["Sequence", "Switch", "Ensemble", "Splitter"]),
        "steps": st.lists(LIKELY_STEPS, max_size=3),
    }
)
GRAPHS = st.fixed_dictionaries({"nodes": st.dictionaries(NAMES, st.one_of(NODES, VALUES), max_size=4)})
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3)
    ),
)
CONDITIONS = st.text('ab01.#()[]|@this\\*?=!<>%~", {}', max_size=24)


def longest_way(graph: Graph, name: str, way: tuple[str, ...] = ()) -> int:
    assert name not in way, "nodes lead back to themselves"
    following = [step.node for step in graph.nodes[name].steps if step.node]
    return 1 + max((longest_way(graph, each, (*way, name)) for each in following), default=0)


@given(GRAPHS)
def test_a_graph_is_read_whole_and_ends_or_is_refused(document: Any) -> None:
    try:
        graph = parse_graph(document)
    except InvalidSpec:
        return
    for name, node in graph.nodes.items():
        assert longest_way(graph, name) <= 8
        assert len({step.name for step in node.steps}) == len(node.steps)
        assert all(bool(step.node) != bool(step.service) for step in node.steps)
    parameters = parameters_of(document)
    assert parse_graph(document_of(json.loads(json.dumps(parameters)))) == graph


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.integers(1, 50))
def test_a_splitters_shares_are_what_its_weights_say(weights: list[int], unit: int) -> None:
    total = sum(weights)
    shares = [round(100 * weight / total) if total else 0 for weight in weights]
    shares[0] += 100 - sum(shares)
    if shares[0] < 0:
        return
    steps = [{"serviceName": f"m{at}", "weight": share} for at, share in enumerate(shares)]
    node = parse_graph({"nodes": {"root": {"routerType": "Splitter", "steps": steps}}}).root
    count = 100 * unit
    taken = Counter(int(split(node, number / count).name) for number in range(count))
    assert all(abs(taken[at] - share * unit) <= 1 for at, share in enumerate(shares))
    assert all(shares[at] for at in taken), "a weight of 0 is never taken"


@given(CONDITIONS, DOCUMENTS)
def test_a_condition_is_refused_when_read_or_answers(text: str, document: Any) -> None:
    try:
        condition = parse_condition(text)
    except InvalidCondition:
        return
    with contextlib.suppress(TooMuchToLookAt):
        assert condition.holds(document, Looks()) in (True, False)
