"""What scikit-learn keeps of a fitted estimator under private names: the one place that knows these names.

A graph of an estimator, the checks of a stored one and the rows beside its thresholds need more than the public attributes have. When
scikit-learn renames one of them, this module changes and nothing else does. Each function is for the classes that it names.
"""
# ruff: noqa: SLF001

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def get_input_positions(transformer: Any) -> dict[str, Any]:
    """ColumnTransformer: the positions of each part's columns, whether they were given as names, masks, slices or callables."""
    positions: dict[str, Any] = transformer._transformer_to_input_indices
    return positions


def get_positive_label(estimator: Any) -> Any:
    """TunedThresholdClassifierCV: the label whose scores are compared with the threshold; None: the second, or another class of estimator."""
    scorer = getattr(estimator, "_curve_scorer", None)
    return None if scorer is None else scorer._get_pos_label()


def get_link_name(model: Any) -> str:
    """PoissonRegressor, GammaRegressor, TweedieRegressor: the name of the link's class; Tweedie's depends on its power."""
    return type(model._base_loss.link).__name__


def get_loss_name(model: Any) -> str:
    """Gradient and histogram boosting: the name of the loss's class, which decides how sums become answers."""
    return type(model._loss).__name__


def get_input_means(model: Any) -> Any:
    """PLS: what is taken off the columns before the product."""
    return model._x_mean


def get_voting_weights(model: Any) -> Any:
    """Voting*: the weights of the estimators that were not dropped; None: all alike."""
    return model._weights_not_none


def get_gamma(model: Any) -> float:
    """SVC and its like: what ``scale`` and ``auto`` came to."""
    return float(model._gamma)


# --- boosting


def compute_first_sums(model: Any) -> Any:
    """GradientBoosting* that starts from a constant: the sums before the first tree, ``(trees per stage,)``."""
    return np.asarray(model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32)))[0]


def wrap_first_sums(model: Any, wrap: Callable[[Callable[[Any], Any]], Callable[[Any], Any]]) -> None:
    """GradientBoosting*: replace what computes the sums before the first tree."""
    model._raw_predict_init = wrap(model._raw_predict_init)


def get_baseline(model: Any) -> Any:
    """HistGradientBoosting*: the sums before the first tree, float64 ``(trees per stage,)``."""
    return np.asarray(model._baseline_prediction, dtype=np.float64).ravel()


def get_stages(model: Any) -> Any:
    """HistGradientBoosting*: the trees, a list for each stage."""
    return model._predictors


def get_category_encoder(model: Any) -> Any | None:
    """HistGradientBoosting* with categories: their encoder, after which they come first among the features; else None."""
    return None if model._preprocessor is None else model._preprocessor.named_transformers_["encoder"]


def takes_rows_as_given(model: Any) -> bool:
    """HistGradientBoosting*: whether its trees see the rows that it is given, neither prepared nor binned."""
    return model._preprocessor is None and not getattr(model, "_in_fit", False)


def get_bins(model: Any) -> Any:
    """HistGradientBoosting*: the object that bins features, with ``is_categorical_`` and ``bin_thresholds_``."""
    return model._bin_mapper


# --- isolation forests


def get_path_lengths(model: Any) -> Any:
    """IsolationForest: for each tree the depth of every node, and what is added to it for the rows in a leaf."""
    return [
        a + b for a, b in zip(model._decision_path_lengths, model._average_path_length_per_tree, strict=True)
    ]


def compute_usual_path_length(model: Any) -> float:
    """IsolationForest: the mean depth in a tree of as many rows as each was fitted on."""
    from sklearn.ensemble._iforest import _average_path_length

    return float(_average_path_length([model._max_samples])[0])


def uses_all_features(model: Any) -> bool:
    """IsolationForest: whether its trees get the rows as they are."""
    return bool(model._max_features == model.n_features_in_)


# --- neighbours


def get_neighbor_method(model: Any) -> str:
    """Estimators of neighbours: ``kd_tree``, ``ball_tree`` or ``brute``."""
    return str(model._fit_method)


def get_neighbor_tree(model: Any) -> Any | None:
    """Estimators of neighbours: the tree of their rows, if there is one."""
    return model._tree


def set_neighbor_tree(model: Any, tree: Any) -> None:
    """Estimators of neighbours: the tree of their rows."""
    model._tree = tree


def get_neighbor_rows(model: Any) -> Any:
    """Estimators of neighbours: the rows that they were fitted on."""
    return model._fit_X


def get_neighbor_answers(model: Any) -> Any | None:
    """Classifiers and regressors of neighbours: the answers of their rows, codes of a classifier; None of others."""
    return getattr(model, "_y", None)


# --- one-hot columns


def get_one_hot_counts(encoder: Any) -> tuple[list[int], list[int]]:
    """OneHotEncoder: how many columns each feature makes, as its categories say and as it keeps them."""
    return list(encoder._compute_n_features_outs()), list(encoder._n_features_outs)


def get_dropped(encoder: Any) -> Any | None:
    """OneHotEncoder: for each feature the place that is dropped after rare categories were put together; None: none is."""
    return encoder._drop_idx_after_grouping


def get_rare_places(encoder: Any) -> Any | None:
    """OneHotEncoder: for each feature the place of each category after rare ones were put together; None: they were not."""
    return getattr(encoder, "_default_to_infrequent_mappings", None) or None
