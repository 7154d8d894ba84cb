"""Model packages: a directory of data, loaded through a fixed table of formats.

::

    my-package/
      model.json      the manifest (records.models.Package): signature, files with size and digests, lineage, parity
      model.onnx      or model.skops: the one payload its format allows

``save`` writes one, ``verify`` checks every byte before anything is parsed, ``load`` gives a :class:`Predictor`. This
package imports nothing of the control plane: the inference plane uses it as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mainspring.models.formats.package import MANIFEST, read_package, verify
from mainspring.models.formats.predictor import Columns, Predictor, Scores
from mainspring.models.formats.trust import DEFAULT, TrustPolicy
from mainspring.records.models import Package, Signature, Task

__all__ = [
    "DEFAULT",
    "MANIFEST",
    "Columns",
    "Package",
    "Predictor",
    "Scores",
    "TrustPolicy",
    "check_payload",
    "infer_signature",
    "load",
    "save",
    "verify",
]


def load(folder: Path, *, trust: TrustPolicy = DEFAULT) -> Predictor:
    """Open the package in ``folder``, every byte checked against ``model.json`` first.

    The payload is parsed from the very bytes that were hashed. ``trust`` belongs to whoever loads; nothing in the
    package can widen it. Raises :class:`~mainspring.errors.Corrupt` (bytes differ from the manifest),
    :class:`~mainspring.errors.UnsafeFormat` (anything but plain data of the declared format),
    :class:`~mainspring.errors.InvalidInput` (malformed manifest), :class:`~mainspring.errors.MissingExtra`.
    """
    package, payloads = read_package(folder)
    return _open(package, payloads, trust=trust)


def check_payload(package: Package, payloads: Mapping[str, bytes], *, trust: TrustPolicy = DEFAULT) -> None:
    """Refuse a payload that is not plain data of its declared format, without building a model from it.

    Cheap and safe enough for the control plane: nothing is imported, executed or allocated on the payload's word.
    """
    if package.format == "onnx":
        from mainspring.models.formats.onnx_wire import check_onnx

        check_onnx(payloads["model.onnx"])
    else:
        from mainspring.models.formats.skops_schema import check_skops

        check_skops(payloads["model.skops"], trust=trust)


def save(
    estimator: Any,
    folder: Path,
    *,
    signature: Signature,
    sample: Any,
    training: Any = None,
    format: str = "auto",  # noqa: A002 - the word the manifest uses
    tolerance: float | None = None,
    trust: TrustPolicy = DEFAULT,
    metrics: Mapping[str, float] | None = None,
    run: str | None = None,
    dataset_version: str | None = None,
    code: str | None = None,
    environment: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Package:
    """Write a fitted scikit-learn ``estimator`` as a package into ``folder`` (new or empty) and return its manifest.

    ``sample``: real rows (at least one) as columns or as a table; ``training``: the training rows, where they are at hand.
    On these, and on rows made from the signature (nulls, unseen categories, extremes, values beside tree thresholds), the
    stored payload must repeat the estimator: its labels, its probabilities within ``tolerance`` (default 1e-6), a regression
    within ``tolerance`` times the spread of its answers, and an error or NaN where it raises. If not, :class:`ParityFailed`
    with the numbers and nothing is left behind. ``format``: ``auto`` (ONNX, and skops where ONNX cannot be exact), ``onnx``,
    ``skops``. Raises :class:`~mainspring.errors.InvalidInput` where no format stores the estimator, with the reasons of each.
    """
    from mainspring.models.formats.saving import save_package

    return save_package(
        estimator,
        folder,
        signature=signature,
        sample=sample,
        training=training,
        format=format,
        tolerance=tolerance,
        trust=trust,
        metrics=metrics,
        run=run,
        dataset_version=dataset_version,
        code=code,
        environment=environment,
        notes=notes,
    )


def infer_signature(columns: Any, *, task: Task | str, classes: list[str] | None = None) -> Signature:
    """The signature of a table (Arrow, pandas, Polars) or of a mapping of columns: names, types, nullability as seen.

    Integers become ``int64``, other numbers ``float64``, truth values ``bool``, everything else ``string``; a column
    is nullable if it holds a null or NaN here.
    """
    from mainspring.models.formats.signature import infer

    return infer(columns, task=Task(task), classes=classes or [])


def _open(package: Package, payloads: Mapping[str, bytes], *, trust: TrustPolicy) -> Predictor:
    check_payload(package, payloads, trust=trust)
    if package.format == "onnx":
        from mainspring.models.formats.onnx import OnnxPredictor

        return OnnxPredictor(package, payloads["model.onnx"])
    from mainspring.models.formats.skops import SkopsPredictor

    return SkopsPredictor(package, payloads["model.skops"], trust=trust)
