"""``mainspring experiments``: list, show, create, rename, delete, restore."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import (
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.records.tracking import Experiment
    from mainspring.rooms import Namespaces


@click.group()
def experiments() -> None:
    """Experiments: list, show, create, rename, delete, restore."""


def _name_or_id(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument NAME and the option ``--id``: an experiment is named by one of them."""
    command = click.option("--id", "ident", metavar="ID", help="Name the experiment by its id.")(command)
    return click.argument("name", required=False)(command)


@experiments.command("list")
@click.option(
    "--view",
    type=click.Choice(["active", "deleted", "all"]),
    default="active",
    show_default=True,
    help="Which.",
)
@click.option("--limit", default=100, show_default=True)
@click.option("--after", help="Go on after this name.")
@json_option
@with_workspace
def list_(workspace: Namespaces, view: Any, limit: int, after: str | None, as_json: bool) -> None:
    """Experiments by name, with how many runs each holds."""
    page = workspace.tracking.list_experiments(view=view, limit=limit, after=after)
    if as_json:
        print_json(page)
        return
    print_table(
        ("name", "id", "state", "runs", "created"),
        [(e.name, e.id, _state(e), e.runs, e.created_at) for e in page.items],
    )
    if page.next:
        print_note(f"more: --after {page.next}")


@experiments.command()
@_name_or_id
@json_option
@with_workspace
def show(workspace: Namespaces, name: str | None, ident: str | None, as_json: bool) -> None:
    """The experiment NAME."""
    _show(workspace.tracking.get_experiment(name=name, id=ident), as_json)


@experiments.command()
@click.argument("name")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; repeat for more.")
@json_option
@with_workspace
def create(workspace: Namespaces, name: str, tags: tuple[str, ...], as_json: bool) -> None:
    """Make the experiment NAME. One that exists is shown as it is."""
    from mainspring.errors import InvalidInput

    for tag in tags:
        if "=" not in tag:
            raise InvalidInput("not a tag", value=tag, place="--tag", next_step="Write --tag KEY=VALUE.")
    pairs = dict(tag.split("=", 1) for tag in tags)
    _show(workspace.tracking.operations.create_experiment(name=name, tags=pairs), as_json)


@experiments.command()
@_name_or_id
@click.option("--to", "new", required=True, metavar="NAME", help="The new name.")
@json_option
@with_workspace
def rename(workspace: Namespaces, name: str | None, ident: str | None, new: str, as_json: bool) -> None:
    """Give the experiment NAME another name; its runs follow by themselves."""
    operations = workspace.tracking.operations
    experiment = operations.get_experiment(name=name, id=ident)
    _show(operations.rename_experiment(id=experiment.id, name=new), as_json)


@experiments.command()
@_name_or_id
@json_option
@with_workspace
def delete(workspace: Namespaces, name: str | None, ident: str | None, as_json: bool) -> None:
    """Hide the experiment NAME and its runs. Nothing is lost: 'restore' brings them back."""
    operations = workspace.tracking.operations
    experiment = operations.get_experiment(name=name, id=ident)
    _show(operations.delete_experiment(id=experiment.id), as_json)


@experiments.command()
@_name_or_id
@json_option
@with_workspace
def restore(workspace: Namespaces, name: str | None, ident: str | None, as_json: bool) -> None:
    """Bring the deleted experiment NAME back, with its runs."""
    operations = workspace.tracking.operations
    experiment = operations.get_experiment(name=name, id=ident)
    _show(operations.restore_experiment(id=experiment.id), as_json)


def _show(experiment: Experiment, as_json: bool) -> None:
    if as_json:
        print_json(experiment)
        return
    print_facts(
        [
            ("name", experiment.name),
            ("id", experiment.id),
            ("state", _state(experiment)),
            ("runs", experiment.runs),
            ("created", experiment.created_at),
            *((f"tag {k}", v) for k, v in sorted(experiment.tags.items())),
        ]
    )


def _state(experiment: Experiment) -> str:
    return "deleted" if experiment.deleted else "active"
