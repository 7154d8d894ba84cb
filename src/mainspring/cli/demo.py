"""``mainspring demo``."""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import click


@click.command()
@click.option("--once", is_flag=True, help="End after the story instead of leaving the pages up.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Where the project goes (default: a new temporary directory).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one last line of JSON with every figure.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Picks which flights become requests, and the model's random numbers.",
)
@click.option(
    "--without",
    type=click.Choice(["gate", "canary", "retrain", "faults"]),
    help="Leave one part out and see what it was for.",
)
@click.option("--port", type=int, help="Of the pages; 0 for any free one (default: 8700 if it is free).")
def demo(
    once: bool, directory: Path | None, as_json: bool, seed: int, without: str | None, port: int | None
) -> None:
    """A year of real flights through the whole loop: collect, check, train, gate, serve, monitor, retrain, roll back."""
    from mainspring.demo.progress import Progress
    from mainspring.demo.story import Choices, Story, as_line
    from mainspring.errors import Conflict

    place = (directory or Path(tempfile.mkdtemp(prefix="mainspring-demo-")) / "flights").absolute()
    if place.exists() and any(place.iterdir()):
        raise Conflict(
            "the directory is not empty",
            value=str(place),
            next_step="Name a new one with --dir; nothing was written.",
        )
    place.mkdir(parents=True, exist_ok=True)
    with _exit_on_signals():
        choices = Choices(directory=place, seed=seed, without=without, once=once, port=port)
        result = Story(choices, Progress()).run()
    if as_json:
        click.echo(as_line(result))


@contextlib.contextmanager
def _exit_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise, as Ctrl-C does, so that the ``finally`` blocks end the servers and clients of the demo."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
