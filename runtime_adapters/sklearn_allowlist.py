"""Which types a skops file may hold. A fixed list: nothing that a file says about itself widens it.

skops asks its caller to look at `get_untrusted_types()` and decide; a server that passes the answer on as `trusted` has
decided nothing. And a type that skops trusts by default may still be unsafe, because "safe" there means "runs no code
while loading", not "reads no memory out of bounds while predicting". So each type of the file, default or not, must be
in a group here:

* plain: Python and NumPy only while predicting, or native code on arrays whose shapes it checks itself;
* checked: native code that trusts what is in the file. `sklearn_bounds` looks at each of these before it runs.

The loader is part of the entry. skops picks the code that builds an object by the file's `__loader__`, and a Tree that
is built as a plain object would go round the checks made for trees.

Deliberately absent: neighbours (KDTree, BallTree and their class modes index with what the file holds), Gaussian
processes, SplineTransformer, isotonic calibration, bound methods, sparse matrices, masked arrays.
"""

from __future__ import annotations

_PLAIN_ESTIMATORS = {
    "sklearn.calibration": "CalibratedClassifierCV _CalibratedClassifier _SigmoidCalibration",
    "sklearn.compose._column_transformer": "ColumnTransformer",
    "sklearn.compose._target": "TransformedTargetRegressor",
    "sklearn.decomposition._pca": "PCA",
    "sklearn.decomposition._truncated_svd": "TruncatedSVD",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "sklearn.dummy": "DummyClassifier DummyRegressor",
    "sklearn.ensemble._bagging": "BaggingClassifier BaggingRegressor",
    "sklearn.ensemble._stacking": "StackingClassifier StackingRegressor",
    "sklearn.ensemble._voting": "VotingClassifier VotingRegressor",
    "sklearn.ensemble._weight_boosting": "AdaBoostClassifier AdaBoostRegressor",
    "sklearn.feature_extraction.text": "HashingVectorizer TfidfTransformer",
    "sklearn.feature_selection._from_model": "SelectFromModel",
    "sklearn.feature_selection._rfe": "RFE",
    "sklearn.feature_selection._univariate_selection": "SelectKBest SelectPercentile SelectFpr SelectFdr SelectFwe",
    "sklearn.feature_selection._variance_threshold": "VarianceThreshold",
    "sklearn.impute._base": "SimpleImputer MissingIndicator",
    "sklearn.kernel_approximation": "RBFSampler",
    "sklearn.kernel_ridge": "KernelRidge",
    "sklearn.linear_model._base": "LinearRegression",
    "sklearn.linear_model._bayes": "BayesianRidge ARDRegression",
    "sklearn.linear_model._coordinate_descent": (
        "Lasso ElasticNet LassoCV ElasticNetCV MultiTaskLasso MultiTaskElasticNet"
    ),
    "sklearn.linear_model._glm.glm": "PoissonRegressor GammaRegressor TweedieRegressor",
    "sklearn.linear_model._huber": "HuberRegressor",
    "sklearn.linear_model._least_angle": "Lars LassoLars",
    "sklearn.linear_model._logistic": "LogisticRegression LogisticRegressionCV",
    "sklearn.linear_model._omp": "OrthogonalMatchingPursuit",
    "sklearn.linear_model._passive_aggressive": "PassiveAggressiveClassifier PassiveAggressiveRegressor",
    "sklearn.linear_model._perceptron": "Perceptron",
    "sklearn.linear_model._quantile": "QuantileRegressor",
    "sklearn.linear_model._ransac": "RANSACRegressor",
    "sklearn.linear_model._ridge": "Ridge RidgeClassifier RidgeCV RidgeClassifierCV",
    "sklearn.linear_model._stochastic_gradient": "SGDClassifier SGDRegressor",
    "sklearn.linear_model._theil_sen": "TheilSenRegressor",
    "sklearn.multiclass": "OneVsRestClassifier OneVsOneClassifier _ConstantPredictor",
    "sklearn.multioutput": "MultiOutputClassifier MultiOutputRegressor",
    "sklearn.naive_bayes": "GaussianNB MultinomialNB BernoulliNB ComplementNB",
    "sklearn.neighbors._nearest_centroid": "NearestCentroid",
    "sklearn.neural_network._multilayer_perceptron": "MLPClassifier MLPRegressor",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.pipeline": "Pipeline FeatureUnion",
    "sklearn.preprocessing._data": (
        "Binarizer MaxAbsScaler MinMaxScaler Normalizer PowerTransformer QuantileTransformer RobustScaler "
        "StandardScaler"
    ),
    "sklearn.preprocessing._encoders": "OrdinalEncoder",
    "sklearn.preprocessing._function_transformer": "FunctionTransformer",
    "sklearn.preprocessing._label": "LabelEncoder LabelBinarizer",
    "sklearn.svm._classes": "LinearSVC LinearSVR",
    "sklearn._loss.link": "HalfLogitLink IdentityLink Interval LogitLink LogLink MultinomialLogit",
    "sklearn._loss.loss": (
        "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss HalfMultinomialLoss HalfPoissonLoss "
        "HalfSquaredError HalfTweedieLoss HalfTweedieLossIdentity HuberLoss PinballLoss"
    ),
}

