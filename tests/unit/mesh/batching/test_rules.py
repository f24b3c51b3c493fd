"""May requests share runs, and how many rows? The narrowest limit counts, and no has a reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh.batching.lane import BROKEN_MAX, TRIALS_MAX, Learned, in_words
from mesh.batching.row_wise import NotRowWise, RowWise, Unproven
from mesh.batching.rules import BatchRules, rules_for
from mesh.batching.settings import BatchSettings
from mesh.batching.sizing import Sizing
from placement.records import ModelSpec
from runtime_adapters.base import ModelMetadata, TensorSpec

ROWS = ModelMetadata("test", (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1,)),), False, True)


@pytest.mark.parametrize(
    ("metadata", "settings", "spec", "rules"),
    [
        (ROWS, {}, {}, BatchRules(64)),
        (ROWS, {}, {"batch_rows_max": 8}, BatchRules(8)),
        (ROWS, {}, {"batch_rows_max": 1000}, BatchRules(64)),
        (replace(ROWS, batch_rows_max=4), {}, {"batch_rows_max": 8}, BatchRules(4)),
        (ROWS, {"delay_s": 0.01}, {}, BatchRules(64, 0.01)),
        (ROWS, {"delay_s": 0.01}, {"batch_delay_s": 0.002}, BatchRules(64, 0.002)),
    ],
)
def test_the_narrowest_limit_counts(
    metadata: ModelMetadata, settings: dict[str, Any], spec: dict[str, Any], rules: BatchRules
) -> None:
    assert rules_for(BatchSettings(**settings), ModelSpec(uri="file:///m", **spec), metadata) == rules


@pytest.mark.parametrize(
    ("metadata", "settings", "spec", "why"),
    [
        (ROWS, {"enabled": False}, {}, "off on this pod"),
        (ROWS, {"rows_max": 1}, {}, "this pod allows one row"),
        (ROWS, {}, {"batch_rows_max": 1}, "spec"),
        (replace(ROWS, batch_rows_max=1), {}, {}, "the model takes one row"),
        (replace(ROWS, batch_dimension=False), {}, {}, "no batch dimension"),
        (replace(ROWS, outputs=(TensorSpec("y", "FP32", (1,)),)), {}, {}, "'y' has a fixed number of rows"),
    ],
)
def test_no_has_a_reason(metadata: ModelMetadata, settings: dict[str, Any], spec: dict[str, Any], why: str) -> None:
    rules = rules_for(BatchSettings(**settings), ModelSpec(uri="file:///m", **spec), metadata)
    assert rules.rows_max == 1
    assert why in rules.why_not


def test_a_model_whose_trials_prove_nothing_is_not_tried_for_ever() -> None:
    learned = Learned(Sizing())
    for _ in range(TRIALS_MAX):
        assert learned.may_try()
        learned.tried(Unproven("it gave the same answer to every row"), [0.001])
    assert not learned.may_try()


def test_a_model_whose_batches_fail_although_its_requests_do_not_is_not_batched_any_more() -> None:
    learned = Learned(Sizing(), RowWise(0.0))
    learned.broke(8, answers_failed=1)  # the fault of one of them
    for _ in range(BROKEN_MAX):
        assert learned.verdict == RowWise(0.0)
        learned.broke(8, answers_failed=0)
    assert isinstance(learned.verdict, NotRowWise)


@pytest.mark.parametrize(
    ("rules", "verdict", "words"),
    [
        (BatchRules(1, why_not="it has no batch dimension"), None, "no: it has no batch dimension"),
        (BatchRules(8), None, "not yet: no two of its requests have met"),
        (BatchRules(8), NotRowWise("rows differ"), "no: rows differ"),
        (BatchRules(8), RowWise(0.0), "yes, up to 1 rows a run; answers equal to the bit"),
        (BatchRules(8), RowWise(1.234e-7), "yes, up to 1 rows a run; answers within 1e-07 of those alone"),
    ],
)
def test_whether_and_why_not_is_told_in_words(rules: BatchRules, verdict: Any, words: str) -> None:
    assert in_words(rules, Learned(Sizing(), verdict), runs_inline=False) == words


def test_it_is_told_where_a_delay_is_not_waited() -> None:
    rules, learned = BatchRules(64, 0.01), Learned(Sizing(), RowWise(0.0))
    assert "nobody waits for company" in in_words(rules, learned, runs_inline=True)
    assert "nobody waits for company" not in in_words(rules, learned, runs_inline=False)
