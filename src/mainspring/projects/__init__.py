"""New projects from the templates that the package carries; models written into a project from a table (``starting``)."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path


def copy_template(template: str, directory: Path, *, name: str) -> list[str]:
    """Copy a template's files into ``directory``; the project's name is filled in. Returns the paths written."""
    written: list[str] = []
    with as_file(files("mainspring") / "templates" / template) as source:
        for path in sorted(source.rglob("*")):
            relative = path.relative_to(source)
            if path.is_dir() or "__pycache__" in relative.parts:
                continue
            target = directory / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            written.append(str(relative))
    policy = directory / "mainspring.toml"
    text = policy.read_text()
    policy.write_text(text.replace(f'name = "{template}"', f'name = "{name}"', 1))
    return written
