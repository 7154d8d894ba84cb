"""What checks found, as a report, as an event keeps it and as a person reads it."""

from __future__ import annotations

from datetime import datetime

import msgspec

from mainspring.errors import MainspringError
from mainspring.lineage.audit import DAMAGED
from mainspring.records.base import from_json
from mainspring.records.data import CheckReport, Finding
from mainspring.records.lineage import Event

_EVENT_ROWS = 3


def report(
    dataset: str,
    version: str | None,
    rows: int,
    findings: list[Finding],
    *,
    at: datetime,
    event: str | None = None,
) -> CheckReport:
    """All findings over one table; ``version`` None: it was never committed."""
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


def summary(dataset: str, findings: list[Finding]) -> dict[str, object]:
    """What failed, as the event of a check says it."""
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


def refusal(dataset: str, event: Event) -> CheckReport:
    """What an event says of a refusal; a row that cannot be read is shown as one, and hides no other."""
    try:
        found: CheckReport = from_json(msgspec.json.encode(event.data["report"]), CheckReport)
    except (KeyError, MainspringError) as error:
        reason = event.data.get("reason") if event.kind == DAMAGED else f"its report cannot be read: {error}"
        return CheckReport(
            dataset=dataset, version=None, rows=0, passed=False, refused=True, findings=[], at=event.at, event=event.id,
            damaged=f"event {event.seq}: {reason} Run 'mainspring audit verify'.",
        )  # fmt: skip
    return msgspec.structs.replace(found, event=event.id)


def trimmed(report: CheckReport) -> CheckReport:
    """The report as an event keeps it: failed rules only, a few rows of each."""
    findings = [
        msgspec.structs.replace(f, sample=f.sample[:_EVENT_ROWS]) for f in report.findings if not f.passed
    ]
    return msgspec.structs.replace(report, findings=findings)


def line(finding: Finding) -> str:
    """One failed rule for a person: what, how many, and a row that shows it."""
    from mainspring.data.checks import columns_of_rule

    names = ", ".join(columns_of_rule(finding.rule))
    text = f"{finding.rule.__struct_config__.tag}({names}): {finding.reason}"
    if finding.sample:
        first = finding.sample[0]
        shown = dict(list(first.values.items())[:4])
        text += f", e.g. row {first.row} {shown}"
    return text
