"""Importing in advance, in the warm server: only installed modules, and none that would make forking unsafe.

Project files are never imported here, so an edit is always seen. A library that starts threads when it is imported must not
be loaded: a forked child has its locks but not its threads. Two libraries handle forks (``pthread_atfork``): OpenBLAS ends its
threads before a fork, jemalloc (in pyarrow) holds its locks during one. Any other cannot be unloaded again, so the server
restarts without it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_SETTLE_S = 0.05
_FORK_SAFE = frozenset({"jemalloc_bg_thd"})
KNOWN_THREADED = frozenset({"duckdb", "polars"})
"""The check below finds them too; listing them here saves each server a restart."""


def load_modules(
    names: list[str], *, avoid: frozenset[str] = frozenset(), until: Callable[[], bool] = lambda: False
) -> str | None:
    """Import each of ``names`` (``module`` or ``module:attribute``), or those before ``until`` is true; returns the package of the first
    that left threads, or None.

    Errors are ignored: the same import fails again, and is reported, in the step that needs it.
    """
    for name in names:
        if until():
            return None
        package = name.partition(":")[0].partition(".")[0]
        if package in avoid or package in KNOWN_THREADED or not is_installed(package):
            continue
        with contextlib.suppress(BaseException):
            _import_name(name)
        if count_threads() > 1 and not _threads_end_at_fork():
            return package
    return None


def _import_name(name: str) -> None:
    module_name, _, attribute = name.partition(":")
    module = sys.modules.get(module_name) or importlib.import_module(module_name)
    if attribute and attribute != "*" and not hasattr(module, attribute):
        importlib.import_module(f"{module_name}.{attribute}")


def is_installed(name: str) -> bool:
    """Whether Python would find the module in its library or among installed packages, and not in anybody's project."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "mainspring":
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return all(_INSTALLED & set(Path(p).parts) for p in places)


def loaded_since(before: frozenset[str]) -> list[str]:
    """Installed modules that were imported after ``before`` was taken of ``sys.modules``, in the order of their import."""
    names = []
    for name, module in list(sys.modules.items()):
        if name in before:
            continue
        with contextlib.suppress(Exception):  # sys.modules may hold any object
            spec = module.__spec__
            if spec is not None and (
                name.startswith("mainspring.") or _INSTALLED & set(Path(spec.origin or "").parts)
            ):
                names.append(name)
    return names


def count_threads() -> int:
    """How many threads this process has, those of libraries included, known safe ones excluded; at least 1 if ``/proc`` is missing."""
    count = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            count += (task / "comm").read_text().strip() not in _FORK_SAFE
    except OSError:
        return max(1, count)
    return count


def _threads_end_at_fork() -> bool:
    """Whether the other threads have ended after a fork: then their library handles forks, or they were short-lived."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    until = time.monotonic() + _SETTLE_S  # a thread that is ending needs a moment
    while count_threads() > 1 and time.monotonic() < until:
        time.sleep(0.002)
    return count_threads() == 1
