"""Data to stdout, talk to stderr: tables for people, ``--json`` for programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mainspring.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    """Adds ``--json`` as the argument ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def with_workspace(command: Callable[..., Any]) -> Callable[..., Any]:
    """Opens the workspace that the options name, passes it as the first argument and closes it."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        import mainspring

        settings = local_settings()
        where = _place()
        if settings.url is None or where.get("root") is not None:
            check_project(settings)
        with mainspring.open(where.get("url") or where.get("root"), project=_project(settings)) as workspace:
            return command(workspace, *args, **kwargs)

    return run


def local_settings() -> Settings:
    """The settings that the options and this directory give, whether the workspace is here or on a server."""
    from mainspring import config

    return config.load(_place().get("root"), url=_place().get("url"))


def workspace_itself() -> Settings:
    """The settings of the workspace on this machine, for what a server does not do for others."""
    from mainspring.errors import InvalidInput

    settings = local_settings()
    if settings.url is not None:
        raise InvalidInput(
            "this needs the workspace itself",
            value=settings.url,
            next_step="Run it on the machine that has it, without --url and without MAINSPRING_URL.",
        )
    return settings


def _project(settings: Settings) -> str:
    """The project that is meant: of a server the one that ``--project`` names, here the one of the policy file."""
    from mainspring.errors import InvalidInput

    given = _place().get("project")
    if given is not None and settings.url is None:
        raise InvalidInput(
            "a directory holds one project",
            value=given,
            place="--project",
            next_step="Name the directory with -C DIR, or a server with --url URL.",
        )
    return given or settings.config.project.name


def _place() -> dict[str, str | None]:
    return click.get_current_context().find_root().obj or {}


def check_project(settings: Settings) -> None:
    """A command typed in any other directory must not turn it into a workspace."""
    from mainspring.config import FILE
    from mainspring.errors import NotFound

    if not (settings.root / FILE).exists() and not settings.home.exists() and "home" not in settings.origins:
        raise NotFound(
            "there is no project here",
            value=str(settings.root),
            next_step="Make one: mainspring init DIR. Or name one: mainspring -C DIR ...",
        )


def emit(value: object) -> None:
    """One JSON document on one line."""
    from mainspring.records.base import to_json

    click.echo(to_json(value).decode())


def say(text: str) -> None:
    """Talk: goes to stderr."""
    click.echo(text, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "nothing yet") -> None:
    """Aligned columns; numbers to the right. Cuts nothing: a terminal wraps, a file keeps all."""
    lines = [[cell(v) for v in row] for row in rows]
    if not lines:
        say(empty)
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


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values, one a line."""
    shown = [(name, cell(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")


def cell(value: Any) -> str:
    """A value as people read it: at most four significant digits, times to the second, nothing for None."""
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


def brief(value: Any) -> Any:
    """A whole digest as its start, a long fraction to four digits; anything else as it is.

    >>> brief("ab" * 32), brief(0.5505757331848145), brief("flights")
    ('abababababab', '0.5506', 'flights')
    """
    if isinstance(value, float):
        return cell(value)
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return short(value)
    return value


def short(ident: str) -> str:
    """The start of an id or digest, enough to recognise it."""
    return ident[:12]


def size(count: int) -> str:
    """Bytes with a binary unit.

    >>> size(1536)
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
