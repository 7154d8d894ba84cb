"""How the command line ends as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys, threading, time
atexit.register(lambda: print("exit functions ran"))  # the first one is run last
import {library}
from mainspring.cli import main
def late():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    print("threads were joined")
threading.Thread(target=late).start()
sys.argv = ["mainspring", *{arguments!r}]
print("without a newline", end="")
main.program()
"""


@pytest.mark.parametrize("library", ["pyarrow", "json"])
@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["nothing"], 2)])
def test_a_process_ends_as_python_does_with_arrow_and_without(
    library: str, arguments: list[str], status: int
) -> None:
    """Seen red for pyarrow without each of: the exit functions, the threads, the flush, the status."""
    script = SCRIPT.format(library=library, arguments=arguments)
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=buffered, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("without a newline")
    assert done.stdout.endswith("threads were joined\nexit functions ran\n")


def test_arrow_s_destructors_do_not_run() -> None:
    """They may abort (apache/arrow#34314). Seen red with sys.exit: the last word is a C++ destructor's."""
    script = (
        "import ctypes, pyarrow, sys\nfrom mainspring.cli import main\n"
        "end = ctypes.CFUNCTYPE(None)(lambda: sys.__stderr__.write('destructors ran'))\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.atexit(end) if hasattr(libc, 'atexit') else libc.__cxa_atexit(ctypes.cast(end, ctypes.c_void_p), None, None)\n"
        "sys.argv = ['mainspring', '--version']\nmain.program()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [["run", "rent"], ["plan", "rent"], ["resume", "r"], ["up"], ["serve"]],
    ids=lambda a: a[0],
)
def test_what_needs_the_workspace_itself_refuses_a_server(arguments: list[str]) -> None:
    """On 0.1 resume, up and serve ended in an AttributeError."""
    command = [sys.executable, "-m", "mainspring.cli", "--url", "http://127.0.0.1:1", *arguments]
    environment = os.environ | {"MAINSPRING_TOKEN": "x"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error[invalid_input]: this command needs the workspace itself" in done.stderr


@pytest.mark.parametrize("arguments", [["up"], ["run", "rent"], ["gc"]], ids=lambda a: a[0])
def test_what_works_on_a_directory_refuses_another_project(tmp_path: Path, arguments: list[str]) -> None:
    """It would have run this directory's code and policy for the other project."""
    place = str(tmp_path / "own")
    subprocess.run([sys.executable, "-m", "mainspring.cli", "init", place], check=True, capture_output=True)
    command = [sys.executable, "-m", "mainspring.cli", "-C", place, "--project", "other", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "-C DIR" in done.stderr


def test_predictions_are_not_asked_of_the_control_plane() -> None:
    command = [
        sys.executable,
        "-m",
        "mainspring.cli",
        "--url",
        "http://127.0.0.1:1",
        "predict",
        "d",
        "--row",
        "{}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--at" in done.stderr