_CHECKED_ESTIMATORS = {
    "sklearn.cluster._kmeans": "KMeans MiniBatchKMeans",
    "sklearn.ensemble._forest": (
        "RandomForestClassifier RandomForestRegressor ExtraTreesClassifier ExtraTreesRegressor"
    ),
    "sklearn.ensemble._gb": "GradientBoostingClassifier GradientBoostingRegressor",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": (
        "HistGradientBoostingClassifier HistGradientBoostingRegressor"
    ),
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.ensemble._iforest": "IsolationForest",
    "sklearn.feature_extraction.text": "CountVectorizer TfidfVectorizer",
    "sklearn.preprocessing._encoders": "OneHotEncoder",
    "sklearn.preprocessing._polynomial": "PolynomialFeatures",
    "sklearn.svm._classes": "SVC NuSVC SVR NuSVR OneClassSVM",
    "sklearn.tree._classes": "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor",
}

_LOSSES = {
    "sklearn._loss._loss": (
        "CyAbsoluteError CyExponentialLoss CyHalfBinomialLoss CyHalfGammaLoss CyHalfMultinomialLoss CyHalfPoissonLoss "
        "CyHalfSquaredError CyHalfTweedieLoss CyHalfTweedieLossIdentity CyHuberLoss CyPinballLoss"
    ),
    "sklearn.linear_model._sgd_fast": (
        "EpsilonInsensitive Hinge Huber Log ModifiedHuber SquaredEpsilonInsensitive SquaredHinge SquaredLoss"
    ),
}

_FUNCTIONS = {
    "numpy": (
        "abs absolute add cbrt clip cos exp exp2 expm1 fabs log log10 log1p log2 multiply negative reciprocal sign sin "
        "sqrt square subtract tanh"
    ),
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.utils.validation": "check_array",
}

_SCALARS = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 str_ intc intp"


def _entries(table: dict[str, str], loader: str) -> set[tuple[str, str]]:
    return {(f"{module}.{name}", loader) for module, names in table.items() for name in names.split()}


ALLOWED: frozenset[tuple[str, str]] = frozenset(
    _entries(_PLAIN_ESTIMATORS, "ObjectNode")
    | _entries(_CHECKED_ESTIMATORS, "ObjectNode")
    | _entries(_LOSSES, "LossNode")
    | _entries(_FUNCTIONS, "FunctionNode")
    | _entries({"numpy": _SCALARS}, "NdArrayNode")
    | _entries({"numpy": _SCALARS}, "TypeNode")
    | _entries({"builtins": "bool dict float int list str tuple NoneType"}, "TypeNode")
    | {
        ("builtins.dict", "DictNode"),
        ("builtins.list", "ListNode"),
        ("builtins.set", "SetNode"),
        ("builtins.slice", "SliceNode"),
        ("builtins.str", "JsonNode"),
        ("builtins.tuple", "TupleNode"),
        ("functools.partial", "PartialNode"),
        ("numpy.dtype", "DTypeNode"),
        ("numpy.ndarray", "NdArrayNode"),
        ("numpy.random._generator.Generator", "RandomGeneratorNode"),
        ("numpy.random.mtrand.RandomState", "RandomStateNode"),
        ("sklearn.tree._tree.Tree", "TreeNode"),
        ("sklearn.utils._bunch.Bunch", "DictNode"),
    }
)
"""(full name of the type or function, the skops loader that may build it)."""

TRUSTED_NAMES: tuple[str, ...] = tuple(sorted({name for name, _ in ALLOWED}))
"""What skops is told to trust, on top of what it trusts by itself; the file was held against ALLOWED before."""
