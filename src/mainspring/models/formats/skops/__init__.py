"""skops: the scikit-learn estimator itself, as a zip of one JSON schema and plain arrays."""

from __future__ import annotations

from typing import Any

from mainspring.models.formats.adapt import is_adapted
from mainspring.models.formats.model_format import SKLEARN_LIBRARIES, Form, ModelFormat, Payloads
from mainspring.models.formats.predictor import Predictor
from mainspring.models.formats.skops.schema import INSTEAD, check_skops
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature

_FILE = "model.skops"


class Skops(ModelFormat):
    """The entry ``skops`` of the table of formats."""

    name = "skops"
    payloads = (_FILE,)
    libraries = SKLEARN_LIBRARIES
    extra = "ml"
    modules = ("numpy", "sklearn.pipeline", "skops.io", "mainspring.models.formats.skops.predictor")
    packages = ("scipy", "joblib", "threadpoolctl", "packaging")
    instead = INSTEAD
    next_step = (
        'Save it with format="auto", or use classes that are on the loader\'s list (TrustPolicy.skops_types).'
    )

    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:  # noqa: ARG002 - the file is enough
        """See :meth:`ModelFormat.check`."""
        check_skops(payloads[_FILE], trust=trust)

    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:
        """See :meth:`ModelFormat.open`."""
        from mainspring.models.formats.skops.predictor import SkopsPredictor

        return SkopsPredictor(package, payloads[_FILE], trust=trust)

    def forms(self, estimator: Any, signature: Signature) -> list[Form]:  # noqa: ARG002 - the estimator itself is stored
        """One form; an estimator that skops cannot write, or whose types are not trusted, is refused when it is made or checked."""
        from mainspring.models.formats.skops.predictor import dump

        if is_adapted(estimator):
            return []  # of another library, whose own form is beside this one
        return [Form("skops", lambda: {_FILE: dump(estimator)})]


SKOPS = Skops()
