"""Native code in scikit-learn follows indices that come from the file. Each is looked at here before anything runs.

An estimator's fitted attributes are plain data to skops, so an attacker may set them as they like. Where Python or
NumPy uses them, the worst is an exception. Where Cython or libsvm uses them, there is no bounds check, and the worst is
a crash, or another model's memory in an answer. For every type in the "checked" group of `sklearn_allowlist` there is
one function below that says what must hold; the object graph is walked and each object it meets is checked.

* Trees: an inner node's children have greater numbers than it and exist, so that every walk ends; features are below
  the tree's count, and every tree of an ensemble has the ensemble's count, because forests hand rows to their trees
  unchecked. Node counts against array lengths are checked before construction (`sklearn_archive`).
* Histogram trees: the same, and category sets exist wherever a node uses one.
* Gradient boosting adds each tree's answer into an array whose width comes from another attribute.
* Support vectors, cluster centres, vocabularies, one-hot columns: sizes that native code takes for granted.

Deliberately absent: judging whether a model is any good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from runtime_adapters.base import Array
from runtime_adapters.errors import BadArtifact

OBJECTS_MAX = 5_000_000


def objects_within(root: Any) -> Iterator[Any]:
    """Each object reachable through attributes and containers, once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes | int | float | bool | type | None) or id(item) in seen:
            continue
        seen.add(id(item))
        if len(seen) > OBJECTS_MAX:
            raise BadArtifact(f"sklearn: the model has more than {OBJECTS_MAX:,} objects; convert it to ONNX")
        yield item
        if isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        elif isinstance(item, np.ndarray):
            if item.dtype == object:
                waiting += item.ravel().tolist()
        else:
            waiting += getattr(item, "__dict__", {}).values()


def check_estimator(root: Any) -> None:
    """Raises BadArtifact for anything that native code would follow out of bounds."""
    for item in objects_within(root):
        fitted, check = _CHECKS.get(f"{type(item).__module__}.{type(item).__name__}", (None, None))
        # An estimator that was never fitted is a template (a forest keeps one); its methods refuse to run.
        if fitted is not None and check is not None and hasattr(item, fitted):
            try:
                check(item)
            except BadArtifact:
                raise
            except Exception as error:
                # An attribute that is missing, or of a kind that the check cannot even look at.
                raise BadArtifact(
                    f"sklearn: {type(item).__name__} is not fitted as scikit-learn fits it "
                    f"({type(error).__name__}: {error}); save the fitted model again"
                ) from error


def check_tree_arrays(left: Array, right: Array, feature: Array, features: int, *, leaf: Array) -> None:
    """What must hold of one tree, whatever made it: children greater than their parent, features in range."""
    nodes = len(left)
    index = np.arange(nodes)[~leaf]
    for side, children in (("left", left[~leaf]), ("right", right[~leaf])):
        if not bool(((children > index) & (children < nodes)).all()):
            _refuse(f"a tree's {side} child is out of range")
    used = feature[~leaf]
    if len(used) and (used.min() < 0 or used.max() >= features):
        _refuse(f"a tree uses a feature beyond {features:,}")


def _check_decision_tree(estimator: Any) -> None:
    tree = estimator.tree_
    if type(tree).__name__ != "Tree":
        _refuse("tree_ is not a tree")
    features = int(estimator.n_features_in_)
    if tree.n_features != features or tree.node_count < 1:
        _refuse(f"a tree is made for {tree.n_features:,} features, its estimator for {features:,}")
    left = tree.children_left
    check_tree_arrays(left, tree.children_right, tree.feature, features, leaf=left == -1)


def _check_forest(forest: Any) -> None:
    for tree in forest.estimators_:
        _require_decision_tree(tree)
        if tree.n_features_in_ != forest.n_features_in_:
            _refuse("a forest holds a tree for another number of features")


def _check_isolation_forest(forest: Any) -> None:
    whole = forest._max_features == forest.n_features_in_
    if len(forest.estimators_) != len(forest.estimators_features_):
        _refuse("an isolation forest lacks the features of a tree")
    for tree, chosen in zip(forest.estimators_, forest.estimators_features_, strict=True):
        _require_decision_tree(tree)
        if tree.n_features_in_ != (forest.n_features_in_ if whole else len(chosen)):
            _refuse("an isolation forest holds a tree for another number of features")


