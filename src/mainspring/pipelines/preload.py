"""Importing ahead, in the warm server: only what is installed, and nothing that would make forking unsafe.

Project files are never imported here, so an edit is always seen. A library that starts threads when it is imported must not
be loaded: a forked child has its locks but not its threads. Two know about forks (``pthread_atfork``): OpenBLAS takes its
threads down before one, jemalloc (in pyarrow) holds its locks during one. Any other cannot be unloaded again, so the server
starts itself over without it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_SETTLE_S = 0.05
_FORK_SAFE = frozenset({"jemalloc_bg_thd"})
KNOWN_THREADED = frozenset({"duckdb", "polars"})
"""Found by the check below; naming them saves a server the discovery."""


def load(names: list[str], *, avoid: frozenset[str] = frozenset()) -> str | None:
    """Import each of ``names`` (``module`` or ``module:attribute``); returns the package of the first that left threads, or None.

    What fails here fails again, and is reported, in the step that needs it.
    """
    for name in names:
        package = name.partition(":")[0].partition(".")[0]
        if package in avoid or package in KNOWN_THREADED or not is_installed(package):
            continue
        with contextlib.suppress(BaseException):
            _load(name)
        if threads() > 1 and not _forks_clean():
            return package
    return None


def _load(name: str) -> None:
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
    found = []
    for name, module in list(sys.modules.items()):
        if name in before:
            continue
        with contextlib.suppress(Exception):  # anything may stand in sys.modules
            spec = module.__spec__
            if spec is not None and (
                name.startswith("mainspring.") or _INSTALLED & set(Path(spec.origin or "").parts)
            ):
                found.append(name)
    return found


def threads() -> int:
    """Threads of this process, the libraries' own included but not those that are known to be safe; 1 where that cannot be known."""
    found = 0
    try:
        for task in Path("/proc/self/task").iterdir():
            found += (task / "comm").read_text().strip() not in _FORK_SAFE
    except OSError:
        return max(1, found)
    return found


def _forks_clean() -> bool:
    """Whether the threads are gone after a fork: then their library knows about forks. Some only live for a moment."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    until = time.monotonic() + _SETTLE_S
    while threads() > 1 and time.monotonic() < until:
        time.sleep(0.002)
    return threads() == 1
