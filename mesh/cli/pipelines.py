"""`hexcomb pipelines`: graphs of models that answer under one name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import USAGE, Failure
from mesh.cli.output import print_json, print_line, print_table, stderr_console

_FILE_BYTES_MAX = 4 * 1024 * 1024


def build_command() -> click.Command:
    """The group, complete."""
    return pipelines


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def pipelines() -> None:
    """Register, list, show and unregister pipelines: graphs of models that answer as one.

    A graph is what KServe's InferenceGraph has under `spec`; its serviceName is the name of a registered model, of an
    alias, or of another pipeline. Requests go to a pipeline as to a model, over gRPC and REST.

    \b
    hexcomb pipelines register loans --file graph.yaml
    hexcomb infer loans --input request.json
    """


@pipelines.command()
@target_options
@click.argument("name")
@click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML or JSON: an InferenceGraph, or its spec.",
)
@click.option("--if-generation", type=int, help="Replace the graph that is registered, if this is its generation.")
def register(target: Target, name: str, path: Path, if_generation: int | None) -> None:
    """Register the graph in a file under NAME. The models that it names must be registered."""
    from mesh.client import operations
    from mesh.pipelines.spec import from_kserve
    from placement.errors import InvalidSpec

    document = _read(path)
    try:
        graph, left_out = from_kserve(document)
    except InvalidSpec as error:
        raise Failure(f"{path}: {error}", exit_code=USAGE) from error
    with connected(target) as client:
        result = client.call(operations.register(operations.pipeline(name, graph, if_generation)))
    outcome = ("refused", "created", "unchanged", "updated")[result.outcome]
    if target.as_json:
        print_json({"name": name, "outcome": outcome, "generation": result.generation, "left_out": list(left_out)})
        return
    print_line(f"{name}: {outcome} (generation {result.generation})")
    if left_out:
        stderr_console().print(f"left out, since no pod runs a pipeline's router here: {', '.join(left_out)}")


@pipelines.command("list")
@target_options
@click.option("--prefix", default="", metavar="TEXT", help="Only names that begin so.")
def list_command(target: Target, prefix: str) -> None:
    """List pipelines: what they are, and whether they can answer."""
    from mesh.cli.descriptions import state_name

    with connected(target) as client:
        found = list(client.list_models(prefix, format="pipeline"))
    if target.as_json:
        print_json({"pipelines": [_as_json(each) for each in found]})
        return
    if not found:
        stderr_console().print("no pipelines; `hexcomb pipelines register NAME --file graph.yaml` makes one")
        return
    rows = []
    for each in found:
        nodes = _graph(each)["nodes"]
        steps = sum(len(node["steps"]) for node in nodes.values())
        rows.append([each.id, nodes["root"]["routerType"], str(steps), state_name(each.state), each.failure.message])
    print_table(("pipeline", "root", "steps", "state", "failure"), rows, numbers=("steps",))


@pipelines.command()
@target_options
@click.argument("name")
def show(target: Target, name: str) -> None:
    """Show a pipeline's graph and where it stands."""
    from mesh.cli.descriptions import state_name

    with connected(target) as client:
        found = client.describe(name)
    if found.spec.format != "pipeline":
        raise Failure(f"{name} is a model", hint=f"hexcomb models show {name}")
    if target.as_json:
        print_json(_as_json(found))
        return
    print_line(f"{found.id}: generation {found.generation}, {state_name(found.state)}")
    for failure in found.failures:
        print_line(f"cannot answer: {failure.message}")
    for line in _lines(_graph(found)["nodes"], "root", "  ", set()):
        print_line(line)


@pipelines.command()
@target_options
@click.argument("name")
def unregister(target: Target, name: str) -> None:
    """Unregister a pipeline; the models that it asks stay. One that is not there is no error."""
    with connected(target) as client:
        described = next((each for each in client.list_models(name, format="pipeline") if each.id == name), None)
        existed = described is not None and client.unregister(name)
    if target.as_json:
        print_json({"name": name, "existed": existed})
    else:
        print_line(f"{name}: {'unregistered' if existed else 'there was no such pipeline'}")


def _read(path: Path) -> Any:
    import yaml

    if path.stat().st_size > _FILE_BYTES_MAX:
        raise Failure(f"{path} is larger than {_FILE_BYTES_MAX} bytes, which no graph is", exit_code=USAGE)
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(f"{path} is neither YAML nor JSON: {error}", exit_code=USAGE) from error


def _graph(model: Any) -> dict[str, Any]:
    from mesh.pipelines.spec import document_of

    return document_of(model.spec.parameters)


def _as_json(model: Any) -> dict[str, Any]:
    from mesh.cli.descriptions import state_name

    return {
        "name": model.id,
        "generation": model.generation,
        "state": state_name(model.state),
        "failures": [failure.message for failure in model.failures],
        "graph": _graph(model),
    }


def _lines(nodes: Mapping[str, Any], name: str, indent: str, shown: set[str]) -> Iterator[str]:
    """A node and all below it, each once."""
    node = nodes[name]
    if name in shown:
        yield f"{indent}{name}: as above"
        return
    shown.add(name)
    yield f"{indent}{name}: {node['routerType']}"
    for at, step in enumerate(node["steps"]):
        beside = [
            f"{field}: {step[field]}"
            for field in ("weight", "data", "condition", "dependency", "mapPredictionsToInstances", "outputs")
            if step.get(field) not in (None, "", False)
        ]
        more = f"  ({', '.join(beside)})" if beside else ""
        target = step.get("serviceName") or f"node {step['nodeName']}"
        yield f"{indent}  {step.get('name') or at} -> {target}{more}"
        if step.get("nodeName"):
            yield from _lines(nodes, step["nodeName"], indent + "    ", shown)
