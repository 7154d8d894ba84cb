"""Outbound: nothing leaves the machine that nobody asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_LOAD = """
import time
from mainspring.models.formats.onnx.predictor import _runtime
_runtime()
time.sleep(1.0)
"""


def test_s08_the_model_runtime_starts_no_telemetry() -> None:
    """S08. ONNX Runtime reads this variable at import; seen red with the line that sets it removed."""
    code = _LOAD + "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "telemetry" not in done.stderr.lower()


@pytest.mark.kernel
def test_s08_loading_a_model_runtime_connects_nowhere(tmp_path: Path) -> None:
    """S08, by the kernel's word. Its twin above always runs."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    log = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(log), sys.executable, "-c", _LOAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "AF_INET" not in log.read_text()
