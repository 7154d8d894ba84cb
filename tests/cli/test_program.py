"""How the command line ends as a process."""

from __future__ import annotations

import os
import subprocess
import sys

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
