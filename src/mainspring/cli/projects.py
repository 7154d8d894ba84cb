"""``mainspring init``."""

from __future__ import annotations

from pathlib import Path

import click

from mainspring.cli.output import emit, json_option, say

NEXT = {
    "basic": "mainspring data commit rents data/rents.csv, then mainspring run rent",
    "flights": "read README.md",
}
"""What a new project of each template needs first."""
TEMPLATES = tuple(NEXT)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--template", type=click.Choice(TEMPLATES), default="basic", show_default=True)
@json_option
def init(directory: Path, template: str, as_json: bool) -> None:
    """Make a project in DIRECTORY that runs, with its policy, a pipeline and tests."""
    from mainspring.errors import Conflict
    from mainspring.projects import copy_template
    from mainspring.records.base import check_name

    name = check_name(directory.absolute().name, what="project")
    if directory.exists() and any(directory.iterdir()):
        raise Conflict(
            "the directory is not empty",
            value=str(directory),
            next_step="Name a new one; nothing was written.",
        )
    made = copy_template(template, directory, name=name)
    if as_json:
        emit({"directory": str(directory), "files": made})
        return
    for path in made:
        click.echo(path)
    say(f"next: cd {directory}, then {NEXT[template]}")
