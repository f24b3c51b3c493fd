"""What a model's spec, its metadata and the pod's settings say about running its requests together.

The narrowest limit counts. What says no says why, in words that end a sentence: `hexcomb explain` shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.batching.settings import BatchSettings
from placement.records import ModelSpec
from runtime_adapters.base import DYNAMIC, ModelMetadata


@dataclass(frozen=True, slots=True)
class BatchRules:
    """`rows_max`: of one run, 1: never together. `delay_s`: how long a request may be kept for company. `why_not`:
    empty where requests may share runs, if the model proves to be row-wise."""

    rows_max: int
    delay_s: float = 0.0
    why_not: str = ""


ALONE = BatchRules(1, why_not="nobody said that it may be")


def rules_for(settings: BatchSettings, spec: ModelSpec, metadata: ModelMetadata) -> BatchRules:
    """The spec's word counts before the pod's, but for a limit that is larger."""
    if not settings.enabled:
        return BatchRules(1, why_not="batching is off on this pod")
    if settings.rows_max == 1:
        return BatchRules(1, why_not="this pod allows one row a run")
    if spec.batch_rows_max == 1:
        return BatchRules(1, why_not="its spec says one row a run")
    if not metadata.batch_dimension:
        return BatchRules(1, why_not="it has no batch dimension")
    fixed = next((each.name for each in (*metadata.inputs, *metadata.outputs) if each.shape[:1] != (DYNAMIC,)), None)
    if fixed is not None:
        return BatchRules(1, why_not=f"{fixed!r} has a fixed number of rows")
    if metadata.batch_rows_max == 1:
        return BatchRules(1, why_not="the model takes one row a run")
    limits = (settings.rows_max, spec.batch_rows_max, metadata.batch_rows_max)
    rows_max = min(limit for limit in limits if limit is not None)
    return BatchRules(rows_max, settings.delay_s if spec.batch_delay_s is None else spec.batch_delay_s)
