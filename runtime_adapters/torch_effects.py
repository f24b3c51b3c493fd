"""Does an exported program write to its own buffers, or to the arrays of its caller?

Its signature is not the answer: torch.export keeps in-place operations as they are written and lists only mutations
that it has rewritten. So the graph is walked once per load. Each value carries the placeholders whose memory it may
share; an operation that writes to a value writes to all of them. Views share by their schema. Composite operations
(reshape, contiguous, dropout in evaluation, ...) may or may not return their argument, which no schema says: they
count as sharing, unless they are known to compute something new. The error is on the safe side: a program that is
wrongly suspected runs one request at a time, a program wrongly trusted would answer wrong numbers.

Deliberately absent: TorchScript, whose programs can do anything; the caller copies their inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_COMPUTES_SOMETHING_NEW = frozenset(
    {
        *("linear", "matmul", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "embedding", "embedding_bag"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "softmax", "log_softmax", "silu"),
        *("lstm", "gru", "scaled_dot_product_attention", "upsample_nearest2d", "upsample_bilinear2d", "cat", "stack"),
    }
)
_UPDATES_STATISTICS_IN_TRAINING = {"batch_norm": 5, "instance_norm": 5}
"""Operation -> position of the flag. Their schema does not say that they write."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What a run may change beside its result."""

    inputs: bool
    state: bool


def effects_of(torch: Any, program: Any) -> Effects:
    """The effects of a `torch.export.ExportedProgram`."""
    signature = program.graph_signature
    input_names = {name for name in signature.user_inputs if isinstance(name, str)}
    inputs, state = bool(signature.user_inputs_to_mutate), bool(signature.buffers_to_mutate)
    shares: dict[Any, frozenset[str]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            shares[node] = frozenset({node.name})
            continue
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            # Python functions (getitem) pass on; higher-order operators run graphs of their own.
            shares[node] = _union(shares, node.all_input_nodes)
            if _runs_graphs_that_write(node, program.graph_module):
                inputs = state = True
            continue
        written = _union(shares, _arguments(schema, node, writes=True))
        flag = _UPDATES_STATISTICS_IN_TRAINING.get(_short_name(node.target))
        if flag is not None and len(node.args) > flag and node.args[flag] is not False:
            written |= _union(shares, node.all_input_nodes)
        inputs = inputs or not written.isdisjoint(input_names)
        state = state or not written <= input_names
        if _may_return_any_argument(torch, node.target):
            shares[node] = _union(shares, node.all_input_nodes)
        else:
            shares[node] = _union(shares, _arguments(schema, node, writes=False))
    return Effects(inputs, state)


def _arguments(schema: Any, node: Any, *, writes: bool) -> list[Any]:
    """The nodes given for arguments that the operation writes to, or whose memory its result shares."""
    found: list[Any] = []
    for position, argument in enumerate(schema.arguments):
        alias = argument.alias_info
        if alias is None or (writes and not alias.is_write):
            continue
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        found += _nodes_in(given)
    return found


def _nodes_in(given: Any) -> list[Any]:
    if isinstance(given, list | tuple):
        return [node for item in given for node in _nodes_in(item)]
    return [given] if hasattr(given, "all_input_nodes") else []


def _union(shares: Mapping[Any, frozenset[str]], nodes: Iterable[Any]) -> frozenset[str]:
    return frozenset[str]().union(*(shares.get(node, frozenset()) for node in nodes))


def _short_name(target: Any) -> str:
    return str(target._schema.name).partition("::")[2]


def _may_return_any_argument(torch: Any, target: Any) -> bool:
    if _short_name(target) in _COMPUTES_SOMETHING_NEW:
        return False
    return bool(target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd))


def _runs_graphs_that_write(node: Any, module: Any) -> bool:
    names = [str(given.target) for given in node.all_input_nodes if given.op == "get_attr"]
    graphs = [part.graph for name in names if hasattr(part := module.get_submodule(name), "graph")] if names else []
    called = [inner.target for graph in graphs for inner in graph.nodes if inner.op == "call_function"]
    return any(getattr(getattr(target, "_schema", None), "is_mutable", False) for target in called)
