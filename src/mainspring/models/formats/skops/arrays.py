"""Checks what a skops file was rebuilt into before it predicts: indices, shapes and types that compiled code follows unchecked.

NumPy checks its own indices, so an array of a wrong shape is an error there. Compiled code of scikit-learn and SciPy does not: a node
that points behind the end of its tree, or to its own parent, reads foreign memory or never ends. One entry for each class with
such arrays; what no class needs (processes, caches) is taken away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mainspring.errors import UnsafeFormat
from mainspring.models.formats import fitted
from mainspring.models.formats.skops.rebuilt import list_objects


def check_objects(estimator: Any) -> None:
    """Raise UnsafeFormat for arrays that compiled code may not be given. Makes every estimator work in one process, without a cache."""
    for item in list_objects(estimator):
        _settle(item)
        for kind in type(item).__mro__:
            fitted, check = CHECKS.get(kind.__name__, ("", None))
            if check is not None and hasattr(item, fitted):
                try:
                    check(item)
                except UnsafeFormat:
                    raise
                except Exception as error:  # noqa: BLE001 - a state without the attributes of its class
                    raise _refuse(item, f"it is not as its class makes it: {str(error)[:200]}") from None


def _refuse(item: Any, reason: str) -> UnsafeFormat:
    return UnsafeFormat(f"{type(item).__name__}: {reason}", value=type(item).__name__, place="model.skops")


def _require(condition: Any, item: Any, reason: str) -> None:
    if not condition:
        raise _refuse(item, reason)


def _settle(item: Any) -> None:
    state = getattr(item, "__dict__", {})
    for name in ("n_jobs", "memory"):
        if state.get(name) is not None:
            setattr(item, name, None)


def _check_links(item: Any, left: Any, right: Any, inner: Any, feature: Any, features: int) -> None:
    """Both children of an inner node come after it, so a path ends; its feature is one of the features."""
    nodes = np.arange(len(left))[inner]
    for child in (left[inner], right[inner]):
        _require(np.all((child > nodes) & (child < len(left))), item, "a node points to no node below it")
    _require(np.all((feature[inner] >= 0) & (feature[inner] < features)), item, "a node splits on no feature")


def _check_tree(tree: Any) -> None:
    _require(tree.node_count, tree, "it has no node")
    left, right = np.asarray(tree.children_left), np.asarray(tree.children_right)
    inner = left != -1
    _require(np.array_equal(inner, right != -1), tree, "a node has one child")
    _check_links(tree, left, right, inner, np.asarray(tree.feature), int(tree.n_features))
    outputs = int(tree.n_outputs)
    _require(
        np.asarray(tree.value).shape == (tree.node_count, outputs, int(max(tree.n_classes))),
        tree,
        "its values have another shape",
    )


def _check_decision_tree(model: Any) -> None:
    _require(type(model.tree_).__name__ == "Tree", model, "it has no tree")
    _require(model.tree_.n_features == model.n_features_in_, model, "its tree has other features")


def _check_forest(model: Any) -> None:
    for member in np.ravel(np.asarray(model.estimators_, dtype=object)):
        _check_decision_tree(member)
        _require(member.n_features_in_ == model.n_features_in_, model, "a tree has other features")
        _require(member.tree_.n_outputs == getattr(model, "n_outputs_", 1), model, "a tree has other outputs")


def _check_boosted(model: Any) -> None:
    _check_forest(model)
    stages = np.asarray(model.estimators_, dtype=object)
    width = 1 if not hasattr(model, "classes_") or len(model.classes_) == 2 else len(model.classes_)
    _require(stages.ndim == 2 and stages.shape[1] == width, model, "a stage has another number of trees")
    _require(model.n_trees_per_iteration_ == width, model, "its sums have another number of trees")
    _guard_start(model, width)


def _guard_start(model: Any, width: int) -> None:
    """Compiled code adds the trees to what the sums start from, unchecked; an estimator of the file's own choice answers that."""

    def check(begin: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def begin_checked(rows: Any) -> Any:
            sums = begin(rows)
            _require(sums.shape == (rows.shape[0], width), model, "it starts from another number of sums")
            return sums

        return begin_checked

    fitted.wrap_first_sums(model, check)


def _check_isolation(model: Any) -> None:
    for member, features in zip(model.estimators_, model.estimators_features_, strict=True):
        _check_decision_tree(member)
        _require(len(features) == member.n_features_in_, model, "a tree has other features")
        # With all features, trees get the rows as they are.
        every = fitted.uses_all_features(model)
        _require(not every or len(features) == model.n_features_in_, model, "a tree has other features")


def _check_hist(model: Any) -> None:
    features = int(model.n_features_in_)
    # Rows that another transformer made are not counted, and binned rows are of training only.
    _require(fitted.takes_rows_as_given(model), model, "its rows are not those that it is given")
    bins = fitted.get_bins(model)
    flags = np.asarray(bins.is_categorical_)
    _require(
        flags.shape == (features,) and len(bins.bin_thresholds_) == features, model, "bins of other features"
    )
    for flag, values in zip(flags, bins.bin_thresholds_, strict=True):
        if flag:
            _require(
                np.all((values >= 0) & (values < 256)), model, "a category that is no code from 0 to 255"
            )
    for stage in fitted.get_stages(model):
        _require(len(stage) == model.n_trees_per_iteration_, model, "a stage has another number of trees")
        for tree in stage:
            nodes, sets = tree.nodes, tree.raw_left_cat_bitsets
            _require(len(nodes), model, "a tree without a node")
            inner = nodes["is_leaf"] == 0
            left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
            _check_links(model, left, right, inner, nodes["feature_idx"], features)
            split = inner & (nodes["is_categorical"] != 0)
            _require(
                sets.dtype == np.uint32 and sets.ndim == 2 and sets.shape[1:] == (8,),
                model,
                "sets of categories of another shape",
            )
            _require(np.all(nodes["bitset_idx"][split] < len(sets)), model, "a node without its categories")
            _require(np.all(flags[nodes["feature_idx"][split]]), model, "categories of a number")


def _check_neighbors(model: Any) -> None:
    rows = fitted.get_neighbor_rows(model)
    count = model.n_samples_fit_
    _require(rows.ndim == 2 and rows.shape == (count, model.n_features_in_), model, "rows of another shape")
    y = fitted.get_neighbor_answers(model)
    if y is None:
        return
    _require(len(y) == count, model, "rows without an answer")
    if hasattr(model, "classes_"):
        several = isinstance(model.classes_, list)
        for labels, classes in zip(
            np.atleast_2d(y.T), model.classes_ if several else [model.classes_], strict=True
        ):
            _require(labels.dtype.kind in "iu", model, "labels that are no codes")
            _require(np.all((labels >= 0) & (labels < len(classes))), model, "a label that is no class")


def _check_one_hot(encoder: Any) -> None:
    """Its columns are the indices of a sparse matrix."""
    counts, kept = fitted.get_one_hot_counts(encoder)
    _require(counts == kept, encoder, "another number of columns")
    drops = encoder.drop_idx_ if encoder.drop_idx_ is not None else [None] * len(encoder.categories_)
    after = fitted.get_dropped(encoder)
    after = after if after is not None else [None] * len(encoder.categories_)
    maps = fitted.get_rare_places(encoder) or [None] * len(encoder.categories_)
    for values, drop, grouped, places, count in zip(
        encoder.categories_, drops, after, maps, counts, strict=True
    ):
        known = len(values)
        _require(
            all(d is None or 0 <= d < known for d in (drop, grouped)), encoder, "no such category to drop"
        )
        if places is not None:
            wide = count + (grouped is not None)
            _require(len(places) == known, encoder, "categories without a group")
            _require(np.all((places >= 0) & (places < wide)), encoder, "no such group of categories")


def _check_vocabulary(vectorizer: Any) -> None:
    """Its numbers are the indices of a sparse matrix."""
    numbers = sorted(vectorizer.vocabulary_.values())
    _require(numbers == list(range(len(numbers))), vectorizer, "words whose numbers are not 0, 1, ...")


def _check_pattern(vectorizer: Any) -> None:
    """What repeats holds no choice, unless each turn begins with a character that is nowhere else in it, as in ``[a-z]+(?:-[a-z]+)*``.

    Else a text of forty letters takes years, in code that nothing can stop.
    """
    from re import _parser as parser  # type: ignore[attr-defined]  # what re itself makes of a pattern

    if vectorizer.token_pattern is None:
        return
    stack: list[Any] = [parser.parse(vectorizer.token_pattern)]
    while stack:
        for kind, value in stack.pop():
            inner = _patterns_in(value, parser.SubPattern)
            stack += inner
            if str(kind) in _REPEATS and value[1] > 1:
                _require(_turns_once(inner[0]), vectorizer, "a pattern that repeats a choice")


_REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})
_SINGLE = frozenset({"LITERAL", "NOT_LITERAL", "IN", "ANY"})


