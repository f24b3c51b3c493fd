"""What came back, and whether it is right.

Every answer is looked at: its bytes are compared with answers that were found right before, which costs a hash, and
read and compared as numbers when they are new. Servers that batch may differ in the last bits, hence the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesh.wire.errors import InvalidMessage
from mesh.wire.tensors import decode_response
from runtime_adapters.base import Array

Finished = tuple[float, int, bytes]
"""When the request began (seconds on the caller's clock), which it was, and its answer; empty where it failed."""

_TOLERANCE = 1e-4
_KNOWN_MAX = 64
"""Different right answers that are remembered for a request; a server that stamps each one would fill the memory."""


class LoadFailed(Exception):
    """The load cannot go on: the server is gone, or speaks what this client does not."""


class Judge:
    """Knows the right answers of numbered requests: numbers, or (of an echo) the very bytes.

    `of_v2`: numbers come as ModelInferResponses, else as bare FP32.
    """

    def __init__(self, expected: Sequence[Array | bytes], *, of_v2: bool) -> None:
        self._expected = expected
        self._of_v2 = of_v2
        self._known: list[set[bytes]] = [set() for _ in expected]

    def is_right(self, request: int, answer: bytes) -> bool:
        """Whether this is the answer to that request."""
        known = self._known[request]
        if answer in known:
            return True
        if not answer or not self._matches(self._expected[request], answer):
            return False
        if len(known) < _KNOWN_MAX:
            known.add(answer)
        return True

    def _matches(self, expected: Array | bytes, answer: bytes) -> bool:
        if isinstance(expected, bytes):
            return answer == expected
        try:
            given = next(iter(decode_response(answer).outputs.values())) if self._of_v2 else _bare(answer)
        except (InvalidMessage, ValueError, StopIteration):
            return False
        return given.size == expected.size and np.allclose(
            given.reshape(-1).astype(np.float64), expected.reshape(-1), rtol=_TOLERANCE, atol=_TOLERANCE
        )


def _bare(answer: bytes) -> Array:
    return np.frombuffer(answer, np.float32)
