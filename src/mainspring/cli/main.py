"""The command ``mainspring``. Commands load when they are called: ``--help`` costs what click costs."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from typing import Any

import click

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module:attribute, one line of help)
    "demo": ("mainspring.cli.demo:demo", "The whole loop on a year of real flights."),
    "init": ("mainspring.cli.projects:init", "Make a project that runs, with tests."),
    "new": ("mainspring.cli.starting:new", "A model for your own table: pipeline, checks, policy, test."),
    "projects": ("mainspring.cli.projects:projects", "The projects of this workspace: list, create."),
    "up": ("mainspring.cli.servers:up", "Server, pages, loop and inference, in one process group."),
    "serve": ("mainspring.cli.servers:serve", "An inference server on its own."),
    "run": ("mainspring.cli.pipelines:run", "Run a pipeline."),
    "plan": ("mainspring.cli.pipelines:plan", "What a run would do: cached or not, and why."),
    "why": ("mainspring.cli.pipelines:why", "Why a step of a run was cached or not."),
    "resume": ("mainspring.cli.pipelines:resume", "Go on with a run that was interrupted."),
    "status": ("mainspring.cli.overview:status", "Is the loop healthy, and what needs me?"),
    "data": ("mainspring.cli.data:data", "Datasets: commit, log, diff, checkout, check, profile."),
    "experiments": (
        "mainspring.cli.experiments:experiments",
        "Experiments: list, show, create, rename, delete, restore.",
    ),
    "runs": ("mainspring.cli.runs:runs", "Runs: list, show, compare."),
    "models": ("mainspring.cli.models:models", "Models: list, show, card, promote, rollback, package."),
    "predict": ("mainspring.cli.predict:predict", "Predictions of a deployment, or of a model version here."),
    "label": ("mainspring.cli.labels:label", "Say what turned out to be true of predictions."),
    "monitor": ("mainspring.cli.overview:monitor", "Windows, drift, alerts of a deployment."),
    "loop": ("mainspring.cli.loop:loop", "The loop: tick, jobs, retrain, replay, what-if."),
    "timeline": ("mainspring.cli.overview:timeline", "What happened, and why."),
    "explain-origin": (
        "mainspring.cli.lineage:explain_origin",
        "Where a prediction, model or dataset comes from.",
    ),
    "blast-radius": ("mainspring.cli.lineage:blast_radius", "Everything that a thing led to."),
    "audit": ("mainspring.cli.lineage:audit", "Verify the chain of events."),
    "env": ("mainspring.cli.overview:env", "Settings with their origin, and the token."),
    "token": ("mainspring.cli.tokens:token", "Tokens with a role by project: add, list, change, revoke."),
    "doctor": ("mainspring.cli.upkeep:doctor", "Check this machine and workspace."),
    "fsck": ("mainspring.cli.upkeep:fsck", "Check every stored object."),
    "gc": ("mainspring.cli.upkeep:gc", "Remove what nothing refers to."),
}


class Lazy(click.Group):
    """A group whose commands are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from mainspring.errors import near

            ctx.fail(f"no such command {args[0]!r}. {near(args[0], COMMANDS, what='command')}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mainspring", message="%(prog)s %(version)s")
@click.option(
    "--project-dir", "-C", metavar="DIR", help="The project's directory (default: the nearest one upwards)."
)
@click.option("--url", metavar="URL", help="A server to work on instead of the local workspace.")
@click.option(
    "--project", metavar="NAME", help="Another project: of this workspace, or of the server that --url names."
)
@click.pass_context
def app(ctx: click.Context, project_dir: str | None, url: str | None, project: str | None) -> None:
    """The machine-learning lifecycle as one mechanism."""
    ctx.obj = {"root": project_dir, "url": url, "project": project}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; our errors become one line on stderr and their exit code."""
    from mainspring.errors import MainspringError

    try:
        code: Any = app.main(args=arguments, standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MainspringError as error:
        _show(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        sys.stderr.close()
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def program() -> None:
    """The command line as a process of its own, which ends here.

    Arrow's thread pools may abort in their destructors when a process ends shortly after a read (apache/arrow#34314): the
    command has done its work, but the shell sees a failure. So a process that has loaded Arrow ends as Python does (threads
    joined, exit functions run, output flushed), but without C++'s destructors.
    """
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    if "pyarrow" not in sys.modules:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - what the interpreter calls first at its end
    atexit._run_exitfuncs()  # noqa: SLF001 - and second
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader is gone, or it is closed already
            code = code or 141
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _show(error: Any) -> None:
    if "--json" in sys.argv:
        from mainspring.records.base import to_json

        click.echo(to_json({"error": error.to_dict()}).decode(), err=True)
        return
    click.echo(f"{click.style(f'error[{error.code}]:', fg='red', bold=True)} {error.message}", err=True)
    for name in ("value", "place"):
        if getattr(error, name):
            click.echo(f"  {name}: {getattr(error, name)}", err=True)
    if error.next_step:
        click.echo(f"  {click.style('next:', bold=True)} {error.next_step}", err=True)
