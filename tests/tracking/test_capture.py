"""Capture: what it finds, what it never lets out, and that it never fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mainspring.records.base import to_json
from mainspring.tracking import capture as module
from mainspring.tracking.capture import (
    capture,
    capture_code,
    capture_environment,
    environment_digest,
    safe_argv,
    safe_url,
)

_GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "PATH": os.environ["PATH"]}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=_GIT
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    (folder / "train.py").write_text("a = 1\n")
    _git(folder, "add", ".")
    _git(folder, "commit", "-q", "-m", "one")
    return folder


def test_a_clean_work_tree_is_its_commit(repository: Path) -> None:
    state = capture_code(repository)
    assert state.commit == _git(repository, "rev-parse", "HEAD")
    assert (state.branch, state.dirty, state.diff, state.missing) == ("main", False, None, [])


def test_a_dirty_one_has_its_diff_and_untracked_sources(repository: Path) -> None:
    (repository / "train.py").write_text("a = 2\n")
    (repository / "new.py").write_text("b = 1\n")
    (repository / "data.bin").write_bytes(b"not source")
    (repository / "link.py").symlink_to("/etc/passwd")
    state = capture_code(repository / ".")
    assert state.dirty
    assert state.diff is not None
    assert "+a = 2" in state.diff
    files = {f.path: f for f in state.untracked}
    assert set(files) == {"new.py", "link.py"}
    assert files["new.py"].digest is not None
    assert files["link.py"].digest is None
    assert files["link.py"].skipped == "a symbolic link"


def test_a_huge_diff_is_kept_as_a_digest(repository: Path) -> None:
    (repository / "train.py").write_text("x = 1\n" * 300_000)
    state = capture_code(repository)
    assert state.diff is None
    assert state.diff_digest is not None
    assert state.diff_bytes > module.MAX_DIFF


def test_l03_credentials_in_remotes_and_diffs_are_cut(repository: Path) -> None:
    """L03: seen red with `safe_url` and `cut_credentials` returning their argument."""
    _git(repository, "remote", "add", "origin", "https://me:hunter2@host.example/a.git?token=hunter2")
    (repository / "train.py").write_text("db = 'postgres://u:hunter2@host/x'\n")
    state = capture_code(repository)
    assert state.remote == "https://host.example/a.git"
    assert "hunter2" not in to_json(state).decode()
    assert safe_url("ssh://git:pw@host/x") == "ssh://host/x"


def test_l03_environment_variables_and_plain_words_of_the_command_line_stay_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """L03: seen red with `safe_argv` returning its argument."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setattr(
        "sys.argv",
        [
            "/home/me/train.py",
            "--password",
            "hunter2",
            "--api-key=hunter2",
            "hunter2",
            "--lr",
            "0.1",
            "c.toml",
        ],
    )
    found = capture(root=tmp_path)
    assert found.source["argv"] == [
        "train.py",
        "--password",
        "***",
        "--api-key=***",
        "***",
        "--lr",
        "0.1",
        "c.toml",
    ]
    assert b"hunter2" not in to_json([found.code, found.environment, found.source])


def test_a_repository_cannot_run_a_program_of_its_own(repository: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external", "core.pager", "diff.x.textconv"):
        _git(repository, "config", key, str(script))
    (repository / ".gitattributes").write_text("*.py diff=x\n")
    (repository / "train.py").write_text("a = 3\n")
    assert capture_code(repository).dirty
    assert not marker.exists()


def test_outside_a_repository_and_without_git_the_reason_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = capture_code(tmp_path)
    assert state.commit is None
    assert "not a git repository" in state.missing[0]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert capture_code(tmp_path).missing == ["git is not installed"]


def test_capture_never_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    for name in ("capture_code", "capture_environment", "safe_argv"):
        monkeypatch.setattr(module, name, broken)
    found = capture(root=tmp_path)
    assert found.source["missing"] == ["code: broken", "environment: broken", "machine: broken"]


def test_equal_environments_have_one_digest() -> None:
    first = capture_environment()
    capture_environment.cache_clear()
    assert environment_digest(first) == environment_digest(capture_environment())
    assert any(p.name == "msgspec" and p.hash for p in first.packages)


def test_the_command_line_is_bounded() -> None:
    assert len(safe_argv(["x.py", *["1"] * 1000])) == 102
