"""Importing project code: only in the runner's process and in the processes of steps, never in a server."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import blake3

from mainspring.errors import InvalidInput, NotFound, near
from mainspring.pipelines.step import Pipeline, options_of

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_roots: set[Path] = set()
_added_paths: set[str] = set()  # entries of sys.path that were not there before


def load_pipeline(spec: str, *, root: Path) -> Pipeline[..., Any]:
    """The pipeline ``file.py:name`` of the project at ``root``; its modules are imported afresh, so edits are seen.

    Raises :class:`NotFound` for a missing file or name, :class:`InvalidInput` for code that cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    if not file:
        raise InvalidInput(
            "a pipeline is named file.py:function",
            value=spec,
            next_step="For example pipelines/train.py:train.",
        )
    root = root.resolve()
    path = (root / file).resolve()
    if not path.is_file():
        raise NotFound("there is no such pipeline file", value=file, place=str(root))
    forget_projects(root)
    module = load_module(path, root=root)
    pipeline = getattr(module, name, None)
    if not isinstance(pipeline, Pipeline):
        known = [k for k, v in vars(module).items() if isinstance(v, Pipeline)]
        raise NotFound(
            f"{file} has no pipeline {name!r}", next_step=near(name, known, what="pipeline in this file")
        )
    return pipeline


def load_function(spec: str, *, root: Path) -> Callable[..., Any]:
    """The step function ``file:qualname``, as a plain function."""
    file, _, qualname = spec.rpartition(":")
    value: Any = load_module((root / file).resolve(), root=root)
    for part in qualname.split("."):
        value = getattr(value, part, None)
    if not callable(value) or (options_of(value) is None and isinstance(value, type)):
        raise InvalidInput(
            "a step must be a function at the top of its module",
            value=qualname,
            place=file,
            next_step="Move it out of the function that defines it.",
        )
    function: Callable[..., Any] = (
        getattr(value, "__wrapped__", value) if options_of(value) is not None else value
    )
    return function


def load_module(path: Path, *, root: Path) -> ModuleType:
    """Import the file under its dotted name below ``root`` if Python would find it so, else under a name of its own."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    _set_path(root, path.parent)
    _roots.add(root.resolve())
    name = _dotted_name(path, root)
    try:
        if name is not None:
            return importlib.import_module(name)
        name = f"mainspring_project_{blake3.blake3(str(path).encode()).hexdigest()[:16]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise NotFound("not a Python file", value=str(path))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return module
    except (SyntaxError, ImportError) as error:
        raise InvalidInput(
            f"project code cannot be imported: {type(error).__name__}: {error}", place=str(path)
        ) from error


def forget_projects(*roots: Path) -> None:
    """Drop imported project modules, so that the next import sees the files as they are now."""
    known = {str(r.resolve()) for r in roots} | {str(r) for r in _roots}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name in {"__main__", "conftest"} or name.startswith("mainspring."):
            continue
        if _is_below(file, known) and not _INSTALLED & set(Path(file).parts):
            del sys.modules[name]
    for name, module in list(sys.modules.items()):  # namespace packages have a path but no file
        if getattr(module, "__file__", None) is None and any(
            _is_below(p, known) for p in getattr(module, "__path__", ())
        ):
            del sys.modules[name]
    importlib.invalidate_caches()


def _is_below(path: str, folders: set[str]) -> bool:
    """Whether ``path`` is one of these folders or below one, in as many steps as it is deep, however many folders there are."""
    while path not in folders:
        parent = os.path.dirname(path)  # noqa: PTH120 - thousands of modules: a Path costs twenty times as much
        if parent == path:
            return False
        path = parent
    return True


def _set_path(root: Path, folder: Path) -> None:
    """Put the project's root first on ``sys.path``, then the folder of the file, as for a script; remove other projects' entries."""
    wanted = [str(root.resolve()), str(folder)]
    # Only entries that this module added are removed: a directory that the caller had on the path stays.
    stale = {p for p in _added_paths if p not in wanted and not Path(p).is_relative_to(root.resolve())}
    _added_paths.difference_update(stale)
    _added_paths.update(p for p in wanted if p not in sys.path)
    sys.path[:] = [*dict.fromkeys(wanted), *(p for p in sys.path if p not in wanted and p not in stale)]


def _dotted_name(path: Path, root: Path) -> str | None:
    """The module name under which Python would import this very file; None if there is none."""
    root = root.resolve()
    if not path.is_relative_to(root) or path.suffix != ".py":
        return None
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    if not parts or not all(p.isidentifier() for p in parts):
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return name if spec is not None and spec.origin == str(path) else None
