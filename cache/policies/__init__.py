"""Eviction policies by name. Each is one file; what they have in common is in `base`."""

from __future__ import annotations

from cache.policies.base import EvictionPolicy
from cache.policies.gdsf import GreedyDualSizeFrequency
from cache.policies.hazard import Hazard
from cache.policies.lru import LeastRecentlyUsed

POLICIES: dict[str, EvictionPolicy] = {
    policy.name: policy for policy in (LeastRecentlyUsed(), GreedyDualSizeFrequency(), Hazard())
}


def policy_named(name: str) -> EvictionPolicy:
    """The policy of this name. Raises ValueError."""
    policy = POLICIES.get(name)
    if policy is None:
        raise ValueError(f"There is no eviction policy {name!r}; there are {', '.join(POLICIES)}.")
    return policy
