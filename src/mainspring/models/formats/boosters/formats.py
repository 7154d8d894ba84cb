"""The entries of the table for the libraries' own forms: of a booster that is saved by itself and that a graph does not repeat.

They are the last of the table: a booster's own library is slower for one row than the graph, and a server gives it a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, ClassVar

from mainspring.errors import InvalidInput
from mainspring.models.formats.boosters import library_of
from mainspring.models.formats.model_format import Form, ModelFormat, Payloads
from mainspring.models.formats.predictor import Predictor
from mainspring.models.formats.trust import TrustPolicy
from mainspring.records.models import Package, Signature

_HERE = "mainspring.models.formats.boosters"
_PACKAGES = ("scipy", "pandas", "sklearn", "narwhals", "pyarrow")


class Native(ModelFormat):
    """A library's own form: its trees in a file that is checked from end to end before the library reads it."""

    extra = "boosting"
    next_step = 'Save it with format="auto".'

    file: ClassVar[str]
    """The name of its file."""
    reader: ClassVar[str]
    """The module that checks and reads it."""

    def check(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> None:  # noqa: ARG002 - nothing to trust
        """See :meth:`ModelFormat.check`."""
        import_module(f"{_HERE}.{self.reader}").check(payloads[self.file])

    def open(self, package: Package, payloads: Payloads, *, trust: TrustPolicy) -> Predictor:
        """See :meth:`ModelFormat.open`."""
        from mainspring.models.formats.boosters.predictor import BoosterPredictor

        self.check(package, payloads, trust=trust)  # the library must never see bytes that were not checked
        return BoosterPredictor(package, self.name, payloads[self.file])

    def forms(self, estimator: Any, signature: Signature) -> Iterable[Form]:
        """One form, of a booster of this library that is saved by itself."""
        if library_of(getattr(estimator, "model", None)) != self.name:
            return []
        return [Form(f"{self.name}'s own form", self._maker(estimator, signature))]

    def _maker(self, estimator: Any, signature: Signature) -> Callable[[], Payloads]:
        def make() -> Payloads:
            names = [str(n) for n in getattr(estimator, "feature_names_in_", ())]
            if names and names != [c.name for c in signature.inputs]:
                raise InvalidInput(
                    "the columns of the signature are not in the order of the model", value=names[:20]
                )
            return {self.file: estimator.dump()}

        return make


class LightGbm(Native):
    """Its model text."""

    name, file, reader = "lightgbm", "booster.txt", "lightgbm_text"
    payloads = (file,)
    libraries = ("numpy", "lightgbm")
    modules = ("numpy", "lightgbm", f"{_HERE}.lightgbm_model", f"{_HERE}.predictor")
    packages = _PACKAGES


class XgBoost(Native):
    """Its JSON."""

    name, file, reader = "xgboost", "booster.json", "xgboost_json"
    payloads = (file,)
    libraries = ("numpy", "xgboost-cpu", "xgboost")
    modules = ("numpy", "xgboost", f"{_HERE}.xgboost_model", f"{_HERE}.predictor")
    packages = _PACKAGES


class CatBoost(Native):
    """Its JSON."""

    name, file, reader = "catboost", "booster.json", "catboost_json"
    payloads = (file,)
    libraries = ("numpy", "catboost")
    modules = ("numpy", "catboost", f"{_HERE}.catboost_model", f"{_HERE}.predictor")
    packages = (*_PACKAGES, "matplotlib", "plotly", "graphviz", "six")


LIGHTGBM, XGBOOST, CATBOOST = LightGbm(), XgBoost(), CatBoost()
