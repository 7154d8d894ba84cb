"""``mainspring new``: a model for a table, written into the project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import json_option, local_workspace_settings, print_json, print_note
from mainspring.records.base import counted

if TYPE_CHECKING:
    from mainspring.projects.starting import Start


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--target", required=True, metavar="COLUMN", help="The column to predict.")
@click.option("--time", metavar="COLUMN", help="When each row was: the newest are held out to judge by.")
@click.option("--group", metavar="COLUMN", help="What rows belong to: whole groups are held out.")
@click.option("--task", help="binary, multiclass or regression (default: what the target looks like).")
@click.option(
    "--keep",
    multiple=True,
    metavar="COLUMN",
    help="Use it although it looks like an identifier, or gives the target away; repeat for more.",
)
@click.option(
    "--label-delay",
    default="0s",
    show_default=True,
    metavar="TIME",
    help="How long after a row its target becomes known, e.g. 30d.",
)
@click.option(
    "--budget",
    default="60s",
    show_default=True,
    metavar="TIME",
    help="How long each search for a model may take.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@json_option
def new(
    name: str,
    file: Path,
    target: str,
    time: str | None,
    group: str | None,
    task: str | None,
    keep: tuple[str, ...],
    label_delay: str,
    budget: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write a pipeline, checks, a gate, deployment, monitoring and a test for a model NAME of the table in FILE.

    Looks at the data first and says what it assumes. Nothing is overwritten. Without a project, one begins in this directory.
    """
    from mainspring.projects import starting

    settings = local_workspace_settings()
    given = {"--time": time, "--group": group, "--task": task}
    words = ["mainspring", "new", name, str(file), "--target", target]
    words += [w for option, value in given.items() if value is not None for w in (option, value)]
    words += [w for column in keep for w in ("--keep", column)]
    words += ["--label-delay", label_delay] if label_delay != "0s" else []
    start = starting.plan(
        settings.root,
        name,
        file,
        target=target,
        command=shlex.join(words),
        time=time,
        group=group,
        task=task,
        keep=keep,
        label_delay=label_delay,
        budget=budget,
    )
    if not as_json:
        _show_survey(start)
    written = [] if dry_run else starting.write(settings.root, start)
    version = None if dry_run else _commit(settings.root, start)
    if as_json:
        _print_as_json(start, written, version)
        return
    if dry_run:
        for path, text in {**start.files, "mainspring.toml (added)": start.policy}.items():
            click.echo(f"--- {path}\n{text}")
        print_note("nothing was written; leave --dry-run out to write it")
        return
    for path in written:
        click.echo(path)
    print_note(f"dataset {name} version {version}")
    print_note(
        f"next: mainspring run {name} trains and registers a model; then mainspring up serves and watches it"
    )


def _show_survey(start: Start) -> None:
    found = start.survey
    if start.begins_project is not None:
        print_note(f"there is no project here: {start.begins_project!r} begins in this directory")
    print_note(f"{counted(found.rows, 'row')} in {start.source}")
    for line in found.lines:
        print_note(f"  {line}")
    for line in found.cautions:
        print_note(f"  {click.style('beware:', fg='yellow')} {line}")
    print_note(f"  guessing scores {found.metric} {found.guessing:.3g}: the gate wants better")


def _commit(root: Path, start: Start) -> int:
    """The first version of the dataset, with the checks that were just written."""
    from mainspring.workspace import open_workspace

    with open_workspace(root) as workspace:
        declared = workspace.settings.config.data[start.name]
        return workspace.data.commit(
            start.name, start.source, checks=declared.checks, reading=declared.reading
        ).number


def _print_as_json(start: Start, written: list[str], version: int | None) -> None:
    found = start.survey
    print_json(
        {
            "name": start.name,
            "task": found.problem.task.value,
            "rows": found.rows,
            "inputs": found.problem.inputs,
            "left_out": found.problem.left_out,
            "assumed": found.lines,
            "beware": found.cautions,
            "metric": found.metric,
            "guessing": found.guessing,
            "files": start.files,
            "policy": start.policy,
            "begins_project": start.begins_project,
            "written": written,
            "dataset_version": version,
        }
    )
