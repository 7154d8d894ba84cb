"""Converts a fitted scikit-learn estimator to ONNX: the exact float64 form, else skl2onnx in float64, else in float32.

The exact form is written from the estimator's own arrays (:mod:`trees`, :mod:`columns`, :mod:`models`). The two others are for
estimators that it does not cover, and are used only if the parity check shows that they repeat the estimator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from mainspring.errors import InvalidInput
from mainspring.models.formats.adapt import is_adapted
from mainspring.models.formats.answers import decides
from mainspring.models.formats.columns import numeric_names, text_names
from mainspring.models.formats.estimators import fitted_names
from mainspring.models.formats.onnx.names import NUMERIC, TEXT
from mainspring.records.models import Signature, Task

EXACT, OWN = "float64, exact", "a file of your own"


def list_forms(estimator: Any, signature: Signature) -> list[tuple[str, Callable[[], bytes]]]:
    """Forms of the estimator as ONNX, best first: (name, make). ``make`` raises InvalidInput if there is no such form."""
    import onnx  # noqa: F401 - a missing library is reported now, before any form is made
    import skl2onnx  # noqa: F401

    if hasattr(estimator, "dump_onnx"):
        return [(OWN, estimator.dump_onnx)]
    if is_adapted(estimator):
        return [(EXACT, lambda: _convert_exactly(estimator, signature))]
    return [
        (EXACT, lambda: _convert_exactly(estimator, signature)),
        ("skl2onnx in float64", lambda: _convert_by_skl2onnx(estimator, signature, double=True)),
        ("skl2onnx in float32", lambda: _convert_by_skl2onnx(estimator, signature, double=False)),
    ]


def _convert_exactly(estimator: Any, signature: Signature) -> bytes:
    from mainspring.models.formats.onnx.graph import Column, Graph, Unsupported
    from mainspring.models.formats.onnx.models import predict

    _refuse_kind(estimator, signature)
    graph = Graph()
    inputs: dict[str, tuple[str, int]] = {}
    table: dict[str, Column] = {}
    for tensor, kind, names in (
        (NUMERIC, "number", numeric_names(signature)),
        (TEXT, "text", text_names(signature)),
    ):
        if names:
            inputs[tensor] = kind, len(names)
            table |= dict(zip(names, graph.matrix(tensor, len(names), kind), strict=True))
    order = fitted_names(estimator) or [c.name for c in signature.inputs]
    try:
        answer = predict(graph, estimator, [table[name] for name in order])
        if signature.task is Task.REGRESSION:
            output, width = answer.value, 1
        elif signature.scores == "decision":
            output, width = answer.decision, signature.width or 1
        elif signature.task is Task.BINARY and answer.positive:
            output, width = answer.positive, 1
        else:
            output, width = answer.by_class(graph), len(signature.classes)
    except Unsupported as error:
        raise InvalidInput(str(error), value=type(estimator).__name__) from None
    except (
        AttributeError,
        TypeError,
        ValueError,
        IndexError,
        KeyError,
    ) as error:  # an unknown version of scikit-learn
        raise InvalidInput(
            f"no exact form: {type(error).__name__}: {str(error)[:200]}", value=type(estimator).__name__
        ) from None
    if not output:
        raise InvalidInput(
            "the estimator answers another kind of question than the signature",
            value=type(estimator).__name__,
        )
    return graph.model(inputs, output, width)


def _refuse_kind(estimator: Any, signature: Signature) -> None:
    if signature.task is Task.VALUES:
        raise InvalidInput("several values are not written as a graph", value=type(estimator).__name__)
    if signature.scores == "decision" and not decides(estimator):
        raise InvalidInput(
            "a label without a score is not written as a graph", value=type(estimator).__name__
        )


def _convert_by_skl2onnx(estimator: Any, signature: Signature, *, double: bool) -> bytes:
    """Convert with one numeric matrix as the only input; text columns and columns by name are left to the exact form."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    _refuse_kind(estimator, signature)
    if signature.scores == "decision":
        raise InvalidInput("skl2onnx is not used for decision values", value=type(estimator).__name__)
    if text_names(signature):
        raise InvalidInput("skl2onnx is not used on text columns", value=type(estimator).__name__)
    names = fitted_names(estimator)
    if names is not None and names != numeric_names(signature):
        raise InvalidInput("skl2onnx is not used on chosen columns", value=type(estimator).__name__)
    kind = DoubleTensorType if double else FloatTensorType
    options = None if signature.task is Task.REGRESSION else {"zipmap": False}
    try:
        with (
            warnings.catch_warnings()
        ):  # skl2onnx sets an int attribute to a bool, which protobuf 6 deprecates
            warnings.simplefilter("ignore")
            model = convert_sklearn(
                estimator, initial_types=[(NUMERIC, kind([None, len(signature.inputs)]))], options=options
            )
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError):
            raise
        raise InvalidInput(
            f"no conversion: {type(error).__name__}: {str(error)[:200]}", value=type(estimator).__name__
        ) from None
    data: bytes = model.SerializeToString()
    return data
