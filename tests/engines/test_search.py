"""LightGBM as a family of the search, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mainspring as ms
from mainspring.training.automl.families import propose


def test_an_installed_family_is_tried() -> None:
    assert "lgbm" in {c.family for c in propose(12, seed=0)}


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_search_registers_lightgbm(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "search"\n')
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.normal(size=600), "b": rng.normal(size=600), "kind": rng.choice(["x", "y"], 600)}
    )
    frame.loc[::13, "a"] = np.nan
    value = frame.a.fillna(0) * 2 + (frame.kind == "x") + rng.normal(scale=0.2, size=600)
    frame["target"] = value if task == "regression" else np.where(value > 0.5, "yes", "no")
    trained = ms.train(ms.commit("rows", frame), target="target", families=["lgbm"], max_trials=2)
    assert trained.tags["family"] == "lgbm"
    assert trained.format == "onnx"
    with ms.open() as workspace:
        predicted = workspace.models.load("rows").predict(frame.drop(columns="target"))
    if task == "binary":
        assert (predicted == frame.target).mean() > 0.9
    else:
        assert np.corrcoef(predicted, frame.target)[0, 1] > 0.9
