"""What a test starts ends with it, whether it passes, hangs, crashes its worker, or the whole session is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process trees are followed on Linux only")

SUITE = """
import os, subprocess, sys, time
from pathlib import Path

def start():
    # Through a shell that ends at once, in a session of its own: no process group leads to it any more.
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); open('there', 'w').close(); time.sleep(3600)"
    subprocess.run(["sh", "-c", 'setsid "$0" -c "$1" &', sys.executable, code], check=True)
    while not Path("there").exists():
        time.sleep(0.01)

def test_it():
    start()
    {then}
"""


def begin(folder: Path, then: str, *arguments: str) -> subprocess.Popen[str]:
    (folder / "test_suite.py").write_text(SUITE.format(then=then))
    (folder / "pytest.ini").write_text("[pytest]\n")
    plugins = Path(__file__).parents[1] / "plugins"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "children", "-p", "no:cacheprovider", *arguments]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    env |= {"PYTHONPATH": str(plugins), "MAINSPRING_TEST_SETTLE_S": "2"}  # what these leave is meant to stay
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def wait_until_gone(folder: Path) -> None:
    """The process of the inner test has ended; the outer time limit is the only deadline."""
    status = Path(f"/proc/{(folder / 'pid').read_text()}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX":
        time.sleep(0.02)


def test_a_test_that_leaves_a_process_fails_and_the_process_ends(tmp_path: Path) -> None:
    session = begin(tmp_path, "pass")
    said, _ = session.communicate()
    assert session.returncode == 1, said
    assert "left processes behind" in said
    wait_until_gone(tmp_path)


def test_a_test_that_times_out_leaves_nothing(tmp_path: Path) -> None:
    session = begin(tmp_path, "time.sleep(3600)", "--timeout=5")
    said, _ = session.communicate()
    assert session.returncode == 1, said
    wait_until_gone(tmp_path)


def test_a_crashed_worker_leaves_nothing(tmp_path: Path) -> None:
    session = begin(tmp_path, "os._exit(1)", "-n", "1", "--max-worker-restart=0")
    said, _ = session.communicate()
    assert session.returncode == 1, said
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_session_that_is_killed_leaves_nothing(
    tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    session = begin(tmp_path, "time.sleep(3600)", "-n", workers)
    wait_for(tmp_path / "there")
    session.send_signal(number)
    session.communicate()
    wait_until_gone(tmp_path)
