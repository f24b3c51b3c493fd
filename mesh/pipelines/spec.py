"""How a graph lies in a registration: as a model of the format `pipeline`, each node in a parameter of its own.

A pipeline has no artifact, so its URI is a constant. Its parameters are `nodes.<name>`, each the node's JSON, and
`timeout` where there is one. So whatever registers, lists, aliases, versions, restores and forgets models does so for
pipelines. What a spec says beside that (copies, priority, isolation, ...) would mean nothing, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mesh.pipelines.graph import ROOT, Graph, parse_graph
from placement.errors import InvalidSpec
from placement.record_checks import VALUE_LENGTH_MAX
from placement.records import ModelSpec, spec_to_mapping

URI = "pipeline:"
"""Of every pipeline: there is nothing to fetch."""
_NODE = "nodes."
_FIELDS = frozenset({"uri", "format", "labels", "parameters"})

POD_FIELDS = frozenset(
    {
        "resources", "affinity", "tolerations", "nodeSelector", "nodeName", "serviceAccountName", "minReplicas",
        "maxReplicas", "scaleTarget", "scaleMetric", "routerTimeouts",
    }
)  # fmt: skip
"""Fields of KServe's InferenceGraph about the pod that its router runs in, which is none here."""


def parameters_of(graph: Mapping[str, Any]) -> dict[str, str]:
    """A graph's JSON as a spec's parameters. Raises InvalidSpec."""
    parse_graph(graph)
    found = {_NODE + name: _json(node) for name, node in graph["nodes"].items()}
    for name, text in found.items():
        if len(text) > VALUE_LENGTH_MAX:
            raise InvalidSpec(f"{name} takes {len(text)} characters; at most {VALUE_LENGTH_MAX} are allowed: divide it")
    if graph.get("timeout") is not None:
        found["timeout"] = _json(graph["timeout"])
    return found


def document_of(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The JSON of a graph, from a pipeline's parameters, its root first. Raises InvalidSpec, naming the field."""
    nodes: dict[str, Any] = {}
    document: dict[str, Any] = {"nodes": nodes}
    for name, text in sorted(parameters.items(), key=lambda each: (each[0] != _NODE + ROOT, each[0])):
        if not name.startswith(_NODE) and name != "timeout":
            raise InvalidSpec(f"parameters[{name[:80]!r}]: a pipeline has {_NODE}<name>, and timeout")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidSpec(f"parameters[{name[:80]!r}] is no JSON: {error}") from None
        if name == "timeout":
            document["timeout"] = value
        else:
            nodes[name.removeprefix(_NODE)] = value
    return document


def graph_of(spec: ModelSpec) -> Graph:
    """The graph of a pipeline's registration. Raises InvalidSpec, naming the field."""
    if meaningless := sorted(spec_to_mapping(spec).keys() - _FIELDS):
        raise InvalidSpec(f"{meaningless[0]} says nothing of a pipeline, which has no copies; say it of its models")
    if spec.uri != URI:
        raise InvalidSpec(f"uri is {spec.uri[:80]!r}; a pipeline has nothing to fetch: it is {URI!r}")
    return parse_graph(document_of(spec.parameters))


def from_kserve(document: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A graph out of what people have in files: an InferenceGraph, its `spec`, or a graph as it is here; and the fields
    that were left out, since they are about a pod that there is not. Raises InvalidSpec."""
    if not isinstance(document, Mapping):
        raise InvalidSpec(f"the file holds {type(document).__name__}; it must hold an InferenceGraph, or its spec")
    if "kind" in document:
        if document["kind"] != "InferenceGraph":
            raise InvalidSpec(f"kind is {document['kind']!r}; only an InferenceGraph can become a pipeline")
        document = document.get("spec")
        if not isinstance(document, Mapping):
            raise InvalidSpec("spec is missing; an InferenceGraph has its nodes there")
    left_out = tuple(sorted(map(str, document.keys() & POD_FIELDS)))
    return {name: value for name, value in document.items() if name not in POD_FIELDS}, left_out


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
