"""``mainspring data``: datasets and their versions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mainspring.cli.output import (
    format_size,
    json_option,
    local_settings,
    print_facts,
    print_json,
    print_note,
    print_table,
    shorten_id,
    with_workspace,
)
from mainspring.records.base import counted

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

    How a CSV is read is declared in [data.DATASET.reading] of mainspring.toml; the options here take precedence. What is
    not declared is decided from the whole file, and the decision for each column is printed.
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
        print_json(version)
        return
    if version.reading is not None:
        _show_reading(version.reading)
    print_facts(
        [
            ("dataset", dataset),
            ("version", version.number),
            ("id", version.id),
            ("rows", version.rows),
            ("files", version.files),
            ("size", format_size(version.bytes)),
            ("checks", f"{len(rules)} held" if rules else "none declared" if not no_checks else "skipped"),
        ]
    )


@data.command("list")
@json_option
@with_workspace
def list_(workspace: Namespaces, as_json: bool) -> None:
    """All datasets."""
    datasets = workspace.data.list_datasets()
    if as_json:
        print_json(datasets)
        return
    rows = [(d.name, d.versions, d.latest, d.rows, format_size(d.bytes), d.updated_at) for d in datasets]
    print_table(
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
    versions = workspace.data.list_versions(dataset, limit=limit).items
    if as_json:
        print_json(versions)
        return
    rows = [
        (
            v.number,
            shorten_id(v.id),
            v.rows,
            format_size(v.bytes),
            v.created_at,
            v.created_by,
            ",".join(v.tags),
            v.message,
        )
        for v in versions
    ]
    print_table(("version", "id", "rows", "size", "created", "by", "tags", "message"), rows)


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
    difference = workspace.data.diff(dataset, before, after, key=list(key))
    if as_json:
        print_json(difference)
        return
    if difference.same:
        print_note("the same content")
        return
    for change in difference.columns:
        click.echo(f"column {change.name}: {change.before or '(absent)'} -> {change.after or '(absent)'}")
    if difference.rows is not None:
        counts = difference.rows
        print_facts(
            [
                ("rows added", counts.added),
                ("rows removed", counts.removed),
                ("rows changed", counts.changed if key else None),
                ("rows unchanged", counts.unchanged),
            ]
        )
        for changed in counts.changed_sample:
            click.echo(f"  {changed.key}: {changed.before} -> {changed.after}")
    for mark, what, paths in (
        ("+", "added", difference.files.added),
        ("-", "removed", difference.files.removed),
        ("~", "changed", difference.files.changed),
    ):
        for path in paths[:_MAX_SHOWN]:
            click.echo(f"{mark} {path}")
        if len(paths) > _MAX_SHOWN:
            print_note(
                f"{mark} {counted(len(paths), 'file')} {what}, of which {_MAX_SHOWN} are shown (--json lists all)"
            )


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
        print_json([str(p) for p in written])
        return
    for path in written[:_MAX_SHOWN]:
        click.echo(str(path))
    more = f", of which {_MAX_SHOWN} are shown (--json lists all)" if len(written) > _MAX_SHOWN else ""
    print_note(f"{counted(len(written), 'file')} in {to}{more}")


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
        print_json(report)
    elif not rules:
        print_note(
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
    summary = workspace.data.get_profile(dataset, selector)
    if as_json:
        print_json(summary)
        return
    print_note(counted(summary.rows, "row"))
    rows = []
    for c in summary.columns:
        frequent = ", ".join(f"{k} {n}" for k, n in sorted(c.counts.items(), key=lambda item: -item[1])[:3])
        shown = [_moment(v) if c.type == "timestamp" else v for v in (c.low, c.mean, c.high)]
        rows.append((c.name, c.type, c.nulls, *shown, frequent or None))
    print_table(("column", "type", "nulls", "low", "mean", "high", "most frequent"), rows)


def _moment(seconds: float | None) -> datetime | float | None:
    """A profile keeps a time as seconds since 1970; this is the time, or the number itself beyond the years 1 to 9999."""
    try:
        return None if seconds is None else datetime(1970, 1, 1) + timedelta(seconds=seconds)  # noqa: DTZ001
    except OverflowError:
        return seconds


def _reading(dataset: str, options: dict[str, Any]) -> Reading:
    """How to read a CSV: the options of the command, and the policy file's entry of the dataset where there is no option."""
    from msgspec.structs import replace

    from mainspring.errors import InvalidInput
    from mainspring.records.reading import Reading

    policy = local_settings().config.data.get(dataset)
    base = policy.reading if policy is not None else Reading()
    declared: dict[str, Any] = {k: v for k, v in options.items() if v is not None and v != ()}
    if declared.get("delimiter") == "\\t":
        declared["delimiter"] = "\t"
    if "columns" in declared:
        declared["columns"] = declared["columns"].split(",")
    if "types" in declared:
        pairs = [item.rpartition("=") for item in declared["types"]]
        wrong = next(
            (item for item, (name, _, _) in zip(declared["types"], pairs, strict=True) if not name), None
        )
        if wrong is not None:
            raise InvalidInput(
                "not COLUMN=TYPE", value=wrong, place="--type", next_step="For example --type zip=string."
            )
        declared["types"] = base.types | {name: kind for name, _, kind in pairs}
    return replace(base, **{k: list(v) if isinstance(v, tuple) else v for k, v in declared.items()})


def _show_reading(report: ReadReport) -> None:
    """How the source was read, to stderr: every column of a narrow CSV, else those with notes or losses."""
    if report.source == "csv":
        mark = {"\t": "tab"}.get(report.delimiter or "", repr(report.delimiter))
        print_note(
            f"read as {report.encoding}, fields separated by {mark}"
            + ("" if report.header else ", without a header")
        )
    for note in report.notes:
        print_note(f"  {note}")
    wide = len(report.columns) > _MAX_SHOWN
    shown = [c for c in report.columns if not wide or c.notes or c.lost][:_MAX_SHOWN]
    for column in shown:
        words = ", ".join(f"{w!r} ({n})" for w, n in column.null_words.items())
        parts = [column.format or "", f"null: {words}" if words else "", *column.notes]
        how = " (declared)" if column.how == "declared" else ""
        details = "; ".join(p for p in parts if p)
        print_note(f"  {column.name}: {column.type}{how}" + (f"; {details}" if details else ""))
    if len(report.columns) > len(shown):
        print_note(f"  and {len(report.columns) - len(shown)} more columns (--json shows all)")
    if report.lost:
        print_note(f"  {report.lost} cells could not be kept")


def _rules(dataset: str) -> list[CheckRule]:
    """The checks of the policy file here. Also for a server's dataset, the rules are those of this checkout."""
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
    print_note(
        f"{sum(f.passed for f in report.findings)} of {len(report.findings)} rules hold on {counted(report.rows, 'row')}"
    )
