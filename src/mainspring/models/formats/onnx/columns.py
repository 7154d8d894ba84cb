"""Writes scikit-learn's transformers in float64 ONNX: selection of columns, imputation, scaling, encoding, expansion.

Each function takes a fitted transformer and its columns and returns the columns that it makes, computed in the same order of operations
as scikit-learn does, so that a tree after a scaler sees the same float64 value. A setting without an exact form here raises
:class:`Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mainspring.models.formats import fitted
from mainspring.models.formats.columns import is_null
from mainspring.models.formats.dates import DateParts
from mainspring.models.formats.onnx.dates import date_parts
from mainspring.models.formats.onnx.graph import Column, Graph, Table, Unsupported, flatten
from mainspring.models.formats.onnx.names import NULL_TEXT

Transform = Callable[[Graph, Any, Table], Table]


def transform(graph: Graph, step: Any, table: Table) -> Table:
    """The columns that the fitted transformer ``step`` makes of ``table``."""
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return table
    if isinstance(step, str) and step == "drop":
        return []
    kind = sklearn_name(step)
    if kind not in TRANSFORMS:
        raise Unsupported(f"no exact form for {kind}")
    return TRANSFORMS[kind](graph, step, table)


def sklearn_name(step: Any) -> str:
    """The name of one of scikit-learn's own classes, or of ours; raises Unsupported for others, subclasses too, which may compute anything."""
    kind = type(step)
    if kind is DateParts:
        return "DateParts"
    if not kind.__module__.startswith("sklearn."):
        raise Unsupported(f"{kind.__module__}.{kind.__qualname__} is not one of scikit-learn's own classes")
    name: str = kind.__qualname__
    return name


def _texts(values: Any) -> list[str]:
    """Categories as strings of a graph; None and NaN are the null text."""
    return [NULL_TEXT if is_null(v) else str(v) for v in values]


# --- composition


def _pipeline(graph: Graph, step: Any, table: Table) -> Table:
    for _, part in step.steps:
        table = transform(graph, part, table)
    return table


def _column_transformer(graph: Graph, step: Any, table: Table) -> Table:
    chosen = fitted.get_input_positions(step)
    out: Table = []
    for name, part, _ in step.transformers_:
        columns = [table[i] for i in chosen[name]]
        if columns:
            out += transform(graph, part, columns)
    return out


def _union(graph: Graph, step: Any, table: Table) -> Table:
    out: Table = []
    weights = step.transformer_weights or {}
    for name, part in step.transformer_list:
        columns = transform(graph, part, table)
        if name in weights and columns:
            x = graph.op("Mul", graph.numbers(columns), graph.double(weights[name]))
            columns = graph.matrix(x, len(columns))
        out += columns
    return out


UFUNCS: dict[str, Callable[[Graph, str], str]] = {
    "absolute": lambda g, x: g.op("Abs", x),
    "negative": lambda g, x: g.op("Neg", x),
    "sqrt": lambda g, x: g.op("Sqrt", x),
    "log": lambda g, x: g.op("Log", x),
    "log1p": lambda g, x: g.op("Log", g.op("Add", x, g.double(1.0))),
    "exp": lambda g, x: g.op("Exp", x),
    "expm1": lambda g, x: g.op("Sub", g.op("Exp", x), g.double(1.0)),
    "square": lambda g, x: g.op("Mul", x, x),
    "tanh": lambda g, x: g.op("Tanh", x),
    "reciprocal": lambda g, x: g.op("Div", g.double(1.0), x),
}


def _function(graph: Graph, step: Any, table: Table) -> Table:
    if step.func is None:
        return table
    if not isinstance(step.func, np.ufunc) or step.kw_args or step.func.__name__ not in UFUNCS:
        name = getattr(step.func, "__name__", str(step.func))
        raise Unsupported(f"the function {name} of a FunctionTransformer is code, not data")
    x = graph.may_overflow(UFUNCS[step.func.__name__](graph, graph.numbers(table)))
    return graph.matrix(x, len(table))


