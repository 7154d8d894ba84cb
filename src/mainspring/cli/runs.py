"""``mainspring runs``: list, show, compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import (
    format_cell,
    is_end,
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    shorten_id,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.records.tracking import Run
    from mainspring.rooms import Namespaces


@click.group()
def runs() -> None:
    """Runs: list, show, compare."""


@runs.command("list")
@click.option("--experiment", "-e", multiple=True, help="Only of this experiment; repeat for more.")
@click.option(
    "--filter",
    "-f",
    "filter_",
    default="",
    help="For example: metrics.auc > 0.7 and params.family = 'forest'.",
)
@click.option(
    "--sort",
    "--order-by",
    "-o",
    "order_by",
    multiple=True,
    help="Sort keys, repeated or with commas between: metrics.loss,-params.depth,-started",
)
@click.option("--limit", default=20, show_default=True)
@click.option("--after", help="Go on after this page mark.")
@json_option
@with_workspace
def list_(
    workspace: Namespaces,
    experiment: tuple[str, ...],
    filter_: str,
    order_by: tuple[str, ...],
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """Runs, newest first, or by --sort."""
    _recover_spools(workspace)
    options: dict[str, Any] = {"filter": filter_, "limit": limit, "after": after}
    if experiment:
        options["experiments"] = list(experiment)
    if order_by:
        options["order_by"] = list(order_by)
    page = workspace.tracking.search_runs(**options)
    if as_json:
        print_json(page)
        return
    rows = []
    for r in page.items:
        shown = "  ".join(f"{k}={format_cell(m.value)}" for k, m in _first_metrics(r, 3))
        rows.append((r.id, r.experiment, r.name, r.status.value, r.started_at, shown))
    print_table(("run", "experiment", "name", "status", "started", "metrics"), rows)
    if page.next:
        print_note(f"more: --after {page.next}")


@runs.command()
@click.argument("run")
@json_option
@with_workspace
def show(workspace: Namespaces, run: str, as_json: bool) -> None:
    """Everything recorded of RUN."""
    _recover_spools(workspace)
    record = workspace.tracking.get_run(run=run)
    if as_json:
        print_json(record)
        return
    print_facts(
        [
            ("run", record.id),
            ("experiment", record.experiment),
            ("name", record.name),
            ("status", record.status.value),
            ("started", record.started_at),
            ("ended", record.ended_at),
            ("by", record.created_by),
            ("code", record.code and shorten_id(record.code)),
            ("environment", record.environment and shorten_id(record.environment)),
        ]
    )
    for title, pairs in (
        ("params", record.params),
        ("tags", record.tags),
        ("metrics", {k: m.value for k, m in record.metrics.items()}),
    ):
        if pairs:
            click.echo(f"\n{title}")
            print_facts((f"  {k}", v) for k, v in sorted(pairs.items()))


@runs.command()
@click.argument("run", nargs=-1, required=True)
@json_option
@with_workspace
def compare(workspace: Namespaces, run: tuple[str, ...], as_json: bool) -> None:
    """Params and metrics of several runs side by side; what is equal everywhere is left out."""
    _recover_spools(workspace)
    compared = [workspace.tracking.get_run(run=r) for r in run]
    values = [
        {
            **{f"param {k}": v for k, v in r.params.items()},
            **{f"metric {k}": m.value for k, m in r.metrics.items()},
        }
        for r in compared
    ]
    names = sorted({k for v in values for k in v})
    differing = [n for n in names if len({str(v.get(n)) for v in values}) > 1]
    if as_json:
        print_json(
            [
                {"run": r.id, "values": {n: v.get(n) for n in differing}}
                for r, v in zip(compared, values, strict=True)
            ]
        )
        return
    print_table(
        ("", *(shorten_id(r.id) for r in compared)),
        [(n, *(v.get(n) for v in values)) for n in differing],
        empty="nothing differs",
    )


@runs.command()
@click.argument("run")
@click.argument("path", required=False)
@click.option(
    "--to", type=click.Path(path_type=Path, file_okay=False), help="Write all files below this new folder."
)
@json_option
@with_workspace
def code(workspace: Namespaces, run: str, path: str | None, to: Path | None, as_json: bool) -> None:
    """The source files that RUN was made of, kept with it; with PATH the text of one."""
    tracking = workspace.tracking.operations
    _recover_spools(workspace)
    if path is not None:
        for chunk in tracking.download_code(run=run, path=path).chunks:
            sys.stdout.buffer.write(chunk)
        return
    captured = tracking.get_code(run=run)
    if to is not None:
        _write_files(workspace, run, [f.path for f in captured.files if f.digest], to)
    if as_json:
        print_json(captured)
        return
    print_facts(
        [
            ("commit", captured.commit or "none"),
            ("dirty", captured.dirty if captured.commit else None),
            ("written to", to),
            ("not captured", "; ".join(captured.missing) or None),
        ]
    )
    print_table(
        ("file", "bytes", "digest"),
        [(f.path, f.size, f.skipped or shorten_id(f.digest or "")) for f in captured.files],
    )


def _write_files(workspace: Namespaces, run: str, paths: list[str], to: Path) -> None:
    from mainspring.storage.materialise import SafeFolder, check_target

    target = check_target(to)
    target.mkdir(parents=True, exist_ok=True)
    with SafeFolder(target) as folder:
        for path in paths:
            folder.write(path, workspace.tracking.download_code(run=run, path=path).chunks)


@runs.command()
@click.argument("run")
@click.argument("step")
@with_workspace
def log(workspace: Namespaces, run: str, step: str) -> None:
    """What STEP of the pipeline run RUN printed."""
    out = sys.stdout.buffer
    printed = False
    for piece in workspace.pipelines.download_log(run=run, step=step).chunks:
        out.write(piece)
        printed = printed or bool(piece)
    if not printed:
        print_note(f"{step} printed nothing")


@runs.command()
@click.argument("run")
@json_option
@with_workspace
def steps(workspace: Namespaces, run: str, as_json: bool) -> None:
    """Steps of the pipeline run RUN."""
    records = workspace.pipelines.list_steps(run=run)
    if as_json:
        print_json(records)
        return
    rows = [
        (
            s.step,
            s.state,
            s.attempt,
            (s.ended - s.started).total_seconds() if s.ended else None,
            s.error.message if s.error else (s.why.reason if s.why else ""),
        )
        for s in records
    ]
    print_table(("step", "state", "attempt", "seconds", "why"), rows)


def _recover_spools(workspace: Namespaces) -> None:
    """Ship what processes that died left in the spool, so that their runs show; says so when there was something."""
    from mainspring.errors import MainspringError

    try:
        shipped = workspace.tracking.recover()
    except MainspringError as error:  # it stays in the spool; what is stored can be shown all the same
        print_note(f"some runs are still in the spool: {error}")
        return
    for run, shipment in shipped.items():
        if shipment.reasons:
            print_note(f"run {run}: kept in the spool: {shipment.reasons[-1]}")
        else:
            print_note(f"run {run}: took in what its process had left")


def _first_metrics(run: Run, most: int) -> list[tuple[str, Any]]:
    """The first metrics of a run, without the ends of their intervals."""
    values = {k: m.value for k, m in run.metrics.items()}
    return [(k, m) for k, m in run.metrics.items() if not is_end(k, values)][:most]