def _check_gradient_boosting(model: Any) -> None:
    stages = model.estimators_
    if not isinstance(stages, np.ndarray) or stages.ndim != 2 or stages.dtype != object or not stages.size:
        _refuse("gradient boosting has no table of trees")
    for tree in stages.ravel():
        _require_decision_tree(tree)
        if tree.n_features_in_ != model.n_features_in_ or tree.tree_.value.shape[1:] != (1, 1):
            _refuse("gradient boosting holds a tree of another shape")
    if not (isinstance(model.init_, str) or type(model.init_).__module__ == "sklearn.dummy"):
        _refuse("gradient boosting starts from an estimator other than zero or a constant; convert the model to ONNX")
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))
    if start.shape != (1, stages.shape[1]) or start.dtype != np.float64:
        _refuse("gradient boosting starts from values of another shape than its trees answer")


def _check_histogram_boosting(model: Any) -> None:
    features = int(model._n_features) if hasattr(model, "_n_features") else int(model.n_features_in_)
    if features != model.n_features_in_:
        _refuse("histogram boosting does not agree with itself on its features")
    categorical = np.asarray(model._bin_mapper.is_categorical_, np.uint8)
    if categorical.shape != (features,):
        _refuse("histogram boosting does not say of each feature whether it is categorical")
    preprocessor = getattr(model, "_preprocessor", None)
    if preprocessor is not None:
        allowed = {"ColumnTransformer", "OrdinalEncoder", "FunctionTransformer"}
        steps = {
            type(step).__name__ for _, step, _ in preprocessor.transformers_ if step not in ("drop", "passthrough")
        }
        if type(preprocessor).__name__ not in allowed or not steps <= allowed:
            _refuse("histogram boosting has a preprocessor that may change the number of columns")
        if preprocessor.transform(np.full((1, features), np.nan)).shape != (1, features):
            _refuse("histogram boosting's preprocessor changes the number of columns")
    for stage in model._predictors:
        for predictor in stage:
            if type(predictor).__name__ != "TreePredictor":
                _refuse("histogram boosting holds something else than trees")
            _check_histogram_tree(predictor, features, categorical)


def _check_histogram_tree(predictor: Any, features: int, categorical: Array) -> None:
    nodes = predictor.nodes
    if not isinstance(nodes, np.ndarray) or nodes.ndim != 1 or not len(nodes):
        _refuse("a histogram tree has no nodes")
    leaf = nodes["is_leaf"] != 0
    check_tree_arrays(
        nodes["left"].astype(np.int64),
        nodes["right"].astype(np.int64),
        nodes["feature_idx"].astype(np.int64),
        features,
        leaf=leaf,
    )
    chosen = nodes[~leaf & (nodes["is_categorical"] != 0)]
    if not len(chosen):
        return
    sets = predictor.raw_left_cat_bitsets
    if sets.ndim != 2 or sets.shape[1] != 8 or int(chosen["bitset_idx"].max()) >= len(sets):
        _refuse("a histogram tree uses a category set that does not exist")
    if not bool(categorical[chosen["feature_idx"]].all()):
        _refuse("a histogram tree splits a number by categories")


def _check_support_vectors(model: Any) -> None:
    kind = {"SVC": "c_svc", "NuSVC": "nu_svc", "SVR": "epsilon_svr", "NuSVR": "nu_svr", "OneClassSVM": "one_class"}
    if model._impl != kind[type(model).__name__] or model._sparse:
        _refuse("a support vector machine of sparse data, or of another kind than its class; convert it to ONNX")
    if model.kernel not in ("linear", "poly", "rbf", "sigmoid"):
        _refuse(f"a support vector machine has the kernel {model.kernel!r}; convert it to ONNX")
    vectors, counts = model.support_vectors_, model._n_support
    classes = len(counts)
    pairs = classes * (classes - 1) // 2
    answers = {"SVC", "NuSVC"} & {type(model).__name__}
    classified = len(model.classes_) if answers else 2
    probabilities = {len(model._probA), len(model._probB)}
    if (
        classes != classified
        or vectors.shape != (len(model.support_), model.n_features_in_)
        or model._dual_coef_.shape != (classes - 1, len(vectors))
        or len(model._intercept_) != pairs
        or int(model.n_support_.sum()) != len(vectors)
        or min(counts) < 0
        or (answers and int(sum(counts)) != len(vectors))
        or not (probabilities == {0} or probabilities == {pairs} or (not answers and probabilities <= {0, 1}))
    ):
        _refuse("a support vector machine's arrays do not fit one another")


