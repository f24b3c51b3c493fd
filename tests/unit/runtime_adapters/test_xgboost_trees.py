"""What XGBoost would follow blindly is refused before XGBoost sees it, and what a file says of itself is respected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_adapters import ubjson
from runtime_adapters.base import Device, LoadOptions
from runtime_adapters.errors import BadArtifact, LoadFailed
from runtime_adapters.xgboost_format import depth_of, read_model
from runtime_adapters.xgboost_trees import ADAPTER

OPTIONS = LoadOptions("m")


@pytest.fixture(scope="module")
def documents() -> tuple[bytes, bytes]:
    """(UBJ, JSON) of one multi-class model with a categorical feature."""
    import xgboost

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4)).astype(np.float32)
    rows[:, 2] = np.arange(300) % 9
    model = xgboost.XGBClassifier(
        n_estimators=4, max_depth=3, n_jobs=1, enable_categorical=True, feature_types=list("qqcq"), max_cat_to_onehot=1
    ).fit(rows, (rows[:, 0] > 0).astype(int) + (rows[:, 2] % 3 == 0))
    booster = model.get_booster()
    return bytes(booster.save_raw("ubj")), bytes(booster.save_raw("json"))


def _trees(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["learner"]["gradient_booster"]["model"]["trees"]  # type: ignore[no-any-return]


def _set(name: str, index: int, value: int) -> Callable[[dict[str, Any]], None]:
    return lambda document: _trees(document)[0][name].__setitem__(index, value)


def _categorical_tree(document: dict[str, Any]) -> dict[str, Any]:
    return next(tree for tree in _trees(document) if tree["categories_nodes"])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_set("left_children", 0, 10**8), "left child"),
        (_set("left_children", 0, -5), "left child"),
        (_set("left_children", 1, 0), "left child"),
        (_set("right_children", 0, 2**31 - 2), "right child"),
        (_set("right_children", 0, 1), "right child does not name|one child twice|right child"),
        (_set("parents", 2, 2**30), "parent"),
        (_set("split_indices", 0, 4), "feature index"),
        (_set("split_type", 0, 7), "split type"),
        (lambda d: _trees(d)[0].update(id=1), "ids"),
        (lambda d: _trees(d)[0]["left_children"].pop(), "left_children does not fit"),
        (lambda d: _trees(d)[0]["tree_param"].update(num_nodes="1"), "does not fit 1 nodes"),
        (lambda d: _trees(d)[0]["tree_param"].update(size_leaf_vector="9"), "one_output_per_tree"),
        (lambda d: _categorical_tree(d)["categories_segments"].__setitem__(0, 10**9), "category segment"),
        (lambda d: _categorical_tree(d)["categories"].__setitem__(0, 2**30), "category is beyond"),
        (lambda d: d["learner"]["gradient_booster"]["model"]["tree_info"].__setitem__(0, -70), "output group"),
        (lambda d: d["learner"]["gradient_booster"]["model"]["iteration_indptr"].__setitem__(1, -7), "backwards"),
        (lambda d: d["learner"]["gradient_booster"].update(name="gblinear"), "gblinear is not served"),
        (lambda d: d["learner"]["attributes"].update(best_iteration="99"), "best_iteration"),
        (lambda d: d["learner"].pop("objective"), "'objective' is missing"),
    ],
)
def test_a_file_that_would_lead_xgboost_astray_is_refused_with_the_reason(
    documents: tuple[bytes, bytes], damage: Callable[[dict[str, Any]], None], named: str
) -> None:
    document = json.loads(documents[1])
    damage(document)
    with pytest.raises(BadArtifact, match=named):
        read_model(json.dumps(document).encode())


def test_json_is_handed_over_as_the_ubj_that_xgboost_itself_would_read(documents: tuple[bytes, bytes]) -> None:
    import xgboost

    rows = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    own = xgboost.Booster(model_file=bytearray(documents[1]))
    ours = xgboost.Booster(model_file=bytearray(read_model(documents[1]).ubj))
    assert np.array_equal(own.inplace_predict(rows), ours.inplace_predict(rows))


def test_an_undamaged_ubj_file_is_handed_over_byte_for_byte(documents: tuple[bytes, bytes]) -> None:
    assert read_model(documents[0]).ubj is documents[0]


def test_how_deep_a_tree_is_has_nothing_to_do_with_what_a_leaf_calls_its_right_child(
    documents: tuple[bytes, bytes],
) -> None:
    document = json.loads(documents[1])
    for right_of_leaf in (-1, 0, 10**8):
        for tree in _trees(document):
            leaves = [at for at, left in enumerate(tree["left_children"]) if left == -1]
            for at in leaves:
                tree["right_children"][at] = right_of_leaf
        read = read_model(json.dumps(document).encode())
        assert depth_of(ubjson.read(read.ubj)) == 4


@pytest.mark.parametrize("nested", [b'{"a":' * 100_000, b'{"learner":' + b"[" * 100_000])
def test_json_nested_without_end_is_a_bad_artifact(nested: bytes) -> None:
    with pytest.raises(BadArtifact, match="damaged"):
        read_model(nested)


def test_a_repeated_key_is_refused_because_two_readers_might_differ_on_it() -> None:
    with pytest.raises(BadArtifact, match="twice"):
        read_model(b'{"learner": {}, "learner": {}}')


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_ubj_is_refused_or_sound_and_never_anything_else(documents: tuple[bytes, bytes], data: Any) -> None:
    whole = bytearray(documents[0])
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        facts = read_model(
            bytes(whole[: data.draw(st.sampled_from((len(whole), len(whole) - 1, len(whole) // 2)))])
        ).facts
    except BadArtifact:
        return
    assert facts.trees == 12


def test_ubjson_reads_back_what_it_writes() -> None:
    document = {
        "text": "wäx",
        "numbers": [1, -(2**40), True, None, "x", 0.5],
        "arrays": {"f": np.array([1.5, -2], ">f4"), "l": np.array([7], ">i4"), "U": np.array([255], "u1")},
    }
    found = ubjson.read(ubjson.write(document))
    assert {name: array.tolist() for name, array in found.pop("arrays").items()} == {
        "f": [1.5, -2],
        "l": [7],
        "U": [255],
    }
    assert found == {name: value for name, value in document.items() if name != "arrays"}


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"{", b"{L", b"{" + b"L" + b"\x7f" * 8 + b"a", b"{" + b"L" + b"\xff" * 8, b"{}}", b"{i\x01ai\x01}"],
)
def test_a_length_that_lies_is_an_error_not_an_allocation(data: bytes) -> None:
    with pytest.raises(ubjson.UbjsonError):
        ubjson.read(data)


def test_a_parameter_turns_labels_into_values(tmp_path: Path) -> None:
    import xgboost

    rows = np.random.default_rng(2).normal(size=(80, 3)).astype(np.float32)
    model = xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(rows, rows[:, 0] > 0)
    model.save_model(tmp_path / "m.ubj")
    loaded = ADAPTER.load(tmp_path / "m.ubj", LoadOptions("m", parameters={"predict": "values"}))
    assert np.array_equal(loaded.infer({"input": rows})["predict"], model.predict_proba(rows)[:, 1])


def test_no_rows_give_no_answers(tmp_path: Path, documents: tuple[bytes, bytes]) -> None:
    (tmp_path / "m.ubj").write_bytes(documents[0])
    loaded = ADAPTER.load(tmp_path / "m.ubj", OPTIONS)
    assert loaded.infer({"input": np.zeros((0, 4), np.float32)})["predict"].shape == (0, 3)


def test_a_build_without_cuda_says_which_package_has_it(tmp_path: Path, documents: tuple[bytes, bytes]) -> None:
    import xgboost

    if xgboost.build_info().get("USE_CUDA"):
        pytest.skip("this build of xgboost has CUDA")
    (tmp_path / "m.ubj").write_bytes(documents[0])
    with pytest.raises(LoadFailed, match="in place of xgboost-cpu"):
        ADAPTER.load(tmp_path / "m.ubj", LoadOptions("m", device=Device("cuda")))


def test_the_error_of_a_wrong_parameter_value_names_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="labels and values"):
        ADAPTER.load(tmp_path / "m.ubj", LoadOptions("m", parameters={"predict": "maybe"}))
