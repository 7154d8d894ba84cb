"""ONNX: a graph of standard operators, predicted by ONNX Runtime. The fastest form, and the only one of bounded cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mainspring.models.formats.model_format import SKLEARN_LIBRARIES, Cost, Form, ModelFormat, Payloads
from mainspring.models.formats.predictor import Predictor
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature

_FILE = "model.onnx"


class Onnx(ModelFormat):
    """Entry of the table."""

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
        """Ours in float64, then those of skl2onnx (:mod:`convert`)."""
        from mainspring.models.formats.onnx.convert import candidates

        for name, make in candidates(estimator, signature):
            label = f"onnx ({name})"
            yield Form(label, lambda make=make: {_FILE: make()}, {"onnx_form": label})  # type: ignore[misc]

    def cost(self, package: Package, payloads: Payloads) -> Cost:  # noqa: ARG002 - the graph says it all
        """By its operators, and by how far a row can go in its trees."""
        from mainspring.models.formats.onnx.cost import examine
        from mainspring.models.formats.onnx.wire import check_onnx

        found = examine(check_onnx(payloads[_FILE]))
        return Cost(unbounded=found.by_operator, steps=found.steps, deepest=found.deepest)


ONNX = Onnx()