def _support(_: Graph, step: Any, table: Table) -> Table:
    return [column for column, kept in zip(table, step.get_support(), strict=True) if kept]


# --- scaling


def _standard(graph: Graph, step: Any, table: Table) -> Table:
    return _scaled(graph, table, step.mean_ if step.with_mean else None, step.scale_)


def _robust(graph: Graph, step: Any, table: Table) -> Table:
    center = step.center_ if step.with_centering else None
    return _scaled(graph, table, center, step.scale_ if step.with_scaling else None)


def _max_abs(graph: Graph, step: Any, table: Table) -> Table:
    if getattr(step, "clip", False):
        raise Unsupported("MaxAbsScaler(clip=True)")
    return _scaled(graph, table, None, step.scale_)


def _scaled(graph: Graph, table: Table, center: Any, scale: Any) -> Table:
    x = graph.numbers(table)
    if center is not None:
        x = graph.op("Sub", x, graph.double(center))
    if scale is not None:
        x = graph.may_overflow(graph.op("Div", x, graph.double(scale)))
    return graph.matrix(x, len(table))


def _min_max(graph: Graph, step: Any, table: Table) -> Table:
    x = graph.may_overflow(graph.op("Mul", graph.numbers(table), graph.double(step.scale_)))
    x = graph.op("Add", x, graph.double(step.min_))
    if step.clip:
        low, high = (graph.double(float(v)) for v in step.feature_range)
        nan = graph.op("IsNaN", x)  # ONNX does not say that Min and Max keep a NaN
        x = graph.op("Where", nan, x, graph.op("Min", graph.op("Max", x, low), high))
    return graph.matrix(x, len(table))


def _binarizer(graph: Graph, step: Any, table: Table) -> Table:
    x = graph.numbers(table)
    result = graph.cast(graph.op("Greater", x, graph.double(float(step.threshold))))
    return graph.matrix(graph.nan_unless_finite(result, x, always=True), len(table))


def _normalizer(graph: Graph, step: Any, table: Table) -> Table:
    x = graph.numbers(table)
    size = {"l1": "ReduceL1", "l2": "ReduceL2"}.get(step.norm)
    norm = (
        graph.op(size, x, graph.ints(1), keepdims=1)
        if size
        else graph.op("ReduceMax", graph.op("Abs", x), graph.ints(1), keepdims=1)
    )
    zero = graph.op("Equal", norm, graph.double(0.0))
    result = graph.op("Div", x, graph.op("Where", zero, graph.double(1.0), norm))
    return graph.matrix(graph.may_overflow(result), len(table))


def _pca(graph: Graph, step: Any, table: Table) -> Table:
    components = np.asarray(step.components_, dtype=np.float64)
    offset = np.reshape(step.mean_, (1, -1)) @ components.T
    x = graph.op("MatMul", graph.numbers(table), graph.double(components.T))
    x = graph.may_overflow(graph.op("Sub", x, graph.double(offset)))
    if step.whiten:
        scale = np.sqrt(step.explained_variance_)
        tiny = np.finfo(scale.dtype).eps
        x = graph.op("Div", x, graph.double(np.where(scale < tiny, tiny, scale)))
    return graph.matrix(x, len(components))


def _svd(graph: Graph, step: Any, table: Table) -> Table:
    x = graph.may_overflow(graph.op("MatMul", graph.numbers(table), graph.double(step.components_.T)))
    return graph.matrix(x, len(step.components_))


# --- missing values


def _imputer(graph: Graph, step: Any, table: Table) -> Table:
    statistics = step.statistics_
    kept = [i for i, v in enumerate(statistics) if step.keep_empty_features or not is_null(v)]
    columns = [table[i] for i in kept]
    text = any(column.kind == "text" for column in columns)
    x = graph.texts(columns) if text else graph.numbers(columns)
    missing = _missing(graph, x, step.missing_values, text=text)
    fill = (
        graph.constant(np.array([str(statistics[i]) for i in kept], dtype=object))
        if text
        else graph.double([float(statistics[i]) for i in kept])
    )
    result = graph.matrix(graph.op("Where", missing, fill, x), len(kept), "text" if text else "number")
    return result + (_indicator(graph, step.indicator_, table) if step.add_indicator else [])


