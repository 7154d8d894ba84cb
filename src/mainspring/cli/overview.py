"""``mainspring status | monitor | timeline | env``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import (
    json_option,
    local_settings,
    print_facts,
    print_json,
    print_note,
    print_table,
    with_workspace,
)
from mainspring.records.base import counted
from mainspring.records.events import describe

if TYPE_CHECKING:
    from mainspring.config import Settings
    from mainspring.records.lineage import Event
    from mainspring.records.monitoring import MonitorCounts
    from mainspring.records.serving import Target
    from mainspring.rooms import Namespaces


@click.command()
@json_option
@with_workspace
def status(workspace: Namespaces, as_json: bool) -> None:
    """One line per deployment: champion, traffic, alerts, what is under way."""
    lines = []
    for deployment in workspace.deploy.list_deployments():
        counts = _counts(workspace, deployment.name)
        jobs = workspace.loop.list_jobs(deployment=deployment.name, limit=1)
        rollouts = [
            r
            for r in workspace.loop.list_rollouts(deployment=deployment.name, limit=1)
            if r.state.value == "running"
        ]
        champion = next((t for t in deployment.targets if t.role == "champion"), None)
        lines.append(
            {
                "deployment": deployment.name,
                "champion": f"{champion.model} version {champion.version}" if champion else None,
                "requests": counts.requests if counts else 0,
                "failed": counts.failed if counts else 0,
                "labelled": counts.labelled if counts else 0,
                "alerts": counts.open_alerts if counts else 0,
                "watched": _describe_watch(workspace, champion),
                "rollout": f"version {rollouts[0].version}, stage {rollouts[0].stage + 1} of {len(rollouts[0].stages)}"
                if rollouts
                else None,
                "job": jobs[0].state.value if jobs else None,
            }
        )
    needs = workspace.loop.list_needs()
    if as_json:
        print_json({"now": workspace.loop.get_clock(), "deployments": lines, "needs": needs})
        return
    print_note(f"policy time {workspace.loop.get_clock().isoformat()}")
    print_table(
        tuple(lines[0]) if lines else (),
        [tuple(f.values()) for f in lines],
        empty="nothing is deployed yet: mainspring run PIPELINE, then mainspring models promote",
    )
    for need in needs:
        said = f"{need.deployment} since {need.at:%Y-%m-%d %H:%M}: {need.reason}"
        click.echo(f"{click.style('needs a person', fg='red')} {said}")
    if needs:
        print_note(
            "next: mainspring loop jobs shows each failure; mend it, then mainspring loop retrain DEPLOYMENT --reason ..."
        )
    if any(line["watched"] == UNWATCHED for line in lines):
        print_note(
            f"{UNWATCHED}: the version was registered without a training profile, so drift cannot be seen; register the next one with profile=..."
        )


UNWATCHED = "unwatched"


def _describe_watch(workspace: Namespaces, champion: Target | None) -> str | None:
    """Whether there is something to compare the traffic of a deployment with."""
    if champion is None:
        return None
    version = workspace.models.get_version(champion.model, str(champion.version))
    return UNWATCHED if version.profile is None else "yes"


def _counts(workspace: Namespaces, deployment: str) -> MonitorCounts | None:
    """None before the first request."""
    from mainspring.errors import NotFound

    try:
        return workspace.monitoring.get_counts(deployment=deployment)
    except NotFound:
        return None


@click.command()
@click.argument("deployment")
@click.option("--windows", "count", default=7, show_default=True, help="How many of the newest windows.")
@json_option
@with_workspace
def monitor(workspace: Namespaces, deployment: str, count: int, as_json: bool) -> None:
    """Windows, drift and alerts of DEPLOYMENT."""
    workspace.deploy.get_deployment(name=deployment)  # refuses a misspelt name, which would show no windows
    windows = workspace.monitoring.list_windows(deployment=deployment, limit=count)
    items = list(getattr(windows, "items", windows))
    alerts = workspace.monitoring.list_alerts(deployment=deployment, state="open")
    if as_json:
        print_json({"windows": items, "alerts": alerts})
        return
    rows: list[tuple[Any, ...]] = []
    for w in items:
        drift = w.report.drift if w.report else None
        worst = drift.columns[0] if drift and drift.columns else None
        decay = w.report.decay if w.report else None
        rows.append(
            (
                w.start,
                w.requests,
                w.errors,
                w.labelled,
                drift.verdict.value if drift else w.state,
                f"{worst.column} psi {worst.psi:.3f}" if worst and worst.psi is not None else None,
                f"{decay.metric} {decay.value:.4f}" if decay and decay.value is not None else None,
            )
        )
    print_table(("window", "requests", "failed", "labelled", "drift", "largest effect", "performance"), rows)
    for alert in alerts:
        click.echo(
            f"{click.style('alert', fg='yellow')} {alert.kind} of {alert.subject} since {alert.opened_at:%Y-%m-%d}: {alert.detail}"
        )


@click.command()
@click.option("--kind", help="Only this kind, or all that start with it: 'loop.'.")
@click.option("--subject", help="Only about this thing, e.g. deployment:delay.")
@click.option("--limit", default=30, show_default=True)
@json_option
@with_workspace
def timeline(workspace: Namespaces, kind: str | None, subject: str | None, limit: int, as_json: bool) -> None:
    """What happened, newest first."""
    page = workspace.lineage.list_events(kind=kind, subject=subject, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [(e.at, e.kind, e.subject, e.actor, _in_words(e)) for e in page.items]
    print_table(("policy time", "event", "about", "by", "what happened"), rows)


def _in_words(event: Event) -> str:
    description = describe(event.kind, event.data)
    return f"{description.words}: {description.detail}" if description.detail else description.words


@click.command()
@click.option("--token", "with_token", is_flag=True, help="Print the token too.")
@click.option(
    "--export", "as_export", is_flag=True, help='As lines for a shell: eval "$(mainspring env --export)".'
)
@json_option
def env(with_token: bool, as_export: bool, as_json: bool) -> None:
    """Settings with where each comes from, and the token."""
    from mainspring.server.access import ensure_token

    settings = local_settings()
    token = ensure_token(settings.home) if with_token or as_export else None
    address = settings.url or f"http://{settings.config.server.host}:{settings.config.server.port}"
    if as_export:
        click.echo(f"export MAINSPRING_URL={address}\nexport MAINSPRING_TOKEN={token}")
        return
    rows = _list_settings(settings, address)
    if as_json:
        print_json({"settings": {k: {"value": v, "origin": o} for k, v, o in rows}, "token": token})
        return
    print_table(("setting", "value", "from"), rows)
    if token:
        click.echo()
        print_facts([("token", token)])


def _list_settings(settings: Settings, address: str) -> list[tuple[str, Any, str]]:
    """Every setting with its value and where that comes from; of the policy sections, what the file says."""
    import tomllib

    import msgspec

    from mainspring.config import FILE

    file = settings.root / FILE
    raw = tomllib.loads(file.read_text()) if file.exists() else {}
    written = dict(_flatten(raw))
    rows: list[tuple[str, Any, str]] = [
        ("root", str(settings.root), settings.origins.get("root", "nearest upwards")),
        ("home", str(settings.home), settings.origins.get("home", "default")),
        ("url", address, settings.origins.get("url", "default")),
    ]
    for section in ("project", "storage", "server", "serving"):
        for key, value in _flatten(msgspec.to_builtins(getattr(settings.config, section)), f"{section}."):
            origin = settings.origins.get(key) or (FILE if key in written else "default")
            shown = _without_password(value) if key == "storage.database" else value
            rows.append((key, shown if shown != [] else "-", origin))
    sections = ("project.", "storage.", "server.", "serving.")
    rows += [(key, value, FILE) for key, value in written.items() if not key.startswith(sections)]
    return rows


def _flatten(table_: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table_.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{prefix}{key}", counted(len(value), "rule")
        else:
            yield f"{prefix}{key}", value


def _without_password(url: str) -> str:
    """A database's address with its password replaced by ``***``."""
    scheme, separator, rest = url.partition("://")
    credentials, at, place = rest.rpartition("@")
    if not at:
        return url
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{place}"
