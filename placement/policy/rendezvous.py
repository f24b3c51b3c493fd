"""Which pods a model belongs to, before anything else is known: rendezvous hashing, weighted by capacity.

Each pair of a model and a pod has a number that only the two names and the pod's capacity decide. A model prefers the
pods where its number is highest. So every pod computes the same order without talking, a larger pod is preferred by
more models in proportion to its capacity, and when a pod goes, only the models that preferred it have another
favourite: nothing else moves. A hash ring has the same virtues with a table to keep; this needs none.

With u uniform in (0, 1) drawn from the pair's hash, `capacity / -log(u)` is highest on a pod with a probability of its
share of the capacity (Schindelhauer and Schomaker's weighted distributed hash tables).

Python's own `hash` is salted per process and must not be used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import log

from placement.policy.snapshot import ModelName

_53_BITS = 2.0**-53


def hash_of(text: str) -> int:
    """64 bits that depend on the text alone, on every machine."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def affinity(name: ModelName, pod: str, capacity: float = 1.0) -> float:
    """How much a model prefers a pod: higher is closer. 0 for a pod without capacity."""
    if capacity <= 0:
        return 0.0
    # The top 53 bits make an exact float; half a step keeps it off 0 and 1.
    uniform = ((hash_of(f"{name.tenant}\0{name.id}\0{pod}") >> 11) + 0.5) * _53_BITS
    return capacity / -log(uniform)


def closest(name: ModelName, pods: Sequence[str]) -> str:
    """The pod that the model prefers among equals. `pods` must not be empty."""
    # 1. The highest affinity; 2. the id, so that even equal hashes give one answer.
    return pods[0] if len(pods) == 1 else min(pods, key=lambda pod: (-affinity(name, pod), pod))


def two_of(name: ModelName, ordinal: int, count: int) -> tuple[int, int]:
    """Two different positions below `count` (at least 2) for the model's request with this ordinal."""
    drawn = hash_of(f"{name.tenant}\0{name.id}\0{ordinal}")
    first = drawn % count
    second = (drawn >> 32) % (count - 1)
    return first, second + 1 if second >= first else second
