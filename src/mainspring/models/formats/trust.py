"""What the loader's operator allows. Owned by the process that loads; a package has no say in it."""

from __future__ import annotations

from dataclasses import dataclass, field

_FAMILIES = {
    "sklearn.calibration": "CalibratedClassifierCV _CalibratedClassifier _SigmoidCalibration",
    "sklearn.compose._column_transformer": "ColumnTransformer",
    "sklearn.compose._target": "TransformedTargetRegressor",
    "sklearn.decomposition._pca": "PCA",
    "sklearn.decomposition._truncated_svd": "TruncatedSVD",
    "sklearn.dummy": "DummyClassifier DummyRegressor",
    "sklearn.ensemble._bagging": "BaggingClassifier BaggingRegressor",
    "sklearn.ensemble._forest": "RandomForestClassifier RandomForestRegressor ExtraTreesClassifier ExtraTreesRegressor",
    "sklearn.ensemble._gb": "GradientBoostingClassifier GradientBoostingRegressor",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": "HistGradientBoostingClassifier HistGradientBoostingRegressor",
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.ensemble._voting": "VotingClassifier VotingRegressor",
    "sklearn.feature_selection._variance_threshold": "VarianceThreshold",
    "sklearn.impute._base": "SimpleImputer MissingIndicator",
    "sklearn.isotonic": "IsotonicRegression",
    "sklearn.kernel_approximation": "Nystroem RBFSampler",
    "sklearn.linear_model._base": "LinearRegression",
    "sklearn.linear_model._coordinate_descent": "ElasticNet ElasticNetCV Lasso LassoCV",
    "sklearn.linear_model._glm.glm": "PoissonRegressor GammaRegressor TweedieRegressor",
    "sklearn.linear_model._huber": "HuberRegressor",
    "sklearn.linear_model._logistic": "LogisticRegression LogisticRegressionCV",
    "sklearn.linear_model._ridge": "Ridge RidgeCV RidgeClassifier RidgeClassifierCV",
    "sklearn.linear_model._stochastic_gradient": "SGDClassifier SGDRegressor",
    "sklearn.naive_bayes": "GaussianNB BernoulliNB MultinomialNB ComplementNB CategoricalNB",
    "sklearn.neural_network._multilayer_perceptron": "MLPClassifier MLPRegressor",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.pipeline": "Pipeline FeatureUnion",
    "sklearn.preprocessing._data": "StandardScaler MinMaxScaler MaxAbsScaler RobustScaler QuantileTransformer PowerTransformer Normalizer Binarizer",
    "sklearn.preprocessing._discretization": "KBinsDiscretizer",
    "sklearn.preprocessing._encoders": "OneHotEncoder OrdinalEncoder",
    "sklearn.preprocessing._label": "LabelEncoder LabelBinarizer",
    "sklearn.preprocessing._polynomial": "PolynomialFeatures SplineTransformer",
    "sklearn.preprocessing._target_encoder": "TargetEncoder",
    "sklearn.tree._classes": "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor",
    "sklearn.tree._tree": "Tree",
    "sklearn._loss.link": "Interval IdentityLink LogLink LogitLink MultinomialLogit HalfLogitLink",
    "sklearn._loss.loss": "HalfSquaredError HalfBinomialLoss HalfMultinomialLoss HalfPoissonLoss HalfGammaLoss AbsoluteError PinballLoss HuberLoss ExponentialLoss HalfTweedieLoss HalfTweedieLossIdentity",
    "sklearn._loss._loss": "CyHalfSquaredError CyHalfBinomialLoss CyHalfMultinomialLoss CyHalfPoissonLoss CyHalfGammaLoss CyAbsoluteError CyPinballLoss CyHuberLoss CyExponentialLoss CyHalfTweedieLoss CyHalfTweedieLossIdentity",
}

SKLEARN_TYPES = frozenset(f"{module}.{name}" for module, names in _FAMILIES.items() for name in names.split())
"""Types whose instances hold numbers and settings, and which rebuild from them without running a caller's code."""


@dataclass(frozen=True)
class TrustPolicy:
    """What may be rebuilt from a skops payload, and how big a package may be.

    ``skops_types`` are fully qualified class names; ``max_bytes`` bounds one package on disk and what it unpacks to.
    """

    skops_types: frozenset[str] = field(default=SKLEARN_TYPES)
    max_bytes: int = 2 << 30

    @classmethod
    def default(cls) -> TrustPolicy:
        return DEFAULT


DEFAULT = TrustPolicy()