def _check_cluster_centres(model: Any) -> None:
    centres = model.cluster_centers_
    if centres.ndim != 2 or centres.shape != (model.n_clusters, model.n_features_in_) or not centres.flags.c_contiguous:
        _refuse("k-means has centres of another shape than its features")


def _check_vocabulary(vectorizer: Any) -> None:
    columns = vectorizer.vocabulary_.values()
    if any(type(column) is not int for column in columns) or set(columns) != set(range(len(columns))):
        _refuse("a vocabulary does not number its words 0 to n - 1, once each")
    weights = getattr(vectorizer, "_tfidf", None)
    if weights is not None and getattr(weights, "idf_", None) is not None and len(weights.idf_) != len(columns):
        _refuse("a vocabulary has another number of words than of weights")
    if not all(isinstance(word, str) for word in vectorizer.vocabulary_):
        _refuse("a vocabulary holds something else than words")


def _check_one_hot(encoder: Any) -> None:
    widths = [len(categories) for categories in encoder.categories_]
    if len(widths) != encoder.n_features_in_:
        _refuse("a one-hot encoder lacks the categories of a column")
    if getattr(encoder, "_infrequent_enabled", False):
        _refuse("a one-hot encoder that joins infrequent categories is not served; convert the model to ONNX")
    for name in ("_drop_idx_after_grouping", "drop_idx_"):
        dropped = getattr(encoder, name, None)
        if dropped is None:
            continue
        if len(dropped) != len(widths):
            _refuse("a one-hot encoder drops a category of a column that does not exist")
        for width, index in zip(widths, dropped, strict=True):
            if index is not None and not 0 <= int(index) < width:
                _refuse("a one-hot encoder drops a category that does not exist")
    expected = [width - _drops(encoder, column) for column, width in enumerate(widths)]
    if list(map(int, encoder._n_features_outs)) != expected:
        _refuse("a one-hot encoder does not have a column per category")


def _drops(encoder: Any, column: int) -> int:
    dropped = encoder._drop_idx_after_grouping
    return int(dropped is not None and dropped[column] is not None)


def _check_polynomial(transformer: Any) -> None:
    from sklearn.base import clone

    fresh = clone(transformer).fit(np.zeros((1, int(transformer.n_features_in_))))
    if fresh.n_output_features_ != transformer.n_output_features_:
        _refuse("polynomial features claim another number of columns than they fill")


def _require_decision_tree(tree: Any) -> None:
    if type(tree).__module__ != "sklearn.tree._classes":
        _refuse(f"an ensemble of trees holds a {type(tree).__name__}")


def _refuse(why: str) -> NoReturn:
    raise BadArtifact(f"sklearn: {why}; save the fitted model again, or convert it to ONNX")


_TREES = "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor"
_FORESTS = "RandomForestClassifier RandomForestRegressor ExtraTreesClassifier ExtraTreesRegressor"
_HISTOGRAM = "sklearn.ensemble._hist_gradient_boosting.gradient_boosting"

_CHECKS: dict[str, tuple[str, Callable[[Any], None]]] = {
    f"{module}.{name}": (fitted, check)
    for module, names, fitted, check in (
        ("sklearn.tree._classes", _TREES, "tree_", _check_decision_tree),
        ("sklearn.ensemble._forest", _FORESTS, "estimators_", _check_forest),
        ("sklearn.ensemble._iforest", "IsolationForest", "estimators_", _check_isolation_forest),
        (
            "sklearn.ensemble._gb",
            "GradientBoostingClassifier GradientBoostingRegressor",
            "estimators_",
            _check_gradient_boosting,
        ),
        (
            _HISTOGRAM,
            "HistGradientBoostingClassifier HistGradientBoostingRegressor",
            "_predictors",
            _check_histogram_boosting,
        ),
        ("sklearn.svm._classes", "SVC NuSVC SVR NuSVR OneClassSVM", "support_vectors_", _check_support_vectors),
        ("sklearn.cluster._kmeans", "KMeans MiniBatchKMeans", "cluster_centers_", _check_cluster_centres),
        ("sklearn.feature_extraction.text", "CountVectorizer TfidfVectorizer", "vocabulary_", _check_vocabulary),
        ("sklearn.preprocessing._encoders", "OneHotEncoder", "categories_", _check_one_hot),
        ("sklearn.preprocessing._polynomial", "PolynomialFeatures", "n_output_features_", _check_polynomial),
    )
    for name in names.split()
}
"""Type -> (the attribute without which it is not fitted, what must hold of it)."""