def _indicator(graph: Graph, step: Any, table: Table) -> Table:
    columns = [table[i] for i in step.features_]
    if not columns:
        return []
    text = columns[0].kind == "text"
    x = graph.texts(columns) if text else graph.numbers(columns)
    result = graph.cast(_missing(graph, x, step.missing_values, text=text))
    return graph.matrix(result, len(columns))


def _missing(graph: Graph, x: str, value: Any, *, text: bool) -> str:
    if text:
        marker = NULL_TEXT if is_null(value) else str(value)
        return graph.op("Equal", x, graph.constant(np.array([marker], dtype=object)))
    if is_null(value):
        return graph.op("IsNaN", x)
    return graph.op("Equal", x, graph.double(float(value)))


# --- encoding


def _one_hot(graph: Graph, step: Any, table: Table) -> Table:
    if getattr(step, "_infrequent_enabled", False):
        raise Unsupported("OneHotEncoder with infrequent categories")
    drops = step.drop_idx_ if step.drop_idx_ is not None else [None] * len(table)
    out: Table = []
    run: list[tuple[Column, Any]] = []
    for column, categories in zip(table, step.categories_, strict=True):
        if column.kind == "number":
            run.append((column, categories))
            continue
        out += _one_hot_numbers(graph, run)
        run = []
        hot = graph.op(
            "OneHotEncoder",
            graph.vector(column),
            domain="ai.onnx.ml",
            cats_strings=_texts(categories),
            zeros=1,
        )
        out += graph.matrix(graph.cast(hot), len(categories))
    out += _one_hot_numbers(graph, run)
    kept: Table = []
    start = 0
    for categories, drop in zip(step.categories_, drops, strict=True):
        kept += [out[start + i] for i in range(len(categories)) if drop is None or i != drop]
        start += len(categories)
    return kept


def _one_hot_numbers(graph: Graph, run: list[tuple[Column, Any]]) -> Table:
    if not run:
        return []
    values, _ = flatten([[np.nan if is_null(v) else float(v) for v in categories] for _, categories in run])
    x = graph.numbers([column for column, categories in run for _ in categories])
    hit = graph.op("Equal", x, graph.double(values))
    if np.isnan(values).any():
        both = graph.op("And", graph.op("IsNaN", x), graph.constant(np.isnan(values)))
        hit = graph.op("Or", hit, both)
    return graph.matrix(graph.cast(hit), len(values))


def _ordinal(graph: Graph, step: Any, table: Table) -> Table:
    if getattr(step, "_infrequent_enabled", False):
        raise Unsupported("OrdinalEncoder with infrequent categories")
    # Without use_encoded_value the values themselves are checked against the categories (Package.known).
    unknown = step.unknown_value if step.handle_unknown == "use_encoded_value" else -1
    return encode_ordinal(
        graph, table, step.categories_, unknown=float(unknown), missing=float(step.encoded_missing_value)
    )


