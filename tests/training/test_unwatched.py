"""A version without a training profile is served unwatched, and everything that shows it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import mainspring as ms
from mainspring.records.base import from_json
from mainspring.records.profile import Profile
from mainspring.server.pages.overview import get_standing
from mainspring.workspace import Workspace, open_workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "tiny"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mainspring.short._SERVER_WAIT_S", 0.0)
    with open_workspace(tmp_path) as opened:
        yield opened


def fit(rows: int = 50) -> tuple[Any, Any, Any]:
    x = np.linspace(-1, 1, rows)[:, None]
    return LogisticRegression().fit(x, x[:, 0] > 0), x, x[:, 0] > 0


def read_profile(workspace: Workspace, digest: str | None) -> Profile:
    return from_json(b"".join(workspace.objects.get(digest=digest or "").chunks), Profile)


def drift(workspace: Workspace) -> tuple[str, str]:
    standing = get_standing(workspace, workspace.deploy.get_deployment("m"))
    (health,) = [h for h in standing.health if h.aspect == "drift"]
    return health.word, health.detail


@pytest.mark.parametrize("kind", ["array", "columns", "pandas"])
def test_the_profile_is_that_of_the_training_rows(kind: str, workspace: Workspace) -> None:
    """Seen red with the profile of what was given alone."""
    estimator, x, _ = fit()
    rows = {"array": x, "columns": {"x0": x[:, 0]}, "pandas": pd.DataFrame(x, columns=["x0"])}[kind]
    version = workspace.models.save_and_register(estimator, model="m", sample=rows, training=rows)
    profile = read_profile(workspace, version.profile)
    assert profile.rows == 50
    assert [(c.name, c.low, c.high) for c in profile.columns] == [("x0", -1.0, 1.0)]
    assert version.unwatched == ""
    assert ms.deploy(version).says.count("unwatched") == 0
    assert drift(workspace)[0] != "unwatched"


def test_or_of_the_dataset_version_that_was_trained_on(workspace: Workspace) -> None:
    estimator, x, _ = fit()
    data = workspace.data.commit("d", {"x0": x[:, 0]})
    version = workspace.models.save_and_register(estimator, model="m", sample=x, dataset_version=data.id)
    assert version.profile == workspace.data.get_profile_object("d").digest


def test_without_either_it_warns_and_every_view_says_so(workspace: Workspace) -> None:
    """Seen red while a version without a profile was served without a word."""
    estimator, x, _ = fit()
    with pytest.warns(UserWarning, match="m version 1 is unwatched: no training profile"):
        version = workspace.models.save_and_register(estimator, model="m", sample=x)
    assert "(unwatched: no training profile)" in ms.deploy(version).says
    assert drift(workspace) == ("unwatched", "no training profile")
