"""The source files of a run, kept by content, whether Git knows them or not. Bounded in number and size; never a file named like a secret."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import blake3

from mainspring.records.tracking import FileState

MAX_FILES = 300
MAX_FILE = 1 << 20
MAX_TOTAL = 4 << 20
"""Bytes in all; they travel in one call."""

NOTEBOOK = "notebook-cells.py"
_KINDS = frozenset({".py", ".ipynb"})
_NOT_OURS = frozenset(
    {"site-packages", "dist-packages", ".venv", "venv", ".mainspring", ".git", "__pycache__"}
)
_SECRET = re.compile(
    r"(^|/)\.env|secret|credential|password|\.(pem|key)$|(^|/)id_(rsa|dsa|ecdsa|ed25519)", re.IGNORECASE
)

KEPT_BACK = "named like a secret"


def is_secret(shown: str) -> bool:
    """Whether a file's name in the project says that its bytes should not be kept where others read them."""
    return _SECRET.search(shown) is not None


@dataclass
class Sources:
    """Files by the name they are kept under, with their bytes; what could not be kept says why."""

    states: list[FileState] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    total: int = 0

    def add(self, shown: str, path: Path, *, root: Path) -> None:
        """Keep one file, if it may and can be kept."""
        skipped = self._refused(shown, path, root)
        data = b""
        if skipped is None:
            try:
                data = path.read_bytes()
            except OSError as error:
                skipped = error.strerror or "unreadable"
        self._keep(shown, data, skipped)

    def add_text(self, shown: str, text: str) -> None:
        self._keep(shown, text.encode("utf-8", "surrogateescape"), None)

    def _refused(self, shown: str, path: Path, root: Path) -> str | None:
        if is_secret(shown):
            return KEPT_BACK
        if path.suffix not in _KINDS:
            return "not a Python file"
        with contextlib.suppress(OSError, RuntimeError):
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                return "a link out of the project"
        return None

    def _keep(self, shown: str, data: bytes, skipped: str | None) -> None:
        shown = shown.encode("utf-8", "backslashreplace").decode()
        if skipped is None and len(data) > MAX_FILE:
            skipped = f"larger than {MAX_FILE} bytes"
        if skipped is None and (self.total + len(data) > MAX_TOTAL or len(self.contents) >= MAX_FILES):
            skipped = f"more than {MAX_FILES} files or {MAX_TOTAL} bytes in all"
        if skipped is not None:
            self.states.append(FileState(path=shown, size=len(data), skipped=skipped))
            return
        digest = blake3.blake3(data).hexdigest()
        self.states.append(FileState(path=shown, size=len(data), digest=digest))
        self.contents[shown] = data
        self.total += len(data)


def collect(root: Path, files: Iterable[str] | None = None) -> Sources:
    """The named files of the project at ``root``; by default the entry script or notebook and the modules imported from
    below ``root``."""
    collected = Sources()
    if files is None:
        cells = _read_cells()
        if cells is not None:
            collected.add_text(NOTEBOOK, cells)
        named = {**_find_entry(root), **imported(root)}
    else:
        named = {**{f: root / f for f in files}, **_find_entry(root)}
    for shown in sorted(named):
        collected.add(shown, named[shown], root=root)
    return collected


def _find_entry(root: Path) -> dict[str, Path]:
    """The script that was started; an installed command is not one of the user's source files."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not main:
        return {}
    path = Path(main).absolute()
    if _NOT_OURS & set(path.parts) or path.suffix not in _KINDS or not path.is_file():
        return {}
    return {_shown_name(path, root): path}


def imported(root: Path) -> dict[str, Path]:
    """The modules of this process that were imported from below ``root``, by their names there."""
    modules: dict[str, Path] = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py"):
            continue
        path = Path(file)
        with contextlib.suppress(ValueError):
            inside = path.relative_to(root.absolute())
            if not _NOT_OURS & set(inside.parts):
                modules[inside.as_posix()] = path
    return modules


def _read_cells() -> str | None:
    """What a notebook has run so far: its file may not be saved, and the kernel does not know its path."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    history = getattr(getattr(shell, "history_manager", None), "input_hist_raw", None)
    if not history:
        return None
    return "\n\n".join(f"# %%\n{cell}" for cell in history if isinstance(cell, str) and cell.strip())


def _shown_name(path: Path, root: Path) -> str:
    return path.relative_to(root.absolute()).as_posix() if path.is_relative_to(root.absolute()) else path.name
