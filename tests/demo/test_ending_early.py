"""The demo's servers and clients end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mainspring.pipelines.processes import descendants


@pytest.mark.skipif(sys.platform != "linux", reason="process trees are followed on Linux only")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_the_demo_with_all_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    """SIGKILL: seen red with servers that do not end with their input."""
    place = ["--dir", str(tmp_path / "flights"), "--port", "0"]
    command = [sys.executable, "-m", "mainspring.cli", "demo", "--once", *place]
    demo = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert demo.stderr is not None
        for line in demo.stderr:
            if line.startswith("Collect"):
                break
        below = descendants(demo.pid)
        assert len(below) >= 4, "control plane, inference server and its worker, traffic, baseline"
        demo.send_signal(number)
        demo.communicate()
        assert demo.returncode == (-number if number == signal.SIGKILL else 128 + number)
        while any(_runs(pid) for pid in below):  # the time limit of the test is the only deadline
            time.sleep(0.05)
    finally:
        os.killpg(demo.pid, signal.SIGKILL) if _runs(demo.pid) else None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
