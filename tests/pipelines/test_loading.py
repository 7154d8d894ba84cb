"""Imports of project code leave the caller's own path as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mainspring.pipelines.loading import load_module


def _project(folder: Path) -> Path:
    (folder / "pipelines").mkdir(parents=True)
    (folder / "more").mkdir()
    for name in ("pipelines/train.py", "more/other.py"):
        (folder / name).write_text("VALUE = 1\n")
    return folder


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_next_project_takes_only_what_the_last_one_put_on_the_path(tmp_path: Path) -> None:
    first, second = _project(tmp_path / "first"), _project(tmp_path / "second")
    sys.path.append(str(first))  # the caller's own, as the current directory is under `python -m`
    load_module(first / "pipelines" / "train.py", root=first)
    load_module(first / "more" / "other.py", root=first)
    assert str(first / "pipelines") in sys.path, "a project's own folders stay while it is the project"
    load_module(second / "pipelines" / "train.py", root=second)
    assert str(first) in sys.path
    assert not {str(first / "pipelines"), str(first / "more")} & set(sys.path)
    assert sys.path[:2] == [str(second), str(second / "pipelines")]
    third = _project(tmp_path / "third")
    load_module(third / "pipelines" / "train.py", root=third)
    assert str(second) not in sys.path
