"""What the demo trains and whom it asks."""

from __future__ import annotations

from collections import Counter

import pytest

from mesh.demo.datasets import FEATURES
from mesh.demo.recipes import KINDS, plan_recipes
from mesh.demo.workload import draw_requests

ALL_KINDS = list(KINDS)
WITHOUT_TORCH = [kind for kind in ALL_KINDS if kind != "torch pt2"]


def test_the_same_seed_plans_the_same_models() -> None:
    assert plan_recipes(50, 7, ALL_KINDS) == plan_recipes(50, 7, ALL_KINDS)
    assert plan_recipes(50, 7, ALL_KINDS) != plan_recipes(50, 8, ALL_KINDS)


def test_a_smaller_demo_uses_the_first_models_of_a_larger_one() -> None:
    assert plan_recipes(300, 1, ALL_KINDS)[:20] == plan_recipes(20, 1, ALL_KINDS)


def test_names_are_unique_and_no_two_models_are_alike() -> None:
    recipes = plan_recipes(300, 3, ALL_KINDS)
    assert len({recipe.name for recipe in recipes}) == 300
    assert len({(recipe.family, recipe.dataset, recipe.features, recipe.seed) for recipe in recipes}) == 300


@pytest.mark.parametrize("kinds", [ALL_KINDS, WITHOUT_TORCH])
def test_twenty_models_have_every_kind_that_takes_part(kinds: list[str]) -> None:
    assert {recipe.kind for recipe in plan_recipes(20, 1, kinds)} == set(kinds)


@pytest.mark.parametrize("kinds", [ALL_KINDS, WITHOUT_TORCH])
def test_three_hundred_models_have_at_least_five_formats(kinds: list[str]) -> None:
    formats = Counter(KINDS[recipe.kind].format for recipe in plan_recipes(300, 1, kinds))
    assert len(formats) >= 5


def test_a_kind_without_its_framework_leaves_its_places_to_the_others() -> None:
    recipes = plan_recipes(40, 1, ["onnx", "lightgbm"])
    assert {recipe.kind for recipe in recipes} == {"onnx", "lightgbm"}


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="tensorflow not known; known are onnx"):
        plan_recipes(1, 1, ["tensorflow"])


def test_features_exist_in_their_data_set() -> None:
    for recipe in plan_recipes(300, 5, ALL_KINDS):
        assert 2 <= len(recipe.features) == len(set(recipe.features))
        assert max(recipe.features) < FEATURES[recipe.dataset]


def test_the_same_seed_draws_the_same_requests() -> None:
    first = draw_requests(300, 1000, exponent=1.0, cases=5, seed=2)
    assert first == draw_requests(300, 1000, exponent=1.0, cases=5, seed=2)
    assert first != draw_requests(300, 1000, exponent=1.0, cases=5, seed=3)


def test_popularity_is_skewed_as_zipf_says() -> None:
    counts = Counter(model for model, _ in draw_requests(300, 20_000, exponent=1.0, cases=5, seed=2))
    by_rank = [count for _, count in counts.most_common()]
    top_fifth = sum(by_rank[:60]) / 20_000
    assert 0.70 < top_fifth < 0.82
    assert len(counts) > 290  # the tail is asked for, too


def test_draws_name_models_and_cases_that_exist() -> None:
    for model, case in draw_requests(7, 500, exponent=1.1, cases=3, seed=1):
        assert 0 <= model < 7
        assert 0 <= case < 3
