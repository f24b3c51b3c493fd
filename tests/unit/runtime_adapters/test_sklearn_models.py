"""A skops file may hold only what the list allows, and only with indices that lead somewhere."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import LoadOptions
from runtime_adapters.errors import BadArtifact, BadInput, UntrustedArtifact
from runtime_adapters.sklearn_allowlist import ALLOWED
from runtime_adapters.sklearn_archive import check_archive
from runtime_adapters.sklearn_models import ADAPTERS

SKOPS, PICKLE = ADAPTERS
OPTIONS = LoadOptions("m")
ROWS = np.random.default_rng(0).normal(size=(120, 3))
LABELS = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0)


def _saved(estimator: Any, directory: Path) -> Path:
    import skops.io

    path = directory / "model.skops"
    skops.io.dump(estimator, path)
    return path


def _forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(3, random_state=0).fit(ROWS, LABELS)


def _with_nodes(tree: Any, edit: Callable[[Any], None]) -> None:
    """Change a Tree's node table, as an attacker would in the file."""
    state = tree.__getstate__()
    edit(state["nodes"])
    tree.__setstate__(state)


def _forest_with(edit: Callable[[Any], None]) -> Any:
    forest = _forest()
    _with_nodes(forest.estimators_[1].tree_, edit)
    return forest


def _boosting(edit: Callable[[Any], None]) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    model = GradientBoostingRegressor(n_estimators=2, max_depth=2).fit(ROWS, LABELS)
    edit(model)
    return model


def _histogram(edit: Callable[[Any], None]) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    rows = ROWS.copy()
    rows[:, 2] = np.arange(len(rows)) % 6
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2, categorical_features=[2])
    model.fit(rows, rows[:, 2] % 2)
    edit(model)
    return model


def _edited(make: Callable[[], Any], edit: Callable[[Any], None]) -> Any:
    estimator = make()
    edit(estimator)
    return estimator


def _vectors() -> Any:
    from sklearn.svm import SVC

    return SVC().fit(ROWS, LABELS)


def _one_hot() -> Any:
    from sklearn.preprocessing import OneHotEncoder

    return OneHotEncoder(drop="first").fit(np.arange(6).reshape(3, 2))


def _words() -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer().fit(["a bee", "two bees"])


