"""Pods, copies and models with valid defaults, so that a test states only what matters.

A pod has room for 1,000 bytes, all of them free; a model takes 100 and loads in a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from placement.policy.snapshot import BusyModel, Copy, LoadFailure, ModelFacts, ModelName, Pod, PoolView, Suspicion


def name(model_id: str = "m", tenant: str = "t") -> ModelName:
    return ModelName(tenant, model_id)


def pod(pod_id: str, **rest: Any) -> Pod:
    defaults: dict[str, Any] = {
        "incarnation": f"{pod_id}-1",
        "address": f"{pod_id}:8033",
        "capacity_bytes": 1000,
        "free_bytes": 1000,
        "ready": True,
    }
    return Pod(pod_id, **(defaults | rest))


def model(model_id: str = "m", **rest: Any) -> ModelFacts:
    return ModelFacts(name(model_id), **({"generation": 1, "size_bytes": 100} | rest))


def copy(pod_id: str, servable: int = 1, loading: int = 0, size_bytes: int = 100) -> Copy:
    return Copy(pod_id, servable, loading, size_bytes, since_at_s=0.0)


def failure(pod_id: str, *, generation: int = 1, permanent: bool = False, retry_after_s: float = 5.0) -> LoadFailure:
    return LoadFailure(pod_id, generation, permanent, "it failed", 0.0, retry_after_s)


def busy(model_id: str = "m", **rest: Any) -> BusyModel:
    defaults: dict[str, Any] = {
        "rate_per_s": 1.0, "in_flight": 0.1, "queue_delay_s": 0.0, "run_s": 0.01, "concurrency": 1,
    }  # fmt: skip
    return BusyModel(name(model_id), **(defaults | rest))


def view(
    pods: Iterable[Pod],
    copies: Mapping[str, Iterable[Copy]] | None = None,
    *,
    failures: Mapping[str, Iterable[LoadFailure]] | None = None,
    suspicions: Mapping[str, Suspicion] | None = None,
    fading: Iterable[str] = (),
) -> PoolView:
    """Copies, failures and suspicions by the id of their model, tenant `t`."""
    return PoolView(
        revision=1,
        pods={each.id: each for each in pods},
        copies={name(i): tuple(sorted(of, key=lambda c: c.pod)) for i, of in (copies or {}).items()},
        failures={name(i): tuple(sorted(of, key=lambda f: f.pod)) for i, of in (failures or {}).items()},
        suspicions={name(i): of for i, of in (suspicions or {}).items()},
        fading=dict.fromkeys(fading, 0.0),
    )


def healthy(of: PoolView) -> frozenset[str]:
    """Every pod answers."""
    return frozenset(of.pods)
