"""Source files of a run: kept by content, Git or not; bounded; never what is named like a secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.errors import InvalidInput
from mainspring.records.tracking import CodeState, FileState
from mainspring.tracking import sources
from mainspring.workspace import open_workspace

SCRIPT = """
import mainspring as ms
import tools.scale
with ms.start_run("tuning") as run:
    run.log_metric("loss", 0.1)
print(run.id)
"""


def test_a_script_that_logs_a_run_is_kept_with_it(tmp_path: Path) -> None:
    """Seen red on 0.1: the record held the script's name."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "p"\n')
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "scale.py").write_text("FACTOR = 2\n")
    (tmp_path / "tools" / "unused.py").write_text("X = 1\n")
    (tmp_path / "tune.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "tune.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with open_workspace(tmp_path) as workspace:
        ops = workspace.tracking.operations
        run = done.stdout.strip()
        assert [f.path for f in ops.get_code(run=run).files] == ["tools/scale.py", "tune.py"]
        assert b"".join(ops.download_code(run=run, path="tune.py").chunks).decode() == SCRIPT


def test_what_is_not_kept_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE", 100)
    monkeypatch.setattr(sources, "MAX_TOTAL", 150)
    outside = tmp_path / "outside.py"
    outside.write_text("x = 1")
    root = tmp_path / "project"
    root.mkdir()
    (root / "a.py").write_text("a" * 90)
    (root / "b.py").write_text("b" * 90)
    (root / "big.py").write_text("c" * 101)
    for name in ("my_secret.py", ".env", "id_rsa", "db_credentials.py", "server.key"):
        (root / name).write_text("hunter2")
    (root / "link.py").symlink_to(outside)
    names = [p.name for p in root.iterdir()] + ["gone.py"]
    found = sources.collect(root, names)
    assert set(found.contents) == {"a.py"}
    reasons = {s.path: s.skipped for s in found.states}
    assert reasons["b.py"] == "more than 300 files or 150 bytes in all"
    assert reasons["big.py"] == "larger than 100 bytes"
    assert reasons["link.py"] == "a link out of the project"
    assert reasons["gone.py"] == "No such file or directory"
    secrets = {".env", "id_rsa", "my_secret.py", "db_credentials.py", "server.key"}
    assert {n for n, why in reasons.items() if why == "named like a secret"} == secrets
    assert all(s.digest is None for s in found.states if s.skipped)


def test_a_record_cannot_claim_bytes_that_were_not_sent(tmp_path: Path) -> None:
    """A digest alone would open what another project stores."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "p"\n')
    with open_workspace(tmp_path) as workspace:
        ops = workspace.tracking.operations
        run = ops.create_run(experiment="e").id
        claimed = CodeState(files=[FileState(path="a.py", size=1, digest="0" * 64)])
        with pytest.raises(InvalidInput, match="was not sent"):
            ops.record_capture(run=run, code=claimed)
        with pytest.raises(InvalidInput, match="does not name this file"):
            ops.record_capture(run=run, code=claimed, files={"a.py": b"x"})


def test_a_tracked_file_of_secrets_is_not_in_the_diff(tmp_path: Path) -> None:
    """Seen red on 0.1: the changed line of a tracked .env stood in the code record."""
    from mainspring.tracking.capture import capture_code

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / ".env").write_text("TOKEN=old\n")
    (tmp_path / "a.py").write_text("x = 1\n")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (tmp_path / ".env").write_text("TOKEN=hunter2\n")
    (tmp_path / "a.py").write_text("x = 2\n")
    state = capture_code(tmp_path)
    assert "x = 2" in str(state.diff)
    assert "hunter2" not in str(state.diff)
