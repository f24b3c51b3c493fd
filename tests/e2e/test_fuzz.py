"""Random and mutated messages over all methods, on both transports: no crash, no leak, no INTERNAL.

A short run of what `python -m tests.fuzz.shooting` does for long; `HEXCOMB_TEST_FUZZ_CASES` says how long this one is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fuzz.messages_at_random import METHODS, Shots
from tests.fuzz.shooting import Range, shoot

if TYPE_CHECKING:
    from tests.e2e.conftest import ModelFiles, StartPod

CASES = int(os.environ.get("HEXCOMB_TEST_FUZZ_CASES", "3000"))
SEED = int(os.environ.get("HEXCOMB_TEST_FUZZ_SEED", "1"))
GROWTH_BYTES_MAX = 24 << 20
"""Of a pod of some 125 MiB, over its level when warm; in 50,000 cases it is below 2 MiB."""


@pytest.mark.timeout(60 + CASES // 50)
@pytest.mark.parametrize("transport", ["native", "grpcio"])
async def test_no_message_makes_the_pod_fail_or_grow(start_pod: StartPod, files: ModelFiles, transport: str) -> None:
    range_ = Range(start_pod(transport=transport, capacity="64MiB"), files)
    range_.put_back()
    outcome = await shoot(range_, Shots(SEED, range_.uris), CASES)
    assert outcome.failures == [], outcome.report()
    assert outcome.cases == CASES
    assert outcome.growth_bytes < GROWTH_BYTES_MAX, outcome.report()
    assert len(outcome.methods) == len(METHODS)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= set(outcome.codes), outcome.report()


def test_a_seed_gives_the_same_calls() -> None:
    first, second = (Shots(SEED, ("file:///m.onnx",)) for _ in range(2))
    assert [first.next() for _ in range(300)] == [second.next() for _ in range(300)]
