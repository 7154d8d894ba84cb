"""Converts a fitted scikit-learn estimator to ONNX: the exact float64 form, else skl2onnx in float64, else in float32.

The exact form is written from the estimator's own arrays (:mod:`trees`, :mod:`columns`, :mod:`models`). The two others are for
estimators that it does not cover, and are used only if the parity check shows that they repeat the estimator.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from mainspring.errors import InvalidInput
from mainspring.models.formats.adapt import is_adapted
from mainspring.models.formats.answers import decides
from mainspring.models.formats.columns import numeric_names, text_names
from mainspring.models.formats.estimators import fitted_names, list_parts
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
    clock = Clock(LIMIT_S)
    return [
        (EXACT, lambda: _convert_exactly(estimator, signature)),
        ("skl2onnx in float64", lambda: _convert_by_skl2onnx(estimator, signature, clock, double=True)),
        ("skl2onnx in float32", lambda: _convert_by_skl2onnx(estimator, signature, clock, double=False)),
    ]


def _convert_exactly(estimator: Any, signature: Signature) -> bytes:
    from mainspring.models.formats.onnx.graph import Column, Graph, Unsupported
    from mainspring.models.formats.onnx.models import predict
    from mainspring.models.formats.onnx.values import write_values

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
        columns = [table[name] for name in order]
        if signature.task is Task.VALUES:
            return graph.model(inputs, write_values(graph, estimator, columns), signature.width)
        answer = predict(graph, estimator, columns)
        if signature.task is Task.REGRESSION:
            output, width = answer.value, 1
        elif signature.scores == "decision":
            alone = not decides(estimator)
            output = answer.one_hot(graph, len(signature.classes), columns) if alone else answer.decision
            width = signature.width or (len(signature.classes) if alone else 1)
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


LIMIT_S = 20.0
"""How long skl2onnx may take for an estimator, in both forms together."""


def _convert_by_skl2onnx(estimator: Any, signature: Signature, clock: Clock, *, double: bool) -> bytes:
    """Convert with one numeric matrix as the only input; text columns and columns by name are left to the exact form.

    Asked only about classes that have an exact form, for settings of them that have none. Of others, a QuantileTransformer took it
    143 s, and neighbours at equal distances came out wrong.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    _refuse_kind(estimator, signature)
    kind = DoubleTensorType if double else FloatTensorType
    options = None if signature.task is Task.REGRESSION else {"zipmap": False}
    try:
        with (
            warnings.catch_warnings()
        ):  # skl2onnx sets an int attribute to a bool, which protobuf 6 deprecates
            warnings.simplefilter("ignore")
            model = clock.run(
                lambda: convert_sklearn(
                    estimator,
                    initial_types=[(NUMERIC, kind([None, len(signature.inputs)]))],
                    options=options,
                )
            )
    except (Exception, SystemExit) as error:
        if isinstance(error, MemoryError | InvalidInput):
            raise
        raise InvalidInput(
            f"no conversion: {type(error).__name__}: {str(error)[:200]}", value=type(estimator).__name__
        ) from None
    data: bytes = model.SerializeToString()
    return data


def _refuse_kind(estimator: Any, signature: Signature) -> None:
    from mainspring.models.formats.onnx.columns import TRANSFORMS
    from mainspring.models.formats.onnx.models import PREDICTS

    reason = ""
    names = fitted_names(estimator)
    if signature.task is Task.VALUES or signature.scores == "decision":
        reason = "skl2onnx is used for probabilities and regressions alone"
    elif text_names(signature):
        reason = "skl2onnx is not used on text columns"
    elif names is not None and names != numeric_names(signature):
        reason = "skl2onnx is not used on chosen columns"
    else:
        known = PREDICTS.keys() | TRANSFORMS.keys()
        strange = [type(part).__name__ for part in list_parts(estimator) if hasattr(part, "get_params")]
        strange = [name for name in strange if name not in known]
        if strange:
            reason = f"skl2onnx is not used on {strange[0]}"
    if reason:
        raise InvalidInput(reason, value=type(estimator).__name__)


class Clock:
    """Gives work a time limit: after it, the work is ended at its next step in Python, and nothing more is begun."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._left = seconds, seconds

    def run(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns or raises. Raises InvalidInput if it takes longer than what is left of the limit."""
        if self._left <= 0:
            raise self._error()
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def answer() -> None:
            try:
                outcome.put((work(), None))
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                outcome.put((None, error))

        thread = threading.Thread(target=answer, name="conversion", daemon=True)
        begun = time.monotonic()
        thread.start()
        thread.join(self._left)
        self._left -= time.monotonic() - begun
        if thread.is_alive():
            self._left = 0.0
            _end(thread)
            raise self._error()
        result, error = outcome.get()
        if error is not None:
            raise error
        return result

    def _error(self) -> InvalidInput:
        return InvalidInput(f"the conversion took longer than {self._seconds:g} s")


class _TooLong(BaseException):
    """Ends a conversion; no ``except Exception`` of its catches it."""


def _end(thread: threading.Thread) -> None:
    """Raise an error inside ``thread``, until it ends. One that stays in compiled code goes on beside the process, unheard."""
    for _ in range(20):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLong)
        )
        thread.join(0.5)
        if not thread.is_alive():
            return
