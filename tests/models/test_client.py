"""Save, register, fetch and load through the operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.errors import InvalidInput
from mainspring.lineage import Foundation
from mainspring.models import ModelsClient


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
    np.testing.assert_allclose(loaded.predict(logistic.columns), expected, atol=1e-5)
    package = client.package("delay", "1", tmp_path / "out")
    assert package == loaded.package
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    with pytest.raises(InvalidInput, match="not empty"):
        client.package("delay", "1", tmp_path / "out")