def _patterns_in(value: Any, kind: type) -> list[Any]:
    if isinstance(value, kind):
        return [value]
    return [p for v in value for p in _patterns_in(v, kind)] if isinstance(value, list | tuple) else []


def _turns_once(turn: Any) -> bool:
    """Whether a text can be divided into such turns in one way only: by their length, or by what they begin with."""
    import re
    from re import _compiler as compiler  # type: ignore[attr-defined]  # as above

    parts: list[tuple[str, Any]] = []
    stack = [turn]
    choice = False
    while stack:
        pattern = stack.pop()
        for kind, value in pattern.data:
            choice = (
                choice
                or (str(kind) in _REPEATS and value[0] != value[1])
                or str(kind) in ("BRANCH", "GROUPREF", "GROUPREF_EXISTS")
            )
            stack += _patterns_in(value, type(turn))
        parts += [(str(kind), (pattern.state, kind, value)) for kind, value in pattern.data]
    if not choice:
        return True
    first = parts[0]
    if first[0] != "LITERAL" or any(kind not in _SINGLE | _REPEATS | {"SUBPATTERN"} for kind, _ in parts):
        return False
    begin = chr(first[1][2])
    for kind, (state, code, value) in parts[1:]:
        if kind in _SINGLE and compiler.compile(
            type(turn)(state, [(code, value)]), re.IGNORECASE | re.DOTALL
        ).match(begin):
            return False
    return True


