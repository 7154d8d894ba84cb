"""The outcome of checks: as a report, as the data of an event, and as text."""

from __future__ import annotations

from datetime import datetime

import msgspec

from mainspring.errors import MainspringError
from mainspring.lineage.audit import DAMAGED
from mainspring.records.base import from_json
from mainspring.records.data import CheckReport, Finding
from mainspring.records.lineage import Event

_EVENT_ROWS = 3


def make_report(
    dataset: str,
    version: str | None,
    rows: int,
    findings: list[Finding],
    *,
    at: datetime,
    event: str | None = None,
) -> CheckReport:
    """The report of all findings on one table; ``version`` is None if it was never committed."""
    bad = [f for f in findings if not f.passed]
    return CheckReport(
        dataset=dataset,
        version=version,
        rows=rows,
        passed=not bad,
        refused=any(f.rule.refuse for f in bad),
        findings=findings,
        at=at,
        event=event,
    )


def summarise(dataset: str, findings: list[Finding]) -> dict[str, object]:
    """The failed rules as the data of a check's event."""
    bad = [f for f in findings if not f.passed]
    return {
        "dataset": dataset,
        "rules": len(findings),
        "failed": [
            {
                "rule": msgspec.to_builtins(f.rule),
                "failing": f.failing,
                "rows": f.rows,
                "reason": f.reason,
                "groups": f.groups[:10],
            }
            for f in bad
        ],
    }


def read_refusal(dataset: str, event: Event) -> CheckReport:
    """The report in an event of a refusal. An event that cannot be decoded gives a report with ``damaged``, so the others stay readable."""
    try:
        report: CheckReport = from_json(msgspec.json.encode(event.data["report"]), CheckReport)
    except (KeyError, MainspringError) as error:
        reason = event.data.get("reason") if event.kind == DAMAGED else f"its report cannot be read: {error}"
        return CheckReport(
            dataset=dataset, version=None, rows=0, passed=False, refused=True, findings=[], at=event.at, event=event.id,
            damaged=f"event {event.seq}: {reason} Run 'mainspring audit verify'.",
        )  # fmt: skip
    return msgspec.structs.replace(report, event=event.id)


def trim_report(report: CheckReport) -> CheckReport:
    """The report for an event: only the failed rules, with a few rows each."""
    findings = [
        msgspec.structs.replace(f, sample=f.sample[:_EVENT_ROWS]) for f in report.findings if not f.passed
    ]
    return msgspec.structs.replace(report, findings=findings)


def describe_finding(finding: Finding) -> str:
    """One failed rule in one line: the rule, how many rows failed, and an example."""
    from mainspring.data.checks import columns_of_rule

    names = ", ".join(columns_of_rule(finding.rule))
    text = f"{finding.rule.__struct_config__.tag}({names}): {finding.reason}"
    if finding.sample:
        first = finding.sample[0]
        shown = dict(list(first.values.items())[:4])
        text += f", e.g. row {first.row} {shown}"
    return text