def encode_ordinal(graph: Graph, table: Table, categories: Any, *, unknown: float, missing: float) -> Table:
    """The position of each value in the ``categories`` of its column, float64; ``unknown`` and ``missing`` for other values."""
    out: Table = []
    for column, known in zip(table, categories, strict=True):
        codes = [missing if is_null(v) else float(i) for i, v in enumerate(known)]
        if column.kind == "text":
            code = graph.op(
                "LabelEncoder", graph.texts([column]), domain="ai.onnx.ml", keys_strings=_texts(known),
                values_floats=codes, default_float=unknown,
            )  # fmt: skip
            out += graph.matrix(graph.cast(code), 1)
            continue
        x = graph.numbers([column])
        values = [(float(v), c) for v, c in zip(known, codes, strict=True) if not is_null(v)]
        # One column of matches for each category, times (code, 1): the code of the match, and 1 if there was one.
        hit = graph.cast(graph.op("Equal", x, graph.double([v for v, _ in values])))
        codes_and_hits = np.array([[c, 1.0] for _, c in values])
        both = graph.matrix(graph.op("MatMul", hit, graph.double(codes_and_hits)), 2)
        seen = graph.cast(graph.numbers(both[1:]), "BOOL")
        code = graph.op("Where", seen, graph.numbers(both[:1]), graph.double([unknown]))
        if any(is_null(v) for v in known):
            code = graph.op("Where", graph.op("IsNaN", x), graph.double([missing]), code)
        out += graph.matrix(code, 1)
    return out


def _bins(graph: Graph, step: Any, table: Table) -> Table:
    # The bin is how many inner edges a value has reached: a comparison with every edge, then one matrix product.
    inner = [edges[1:-1] for edges in step.bin_edges_]
    counts = [int(n) for n in step.n_bins_]
    if step.encode == "ordinal":
        wide, weights, bias = len(counts), [np.ones((n - 1, 1)) for n in counts], np.zeros(len(counts))
    else:
        wide = sum(counts)
        # Passing an edge moves the 1 from a bin to the next.
        weights = [np.eye(n)[1:] - np.eye(n)[:-1] for n in counts]
        bias = np.concatenate([np.eye(n)[0] for n in counts])
    edges, owners = flatten(inner)
    x = graph.numbers(table)
    passed = graph.op("GreaterOrEqual", graph.numbers([table[i] for i in owners]), graph.double(edges))
    block = np.zeros((len(edges), wide))
    row = column = 0
    for part in weights:
        block[row : row + part.shape[0], column : column + part.shape[1]] = part
        row, column = row + part.shape[0], column + part.shape[1]
    result = graph.gemm(graph.cast(passed), block, bias)
    return graph.matrix(graph.nan_unless_finite(result, x, always=True), wide)


def _polynomial(graph: Graph, step: Any, table: Table) -> Table:
    powers = np.asarray(step.powers_)
    factors = [[j for j, p in enumerate(row) for _ in range(p)] for row in powers]
    by_degree: dict[int, list[int]] = {}
    for i, row in enumerate(factors):
        by_degree.setdefault(len(row), []).append(i)
    result: dict[int, Column] = {}
    for degree, places in by_degree.items():
        if degree == 0:
            x = graph.op("Pow", graph.numbers(table[:1]), graph.double([0.0]))
        else:
            x = graph.numbers([table[factors[i][0]] for i in places])
            for d in range(1, degree):
                x = graph.op("Mul", x, graph.numbers([table[factors[i][d]] for i in places]))
            if degree > 1:
                graph.may_overflow(x)
        result |= dict(zip(places, graph.matrix(x, len(places)), strict=True))
    return [result[i] for i in range(len(factors))]


TRANSFORMS: dict[str, Transform] = {
    "Pipeline": _pipeline,
    "ColumnTransformer": _column_transformer,
    "FeatureUnion": _union,
    "FunctionTransformer": _function,
    "StandardScaler": _standard,
    "RobustScaler": _robust,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "Binarizer": _binarizer,
    "Normalizer": _normalizer,
    "PCA": _pca,
    "TruncatedSVD": _svd,
    "SimpleImputer": _imputer,
    "MissingIndicator": _indicator,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "KBinsDiscretizer": _bins,
    "PolynomialFeatures": _polynomial,
    "DateParts": date_parts,
    **dict.fromkeys(
        [
            "VarianceThreshold", "SelectKBest", "SelectPercentile", "SelectFromModel", "SelectFpr", "SelectFdr",
            "SelectFwe", "GenericUnivariateSelect", "RFE", "RFECV", "SequentialFeatureSelector",
        ],
        _support,
    ),
}  # fmt: skip