def _check_spline(part: Any) -> None:
    for knots, values, degree, _ in part.bsplines_:
        _require(knots.ndim == 1 and 0 <= degree <= 20, part, "knots of another shape")
        _require(len(values) == len(knots) - degree - 1, part, "knots without their coefficients")


def _check_sparse(matrix: Any) -> None:
    matrix.check_format(full_check=True)


def _check_random(state: Any) -> None:
    kind, keys, place, *_ = state.get_state(legacy=True)
    _require(kind == "MT19937" and len(keys) == 624 and 0 <= place <= 624, state, "no state of its generator")


def _check_generator(generator: Any) -> None:
    state = generator.bit_generator.state
    place, most = (
        (state["state"].get("pos", 0), 624)
        if state["bit_generator"] == "MT19937"
        else (state.get("buffer_pos", 0), 4)
    )
    _require(0 <= place <= most, generator, "no state of its generator")


CHECKS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "Tree": ("node_count", _check_tree),
    "BaseDecisionTree": ("tree_", _check_decision_tree),
    "BaseForest": ("estimators_", _check_forest),
    "BaseGradientBoosting": ("estimators_", _check_boosted),
    "IsolationForest": ("estimators_", _check_isolation),
    "BaseHistGradientBoosting": ("_predictors", _check_hist),
    "NeighborsBase": ("_fit_X", _check_neighbors),
    "OneHotEncoder": ("categories_", _check_one_hot),
    "CountVectorizer": ("vocabulary_", _check_vocabulary),
    "_VectorizerMixin": ("token_pattern", _check_pattern),
    "SplineTransformer": ("bsplines_", _check_spline),
    "_cs_matrix": ("indptr", _check_sparse),
    "RandomState": ("get_state", _check_random),
    "Generator": ("bit_generator", _check_generator),
}
"""By the name of the class, or of one that it extends: what a fitted one has, and its check. One that is not fitted, such as the
pattern of a forest's trees, cannot predict."""
