"""``mainspring up | serve``: start the servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import json_option, print_note, with_local_workspace

if TYPE_CHECKING:
    from mainspring.workspace import Workspace


SECONDS = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)


@click.command()
@click.option("--host", help="Address of the control plane (default: 127.0.0.1, or [server] host).")
@click.option("--port", type=int, help="Its port (default: 8700, or [server] port); 0 for any free one.")
@click.option(
    "--tick",
    "tick_s",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds between rounds of the loop; 0: only when asked.",
)
@click.option(
    "--auth",
    type=click.Choice(["token"]),
    help="Beyond loopback: 'token' lets other machines in with the workspace's token. Put TLS in front.",
)
@click.option("--serving/--no-serving", default=True, help="Start the inference server too.")
@click.option(
    "--serving-port", type=int, help="The inference server's port (default: 8710, or [serving] port)."
)
@click.option(
    "--poll",
    "poll_s",
    type=float,
    default=1.0,
    show_default=True,
    help="Seconds between the inference server's looks at its routes.",
)
@click.option(
    "--end-with-stdin",
    is_flag=True,
    help="End when standard input is closed: when whoever started this is gone.",
)
@json_option
@with_local_workspace
def up(
    workspace: Workspace,
    host: str | None,
    port: int | None,
    tick_s: float,
    auth: str | None,
    serving: bool,
    serving_port: int | None,
    poll_s: float,
    end_with_stdin: bool,
    as_json: bool,
) -> None:
    """Server, pages, loop and inference for this project, until Ctrl-C."""
    from mainspring.loop.contract import find_problems
    from mainspring.server.access import ensure_token
    from mainspring.server.run import Options, serve

    config = workspace.settings.config
    options = Options(
        host=host or config.server.host,
        port=config.server.port if port is None else port,
        tick_s=tick_s if tick_s > 0 else None,
        auth=auth,
    )
    bundle = workspace.base.bundle
    bundle.mkdir(parents=True, exist_ok=True, mode=0o700)
    problems = find_problems(config, workspace.settings.root, workspace.models)
    child: list[subprocess.Popen[str]] = []

    def ready(url: str) -> None:
        inference = None
        if serving:
            process, inference = _start_serving(
                str(bundle.absolute()),
                config.serving.host,
                config.serving.port if serving_port is None else serving_port,
                poll_s,
            )
            child.append(process)
        addresses = {
            "event": "ready",
            "url": url,
            "login": f"{url}/login#{ensure_token(workspace.settings.home)}",
            "inference": inference,
            "pid": os.getpid(),
            "problems": [str(p) for p in problems],
        }
        if as_json:
            print(json.dumps(addresses), flush=True)
        else:
            print_note(f"pages      {addresses['login']}")
            print_note(f"api        {url}/api/v1/openapi.json")
            print_note(f"inference  {inference or '(not started)'}")
            for problem in problems:
                print_note(f"{click.style('retrains will fail:', fg='red')} {problem}")
            print_note("Ctrl-C ends all.")

    if end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    workspace.deploy.publish()
    try:
        serve(workspace, options, ready=ready)
    finally:
        for process in child:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)


@click.command()
@click.argument("deployment", required=False)
@click.option("--host", help="Address (default: 127.0.0.1, or [serving] host).")
@click.option("--port", type=int, help="Port (default: 8710, or [serving] port); 0 for any free one.")
@click.option(
    "--poll",
    "poll_s",
    type=float,
    default=1.0,
    show_default=True,
    help="Seconds between looks at the routes.",
)
@click.option(
    "--auth",
    type=click.Choice(["open", "key", "proxy"]),
    help="Who may ask: anybody on this machine, holders of the key, whoever a proxy lets through.",
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False),
    help="File with the key that clients send as a Bearer token; implies --auth key.",
)
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A further host name to answer for; repeat for more.",
)
@click.option(
    "--deadline", "deadline_s", type=SECONDS, help="Seconds for a prediction, then 504 (default: 10)."
)
@click.option("--max-rows", type=COUNT, help="Rows in one request (default: 10000).")
@click.option("--max-body", type=COUNT, metavar="BYTES", help="Size of one request (default: 16 MiB).")
@click.option(
    "--head-deadline",
    "head_deadline_s",
    type=SECONDS,
    help="Seconds for the head of a request (default: 10).",
)
@click.option(
    "--body-deadline",
    "body_deadline_s",
    type=SECONDS,
    help="Seconds for its body, and for a client to take in the answer (default: 30).",
)
@click.option("--slots", type=COUNT, help="Predictions in threads at once (default: 2).")
@click.option("--queue", type=click.IntRange(min=0), help="Requests that may wait for one (default: 64).")
@click.option("--memory-mb", type=COUNT, help="Address space of the worker (default: not bounded).")
@click.option(
    "--model-memory-mb",
    type=COUNT,
    help="What a model in a process of its own may allocate (default: 1024).",
)
@click.option(
    "--spare/--no-spare",
    default=None,
    help="Keep a second worker loaded, so that a dead one is replaced at once (default), or save its memory.",
)
@click.option(
    "--log-mode",
    type=click.Choice(["best_effort", "required"]),
    help="When predictions cannot be logged: serve and count them (default), or answer 503.",
)
@click.option(
    "--sandbox", type=click.Choice(["auto", "require", "off"]), help="Confine the worker (default: auto)."
)
@with_local_workspace
def serve(workspace: Workspace, /, deployment: str | None, api_key_file: str | None, **arguments: Any) -> int:
    """An inference server on its own, for what this workspace has deployed. DEPLOYMENT only checks that it is there."""
    if deployment is not None:
        workspace.deploy.get_deployment(name=deployment)
    workspace.deploy.publish()
    config = workspace.settings.config.serving
    bundle = workspace.base.bundle
    bundle.mkdir(parents=True, exist_ok=True, mode=0o700)
    workspace.close()  # the inference plane needs no database
    from mainspring.serving.supervisor import serve as run

    options = {name: value for name, value in arguments.items() if value not in (None, ())}
    if api_key_file is not None:
        options = {"auth": "key"} | options | {"api_key": Path(api_key_file).read_text().strip()}
    fixed: dict[str, Any] = {"host": config.host, "port": config.port}
    return run(bundle, **fixed | options)


def _start_serving(bundle: str, host: str, port: int, poll_s: float) -> tuple[subprocess.Popen[str], str]:
    """The inference server as a child; ends with us. Returns it and its address, once it answers."""
    from mainspring.errors import Unavailable
    from mainspring.serving import isolation

    process = subprocess.Popen(
        isolation.command(
            "mainspring.serving",
            "--bundle",
            bundle,
            "--host",
            host,
            "--port",
            str(port),
            "--poll",
            str(poll_s),
            "--end-with-stdin",  # our end of the pipe closes however we end, SIGKILL included
        ),
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        cwd=isolation.NEUTRAL,
        env=isolation.environment(),
    )
    assert process.stdout is not None  # noqa: S101 - stdout=PIPE above
    line = process.stdout.readline()
    if not line:
        raise Unavailable(
            "the inference server did not start",
            value=f"exit {process.wait()}",
            next_step="It has printed its reason above.",
        )
    threading.Thread(target=_drain_output, args=(process,), daemon=True).start()
    threading.Thread(target=_end_with_child, args=(process,), daemon=True).start()
    return process, str(json.loads(line)["url"])


def _drain_output(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None  # noqa: S101
    for _ in process.stdout:
        pass


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end_with_child(process: subprocess.Popen[str]) -> None:
    """One process group: when inference ends by itself, the rest ends too, so that a supervisor sees it."""
    if process.wait() not in {0, -signal.SIGTERM, -signal.SIGINT}:
        print_note("the inference server ended; stopping")
        os.kill(os.getpid(), signal.SIGTERM)
