"""The suite's models for Hexcomb: ONNX, and a custom model for BYTES, since ONNX's strings are text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ONNX_TYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8",
    "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE",
    "BF16": "BFLOAT16",
}  # fmt: skip
_ANY_BYTES = """
from runtime_adapters.custom import Model, TensorSpec


class Same(Model):
    inputs = (TensorSpec("x", "BYTES", (-1, 4)),)
    outputs = (TensorSpec("y", "BYTES", (-1, 4)),)

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def write_models(directory: Path) -> Mapping[str, str]:
    """URIs by name."""
    from onnx import TensorProto, helper, save

    def write(name: str, nodes: list[Any], inputs: list[str], outputs: list[str], kind: str) -> str:
        element = getattr(TensorProto, kind)
        described = [
            [helper.make_tensor_value_info(each, element, ["N", 4]) for each in names] for names in (inputs, outputs)
        ]
        path = directory / f"{name}.onnx"
        graph = helper.make_graph(nodes, name, *described)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
        return path.as_uri()

    found = {}
    for datatype, kind in _ONNX_TYPES.items():
        name = f"identity_{datatype.lower()}"
        found[name] = write(name, [helper.make_node("Identity", ["x"], ["y"])], ["x"], ["y"], kind)
    both = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    found["pair"] = write("pair", both, ["a", "b"], ["sum", "difference"], "FLOAT")
    (directory / "same").mkdir()
    (directory / "same" / "model.py").write_text(_ANY_BYTES)
    found["identity_bytes"] = (directory / "same").as_uri()
    return found
