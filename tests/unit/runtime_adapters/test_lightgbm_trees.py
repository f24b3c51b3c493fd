"""LightGBM sees only text that was written from what was checked."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_adapters.base import Device, LoadOptions
from runtime_adapters.errors import BadArtifact
from runtime_adapters.lightgbm_format import CheckedModel, ModelReader, read_model
from runtime_adapters.lightgbm_trees import ADAPTER


@pytest.fixture(scope="module")
def text() -> str:
    """A three-class model with a categorical feature."""
    import lightgbm

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 4))
    rows[:, 2] = np.arange(400) % 40
    labels = (rows[:, 0] > 0).astype(int) + (rows[:, 2] % 3 == 0)
    model = lightgbm.LGBMClassifier(n_estimators=3, num_leaves=5, n_jobs=1, verbose=-1, min_child_samples=5)
    found: str = model.fit(rows, labels, categorical_feature=[2]).booster_.model_to_string()
    return found


def _first(key: str, value: str) -> tuple[str, str]:
    """Replace the first item of the first line `key=`."""
    return rf"(?m)^{key}=\S+", f"{key}={value}"


@pytest.mark.parametrize(
    ("pattern", "replacement", "named"),
    [
        (*_first("left_child", "99"), "left_child of node 0"),
        (*_first("left_child", "0"), "left_child of node 0"),
        (*_first("right_child", "-77"), "right_child of node 0"),
        (r"(?m)^left_child=(\S+) .*\nright_child=.*", r"left_child=1 2 3 -1\nright_child=1 2 3 -2", "child of another"),
        (*_first("right_child", "9999999999999999999999"), "right_child"),
        (*_first("split_feature", "4"), "split_feature"),
        (*_first("split_feature", "-1"), "split_feature"),
        (*_first("decision_type", "300"), "decision_type"),
        (*_first("num_leaves", "2000000000"), "num_leaves"),
        (*_first("num_leaves", "4"), "leaf_value has 5 items, 4"),
        (*_first("leaf_value", "f.5"), "leaf_value holds something else"),
        (*_first("leaf_value", "1e999"), "not finite"),
        (*_first("leaf_value", "1e+309"), "not finite"),
        (*_first("leaf_value", "9" * 400), "not finite"),
        (*_first("leaf_value", "1.2.3"), "leaf_value"),
        (*_first("leaf_value", "1 2"), "leaf_value has"),
        (*_first("leaf_value", "1e"), "leaf_value"),
        (*_first("left_child", "1-2"), "left_child"),
        (*_first("left_child", "-"), "left_child"),
        (*_first("leaf_value", "nan"), "leaf_value holds something else"),
        (*_first("cat_boundaries", "5"), "cat_boundaries do not rise from 0"),
        (*_first("cat_threshold", "-4"), "cat_threshold is beyond"),
        (*_first("num_class", "4"), "num_class is not num_tree_per_iteration"),
        (*_first("max_feature_idx", "999999999999"), "max_feature_idx"),
        (r"num_class:3", "num_class:300", "does not have 3 classes"),
        (r"objective=multiclass", "objective=../../etc", "not a name with numbers"),
        (r"(?m)^tree_sizes=\S+ ", "tree_sizes=", "promises"),
        (r"Tree=1", "Tree=7", "numbered"),
        (r"(?m)^threshold=.*\n", "", "threshold is missing"),
        (r"end of trees", "end of", "cut off"),
        (r"pandas_categorical:null", "pandas_categ", "cut off"),
        (r"end of parameters", "", "cut off"),
    ],
)
def test_a_file_that_would_lead_lightgbm_astray_is_refused_with_the_reason(
    text: str, pattern: str, replacement: str, named: str
) -> None:
    damaged, count = re.subn(pattern, replacement, text, count=1)
    assert count == 1
    with pytest.raises(BadArtifact, match=named):
        read_model(damaged.encode())


def test_the_written_text_predicts_what_the_file_predicts(text: str) -> None:
    import lightgbm

    rows = np.random.default_rng(1).normal(size=(50, 4))
    rows[:, 2] = np.arange(50)
    own = lightgbm.Booster(model_str=text)
    ours = lightgbm.Booster(model_str=read_model(text.encode()).text.decode())
    assert np.array_equal(own.predict(rows), ours.predict(rows))


def test_the_written_text_is_its_own_written_text(text: str) -> None:
    written = read_model(text.encode()).text
    assert read_model(written).facts.handed_over_as_is
    assert len(written) < 0.7 * len(text)


def test_windows_line_ends_change_nothing(text: str) -> None:
    assert read_model(text.replace("\n", "\r\n").encode()).text == read_model(text.encode()).text


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_that_comes_in_pieces_is_read_as_a_whole_one_is(text: str, data: Any) -> None:
    content = data.draw(
        st.sampled_from([text, text.replace("\n", "\r\n"), read_model(text.encode()).text.decode(), text[:-40]])
    ).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=30)))
    reader = ModelReader()

    def in_pieces() -> CheckedModel:
        for begin, end in pairwise([0, *cuts, len(content)]):
            reader.take(content[begin:end])
        return reader.finish()

    try:
        whole = read_model(content)
    except BadArtifact as error:
        with pytest.raises(BadArtifact, match=re.escape(str(error))):
            in_pieces()
    else:
        assert in_pieces() == whole
        assert reader.finish() == whole, "asked again"


def test_what_was_read_while_it_came_is_prepared_and_measured_as_the_file_is(tmp_path: Path, text: str) -> None:
    options, forms = LoadOptions("m"), (tmp_path / "read", tmp_path / "whole")
    (tmp_path / "model.txt").write_text(text)
    reading = ADAPTER.reading()
    reading.take(text.encode())
    for form, prepare in zip(forms, (reading.prepare, partial(ADAPTER.prepare, tmp_path / "model.txt")), strict=True):
        form.mkdir()
        assert prepare(into=form, options=options)
    assert (forms[0] / "model.txt").read_bytes() == (forms[1] / "model.txt").read_bytes()
    assert reading.size() == ADAPTER.estimate(forms[0], options)


def test_what_is_wrong_with_a_file_that_comes_in_pieces_is_told_when_it_is_prepared(tmp_path: Path, text: str) -> None:
    reading = ADAPTER.reading()
    for piece in (text.replace("left_child=", "left_child=9", 1).encode(), b"and more"):
        reading.take(piece)
    for _ in range(2):
        with pytest.raises(BadArtifact, match="left_child of node"):
            reading.prepare(tmp_path, LoadOptions("m"))
    assert not list(tmp_path.iterdir())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_accepted_after_damage_is_still_a_text_of_our_own_writing(text: str, data: Any) -> None:
    damaged = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        written = read_model(bytes(damaged)).text
    except BadArtifact:
        return
    assert read_model(written).text == written


def test_a_gpu_is_refused_because_lightgbm_predicts_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="CPU only"):
        ADAPTER.load(tmp_path / "model.txt", LoadOptions("m", device=Device("cuda")))


def test_a_parameter_turns_labels_into_values(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.txt").write_text(text)
    loaded = ADAPTER.load(tmp_path / "model.txt", LoadOptions("m", parameters={"predict": "values"}))
    answer = loaded.infer({"input": np.zeros((2, 4))})["predict"]
    assert answer.shape == (2, 3)
    assert np.allclose(answer.sum(axis=1), 1)
