"""A model card from what is recorded (after Mitchell et al., "Model Cards for Model Reporting", 2019).

Both texts, Markdown and HTML, are made from one list of sections. What nobody recorded is shown as "not recorded", never left out or
guessed. All values are data, and escaped in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mainspring.lineage import Foundation
from mainspring.lineage.audit import event_of, rows_of
from mainspring.records.lineage import ref
from mainspring.records.models import AliasEvent, Approval, Card, ModelVersion, Package, Parity, Task
from mainspring.records.scores import meaning_of

NOT_RECORDED = "not recorded"

_TEXT_TAGS = {"intended_use": "Intended use", "caveats": "Caveats", "owner": "Owner"}
"""Tags with a row of their own on the card, and the row's heading."""

_INTERVAL = re.compile(r"(.+)[._](low|high)")
_MAX_EVENTS = 50


@dataclass(frozen=True)
class Section:
    """A heading with a table, or with one sentence that says why there is none."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    empty: str = NOT_RECORDED


def make_card(
    base: Foundation,
    version: ModelVersion,
    *,
    package: Package,
    aliases: Sequence[AliasEvent],
    approvals: Sequence[Approval],
) -> Card:
    """Make the card of ``version``; ``aliases`` are all alias moves of its model, oldest first."""
    title = f"{version.model} version {version.version}"
    sections = [
        _summary(version, package),
        Section("Intended use and caveats", ("", ""), [(name, version.tags.get(tag, NOT_RECORDED)) for tag, name in _TEXT_TAGS.items()]),
        Section("Inputs", ("column", "type", "may be missing"), [(c.name, c.type, "yes" if c.nullable else "no") for c in version.signature.inputs]),
        _output(version),
        _metrics(version, package),
        _origin(version),
        _parity(package.parity),
        _verdicts(base, version),
        Section("Approvals", ("when", "who", "", "why"), [(_when(a.at), a.actor, "approved" if a.approved else "refused", a.reason) for a in approvals], empty="none"),
        _aliases(version, aliases),
        Section("Built with", ("library", "version"), sorted(package.libraries.items())),
        _other_tags(version),
    ]  # fmt: skip
    return Card(
        model=version.model,
        version=version.version,
        markdown=_markdown(title, sections),
        html=_html(title, sections),
    )


def _summary(version: ModelVersion, package: Package) -> Section:
    size = sum(file.size for file in package.files)
    rows = [
        ("registered", f"{_when(version.created_at)} by {version.created_by}"),
        ("task", version.signature.task.value),
        ("format", f"{version.format}, data only, {size:,} bytes"),
        ("package", version.package),
        *((file.path, f"BLAKE3 {file.blake3}, SHA-256 {file.sha256}") for file in package.files),
    ]
    return Section("Summary", ("", ""), rows)


def _output(version: ModelVersion) -> Section:
    signature = version.signature
    kind = "probability" if signature.scores == "probability" else "decision value"
    answers = {
        Task.BINARY: f"one {kind} per row: of the positive class",
        Task.MULTICLASS: f"one {kind} per class and row",
        Task.REGRESSION: "one number per row",
        Task.VALUES: f"{len(signature.outputs)} numbers per row: {', '.join(signature.outputs)}",
    }
    rows = [("answer", answers[signature.task]), ("classes", ", ".join(signature.classes) or "none")]
    if signature.task is Task.BINARY:
        rows.append(("positive above", f"{meaning_of(signature).threshold:g}"))
    return Section("Output", ("", ""), [*rows, ("label column", version.label or NOT_RECORDED)])


def _metrics(version: ModelVersion, package: Package) -> Section:
    """Metrics with their intervals, where ``<name>_low`` and ``<name>_high`` (or ``.low``, ``.high``) are recorded too."""
    ends: dict[str, dict[str, float]] = {}
    for name, value in version.metrics.items():
        match = _INTERVAL.fullmatch(name)
        if match and match[1] in version.metrics:
            ends.setdefault(match[1], {})[match[2]] = value
    bounds = {base for base, interval in ends.items() if len(interval) == 2}
    rows = []
    for name, value in sorted(version.metrics.items()):
        match = _INTERVAL.fullmatch(name)
        if match and match[1] in bounds:
            continue
        interval = f"{ends[name]['low']:.6g} to {ends[name]['high']:.6g}" if name in bounds else NOT_RECORDED
        rows.append((name, f"{value:.6g}", interval))
    not_finite = package.notes.get("metrics_not_finite", {})
    if isinstance(not_finite, dict):
        rows += [(str(name), str(value), "not a finite number") for name, value in sorted(not_finite.items())]
    return Section("Metrics", ("metric", "value", "interval"), rows)


def _origin(version: ModelVersion) -> Section:
    known = {
        "run": version.run,
        "training data": version.dataset_version,
        "hold-out": version.holdout,
        "code": version.code,
        "environment": version.environment,
        "training profile": version.profile,
    }
    return Section("Origin", ("", ""), [(name, value or NOT_RECORDED) for name, value in known.items()])


def _parity(parity: Parity | None) -> Section:
    if parity is None:
        return Section("Parity of the stored payload with the trained estimator")
    rows = [
        ("rows compared", f"{parity.rows:,}, of them {parity.generated:,} made from the signature"),
        ("rows that chose nothing", f"{parity.judged:,}"),
        ("rows without an answer", f"{parity.refused:,}, as from the estimator"),
        ("largest difference", f"{parity.max_abs_difference:.3g} (tolerance {parity.tolerance:g})"),
        ("labels that differ", str(parity.label_mismatches)),
    ]
    return Section("Parity of the stored payload with the trained estimator", ("", ""), rows)


def _verdicts(base: Foundation, version: ModelVersion) -> Section:
    """Verdicts of gates, read from the event log, so that this room does not import the one that judges models."""
    subject = ref("model_version", f"{version.model}@{version.version}")
    with base.store.read() as tx:
        events = rows_of(
            tx,
            "project = ? AND subject = ? AND kind >= 'gate.' AND kind < 'gate/'",
            [base.project, subject],
            f"ORDER BY seq DESC LIMIT {_MAX_EVENTS}",
        )
    rows = []
    for event in map(event_of, events):
        failed = event.data.get("failed") or []
        why = "; ".join(str(reason) for reason in failed) if isinstance(failed, list) else str(failed)
        rows.append((_when(event.at), event.kind.removeprefix("gate."), event.actor, why))
    return Section("Gate", ("when", "verdict", "by", "failed rules"), rows, empty="no verdict recorded")


def _aliases(version: ModelVersion, aliases: Sequence[AliasEvent]) -> Section:
    touching = [e for e in aliases if version.version in (e.version, e.previous)][-_MAX_EVENTS:]
    rows = [
        (
            _when(e.at),
            e.alias,
            f"{e.previous or 'nothing'} → {e.version or 'nothing'}",
            e.actor,
            e.reason + _overridden(e),
        )
        for e in reversed(touching)
    ]
    return Section(
        "Aliases", ("when", "alias", "move", "by", "why"), rows, empty="no alias ever pointed here"
    )


def _overridden(event: AliasEvent) -> str:
    return f" (OVERRIDE of: {'; '.join(event.overridden)})" if event.overridden else ""


def _other_tags(version: ModelVersion) -> Section:
    return Section(
        "Tags",
        ("tag", "value"),
        sorted((k, v) for k, v in version.tags.items() if k not in _TEXT_TAGS),
        empty="none",
    )


def _when(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# --- texts

# Hyphens, dots and parentheses mean nothing inside a table cell without a bracket before them: left readable.
_SPECIAL = re.compile(r"([\\`*_{}\[\]#!|<>&~$])")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, with nothing that could become a tag, a link or a table cell."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _SPECIAL.sub(r"\\\1", flat).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {_plain(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.rows:
            lines.append(f"| {' | '.join(section.head)} |")
            lines.append("|" + " --- |" * len(section.head))
            lines += [f"| {' | '.join(_plain(cell) for cell in row)} |" for row in section.rows]
        else:
            lines.append(f"{section.empty[:1].upper()}{section.empty[1:]}.")
        lines.append("")
    return "\n".join(lines)


_LONG_WORD = 24
_TEMPLATE = """<article class="card">
<h1>{{ title }}</h1>
{% for section in sections %}<section>
<h2>{{ section.title }}</h2>
{% if section.rows %}<table>
{% if section.head | select | list %}<thead><tr>{% for name in section.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% endif %}<tbody>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell | mark_long }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>{% else %}<p>{{ section.empty | capitalize }}.</p>{% endif %}
</section>
{% endfor %}</article>
"""


def _html(title: str, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, StrictUndefined

    # The template is ours and constant; the sandbox of values is autoescape.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters["mark_long"] = _mark_long
    values: Mapping[str, Any] = {"title": title, "sections": sections}
    return environment.from_string(_TEMPLATE).render(values)


def _mark_long(cell: object) -> Any:
    """The escaped text, with words as long as a digest marked, so that a narrow page may break these and no other."""
    from markupsafe import Markup, escape

    words = str(cell).split(" ")
    marked = [
        Markup('<span class="long">{}</span>').format(w) if len(w) > _LONG_WORD else escape(w) for w in words
    ]
    return Markup(" ").join(marked)
