"""Save, register, fetch and load through the operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from mainspring.errors import Corrupt, InvalidInput
from mainspring.lineage import Foundation
from mainspring.models import ModelsClient
from mainspring.records.base import to_json


@pytest.mark.filterwarnings("ignore:.*unwatched")
def test_save_register_load_and_fetch(
    foundation: Foundation, client_of: Callable[[Foundation], ModelsClient], logistic: Any, tmp_path: Path
) -> None:
    client = client_of(foundation)
    made = client.save_and_register(
        logistic.estimator, model="delay", signature=logistic.signature, sample=logistic.columns, run="run-9", code="c" * 64,
        environment="e" * 64, metrics={"auc": 0.7}, label="late", holdout="hold", dataset_version="train",
    )  # fmt: skip
    assert (made.version, made.run, made.code, made.holdout, made.metrics) == (
        1,
        "run-9",
        "c" * 64,
        "hold",
        {"auc": 0.7},
    )
    loaded = client.load("delay", "latest")
    from mainspring.models.formats.columns import frame

    expected = logistic.estimator.predict_proba(frame(logistic.columns, logistic.signature))[:, 1]
    np.testing.assert_allclose(loaded.compute_scores(logistic.columns), expected, atol=1e-5)
    package = client.download_package("delay", "1", tmp_path / "out")
    assert package == loaded.package
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    with pytest.raises(InvalidInput, match="not empty"):
        client.download_package("delay", "1", tmp_path / "out")


@pytest.mark.parametrize("odd", ["../evil", "evil", "sub/evil"])
def test_p04_a_listing_with_other_files_than_the_package_writes_nothing(
    foundation: Foundation, client_of: Callable[[Foundation], ModelsClient], saved_logistic: Path, tmp_path: Path, odd: str
) -> None:  # fmt: skip
    """What a registry sends names files here. Seen red with the comparison with the manifest removed: the file lay beside the folder."""
    client = client_of(foundation)
    good = client.register_folder(saved_logistic, model="delay")
    listing = dict(foundation.objects.tree(good.package))
    stored = foundation.objects.tree(good.package)["model.json"]
    crooked = client._objects.put(body=[to_json(listing | {odd: stored})])
    ops = client.operations
    client.operations = SimpleNamespace(
        get_version=lambda **_: msgspec.structs.replace(good, package=crooked.digest)
    )  # type: ignore[assignment]
    with pytest.raises(Corrupt, match="not those of the package"):
        client.download_package("delay", "1", tmp_path / "here" / "out")
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "here" in p.parts] == []
    client.operations = ops
    client.download_package("delay", "1", tmp_path / "again")
