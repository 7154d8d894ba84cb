"""A file is whole or as it was, and its bytes are on the disk before its name is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mainspring import durable


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    durable.replace(path, b"one")
    durable.replace(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_what_cannot_be_written_leaves_the_old_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    durable.replace(path, b"one")
    with pytest.raises(TypeError):
        durable.replace(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_bytes_are_synced_before_the_rename_and_the_folder_after_it(tmp_path: Path) -> None:
    """Seen red without either sync."""
    script = f"from pathlib import Path; from mainspring import durable; durable.replace(Path({str(tmp_path / 'x')!r}), b'1')"
    log = tmp_path / "calls"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", "-o", str(log)]
    subprocess.run([*command, sys.executable, "-c", script], check=True)
    calls = [c for c in re.findall(r"(fsync|rename)\w*\((.*)\)", log.read_text()) if str(tmp_path) in c[1]]
    assert [name for name, _ in calls] == ["fsync", "rename", "fsync"]
    assert ".tmp>" in calls[0][1]
    assert calls[2][1].endswith(f"<{tmp_path}>")
