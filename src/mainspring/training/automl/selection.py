"""Which candidate: it must lead the dummy beyond noise, and of those not shown to be worse than the best the simplest wins.

The best of many is good by luck as well: the level at which a lead over the dummy counts is divided by the number of candidates
that were scored (Bonferroni), so that noise is taken for a signal in at most one search of twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mainspring.metrics.compare import compare
from mainspring.metrics.metric import Metric
from mainspring.records.models import Task
from mainspring.training.automl.board import Entry
from mainspring.training.automl.families import DUMMY, Candidate
from mainspring.training.automl.rungs import Outcome, Trial

LEVEL = 0.05


@dataclass(frozen=True)
class Selection:
    """``ranked``: the selected one and then, best first, those that may take its place. Empty: nothing leads the dummy."""

    ranked: list[Candidate]
    entries: list[Entry]
    reason: str


def select(outcome: Outcome, *, metric: Metric, task: Task, blocks: Any, target: str) -> Selection:
    sign = -1.0 if metric.higher_is_better else 1.0
    compared = sorted(
        outcome.compared, key=lambda t: (sign * (t.value if t.value is not None else 0.0), t.candidate.number)
    )
    dummy = next(t for t in compared if t.candidate.family == DUMMY)
    others = [t for t in compared if t is not dummy]
    scored = sum(t.rung >= 0 and t.candidate.family != DUMMY for t in outcome.trials)

    def worse(candidate: Trial, than: Trial) -> Any:
        return compare(
            outcome.truth, candidate.scores, than.scores, task=task, name=metric.name, blocks=blocks  # type: ignore[arg-type]
        )  # fmt: skip

    leads = {t.candidate.name: worse(dummy, t).p_harm for t in others}
    level = LEVEL / max(scored, 1)
    eligible = [t for t in others if (p := leads[t.candidate.name]) is not None and p <= level]
    best = eligible[0] if eligible else compared[0]
    versus = {t.candidate.name: worse(t, best) for t in compared if t is not best}
    chosen, reason = _choose_simplest(eligible, versus, metric.name)
    if chosen is None:
        reason = (
            f"nothing here is shown to predict {target}: by {metric.name}, no candidate of {scored} leads the dummy beyond what chance gives "
            f"(best p {min((p for p in leads.values() if p is not None), default=1.0):.2g}, limit {level:.2g})"
        )
    entries = [
        Entry(
            **_describe_facts(t), state="compared", value=t.value, beats_dummy=leads.get(t.candidate.name),
            worse_by=versus[t.candidate.name].worse_by if t.candidate.name in versus else None,
        )
        for t in compared
    ]  # fmt: skip
    ranked = [chosen, *(t for t in eligible if t is not chosen)] if chosen is not None else []
    return Selection([t.candidate for t in ranked], entries + _list_others(outcome), reason)


def _choose_simplest(
    eligible: Sequence[Trial], versus: dict[str, Any], name: str
) -> tuple[Trial | None, str]:
    if not eligible:
        return None, ""
    best = eligible[0]
    leaders: dict[int, Trial] = {}
    for trial in eligible:  # best first: the first of a family is its best
        leaders.setdefault(trial.candidate.rank, trial)
    for _, trial in sorted(leaders.items()):
        if trial is best:
            break
        comparison = versus[trial.candidate.name]
        if comparison.p_harm is not None and not comparison.harmful:
            return trial, (
                f"{trial.candidate.name} is simpler than {best.candidate.name}, which has the best {name}, and not shown to be worse "
                f"(p = {comparison.p_harm:.2g})"
            )
    return best, f"{best.candidate.name} has the best {name}, and no simpler one comes up to it"


def _list_others(outcome: Outcome) -> list[Entry]:
    """Those that did not come to the last rung: dropped by rung, then skipped, then failed."""
    there = {t.candidate.name for t in outcome.compared}
    left = [t for t in outcome.trials if t.candidate.name not in there]
    entries = []
    for trial in sorted(left, key=lambda t: (bool(t.error), -t.rung, t.candidate.number)):
        if trial.error:
            entry = Entry(**_describe_facts(trial), state="failed", reason=trial.error)
        elif trial.rung < 0:
            entry = Entry(**_describe_facts(trial), state="skipped", reason=trial.skipped)
        else:
            reason = trial.skipped or "others were better"
            entry = Entry(**_describe_facts(trial), state="dropped", value=trial.value, reason=reason)
        entries.append(entry)
    return entries


def _describe_facts(trial: Trial) -> dict[str, Any]:
    return {
        "candidate": trial.candidate.name,
        "family": trial.candidate.family,
        "params": dict(trial.candidate.params),
        "rung": max(trial.rung, 0),
        "rows": trial.rows,
        "seconds": round(trial.seconds, 3),
    }
