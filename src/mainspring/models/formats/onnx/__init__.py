"""ONNX: a graph of standard operators, predicted by ONNX Runtime. The fastest format, and the only one whose cost can be bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mainspring.models.formats.model_format import SKLEARN_LIBRARIES, Cost, Form, ModelFormat, Payloads
from mainspring.models.formats.predictor import Predictor
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature

_FILE = "model.onnx"


class Onnx(ModelFormat):
    """The entry ``onnx`` of the table of formats."""

    name = "onnx"
    payloads = (_FILE,)
    libraries = SKLEARN_LIBRARIES
    extra = "onnx"
    modules = ("numpy", "onnxruntime", "mainspring.models.formats.onnx.predictor")
    next_step = 'Save it with format="auto", which takes skops where ONNX cannot be exact.'

    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:  # noqa: ARG002 - nothing to trust
        """See :meth:`ModelFormat.check`."""
        from mainspring.models.formats.onnx.wire import check_onnx

        check_onnx(payloads[_FILE])

    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:  # noqa: ARG002 - as above
        """See :meth:`ModelFormat.open`."""
        from mainspring.models.formats.onnx.predictor import OnnxPredictor

        return OnnxPredictor(package, payloads[_FILE])

    def forms(self, estimator: Any, signature: Signature) -> Iterator[Form]:
        """The exact form in float64, then those of skl2onnx (:mod:`convert`)."""
        from mainspring.models.formats.onnx.convert import list_forms

        for name, make in list_forms(estimator, signature):
            label = f"onnx ({name})"
            notes = {"onnx_form": label, **getattr(estimator, "onnx_notes", {})}
            yield Form(label, lambda make=make: {_FILE: make()}, notes)  # type: ignore[misc]

    def cost(self, package: Package, payloads: Payloads) -> Cost:  # noqa: ARG002 - the graph is enough
        """From the graph's operators and the lengths of the paths in its trees."""
        from mainspring.models.formats.onnx.cost import examine
        from mainspring.models.formats.onnx.wire import check_onnx

        cost = examine(check_onnx(payloads[_FILE]))
        return Cost(unbounded=cost.by_operator, steps=cost.steps, deepest=cost.deepest)


ONNX = Onnx()
