"""``mainspring data``: datasets and their versions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

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
    from mainspring.records.reading import Reading, ReadReport
    from mainspring.rooms import Namespaces

F = TypeVar("F", bound=Callable[..., Any])
_MAX_SHOWN = 40


_READING = (
    click.option("--encoding", help="Its encoding, e.g. utf-8, cp1252."),
    click.option("--delimiter", help="What separates fields; \\t for a tab."),
    click.option("--quote", help="What quotes a field; empty for nothing."),
    click.option("--header/--no-header", default=None, help="Whether the first line names the columns."),
    click.option("--skip-lines", type=click.IntRange(min=0), help="Lines before the header."),
    click.option("--columns", help="Names of the columns instead of those in the file, separated by commas."),
    click.option(
        "--type",
        "types",
        multiple=True,
        metavar="COLUMN=TYPE",
        help="The type of a column, e.g. zip=string; repeat.",
    ),
    click.option(
        "--null", "nulls", multiple=True, help="A word that means null in every column; repeat for more."
    ),
    click.option("--date", "dates", multiple=True, help="A format of dates, e.g. %d.%m.%Y; repeat for more."),
    click.option("--decimal", type=click.Choice([".", ","]), help="What marks fractions."),
    click.option("--thousands", help="What groups thousands."),
    click.option(
        "--lossy",
        is_flag=True,
        default=None,
        help="Lose what cannot be kept as declared, instead of refusing.",
    ),
)


def reading_options(command: F) -> F:
    """Adds the options that declare how a CSV is read."""
    for option in reversed(_READING):
        command = option(command)
    return command


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
@reading_options
@json_option
@with_workspace
def commit(
    workspace: Namespaces,
    /,
    dataset: str,
    source: str,
    message: str,
    tags: tuple[str, ...],
    as_files: bool,
    no_checks: bool,
    as_json: bool,
    **declared: Any,
) -> None:
    """Make a version of DATASET from SOURCE: a CSV or Parquet file (a table), or any file or directory.

    How a CSV is read stands in [data.DATASET.reading] of mainspring.toml, and the options here go before it. What nobody
    declared is decided from the whole file; how, is printed for each column.
    """
    rules = [] if no_checks or as_files else _rules(dataset)
    version = workspace.data.commit(
        dataset,
        source,
        message=message,
        tags=tags,
        checks=rules,
        kind="files" if as_files else None,
        reading=_reading(dataset, declared),
    )
    if as_json:
        emit(version)
        return
    if version.reading is not None:
        _show_reading(version.reading)
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
def list_(workspace: Namespaces, as_json: bool) -> None:
    """All datasets."""
    found = workspace.data.list_datasets()
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
def log(workspace: Namespaces, dataset: str, limit: int, as_json: bool) -> None:
    """Versions of DATASET, newest first."""
    found = workspace.data.list_versions(dataset, limit=limit).items
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
    workspace: Namespaces, dataset: str, before: str, after: str, key: tuple[str, ...], as_json: bool
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
def checkout(workspace: Namespaces, dataset: str, selector: str, to: str, as_json: bool) -> None:
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
def check(workspace: Namespaces, dataset: str, selector: str, as_json: bool) -> int:
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
def profile(workspace: Namespaces, dataset: str, selector: str, as_json: bool) -> None:
    """What the columns of a version look like."""
    found = workspace.data.get_profile(dataset, selector)
    if as_json:
        emit(found)
        return
    say(f"{found.rows} rows")
    rows = []
    for c in found.columns:
        frequent = ", ".join(f"{k} {n}" for k, n in sorted(c.counts.items(), key=lambda item: -item[1])[:3])
        shown = [_moment(v) if c.type == "timestamp" else v for v in (c.low, c.mean, c.high)]
        rows.append((c.name, c.type, c.nulls, *shown, frequent or None))
    table(("column", "type", "nulls", "low", "mean", "high", "most frequent"), rows)


def _moment(seconds: float | None) -> datetime | float | None:
    """What a profile keeps of a time, seconds since 1970, as a time; beyond the years 1 to 9999 as it is."""
    try:
        return None if seconds is None else datetime(1970, 1, 1) + timedelta(seconds=seconds)  # noqa: DTZ001
    except OverflowError:
        return seconds


def _reading(dataset: str, options: dict[str, Any]) -> Reading:
    """What the options declare, over what the policy file says of the dataset."""
    from msgspec.structs import replace

    from mainspring.errors import InvalidInput
    from mainspring.records.reading import Reading

    policy = local_settings().config.data.get(dataset)
    base = policy.reading if policy is not None else Reading()
    said: dict[str, Any] = {k: v for k, v in options.items() if v is not None and v != ()}
    if said.get("delimiter") == "\\t":
        said["delimiter"] = "\t"
    if "columns" in said:
        said["columns"] = said["columns"].split(",")
    if "types" in said:
        pairs = [item.rpartition("=") for item in said["types"]]
        wrong = next(
            (item for item, (name, _, _) in zip(said["types"], pairs, strict=True) if not name), None
        )
        if wrong is not None:
            raise InvalidInput(
                "not COLUMN=TYPE", value=wrong, place="--type", next_step="For example --type zip=string."
            )
        said["types"] = base.types | {name: kind for name, _, kind in pairs}
    return replace(base, **{k: list(v) if isinstance(v, tuple) else v for k, v in said.items()})


def _show_reading(report: ReadReport) -> None:
    """How the source was read, to stderr: every column of a narrow CSV, else those with something to say."""
    if report.source == "csv":
        mark = {"\t": "tab"}.get(report.delimiter or "", repr(report.delimiter))
        say(
            f"read as {report.encoding}, fields separated by {mark}"
            + ("" if report.header else ", without a header")
        )
    for note in report.notes:
        say(f"  {note}")
    wide = len(report.columns) > _MAX_SHOWN
    shown = [c for c in report.columns if not wide or c.notes or c.lost][:_MAX_SHOWN]
    for column in shown:
        words = ", ".join(f"{w!r} ({n})" for w, n in column.null_words.items())
        parts = [column.format or "", f"null: {words}" if words else "", *column.notes]
        how = " (declared)" if column.how == "declared" else ""
        said = "; ".join(p for p in parts if p)
        say(f"  {column.name}: {column.type}{how}" + (f"; {said}" if said else ""))
    if len(report.columns) > len(shown):
        say(f"  and {len(report.columns) - len(shown)} more columns (--json shows all)")
    if report.lost:
        say(f"  {report.lost} cells could not be kept")


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
