"""A pod that answers ten times slower than usual gets no more requests; one that stalls now and then keeps them."""

from __future__ import annotations

import random

from mesh.routing.outlying import Outlying
from placement.policy.snapshot import ModelName, Pod, PoolView

VIEW = PoolView(pods={f"p{i}": Pod(f"p{i}", "one", f"h:{i}", ready=True) for i in range(4)})
M = [ModelName("t", f"m{i}") for i in range(20)]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def served(outlying: Outlying, clock: Clock, seconds: float, *, slow: dict[str, float], stalls: float = 0.0) -> None:
    """Requests at 100 a second to p1..p3, ten milliseconds each, but `slow` times as long at those pods."""
    draw = random.Random(7)
    for step in range(int(seconds * 100)):
        clock.now_s += 0.01
        pod = f"p{step % 3 + 1}"
        took_s = 0.01 * slow.get(pod, 1.0) + (0.2 if draw.random() < stalls else 0.0)
        outlying.observe(pod, M[step % len(M)], took_s)
        if step % 50 == 0:
            outlying.turn(VIEW)
    outlying.turn(VIEW)


def test_a_tenfold_slower_pod_is_out_within_two_seconds_and_comes_back() -> None:
    clock = Clock()
    outlying = Outlying(clock)
    served(outlying, clock, 20, slow={})
    assert outlying.slow == frozenset()
    served(outlying, clock, 2, slow={"p2": 10.0})
    assert outlying.slow == {"p2"}
    served(outlying, clock, 15, slow={})
    assert outlying.slow == frozenset()


def test_stalls_of_200_ms_on_one_call_in_a_hundred_keep_a_pod_in() -> None:
    clock = Clock()
    outlying = Outlying(clock)
    served(outlying, clock, 60, slow={}, stalls=0.01)
    assert outlying.slow == frozenset()


def test_when_all_are_slow_nobody_is_out() -> None:
    clock = Clock()
    outlying = Outlying(clock)
    served(outlying, clock, 20, slow={})
    served(outlying, clock, 20, slow={"p1": 10.0, "p2": 10.0, "p3": 10.0})
    assert outlying.slow == frozenset()
