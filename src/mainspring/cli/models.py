"""``mainspring models``: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    describe_metrics,
    is_end,
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.records.models import ModelInfo, ModelVersion
    from mainspring.rooms import Namespaces


_MAX_INPUTS = 20


@click.group()
def models() -> None:
    """Models: list, show, card, promote, rollback, package."""


@models.command("list")
@json_option
@with_workspace
def list_(workspace: Namespaces, as_json: bool) -> None:
    """All models with their aliases."""
    registered = workspace.models.list_models()
    if as_json:
        print_json(registered)
        return
    rows = [
        (m.name, m.versions, ", ".join(_alias(m, a) for a in sorted(m.aliases)), m.created_at)
        for m in registered
    ]
    print_table(
        ("model", "versions", "aliases", "created"), rows, empty="no model yet: mainspring run PIPELINE"
    )


def _alias(model: ModelInfo, alias: str) -> str:
    return f"{alias}={model.aliases[alias]}" + (" (override)" if alias in model.overridden else "")


@models.command()
@click.argument("model")
@click.option("--limit", default=20, show_default=True)
@json_option
@with_workspace
def versions(workspace: Namespaces, model: str, limit: int, as_json: bool) -> None:
    """Versions of MODEL, newest first."""
    newest = workspace.models.list_versions(model=model, limit=limit).items
    if as_json:
        print_json(newest)
        return
    rows = [
        (
            v.version,
            v.format,
            v.created_at,
            v.run,
            "  ".join(f"{k}={m:.4g}" for k, m in v.metrics.items() if not is_end(k, v.metrics)),
        )
        for v in newest
    ]
    print_table(("version", "format", "created", "run", "metrics"), rows)


@models.command()
@click.argument("model")
@click.argument("version", default="champion")
@json_option
@with_workspace
def show(workspace: Namespaces, model: str, version: str, as_json: bool) -> None:
    """One VERSION of MODEL (number, alias or latest)."""
    record = workspace.models.get_version(model=model, selector=version)
    if as_json:
        print_json(record)
        return
    print_facts(
        [
            ("model", f"{record.model} version {record.version}"),
            ("format", record.format),
            ("created", record.created_at),
            ("by", record.created_by),
            ("run", record.run),
            ("trained on", record.dataset_version),
            ("hold-out", record.holdout),
            ("package", record.package),
            ("task", record.signature.task.value),
            (
                "inputs",
                _describe_inputs(record),
            ),
        ]
    )
    if record.metrics:
        print_facts((f"  {k}", v) for k, v in describe_metrics(record.metrics))


@models.command()
@click.argument("model")
@click.option("--alias", help="Only this one.")
@json_option
@with_workspace
def history(workspace: Namespaces, model: str, alias: str | None, as_json: bool) -> None:
    """Which version held which alias, since when, and why."""
    moves = workspace.models.list_alias_moves(model=model, alias=alias)
    if as_json:
        print_json(moves)
        return
    print_table(
        ("at", "alias", "from", "to", "by", "why", "in spite of"),
        [(e.at, e.alias, e.previous, e.version, e.actor, e.reason, "; ".join(e.overridden)) for e in moves],
    )


@models.command()
@click.argument("model")
@click.argument("version", default="champion")
@click.option("--html", is_flag=True, help="HTML instead of Markdown.")
@json_option
@with_workspace
def card(workspace: Namespaces, model: str, version: str, html: bool, as_json: bool) -> None:
    """The model card of VERSION, generated from what is recorded."""
    number = workspace.models.get_version(model=model, selector=version).version
    document = workspace.models.get_card(model=model, version=number)
    if as_json:
        print_json(document)
        return
    click.echo(document.html if html else document.markdown)


@models.command()
@click.argument("model")
@click.argument("version")
@click.option("--reason", required=True, help="Why; it is recorded.")
@click.option(
    "--override",
    is_flag=True,
    help="Although the gate or a person refused it, or its data is gone; admins only, and shown wherever the champion is.",
)
@json_option
@with_workspace
def promote(
    workspace: Namespaces, model: str, version: str, reason: str, override: bool, as_json: bool
) -> None:
    """Make VERSION the champion of MODEL, and let it answer where the policy deploys MODEL. The rollout is passed by."""
    promotion = workspace.models.promote(model, version, reason=reason, override=override)
    if as_json:
        print_json(promotion)
        return
    moved, names = promotion.alias, promotion.deployments
    print_facts(
        [
            ("champion", f"{model} version {moved.version}"),
            ("before", moved.previous),
            ("in spite of", "; ".join(moved.overridden) or None),
            ("deployed to", ", ".join(names) or "nothing"),
        ]
    )
    if moved.previous is not None:
        print_note(f"undo: mainspring models rollback {model} --reason ...")
    if not names:
        print_note(
            f'next: write [deploy.{model}] with model = "{model}" into mainspring.toml, then promote again'
        )


@models.command()
@click.argument("model")
@click.option("--alias", default="champion", show_default=True)
@click.option("--reason", required=True, help="Why; it is recorded.")
@json_option
@with_workspace
def rollback(workspace: Namespaces, model: str, alias: str, reason: str, as_json: bool) -> None:
    """Give ALIAS back to the version that held it before, verified first; traffic follows."""
    if alias == "champion":
        restored = workspace.loop.restore_champion(model=model, reason=reason)
        moved, names = restored.alias, restored.deployments
    else:
        moved, names = workspace.models.rollback(model=model, alias=alias, reason=reason), []
    if as_json:
        print_json({"alias": moved, "deployments": names})
        return
    print_facts(
        [
            (alias, f"{model} version {moved.version}"),
            ("before", moved.previous),
            ("deployed to", ", ".join(names) or "nothing" if alias == "champion" else None),
        ]
    )


@models.command()
@click.argument("model")
@click.argument("version")
@click.argument("to", type=click.Path(path_type=Path))
@json_option
@with_workspace
def package(workspace: Namespaces, model: str, version: str, to: Path, as_json: bool) -> None:
    """Write the package of VERSION into the directory TO, verified."""
    manifest = workspace.models.download_package(model, version, to)
    if as_json:
        print_json(manifest)
        return
    print_facts([("package", to), ("format", manifest.format), ("files", len(manifest.files) + 1)])


def _describe_inputs(record: ModelVersion) -> str:
    inputs = record.signature.inputs
    shown = ", ".join(f"{c.name} {c.type}{'?' if c.nullable else ''}" for c in inputs[:_MAX_INPUTS])
    return shown + (
        f" and {len(inputs) - _MAX_INPUTS} more (--json lists all)" if len(inputs) > _MAX_INPUTS else ""
    )
