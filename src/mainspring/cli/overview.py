"""``mainspring status | monitor | timeline | env``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mainspring.cli.output import emit, facts, json_option, say, table, with_workspace

if TYPE_CHECKING:
    from mainspring.workspace import Workspace


@click.command()
@json_option
@with_workspace
def status(workspace: Workspace, as_json: bool) -> None:
    """One line per deployment: champion, traffic, alerts, what is under way."""
    found = []
    for deployment in workspace.deploy.deployments():
        counts = workspace.monitoring.counts(deployment=deployment.name)
        jobs = workspace.loop.jobs(deployment=deployment.name, limit=1)
        rollouts = [
            r
            for r in workspace.loop.rollouts(deployment=deployment.name, limit=1)
            if r.state.value == "running"
        ]
        champion = next((t for t in deployment.targets if t.role == "champion"), None)
        found.append(
            {
                "deployment": deployment.name,
                "champion": f"{champion.model} version {champion.version}" if champion else None,
                "requests": counts.requests,
                "failed": counts.failed,
                "labelled": counts.labelled,
                "alerts": counts.open_alerts,
                "rollout": f"version {rollouts[0].version}, stage {rollouts[0].stage + 1} of {len(rollouts[0].stages)}"
                if rollouts
                else None,
                "job": jobs[0].state.value if jobs else None,
            }
        )
    if as_json:
        emit({"now": workspace.loop.now(), "deployments": found})
        return
    say(f"policy time {workspace.loop.now().isoformat()}")
    table(
        tuple(found[0]) if found else (),
        [tuple(f.values()) for f in found],
        empty="nothing is deployed yet: mainspring run PIPELINE, then mainspring models promote",
    )


@click.command()
@click.argument("deployment")
@click.option("--windows", "count", default=7, show_default=True, help="How many of the newest windows.")
@json_option
@with_workspace
def monitor(workspace: Workspace, deployment: str, count: int, as_json: bool) -> None:
    """Windows, drift and alerts of DEPLOYMENT."""
    windows = workspace.monitoring.windows(deployment=deployment, limit=count)
    items = list(getattr(windows, "items", windows))
    alerts = workspace.monitoring.alerts(deployment=deployment, state="open")
    if as_json:
        emit({"windows": items, "alerts": alerts})
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
                decay.value if decay else None,
            )
        )
    table(("window", "requests", "failed", "labelled", "drift", "largest effect", "quality"), rows)
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
def timeline(workspace: Workspace, kind: str | None, subject: str | None, limit: int, as_json: bool) -> None:
    """What happened, newest first."""
    page = workspace.lineage.events(kind=kind, subject=subject, limit=limit)
    if as_json:
        emit(page)
        return
    rows = [
        (
            e.at,
            e.kind,
            e.subject,
            e.actor,
            e.data.get("reason") or "  ".join(f"{k}={v}" for k, v in e.data.items()),
        )
        for e in page.items
    ]
    table(("policy time", "event", "about", "by", "why"), rows)


@click.command()
@click.option("--token", "with_token", is_flag=True, help="Print the token too.")
@click.option(
    "--export", "as_export", is_flag=True, help='As lines for a shell: eval "$(mainspring env --export)".'
)
@json_option
def env(with_token: bool, as_export: bool, as_json: bool) -> None:
    """Settings with where each comes from, and the token."""
    from mainspring import config
    from mainspring.server.access import ensure_token

    place = click.get_current_context().find_root().obj or {}
    settings = config.load(place.get("root"), url=place.get("url"))
    token = ensure_token(settings.home) if with_token or as_export else None
    address = settings.url or f"http://{settings.config.server.host}:{settings.config.server.port}"
    if as_export:
        click.echo(f"export MAINSPRING_URL={address}\nexport MAINSPRING_TOKEN={token}")
        return
    known = {
        "root": str(settings.root),
        "home": str(settings.home),
        "project": settings.config.project.name,
        "storage.database": settings.config.storage.database.split("@")[-1],
        "storage.objects": settings.config.storage.objects,
        "storage.clock": settings.config.storage.clock,
        "url": address,
    }
    if as_json:
        emit(
            {
                "settings": {
                    k: {"value": v, "origin": settings.origins.get(k, "default")} for k, v in known.items()
                },
                "token": token,
            }
        )
        return
    table(
        ("setting", "value", "from"), [(k, v, settings.origins.get(k, "default")) for k, v in known.items()]
    )
    if token:
        facts([("token", token)])