def _centres() -> Any:
    from sklearn.cluster import KMeans

    return KMeans(2, n_init=1).fit(ROWS)


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda estimator: setattr(estimator, name, value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: _forest_with(lambda nodes: nodes["left_child"].__setitem__(0, 10**6)), "left child"),
        (lambda: _forest_with(lambda nodes: nodes["left_child"].__setitem__(0, -9)), "left child"),
        (lambda: _forest_with(lambda nodes: nodes["right_child"].__setitem__(0, 0)), "right child"),
        (lambda: _forest_with(lambda nodes: nodes["feature"].__setitem__(0, 3)), "feature beyond 3"),
        (lambda: _edited(_forest, _set("n_features_in_", 2)), "another number of features"),
        (lambda: _boosting(_set("estimators_", np.array([[None]], object))), "holds a NoneType"),
        (lambda: _boosting(lambda m: setattr(m, "estimators_", np.hstack([m.estimators_] * 2))), "another shape"),
        (lambda: _histogram(lambda m: m._predictors[0][0].nodes["left"].__setitem__(0, 4000)), "left child"),
        (lambda: _histogram(lambda m: m._predictors[0][0].nodes["feature_idx"].__setitem__(0, 77)), "feature beyond"),
        (lambda: _histogram(lambda m: m._predictors[0][0].nodes["bitset_idx"].__setitem__(0, 77)), "category set"),
        (lambda: _edited(_vectors, _set("_n_support", np.array([1, 1, 900], np.int32))), "do not fit"),
        (lambda: _edited(_vectors, _set("_dual_coef_", np.zeros((1, 1)))), "do not fit"),
        (lambda: _edited(_vectors, _set("_impl", "one_class")), "of another kind"),
        (lambda: _edited(_one_hot, _set("_drop_idx_after_grouping", np.array([-5, 0], object))), "does not exist"),
        (lambda: _edited(_words, lambda w: w.vocabulary_.update(bee=10**6)), "vocabulary"),
        (lambda: _edited(_centres, _set("cluster_centers_", np.zeros((2, 1)))), "another shape"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused_before_anything_runs(
    make: Callable[[], Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(BadArtifact, match=named):
        SKOPS.load(_saved(make(), tmp_path), OPTIONS)


def _rewritten(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """The same archive with an edited schema."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(members["schema.json"])
    edit(schema)
    members["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def _tree_of(schema: dict[str, Any]) -> dict[str, Any]:
    return schema["content"]["content"]["tree_"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            lambda s: _tree_of(s)["content"]["content"]["node_count"].update(content="900000", __id__=1),
            "claims 900,000",
        ),
        (lambda s: _tree_of(s)["__reduce__"]["args"]["content"][2].update(content="50", __id__=1), "50 outputs"),
        (lambda s: _tree_of(s)["__reduce__"]["args"]["content"][2].update(content="-1", __id__=1), "-1 outputs"),
        (lambda s: _tree_of(s).update(__loader__="ObjectNode"), r"Tree \(ObjectNode\), which is not allowed"),
        (lambda s: s.update(__class__="system", __module__="os", __loader__="FunctionNode"), "os.system"),
        (lambda s: s.update(__class__="Birch", __module__="sklearn.cluster._birch"), "convert the model to ONNX"),
        (lambda s: s.update(protocol=0), "protocol"),
    ],
)
def test_a_schema_that_lies_is_refused_before_anything_is_built(
    edit: Callable[[dict[str, Any]], None], named: str, tmp_path: Path
) -> None:
    from sklearn.tree import DecisionTreeClassifier

    path = _rewritten(_saved(DecisionTreeClassifier().fit(ROWS, LABELS), tmp_path), edit)
    with pytest.raises(BadArtifact, match=named):
        check_archive(path)


def test_an_entry_that_hides_behind_the_id_of_another_is_refused(tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier

    def hide(schema: dict[str, Any]) -> None:
        tree = _tree_of(schema)
        honest = tree["content"]["content"]["node_count"]
        schema["content"]["content"]["max_depth"] = {**honest, "content": "900000"}

    path = _rewritten(_saved(DecisionTreeClassifier().fit(ROWS, LABELS), tmp_path), hide)
    with pytest.raises(BadArtifact, match="one id"):
        check_archive(path)


def test_an_archive_that_unpacks_into_far_more_than_it_weighs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("zeros.npy", bytes(80 << 20))
    with pytest.raises(BadArtifact, match="unpacks from"):
        check_archive(path)


def test_neighbours_are_refused_with_a_way_out(tmp_path: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    path = _saved(KNeighborsClassifier().fit(ROWS, LABELS), tmp_path)
    with pytest.raises(BadArtifact, match=r"isolation: process.*trusted"):
        SKOPS.load(path, OPTIONS)


def test_a_pickle_from_nowhere_in_particular_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w').close()",))

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UntrustedArtifact, match="ONNX"):
        PICKLE.load(path, OPTIONS)
    assert PICKLE.detect(path)
    assert PICKLE.estimate(path, OPTIONS).total_bytes > 0
    assert not (tmp_path / "ran").exists()


def test_a_forest_predicts_with_the_threads_of_the_load_options(tmp_path: Path) -> None:
    forest = _forest().set_params(n_jobs=-1)
    model = SKOPS.load(_saved(forest, tmp_path), LoadOptions("m", threads=1))
    assert model._estimator.n_jobs == 1  # type: ignore[attr-defined]
    assert np.array_equal(model.infer({"input": ROWS})["predict"], forest.predict(ROWS))


def test_documents_that_are_not_utf_8_are_bad_input(tmp_path: Path) -> None:
    model = SKOPS.load(_saved(_words(), tmp_path), OPTIONS)
    with pytest.raises(BadInput, match="utf-8"):
        model.infer({"input": np.array([b"\xff"], object)})


def test_columns_chosen_by_name_are_refused_because_tensors_have_none(tmp_path: Path) -> None:
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import StandardScaler

    transformer = ColumnTransformer([("a", StandardScaler(), [0])]).fit(ROWS)
    transformer.feature_names_in_ = np.array(["x", "y", "z"], object)
    with pytest.raises(BadArtifact, match="columns by number"):
        SKOPS.load(_saved(transformer, tmp_path), OPTIONS)


def test_no_rows_give_no_answers(tmp_path: Path) -> None:
    model = SKOPS.load(_saved(_forest(), tmp_path), OPTIONS)
    answer = model.infer({"input": np.zeros((0, 3))}, ("predict", "predict_proba"))
    assert {name: array.shape for name, array in answer.items()} == {"predict": (0,), "predict_proba": (0, 3)}


def test_every_allowed_type_exists_or_belongs_to_another_version() -> None:
    import importlib

    missing = []
    for name, loader in ALLOWED:
        module_name, _, attribute = name.rpartition(".")
        if loader == "ObjectNode" and not hasattr(importlib.import_module(module_name), attribute):
            missing.append(name)
    assert missing == []


def test_a_truncated_member_is_a_bad_artifact(tmp_path: Path) -> None:
    path = _saved(_forest(), tmp_path)
    whole = path.read_bytes()
    for kept in (0.2, 0.6, 0.97):
        path.write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(BadArtifact):
            SKOPS.load(path, OPTIONS)


def test_skops_does_not_bring_torch_into_the_pod() -> None:
    pytest.importorskip("torch")
    program = (
        "import sys; from runtime_adapters.sklearn_models import _skops; _skops(); assert 'torch' not in sys.modules; "
        "import sklearn.externals.array_api_compat.torch"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
