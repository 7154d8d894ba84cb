"""A project on disk, and runners on a real workspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.lineage import Foundation
from mainspring.pipelines import Pipelines, Runner
from mainspring.pipelines.loading import forget_projects


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project directory; write modules into it."""
    root = tmp_path / "project"
    root.mkdir()
    return root


@pytest.fixture
def ops(foundation: Foundation) -> Pipelines:
    return Pipelines(foundation)


@pytest.fixture
def runner(foundation: Foundation, ops: Pipelines, project: Path) -> Runner:
    return Runner(foundation, ops, root=project, environment="e" * 64)


@pytest.fixture
def write(project: Path) -> Callable[[str, str], Path]:
    """Write a module of the project; later imports see it."""

    def put(name: str, text: str) -> Path:
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from mainspring.pipelines.step import pipeline, step\n" + text)
        forget_projects(project)
        return path

    return put
