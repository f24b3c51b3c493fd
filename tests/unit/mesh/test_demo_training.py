"""Training for real, in worker processes, and the cache of what was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import psutil
import pytest

from mesh.demo.recipes import KINDS, Recipe, plan_recipes
from mesh.demo.trainers import TrainingFailed, train_all
from mesh.demo.training import BATCHES, available_kinds, read_cases, train
from mesh.demo.training_worker import recipe_from_line, recipe_to_line

WITHOUT_TORCH = [kind for kind in available_kinds() if kind != "torch pt2"]


def _first_of_each_kind(kinds: list[str]) -> list[Recipe]:
    recipes = plan_recipes(40, 1, kinds)
    return [next(recipe for recipe in recipes if recipe.kind == kind) for kind in kinds]


def test_a_recipe_survives_the_pipe() -> None:
    for recipe in plan_recipes(40, 1, list(KINDS)):
        assert recipe_from_line(recipe_to_line(recipe)) == recipe


@pytest.mark.parametrize("recipe", _first_of_each_kind(WITHOUT_TORCH), ids=lambda recipe: recipe.kind)
def test_every_kind_writes_an_artifact_and_what_its_framework_answers(recipe: Recipe, tmp_path: Path) -> None:
    model = train(recipe, tmp_path)
    assert model.artifact.stat().st_size == model.size_bytes > 0
    cases = read_cases(model.cases)
    assert [len(batch) for batch, _ in cases] == list(BATCHES)
    for batch, answers in cases:
        assert batch.dtype == (np.float32 if model.datatype == "FP32" else np.float64)
        assert batch.shape[1] == len(recipe.features)
        assert np.array_equal(batch, batch.astype(np.float32))  # nothing is lost on the way to FP32
        assert answers
        assert all(len(values) == len(batch) for values in answers.values())
        assert set(model.outputs) <= set(answers)


def test_training_happens_once(tmp_path: Path) -> None:
    recipes = _first_of_each_kind(["onnx", "sklearn skops"])
    counted: list[int] = []
    first = train_all(recipes, tmp_path, counted.append)
    assert counted == [0, 1, 1]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    counted.clear()
    assert train_all(recipes, tmp_path, counted.append) == first
    assert counted == [2]
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_changed_recipe_or_a_lost_artifact_is_trained_again(tmp_path: Path) -> None:
    (recipe,) = _first_of_each_kind(["sklearn skops"])
    (model,) = train_all([recipe], tmp_path, lambda more: None)
    counted: list[int] = []
    train_all([dataclasses.replace(recipe, seed=recipe.seed + 1)], tmp_path, counted.append)
    assert counted == [0, 1]
    model.artifact.unlink()
    counted.clear()
    train_all([dataclasses.replace(recipe, seed=recipe.seed + 1)], tmp_path, counted.append)
    assert counted == [0, 1]


def test_a_model_that_cannot_be_trained_is_named(tmp_path: Path) -> None:
    (recipe,) = _first_of_each_kind(["sklearn skops"])
    broken = dataclasses.replace(recipe, name="broken-one", features=(0, 99))
    with pytest.raises(TrainingFailed, match=r"broken-one: IndexError"):
        train_all([broken], tmp_path, lambda more: None)


def test_no_worker_outlives_its_training(tmp_path: Path) -> None:
    train_all(_first_of_each_kind(["sklearn skops"]), tmp_path, lambda more: None)
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [command for command in commands if "training_worker" in command]
