"""The demo's processes: start them, exchange lines with them, measure their memory, end them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mainspring.errors import Unavailable


class Process:
    """A child process that answers each line of input with one line of JSON. Its stderr goes to a file."""

    def __init__(
        self, module: str, arguments: list[str], *, log: Path, cwd: Path | None = None, nice: int = 0
    ) -> None:
        self._log = log
        self._name = module
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=cwd,
                env={k: v for k, v in os.environ.items() if not k.startswith("MAINSPRING_")},
                preexec_fn=(lambda: os.nice(nice)) if nice else None,  # noqa: PLW1509 - no threads run at that moment that hold locks
            )

    def request(self, line: str) -> Any:
        """Send a line and wait for the answer."""
        self.send(line)
        return self.read_answer()

    def send(self, line: str) -> None:
        assert self._child.stdin is not None  # noqa: S101 - stdin=PIPE above
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()

    def read_answer(self) -> Any:
        """The next line it prints; raises :class:`Unavailable` with the end of its log if it died."""
        assert self._child.stdout is not None  # noqa: S101
        line = self._child.stdout.readline()
        if not line:
            status = self._child.wait()
            tail = self._log.read_text(errors="replace").strip().splitlines()[-5:]
            raise Unavailable(
                f"{self._name} ended",
                value=f"status {status}: {' | '.join(tail)}",
                place=str(self._log),
                next_step="Its log says why.",
            )
        return json.loads(line)

    def end(self) -> None:
        """Close its input, ask it to end, wait."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def wait(self) -> int:
        return self._child.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class MemoryMeter:
    """The largest proportional set size of this process and all its descendants, in MB, sampled every half second."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_mb = max(self.peak_mb, measure_tree_pss_kb(os.getpid()) / 1024)


def measure_tree_pss_kb(root: int) -> int:
    """PSS of a process and its descendants, in KiB; processes that end meanwhile count as zero."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    total, queue = 0, [root]
    while queue:
        pid = queue.pop()
        queue += children.get(pid, [])
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total
