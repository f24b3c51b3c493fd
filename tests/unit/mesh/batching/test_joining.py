"""Requests as one run's inputs: what a model is given lies where numbers of its type do."""

from __future__ import annotations

import numpy as np
import pytest

from mesh.batching.joining import Request, run_together
from mesh.wire.patterns import ALIGNED_BYTES_MAX, request_pattern
from mesh.wire.peek import peek
from mesh.wire.tensors import decode_request, encode_request
from runtime_adapters.base import Array

ROW = np.arange(ALIGNED_BYTES_MAX, dtype=np.float32).reshape(1, -1)


def unaligned() -> Array:
    """As a request's bytes may hold it."""
    for pad in range(8):
        body = encode_request("m" * (pad + 1), {"x": ROW})
        envelope = peek(body)
        pattern = request_pattern(body, envelope, decode_request(body, envelope))
        assert pattern is not None
        array = pattern.read(pattern.tensors[0], body)
        if not array.flags.aligned:
            return array
    raise AssertionError("they all lie aligned")


@pytest.mark.parametrize("count", [1, 3])
def test_a_model_is_given_aligned_inputs_wherever_they_lay_in_their_messages(count: int) -> None:
    seen: list[Array] = []

    def infer(inputs: dict[str, Array], outputs: object) -> dict[str, Array]:
        seen.append(inputs["x"])
        return {"y": inputs["x"] + 1}

    requests = [Request({"x": unaligned()}, (), ROW.nbytes) for _ in range(count)]
    ran = run_together(infer, requests)  # type: ignore[arg-type]
    for answer in ran.answers:
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["y"], ROW + 1)
    assert [array.flags.aligned for array in seen] == [True]
