"""``mainspring data``: datasets and their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    emit,
    facts,
    json_option,
    local_settings,
    say,
    short,
    size,
    table,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.records.data import CheckReport, CheckRule
    from mainspring.workspace import Workspace


@click.group()
def data() -> None:
    """Datasets: commit, log, diff, checkout, check, profile."""


@data.command()
@click.argument("dataset")
@click.argument("source", type=click.Path())
@click.option("--message", "-m", default="", help="What this version is.")
@click.option("--tag", "tags", multiple=True, help="A tag for it; repeat for more.")
@click.option("--files", "as_files", is_flag=True, help="Keep the exact bytes instead of making a table.")
@click.option("--no-checks", is_flag=True, help="Skip the checks of [data.DATASET] in mainspring.toml.")
@json_option
@with_workspace
def commit(
    workspace: Workspace,
    dataset: str,
    source: str,
    message: str,
    tags: tuple[str, ...],
    as_files: bool,
    no_checks: bool,
    as_json: bool,
) -> None:
    """Make a version of DATASET from SOURCE: a CSV or Parquet file (a table), or any file or directory."""
    rules = [] if no_checks or as_files else _rules(dataset)
    version = workspace.data.commit(
        dataset, source, message=message, tags=tags, checks=rules, kind="files" if as_files else None
    )
    if as_json:
        emit(version)
        return
    facts(
        [
            ("dataset", dataset),
            ("version", version.number),
            ("id", version.id),
            ("rows", version.rows),
            ("files", version.files),
            ("size", size(version.bytes)),
            ("checks", f"{len(rules)} held" if rules else "none declared" if not no_checks else "skipped"),
        ]
    )


@data.command("list")
@json_option
@with_workspace
def list_(workspace: Workspace, as_json: bool) -> None:
    """All datasets."""
    found = workspace.data.datasets()
    if as_json:
        emit(found)
        return
    rows = [(d.name, d.versions, d.latest, d.rows, size(d.bytes), d.updated_at) for d in found]
    table(
        ("dataset", "versions", "latest", "rows", "size", "updated"),
        rows,
        empty="no dataset yet: mainspring data commit NAME FILE",
    )


@data.command()
@click.argument("dataset")
@click.option("--limit", default=20, show_default=True)
@json_option
@with_workspace
def log(workspace: Workspace, dataset: str, limit: int, as_json: bool) -> None:
    """Versions of DATASET, newest first."""
    found = workspace.data.log(dataset, limit=limit)
    if as_json:
        emit(found)
        return
    rows = [
        (
            v.number,
            short(v.id),
            v.rows,
            size(v.bytes),
            v.created_at,
            v.created_by,
            ",".join(v.tags),
            v.message,
        )
        for v in found
    ]
    table(("version", "id", "rows", "size", "created", "by", "tags", "message"), rows)


@data.command()
@click.argument("dataset")
@click.argument("before")
@click.argument("after")
@click.option("--key", "key", multiple=True, help="A column that identifies a row; repeat for more.")
@json_option
@with_workspace
def diff(
    workspace: Workspace, dataset: str, before: str, after: str, key: tuple[str, ...], as_json: bool
) -> None:
    """What changed in DATASET from version BEFORE to version AFTER (number, id, tag or latest)."""
    found = workspace.data.diff(dataset, before, after, key=list(key))
    if as_json:
        emit(found)
        return
    if found.same:
        say("the same content")
        return
    for change in found.columns:
        click.echo(f"column {change.name}: {change.before or '(absent)'} -> {change.after or '(absent)'}")
    if found.rows is not None:
        r = found.rows
        facts(
            [
                ("rows added", r.added),
                ("rows removed", r.removed),
                ("rows changed", r.changed if key else None),
                ("rows unchanged", r.unchanged),
            ]
        )
        for changed in r.changed_sample:
            click.echo(f"  {changed.key}: {changed.before} -> {changed.after}")
    for mark, paths in (("+", found.files.added), ("-", found.files.removed), ("~", found.files.changed)):
        for path in paths:
            click.echo(f"{mark} {path}")


@data.command()
@click.argument("dataset")
@click.argument("selector", default="latest")
@click.argument("to", type=click.Path())
@json_option
@with_workspace
def checkout(workspace: Workspace, dataset: str, selector: str, to: str, as_json: bool) -> None:
    """Write version SELECTOR of DATASET into the directory TO, verified."""
    written = workspace.data.checkout(dataset, selector, to)
    if as_json:
        emit([str(p) for p in written])
        return
    for path in written:
        click.echo(str(path))


@data.command()
@click.argument("dataset")
@click.argument("selector", default="latest")
@json_option
@with_workspace
def check(workspace: Workspace, dataset: str, selector: str, as_json: bool) -> int:
    """Check a version against the rules of [data.DATASET]; exits 1 if one is broken."""
    rules = _rules(dataset)
    report = workspace.data.check(dataset, rules, selector)
    if as_json:
        emit(report)
    elif not rules:
        say(
            f"no rules are declared for {dataset}: write checks = [...] into [data.{dataset}] of mainspring.toml"
        )
    else:
        _show_report(report)
    return 0 if report.passed else 1


@data.command()
@click.argument("dataset")
@click.argument("selector", default="latest")
@json_option
@with_workspace
def profile(workspace: Workspace, dataset: str, selector: str, as_json: bool) -> None:
    """What the columns of a version look like."""
    found = workspace.data.profile(dataset, selector)
    if as_json:
        emit(found)
        return
    say(f"{found.rows} rows")
    rows = []
    for c in found.columns:
        frequent = ", ".join(f"{k} {n}" for k, n in sorted(c.counts.items(), key=lambda item: -item[1])[:3])
        rows.append((c.name, c.type, c.nulls, c.low, c.mean, c.high, frequent or None))
    table(("column", "type", "nulls", "low", "mean", "high", "most frequent"), rows)


def _rules(dataset: str) -> list[CheckRule]:
    """From the policy file here: also for a server's dataset, the rules are those of this checkout."""
    policy = local_settings().config.data.get(dataset)
    return list(policy.checks) if policy is not None else []


def _show_report(report: CheckReport) -> None:
    import msgspec

    for finding in report.findings:
        rule = msgspec.to_builtins(finding.rule)
        where = rule.get("column") or ",".join(rule.get("columns", [])) or ""
        mark = click.style("ok  ", fg="green") if finding.passed else click.style("FAIL", fg="red")
        click.echo(f"{mark} {rule['check']} {where}  {finding.reason}".rstrip())
        for row in finding.sample[:5]:
            click.echo(f"       row {row.row}: {row.values}")
    say(
        f"{sum(f.passed for f in report.findings)} of {len(report.findings)} rules hold on {report.rows} rows"
    )
