"""Model packages: a directory of data, loaded through a fixed table of formats.

::

    my-package/
      model.json      the manifest (records.models.Package): signature, files with size and digests, lineage, parity
      model.onnx      or the files of another format (see ``table``)

``save`` writes one, ``verify`` checks every byte before anything is parsed, ``load`` gives a
:class:`~mainspring.models.formats.model.Model`. This
package imports nothing of the control plane, so that the inference plane can use it unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.models.formats.model_format import Cost, extra_needed
from mainspring.models.formats.package import MANIFEST, read_package, verify
from mainspring.models.formats.predictor import Columns, Predictor, Scores
from mainspring.models.formats.table import model_format
from mainspring.models.formats.trust import DEFAULT, TrustPolicy
from mainspring.records.models import Package, Signature, Task

if TYPE_CHECKING:
    from mainspring.models.formats.model import Model

__all__ = [
    "DEFAULT",
    "MANIFEST",
    "Columns",
    "Cost",
    "Package",
    "Predictor",
    "Scores",
    "TrustPolicy",
    "check_payload",
    "infer_signature",
    "load",
    "open_package",
    "prediction_cost",
    "save",
    "verify",
]


def load(folder: Path, *, trust: TrustPolicy = DEFAULT) -> Model:
    """Load the package in ``folder`` after every byte was checked against ``model.json``.

    The payload is parsed from the same bytes in memory that were hashed. ``trust`` is decided by whoever loads; nothing in the
    package can widen it. Raises :class:`~mainspring.errors.Corrupt` (bytes differ from the manifest),
    :class:`~mainspring.errors.UnsafeFormat` (anything but plain data of the declared format),
    :class:`~mainspring.errors.InvalidInput` (malformed manifest), :class:`~mainspring.errors.MissingExtra`.
    """
    from mainspring.models.formats.model import Model

    package, payloads = read_package(folder)
    return Model(open_package(package, payloads, trust=trust))


def check_payload(package: Package, payloads: Mapping[str, bytes], *, trust: TrustPolicy = DEFAULT) -> None:
    """Refuse a payload that is not plain data of its declared format, without building a model from it.

    Cheap and safe enough for the control plane: no framework is imported, and nothing is executed or allocated because the payload
    says so. Raises :class:`~mainspring.errors.UnsafeFormat`.
    """
    model_format(package.format).check(package, payloads, trust=trust)


def open_package(
    package: Package, payloads: Mapping[str, bytes], *, trust: TrustPolicy = DEFAULT
) -> Predictor:
    """A predictor from the verified bytes of a package (``package.read_package``), after :func:`check_payload`."""
    check_payload(package, payloads, trust=trust)
    entry = model_format(package.format)
    with extra_needed(entry):
        return entry.open(package, payloads, trust=trust)


def prediction_cost(package: Package, payloads: Mapping[str, bytes]) -> Cost:
    """What a prediction may cost, read from payloads that passed :func:`check_payload`."""
    return model_format(package.format).cost(package, payloads)


def save(
    estimator: Any,
    folder: Path,
    *,
    signature: Signature | None = None,
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

    ``sample``: real rows (at least one) as columns, as a table or as an array; ``training``: the training rows, if they are available.
    Without a ``signature`` it follows from the estimator and these rows. Of a search (``GridSearchCV``) its best estimator is saved.
    On these, and on rows made from the signature (nulls, unseen categories, extremes, values beside tree thresholds), the
    stored payload must repeat the estimator: its labels, its probabilities within ``tolerance`` (default 1e-6, absolute), a regression
    within ``tolerance`` times the standard deviation of its answers, and an error or NaN where it raises. If not, this raises
    :class:`ParityFailed` with the numbers and writes nothing. ``format``: a name of the table, or ``auto``: the fastest that is exact
    (ONNX, and skops where ONNX cannot be). Raises :class:`~mainspring.errors.InvalidInput`, with the reasons of each format, if none
    stores the estimator.
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


def infer_signature(
    columns: Any, *, task: Task | str, classes: list[str] | None = None, outputs: list[str] | None = None
) -> Signature:
    """The signature of a table (Arrow, pandas, Polars), an array or a mapping of columns: names, types, nullability as seen.

    Integers become ``int64``, other numbers ``float64``, truth values ``bool``, everything else ``string``; a column
    is nullable if it holds a null or NaN here.
    """
    from mainspring.models.formats.signature import infer

    return infer(columns, task=Task(task), classes=classes or [], outputs=outputs or [])
