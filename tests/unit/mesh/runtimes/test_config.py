"""The file that names the servers beside a pod."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.runtimes.config import InvalidRuntimes, parse_runtimes

TRITON = {"kind": "triton", "address": "127.0.0.1:8001", "models": "/models", "capacity": "4GiB"}


def test_a_whole_file_is_read_with_its_units() -> None:
    found = parse_runtimes(json.dumps({"triton": {**TRITON, "formats": ["tensorflow"]}}))
    assert found["triton"].capacity == 4 << 30
    assert found["triton"].formats == ("tensorflow",)


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ({"Triton": TRITON}, "no name"),
        ({"cuda": TRITON}, "no name"),
        ({"triton": {**TRITON, "formats": ["onnx"]}}, "this pod itself"),
        ({"a": {**TRITON, "formats": ["keras"]}, "b": {**TRITON, "formats": ["keras"]}}, "runtime 'a'"),
        ({"triton": {**TRITON, "colour": "red"}}, "colour"),
        ({"triton": {"kind": "triton", "address": "x:1"}}, "models"),
        ({"triton": {**TRITON, "capacity": None}}, "capacity"),
        ({"m": {**TRITON, "kind": "mlserver", "formats": ["pmml"]}}, "pmml"),
        ([], "an object"),
    ],
)
def test_what_is_wrong_is_named(described: Any, why: str) -> None:
    with pytest.raises(InvalidRuntimes, match=why):
        parse_runtimes(json.dumps(described))
