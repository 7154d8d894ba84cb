"""What commands print: data to stdout (tables for people, ``--json`` for programs), notes to stderr."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from mainspring.config import Settings
    from mainspring.rooms import Namespaces
    from mainspring.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")


def json_option(command: F) -> F:
    """Adds ``--json`` as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def with_workspace(command: Callable[Concatenate[Namespaces, P], R]) -> Callable[P, R]:
    """Opens the workspace that the options name, here or on a server, passes it as the first argument and closes it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with chosen_workspace() as workspace:
            return command(workspace, *args, **kwargs)

    return run


def with_local_workspace(command: Callable[Concatenate[Workspace, P], R]) -> Callable[P, R]:
    """As :func:`with_workspace`, for what needs the files of the workspace; refuses one on a server."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from mainspring.errors import InvalidInput
        from mainspring.workspace import Workspace

        settings = local_workspace_settings()
        if chosen_project(settings) != settings.config.project.name:
            raise InvalidInput(
                "this command works on the project of a directory",
                value=chosen_project(settings),
                place="--project" if _global_options().get("project") else "MAINSPRING_PROJECT",
                next_step="Name its directory: mainspring -C DIR ...",
            )
        with chosen_workspace() as workspace:
            assert isinstance(workspace, Workspace)  # noqa: S101 - there is no address of a server
            return command(workspace, *args, **kwargs)

    return run


@contextlib.contextmanager
def chosen_workspace() -> Iterator[Namespaces]:
    """The workspace that the options name, here or on a server, open for a block."""
    import mainspring

    settings = local_settings()
    where = _global_options()
    own, remote = settings.config.project.name, _is_remote(settings)
    other = where.get("project") or (chosen_project(settings) if chosen_project(settings) != own else None)
    if not remote:
        check_project(settings)
    with mainspring.open(
        where.get("url") or where.get("root"), project=(remote and other) or own
    ) as workspace:
        yield _other_project(workspace, other) if other and not remote else workspace


def _other_project(workspace: Any, project: str) -> Workspace:
    """Another project of the same workspace. It must exist: a misspelt name must not create one."""
    from mainspring.config import served
    from mainspring.server.hosted import Hosted

    return Hosted(workspace, served(workspace.settings)).workspace(project)


def local_settings() -> Settings:
    """The settings that the options and this directory give, whether the workspace is here or on a server."""
    from mainspring import config

    return config.load(_global_options().get("root"), url=_global_options().get("url"))


def local_workspace_settings() -> Settings:
    """The settings of the workspace on this machine, for commands that no server offers; refuses ``--url``."""
    from mainspring.errors import InvalidInput

    settings = local_settings()
    if _is_remote(settings):
        raise InvalidInput(
            "this command needs the workspace itself, not one on a server",
            value=settings.url,
            next_step="Type it on the machine that has it, without --url and without MAINSPRING_URL.",
        )
    return settings


def chosen_project(settings: Settings) -> str:
    """The project that ``--project`` names, else ``MAINSPRING_PROJECT`` (unless ``-C`` names a directory), else this directory's."""
    where = _global_options()
    named = where.get("project") or (None if where.get("root") else settings.project)
    return named or settings.config.project.name


def _is_remote(settings: Settings) -> bool:
    """Whether a server is meant: ``--url`` goes before ``-C``, and that before ``MAINSPRING_URL``."""
    where = _global_options()
    return where.get("url") is not None or (settings.url is not None and where.get("root") is None)


def _global_options() -> dict[str, str | None]:
    return click.get_current_context().find_root().obj or {}


def check_project(settings: Settings) -> None:
    """Refuses a directory that holds no project: a command typed there must not turn it into a workspace."""
    from mainspring.config import FILE
    from mainspring.errors import NotFound

    if not (settings.root / FILE).exists() and not settings.home.exists() and "home" not in settings.origins:
        raise NotFound(
            "there is no project here",
            value=str(settings.root),
            next_step="Make one: mainspring init DIR. Or name one: mainspring -C DIR ...",
        )


def print_json(value: object) -> None:
    """One JSON document on one line."""
    from mainspring.records.base import to_json

    click.echo(to_json(value).decode())


def print_note(text: str) -> None:
    """One line for the person at the terminal; goes to stderr, so that stdout holds data only."""
    click.echo(text, err=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing yet") -> None:
    """Aligned columns; numbers to the right. Cuts nothing: a terminal wraps, a file keeps all."""
    lines = [[format_cell(v) for v in row] for row in rows]
    if not lines:
        print_note(empty)
        return
    numeric = [all(_is_number(row[i]) for row in lines) for i in range(len(columns))]
    widths = [max(len(c), *(len(row[i]) for row in lines)) for i, c in enumerate(columns)]
    click.echo(
        "  ".join(_pad(c, w, right) for c, w, right in zip(columns, widths, numeric, strict=True)).rstrip()
    )
    for row in lines:
        click.echo(
            "  ".join(_pad(c, w, right) for c, w, right in zip(row, widths, numeric, strict=True)).rstrip()
        )


def print_facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line."""
    shown = [(name, format_cell(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")


def format_cell(value: Any) -> str:
    """A value as a table shows it: at most four significant digits, times to the second, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    text = str(value)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def is_end(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a metric is an end of the interval of another: ``auc.low`` beside ``auc``."""
    base, _, end = name.rpartition(".")
    return end in ("low", "high") and base in metrics


def describe_metrics(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Each metric with its interval, if that is recorded.

    >>> list(describe_metrics({"auc": 0.75, "auc.low": 0.7, "auc.high": 0.8, "rows": 9.0}))
    [('auc', '0.75 [0.7, 0.8]'), ('rows', '9')]
    """
    for name, value in metrics.items():
        if is_end(name, metrics):
            continue
        low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
        interval = "" if low is None or high is None else f" [{format_cell(low)}, {format_cell(high)}]"
        yield name, format_cell(value) + interval


def shorten_value(value: Any) -> Any:
    """A whole digest as its start, a long fraction to four digits; anything else as it is.

    >>> shorten_value("ab" * 32), shorten_value(0.5505757331848145), shorten_value("flights")
    ('abababababab', '0.5506', 'flights')
    """
    if isinstance(value, float):
        return format_cell(value)
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return shorten_id(value)
    return value


def shorten_id(ident: str) -> str:
    """The start of an id or digest, enough to recognise it."""
    return ident[:12]


def format_size(count: int) -> str:
    """Bytes with a binary unit.

    >>> format_size(1536)
    '1.5 KiB'
    """
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _is_number(text: str) -> bool:
    return (
        text == "-"
        or text.replace(".", "", 1).replace("-", "", 1).replace("e", "", 1).replace("+", "", 1).isdigit()
    )


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
