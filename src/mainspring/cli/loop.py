"""``mainspring loop``: run a round, ask for a retraining or a rollback, replay and simulate decisions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import (
    json_option,
    local_settings,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_local_workspace,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.rooms import Namespaces
    from mainspring.workspace import Workspace


@click.group()
def loop() -> None:
    """The loop: facts in, decisions out."""


@loop.command()
@json_option
@with_workspace
def tick(workspace: Namespaces, as_json: bool) -> int:
    """One round: take in what happened, decide what is due, do it; exits 1 if a part of it failed."""
    result = workspace.loop.tick()
    if as_json:
        print_json(result)
    else:
        print_note(f"policy time {result.now.isoformat()}")
        print_table(
            ("decision", "why"), [(d.action, d.reason) for d in result.decisions], empty="nothing was due"
        )
        for problem in result.problems:
            print_note(f"{click.style('problem', fg='red')} {problem} (left for the next round)")
    return 1 if result.problems else 0


@loop.command()
@click.argument("deployment")
@click.option("--reason", required=True, help="Why; it is recorded.")
@json_option
@with_workspace
def retrain(workspace: Namespaces, deployment: str, reason: str, as_json: bool) -> None:
    """Ask for a retraining of DEPLOYMENT's model; gate and rollout follow as always."""
    job = workspace.loop.request_retrain(deployment=deployment, reason=reason)
    if as_json:
        print_json(job)
        return
    print_facts([("job", job.id), ("state", job.state.value), ("data until", job.cutoff)])
    print_note(f"A running server works on it; without one: mainspring loop work {job.id}")


@loop.command()
@click.argument("deployment")
@click.option("--reason", required=True, help="Why; it is recorded.")
@json_option
@with_workspace
def rollback(workspace: Namespaces, deployment: str, reason: str, as_json: bool) -> None:
    """Withdraw DEPLOYMENT's candidate; without one, put the previous champion back."""
    decision = workspace.loop.rollback(deployment=deployment, reason=reason)
    if as_json:
        print_json(decision)
        return
    print_facts(
        [
            ("rolled back", deployment),
            ("from version", decision.details.get("version")),
            ("to version", decision.details.get("to")),
        ]
    )


@loop.command()
@click.option("--deployment", help="Only this one.")
@json_option
@with_workspace
def jobs(workspace: Namespaces, deployment: str | None, as_json: bool) -> None:
    """Retraining jobs, newest first."""
    newest = workspace.loop.list_jobs(deployment=deployment)
    if as_json:
        print_json(newest)
        return
    rows = [
        (j.id, j.deployment, j.state.value, j.requested_at, j.version, j.trigger, j.error or j.reason)
        for j in newest
    ]
    print_table(("job", "deployment", "state", "requested", "version", "trigger", "why"), rows)


@loop.command()
@click.option("--deployment", help="Only this one.")
@json_option
@with_workspace
def rollouts(workspace: Namespaces, deployment: str | None, as_json: bool) -> None:
    """Rollouts, newest first."""
    newest = workspace.loop.list_rollouts(deployment=deployment)
    if as_json:
        print_json(newest)
        return
    rows = [
        (r.id, r.deployment, r.version, r.champion, r.state.value, r.started_at, r.ended_at, r.reason)
        for r in newest
    ]
    print_table(("rollout", "deployment", "version", "champion", "state", "started", "ended", "why"), rows)


@loop.command()
@json_option
@with_workspace
def replay(workspace: Namespaces, as_json: bool) -> int:
    """Decide all recorded facts again; exits 1 if any decision would differ."""
    report = workspace.loop.replay()
    if as_json:
        print_json(report)
    else:
        print_facts(
            [("ticks", report.ticks), ("decisions", report.decisions), ("same decisions", report.same)]
        )
        _differences(report.differences)
    return 0 if report.same else 1


@loop.command("what-if")
@click.argument("deployment")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A changed reaction, e.g. cooldown=14d."
)
@json_option
@with_workspace
def what_if(workspace: Namespaces, deployment: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Ask what another reaction policy would have decided on the recorded facts."""
    import msgspec

    from mainspring.errors import InvalidInput

    # The policy in force, with the changes applied to it.
    current = local_settings().config.retrain.get(deployment)
    policy: dict[str, Any] = msgspec.to_builtins(current) if current is not None else {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not equals:
            raise InvalidInput("a setting is NAME=VALUE", value=item, place="--set")
        policy[name] = _value(value)
    report = workspace.loop.simulate_policy(deployment=deployment, policy=policy)
    if as_json:
        print_json(report)
        return
    print_facts(
        [("ticks", report.ticks), ("decisions then", report.decisions), ("same decisions", report.same)]
    )
    _differences(report.differences)


@loop.command(hidden=True)
@with_local_workspace
def follow(workspace: Workspace) -> None:
    """Do jobs whose ids come on stdin, one a line, until it ends: a worker that stays warm between jobs."""
    from mainspring.errors import MainspringError
    from mainspring.execution import worker_runner
    from mainspring.loop.worker import work as work_on

    run = worker_runner(workspace.execution)
    for line in sys.stdin:
        job = line.strip()
        try:
            ended = work_on(workspace, workspace.settings.config, job, run)
            print_note(f"job {job}: {ended.state.value}{': ' + ended.error if ended.error else ''}")
        except MainspringError as error:  # another worker has taken or finished it
            print_note(f"job {job}: {error}")


@loop.command(hidden=True)
@click.argument("job")
@json_option
@with_local_workspace
def work(workspace: Workspace, job: str, as_json: bool) -> int:
    """Do a queued retraining job in this process."""
    from mainspring.execution import worker_runner
    from mainspring.loop.worker import work as work_on

    ended = work_on(workspace, workspace.settings.config, job, worker_runner(workspace.execution))
    if as_json:
        print_json(ended)
    else:
        print_facts(
            [
                ("job", ended.id),
                ("state", ended.state.value),
                ("version", ended.version),
                ("error", ended.error),
            ]
        )
    return 1 if ended.error else 0


def _differences(differences: list[dict[str, Any]]) -> None:
    if differences:
        rows = [
            (d["tick"], "; ".join(d["recorded"]) or "nothing", "; ".join(d["replayed"]) or "nothing")
            for d in differences
        ]
        print_table(("tick", "recorded", "now"), rows)


def _value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text
