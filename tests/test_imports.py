"""What loads, and when: lists, no timings (those are in ``make bench``)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "datasketches", "duckdb", "httpx2", "jinja2", "narwhals", "numpy", "onnxruntime", "optuna", "pandas", "polars", "psycopg", "pyarrow",
    "rich", "skl2onnx", "sklearn", "skops", "sqlalchemy", "sqlite3", "starlette", "uvicorn",
}  # fmt: skip


def _loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``code``."""
    script = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _command(*arguments: str) -> str:
    return f"""
from mainspring.cli.main import main
try:
    main({list(arguments)!r})
except SystemExit as end:
    assert end.code == 0, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import mainspring",
        _command("--help"),
        _command("--version"),
        _command("status", "--help"),
        _command("run", "--help"),
        _command("data", "commit", "--help"),
        _command("demo", "--help"),
    ],
    ids=["import", "help", "version", "status-help", "run-help", "commit-help", "demo-help"],
)
def test_nothing_heavy_loads(code: str) -> None:
    """Seen red with `import numpy` written into mainspring/errors.py."""
    assert _loaded(code) & HEAVY == set()


def test_the_list_of_heavy_libraries_can_fail() -> None:
    assert {"numpy", "pyarrow"} <= _loaded("import pyarrow, numpy")


def test_status_of_a_local_workspace_loads_no_table_library(tmp_path: Path) -> None:
    """Lists need no numbers: seen red while the monitoring room loaded numpy for whatever it was asked, half of the command's time."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "small"\n')
    loaded = _loaded(_command("-C", str(tmp_path), "status"))
    assert loaded & (HEAVY - {"sqlite3"}) == set()
    assert "sqlite3" in loaded


def test_defining_steps_loads_nothing_heavy() -> None:
    code = "import mainspring as ms\n@ms.step\ndef f(x: int) -> int: return x\n@ms.pipeline\ndef p(): return f(1)"
    assert _loaded(code) & HEAVY == set()


def test_every_public_name_imports() -> None:
    import mainspring

    assert mainspring.__all__ == sorted(mainspring.__all__, key=lambda n: (n[0].islower(), n))
    for name in mainspring.__all__:
        assert getattr(mainspring, name) is not None
        assert name in dir(mainspring)
    with pytest.raises(AttributeError, match="no_such"):
        mainspring.no_such  # noqa: B018 - the access is the test
