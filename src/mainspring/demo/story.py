"""The demo's year: a project is created, its servers run, a year passes day by day, and two mistakes are made on purpose.

Everything goes through the product's public interfaces: the project is what ``mainspring init --template flights`` writes, the
control plane and the inference server are ``mainspring up``, traffic and the comparison refits are processes that speak HTTP.
This module only moves the policy clock, delivers the feed, waits for what the loop started, and prints.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainspring.demo.account import Account
from mainspring.demo.ending import collect_figures
from mainspring.demo.processes import MemoryMeter, Process
from mainspring.demo.progress import Progress
from mainspring.demo.world import FAULTS, OPERATOR, YEAR, Faults, World
from mainspring.errors import CheckFailed, Unavailable
from mainspring.records.base import to_json
from mainspring.records.data import LabelRateRule
from mainspring.records.serving import Shadow

if TYPE_CHECKING:
    from mainspring.config import Config
    from mainspring.remote import RemoteWorkspace

PROJECT, DEPLOYMENT, MODEL = "flights", "delay", "delay"
LABELLED_PER_DAY = 110
_JOB_S = 300.0
_FIRST = date(YEAR, 2, 1)
_LAST = date(YEAR, 12, 31)


@dataclass(frozen=True)
class Choices:
    """The options of ``mainspring demo``."""

    directory: Path
    seed: int = 0
    without: str | None = None
    once: bool = True
    until: date = _LAST
    port: int | None = None
    """The port of the pages; 0 for any free one, None for 8700 if it is free."""


class Story:
    """One run of the demo."""

    def __init__(self, choices: Choices, progress: Progress) -> None:
        self._choices = choices
        self._progress = progress
        self.account = Account()
        faults = Faults() if choices.without == "faults" else FAULTS
        self._operator = (
            {} if choices.without == "faults" else {day: (params, reason) for day, params, reason in OPERATOR}
        )
        self._world = World.load(faults=faults, seed=choices.seed)
        self._feed = choices.directory / "feed"
        self._outlying_days = 0

    def run(self) -> dict[str, Any]:
        """Run the whole year; returns the figures of the last line."""
        started = time.monotonic()
        place = self._choices.directory
        make_project(place, without=self._choices.without)
        self._progress.heading(f"A project in {place}")
        logs = place / "logs"
        logs.mkdir()
        with MemoryMeter() as memory, self._servers(logs) as up:
            ready = up.read_answer()
            token = place / ".mainspring" / "token"
            self._progress.line(f"pages      {ready['login']}")
            self._progress.line(f"inference  {ready['inference']}")
            common = [
                "--control",
                ready["url"],
                "--token-file",
                str(token),
                "--seed",
                str(self._choices.seed),
            ]
            with (
                self._remote(ready["url"], token) as workspace,
                Process(
                    "mainspring.demo.traffic",
                    ["--serving", ready["inference"], *common, "--labelled", str(LABELLED_PER_DAY)],
                    log=logs / "traffic.log",
                ) as traffic,
                Process(
                    "mainspring.demo.baseline", ["--project", str(place), *common], log=logs / "baseline.log"
                ) as baseline,
            ):
                self._run_year(workspace, traffic, baseline, ready["inference"])
                result = collect_figures(
                    place,
                    ready["inference"],
                    self.account,
                    seed=self._choices.seed,
                    without=self._choices.without,
                )
            result |= {
                "workspace": str(place),
                "seconds": round(time.monotonic() - started, 1),
                "peak_pss_mb": round(memory.peak_mb, 1),
            }
            self._progress.summary(result)
            if not self._choices.once:
                self._progress.line(
                    f"\nThe pages stay up: {ready['login']}\nCtrl-C ends them; the workspace stays in {place}."
                )
                self._wait_for_interrupt(up)
        return result

    # --- the year ----------------------------------------------------------------------------------------------------

    def _run_year(
        self, workspace: RemoteWorkspace, traffic: Process, baseline: Process, inference: str
    ) -> None:
        self._collect_january(workspace)
        self._commit_corrupted(workspace)
        self._train_first_model(workspace, inference)
        self._progress.heading("The year, on a policy clock")
        for day in days(_FIRST, self._choices.until):
            if day != _FIRST:
                self._world.deliver(day, self._feed)
            if day.day == 1 and day != _FIRST:
                self._commit(workspace, day)
                self._refit_monthly(workspace, baseline, day, inference)
            wish = self._operator.get(day)
            if wish is not None:
                self._request_retrain(workspace, day, *wish)
            self._send_day(traffic, day)
            self._move_clock(workspace, day + timedelta(days=1))
            self._run_loop(workspace, inference, day)
            self._progress.day(day, self.account.sent)
        last = self._choices.until + timedelta(days=1)
        self._world.deliver(last, self._feed)
        result = traffic.request("report")
        self.account.labels += int(result["labels"])
        self._move_clock(workspace, last + timedelta(days=1))
        self._run_loop(workspace, inference, self._choices.until)
        self._commit(workspace, last)

    def _collect_january(self, workspace: RemoteWorkspace) -> None:
        self._progress.heading("Collect, check, commit")
        for day in days(date(YEAR, 1, 2), _FIRST):
            self._world.deliver(day, self._feed)
        self._move_clock(workspace, _FIRST)
        self._commit(workspace, _FIRST)

    def _commit(self, workspace: RemoteWorkspace, day: date) -> None:
        """All that the feed holds by now becomes the next version of ``flights``; unchanged rows are stored once."""
        version = workspace.data.commit(
            "flights", self._feed_rows(), message=f"feed of {day.isoformat()}", checks=self._checks()
        )
        self.account.versions.append(version.id)
        self._progress.event(day, "commit", f"flights version {version.number}: {version.rows:,} rows")
        self._report_label_rates(workspace, day, version.id)

    def _report_label_rates(self, workspace: RemoteWorkspace, day: date, version: str) -> None:
        """Days with an unusual share of late flights do not refuse a version; they are reported when there are more than before."""
        rates = [rule for rule in self._checks() if isinstance(rule, LabelRateRule)]
        for finding in workspace.data.check("flights", rates, version).findings:
            outlying = 0 if finding.passed else int(finding.reason.split()[0])
            if outlying > self._outlying_days + 1:
                self.account.label_rates.append({"at": day.isoformat(), "reason": finding.reason})
                reason = finding.reason.replace("groups", "days")
                self._progress.event(day, "label rate", f"late: {reason} (reported, not refused)")
            self._outlying_days = outlying

    def _commit_corrupted(self, workspace: RemoteWorkspace) -> None:
        """Commit a batch in which a supplier mixed up columns: it is refused as a whole, and none of it becomes visible."""
        before = len(workspace.data.list_versions("flights").items)
        try:
            workspace.data.commit(
                "flights", corrupt(self._world.of_day(_FIRST)), message="a delivery", checks=self._checks()
            )
        except CheckFailed as error:
            report = workspace.data.list_refusals("flights", limit=1)[0]
            broken = [f for f in report.findings if not f.passed and f.rule.refuse]
            self.account.refused = {
                "event": report.event,
                "rules": [_rule_name(f.rule) for f in broken],
                "failing_rows": sum(f.failing for f in broken),
            }
            self._progress.event(_FIRST, "refused", error.message.partition(":")[0])
            for finding in broken:
                self._progress.detail(_describe_finding(finding))
        if len(workspace.data.list_versions("flights").items) != before or self.account.refused is None:
            raise Unavailable(
                "a corrupted batch became a version", next_step="This must not happen; please report it."
            )

    def _train_first_model(self, workspace: RemoteWorkspace, inference: str) -> None:
        self._progress.heading("Train, gate, register, deploy")
        job = workspace.loop.request_retrain(deployment=DEPLOYMENT, reason="first model")
        self._wait_for_job(workspace, job.id)
        self._run_loop(workspace, inference, _FIRST)
        version = workspace.models.get_version(model=MODEL, selector="champion")
        metrics = ", ".join(f"{k} {v:.3f}" for k, v in version.metrics.items() if "." not in k)
        self._progress.event(
            _FIRST,
            "champion",
            f"version {version.version} ({version.tags.get('family', version.format)}) as {version.format}; hold-out {metrics}",
        )
        self._add_shadow(workspace, "frozen", MODEL, version.version, version.package, inference)
        self._add_shadow(workspace, "monthly", MODEL, version.version, version.package, inference)

    def _refit_monthly(
        self, workspace: RemoteWorkspace, baseline: Process, day: date, inference: str
    ) -> None:
        number = baseline.request(midnight(day).isoformat())["version"]
        version = workspace.models.get_version(model="delay-monthly", selector=str(number))
        self._add_shadow(workspace, "monthly", "delay-monthly", number, version.package, inference)

    def _add_shadow(
        self, workspace: RemoteWorkspace, name: str, model: str, version: int, package: str, inference: str
    ) -> None:
        """Add a shadow, which scores every request and answers none; the other routes stay as they are."""
        deployment = workspace.deploy.get_deployment(name=DEPLOYMENT)
        others = [s for s in deployment.shadows if s.name != name]
        shadow = Shadow(model=model, version=version, package=package, name=name)
        workspace.deploy.set_routes(
            deployment=DEPLOYMENT,
            targets=deployment.targets,
            shadows=[*others, shadow],
            reason=f"comparison: {name}",
        )
        self._wait_for_routes(workspace, inference)

    def _request_retrain(
        self, workspace: RemoteWorkspace, day: date, params: dict[str, Any], reason: str
    ) -> None:
        """Somebody changes the pipeline's params and asks for a retraining by hand; gate and rollout follow as always."""
        if self._choices.without == "retrain":
            return
        if any(
            r.state.value == "running" for r in workspace.loop.list_rollouts(deployment=DEPLOYMENT, limit=1)
        ):
            # A rollout is running: try again the next day
            self._operator[day + timedelta(days=1)] = (
                params,
                reason,
            )
            return
        job = workspace.loop.request_retrain(deployment=DEPLOYMENT, reason=reason, params=params)
        self._progress.event(day, "asked", reason)
        self._wait_for_job(workspace, job.id)

    def _send_day(self, traffic: Process, day: date) -> None:
        result = traffic.request(day.isoformat())
        self.account.sent += int(result["sent"])
        self.account.failed += int(result["failed"])
        self.account.labels += int(result["labels"])
        self.account.errors += result["errors"]

    def _run_loop(self, workspace: RemoteWorkspace, inference: str, day: date) -> None:
        """Run rounds of the loop until nothing is due, with its retrainings: the policy clock does not move meanwhile."""
        changed = False
        while True:
            result = workspace.loop.tick()
            for decision in result.decisions:
                self._progress.event(day, decision.action, decision.reason)
            for problem in result.problems:
                self.account.problems.append(problem)
                self._progress.detail(f"a part of the round failed: {problem}")
            changed = changed or bool(result.decisions)
            for job in result.jobs:
                self._wait_for_job(workspace, job)
            if not result.jobs and not result.decisions:
                break
        if changed:
            self._wait_for_routes(workspace, inference)

    def _wait_for_job(self, workspace: RemoteWorkspace, ident: str) -> None:
        deadline = time.monotonic() + _JOB_S
        while time.monotonic() < deadline:
            job = workspace.loop.get_job(job=ident)
            if job.state.value in {"finished", "failed"}:
                if job.error is not None:
                    self._progress.detail(f"the retraining failed: {job.error}")
                return
            time.sleep(0.05)
        raise Unavailable(
            "a retraining did not end",
            value=ident,
            place=str(self._choices.directory / ".mainspring" / "workers" / "worker.log"),
        )

    def _wait_for_routes(self, workspace: RemoteWorkspace, inference: str) -> None:
        import httpx2

        number = workspace.deploy.publish().number
        deadline = time.monotonic() + 60
        with httpx2.Client(base_url=inference, trust_env=False) as client:
            while time.monotonic() < deadline:
                if client.get("/v1/status").json()["routes"] >= number:
                    return
                time.sleep(0.02)
        raise Unavailable("the inference server did not take the new routes", value=number)

    # --- pieces ------------------------------------------------------------------------------------------------------

    def _move_clock(self, workspace: RemoteWorkspace, day: date) -> None:
        workspace.loop.set_clock(now=midnight(day))

    def _feed_rows(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # A corrected delivery repeats flights; for each flight the newest row is used.
        rows = pa.concat_tables([pq.read_table(p) for p in sorted(self._feed.glob("*.parquet"))])
        newest = (
            rows.group_by("flight_id")
            .aggregate([("label_arrived_at", "max")])
            .rename_columns(["flight_id", "label_arrived_at"])
        )
        joined = rows.join(newest, ["flight_id", "label_arrived_at"], join_type="left semi")
        return joined.sort_by([("event_time", "ascending"), ("flight_id", "ascending")])

    def _checks(self) -> Any:
        return load_policy(self._choices.directory).data["flights"].checks

    def _servers(self, logs: Path) -> Process:
        port = self._choices.port
        if port is None:
            port = 8700 if _is_free(8700) else 0
        arguments = [
            "-C",
            str(self._choices.directory),
            "up",
            "--json",
            "--port",
            str(port),
            "--serving-port",
            "0",
            "--tick",
            "0",
            "--poll",
            "0.05",
            "--end-with-stdin",  # our end of the pipe closes even if this process is killed
        ]
        return Process("mainspring.cli", arguments, log=logs / "servers.log")

    def _remote(self, url: str, token: Path) -> RemoteWorkspace:
        from mainspring.remote import RemoteWorkspace

        return RemoteWorkspace(url, token=token.read_text().strip(), project=PROJECT)

    def _wait_for_interrupt(self, up: Process) -> None:
        try:
            up.wait()
        except KeyboardInterrupt:
            self._progress.line("")


def make_project(directory: Path, *, without: str | None) -> None:
    """Write what ``mainspring init --template flights`` writes, on a manual clock; ``without`` leaves one part of the policy out."""
    from mainspring.projects import copy_template

    copy_template("flights", directory, name=PROJECT)
    (directory / "feed").mkdir(exist_ok=True)
    file = directory / "mainspring.toml"
    text = file.read_text().replace('clock = "system"', 'clock = "manual"')
    file.write_text(text)
    if without in {"gate", "canary", "retrain"}:
        leave_out(file, without)


def leave_out(file: Path, part: str) -> None:
    """Take the gate, the canary or retraining out of a policy file: the lists are replaced, the rest stays as it is."""
    import re

    text = file.read_text()
    replaced = {
        "gate": [(r"(?ms)^gate = \[.*?^\]", 'gate = [{ metric = "auc", min = 0.0 }]')],
        "canary": [
            (r"(?ms)^stages = \[.*?^\]", "stages = [{ full = true }]"),
            (r"(?ms)^rollback = \[.*?^\]", "rollback = []"),
        ],
        "retrain": [(r"(?m)^retrain_on = \[.*\]$", "retrain_on = []")],
    }[part]
    for pattern, replacement in replaced:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise Unavailable("the template has no such part to leave out", value=part, place=str(file))
    file.write_text(text)


def load_policy(directory: Path) -> Config:
    from mainspring.config import load

    return load(directory).config


def corrupt(flights: Any) -> Any:
    """A day's flights as a supplier once delivered them: a shifted column, a unit mixed up, some rows twice."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def put(table: Any, name: str, values: Any) -> Any:
        return table.set_column(table.schema.get_field_index(name), name, values)

    part = flights.slice(0, 400)
    part = part.append_column(
        "label_arrived_at", pc.add(part["event_time"], pa.scalar(timedelta(days=1), pa.duration("us")))
    )
    part = part.append_column("late", pc.greater(part["arr_delay"], 15))
    bad = part.slice(0, 40)
    bad = put(bad, "distance", pc.multiply(bad["distance"], -1.609))
    bad = put(bad, "origin", bad["dest"])
    return pa.concat_tables([part.slice(40), bad, part.slice(100, 15)])


def days(first: date, last: date) -> Iterator[date]:
    """Both included."""
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _rule_name(rule: Any) -> str:
    import msgspec

    plain = msgspec.to_builtins(rule)
    return f"{plain['check']} {plain.get('column') or ','.join(plain.get('columns', []))}".strip()


def _describe_finding(finding: Any) -> str:
    """A broken rule, how many rows break it, and one of these rows with the value that the rule checks."""
    text = f"{_rule_name(finding.rule)}: {finding.failing} rows"
    if not finding.sample:
        return text
    row = finding.sample[0]
    checked = [getattr(finding.rule, "column", None) or "flight_id"]
    shown = ", ".join(f"{name} {row.values.get(name)!r}" for name in checked)
    return f"{text}, e.g. row {row.row} with {shown}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def as_line(figures: dict[str, Any]) -> str:
    """The figures as the one line that ``--json`` prints."""
    return to_json(figures).decode()
