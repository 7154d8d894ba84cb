"""``mainspring new``: from a table to a pipeline, its test and its policy in a project. All is checked before anything is written."""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mainspring import config as configuration
from mainspring import durable
from mainspring.config import FILE
from mainspring.data.sources import read_file
from mainspring.errors import Conflict
from mainspring.projects.survey import Survey, survey
from mainspring.projects.texts import Choices, pipeline_text, policy_text, test_text
from mainspring.records.base import check_name, seconds
from mainspring.records.reading import Reading


@dataclass(frozen=True)
class Start:
    """What is to be written: ``files`` by their path in the project; ``policy`` is added to the end of ``mainspring.toml``."""

    name: str
    source: Path
    survey: Survey
    files: dict[str, str]
    policy: str
    begins_project: str | None
    """The name of the project that is begun here, where there was none."""


def plan(
    root: Path,
    name: str,
    source: Path,
    *,
    target: str,
    command: str,
    time: str | None = None,
    group: str | None = None,
    task: str | None = None,
    keep: Sequence[str] = (),
    label_delay: str = "0s",
    budget: str = "60s",
) -> Start:
    """Look at the data and make the texts; nothing is written.

    Raises :class:`Conflict` with what is there already, :class:`InvalidInput` and :class:`NotFound` for data, columns or options
    that cannot be right.
    """
    check_name(name, what="model")
    seconds(label_delay), seconds(budget)
    present = (root / FILE).exists()
    text = (root / FILE).read_text() if present else ""
    config = configuration.parse(text.encode(), place=str(root / FILE))
    pipeline, test = f"pipelines/{_module(name)}.py", f"tests/test_{_identifier(name)}.py"
    _check_free(root, text, name, [pipeline, test])
    declared = config.data.get(name)
    table = read_file(source, declared.reading if declared is not None else Reading())
    found = survey(table, target=target, time=time, group=group, task=task, keep=keep)
    choices = Choices(
        name=name, source=_relative(source, root), target=target, time=time, group=group, task=task, keep=keep,
        label_delay=label_delay, budget=budget, command=command,
    )  # fmt: skip
    files = {pipeline: pipeline_text(choices, found), test: test_text(choices, found, pipeline)}
    policy = policy_text(choices, found, table, pipeline, with_data=declared is None)
    begins = None if present else _project_name(root)
    if begins is not None:
        policy = f'# Policy of this project: what must hold, what runs when. Reviewed like code.\n[project]\nname = "{begins}"\n{policy}'
    configuration.parse(
        _joined(text, policy).encode(), place=str(root / FILE)
    )  # what is written must be read again
    return Start(name=name, source=source, survey=found, files=files, policy=policy, begins_project=begins)


def write(root: Path, start: Start) -> list[str]:
    """Write what :func:`plan` made; returns the paths. Nothing is overwritten, and nothing is left if something is in the way."""
    made: list[Path] = []
    try:
        for path, text in start.files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x") as file:
                made.append(target)
                file.write(text)
        policy = root / FILE
        before = policy.read_text() if policy.exists() else ""
        mode = policy.stat().st_mode & 0o777 if policy.exists() else 0o644
        durable.replace(policy, _joined(before, start.policy).encode(), mode=mode)
    except BaseException as error:
        for place in made:
            place.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise Conflict(
                "a file is there already", value=error.filename, next_step="Nothing was written."
            ) from None
        raise
    return [*start.files, FILE]


def _check_free(root: Path, text: str, name: str, paths: Sequence[str]) -> None:
    raw = tomllib.loads(text)
    taken = [
        f"[{section}.{name}]" for section in ("model", "deploy", "monitor") if name in raw.get(section, {})
    ]
    taken += [path for path in paths if (root / path).exists()]
    if not taken:
        return
    whole = len(taken) == 3 + len(paths)
    raise Conflict(
        f"{name} is there already: {', '.join(taken)}"
        if whole
        else f"some of it is there already: {', '.join(taken)}",
        value=name,
        place=str(root),
        next_step=f"Train it: mainspring run {name}. Or choose another name; nothing was written."
        if whole
        else "Move it away, or choose another name; nothing was written.",
    )


def _joined(before: str, added: str) -> str:
    return before + ("" if not before or before.endswith("\n") else "\n") + added


def _relative(source: Path, root: Path) -> str:
    return Path(os.path.relpath(source.resolve(), root.resolve())).as_posix()


def _project_name(root: Path) -> str:
    """The directory's name, in the letters that a project's name may have."""
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in root.resolve().name
    ).strip("-")
    return check_name(name or "project", what="project")


def _identifier(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


def _module(name: str) -> str:
    """A name for the pipeline's module under which no other is imported: its folder comes first on the path."""
    stem = _identifier(name)
    if stem in sys.stdlib_module_names or importlib.util.find_spec(stem) is not None:
        return f"train_{stem}"
    return stem
