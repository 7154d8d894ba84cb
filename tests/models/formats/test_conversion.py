"""How long a conversion to ONNX may take, and which forms are tried."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.errors import InvalidInput
from mainspring.models import formats
from mainspring.models.formats.onnx import models
from mainspring.models.formats.onnx.convert import Clock
from mainspring.models.formats.onnx.graph import Unsupported


def _rows() -> Any:
    return np.random.default_rng(1).normal(size=(120, 3))


def _unsupported(*_: Any) -> Any:
    raise Unsupported("this setting")


def test_work_beyond_the_limit_is_ended_and_nothing_more_is_begun() -> None:
    """Seen red without ``_end``: the thread went on counting."""
    counted = [0]

    def count() -> None:
        while True:
            counted[0] += 1

    clock = Clock(0.2)
    with pytest.raises(InvalidInput, match=r"longer than 0\.2 s"):
        clock.run(count)
    assert not [t for t in threading.enumerate() if t.name == "conversion"]
    begun: list[int] = []
    with pytest.raises(InvalidInput, match=r"longer than 0\.2 s"):
        clock.run(lambda: begun.append(1))
    assert not begun


def test_work_within_the_limit_gives_its_result_or_its_error() -> None:
    clock = Clock(60.0)
    assert clock.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        clock.run(lambda: 1 / 0)


def test_a_conversion_that_takes_too_long_falls_through_to_the_next_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red without a limit: the save waited for the conversion, and took ONNX."""
    import skl2onnx
    from sklearn.kernel_ridge import KernelRidge

    def convert(*_: Any, **__: Any) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(skl2onnx, "convert_sklearn", convert)
    monkeypatch.setattr("mainspring.models.formats.onnx.convert.LIMIT_S", 0.3)
    monkeypatch.setitem(models.PREDICTS, "KernelRidge", _unsupported)
    x = _rows()
    package = formats.save(KernelRidge().fit(x, x[:, 0]), tmp_path / "p", sample=x)
    assert package.format == "skops"
    for form in ("float64", "float32"):
        assert "longer than 0.3 s" in package.notes["refused"][f"onnx (skl2onnx in {form})"]


def test_what_skl2onnx_converts_slowly_is_not_given_to_it(tmp_path: Path) -> None:
    """Seen red on the code before: 11 s for 20 quantiles, 143 s for 300."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

    x = _rows()
    estimator = make_pipeline(QuantileTransformer(n_quantiles=100), LogisticRegression()).fit(x, x[:, 0] > 0)
    package = formats.save(estimator, tmp_path / "p", sample=x)
    assert package.format == "skops"
    assert "not used on QuantileTransformer" in package.notes["refused"]["onnx (skl2onnx in float64)"]
