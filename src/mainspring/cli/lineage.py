"""``mainspring explain-origin | blast-radius | audit``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from mainspring.cli.output import (
    json_option,
    print_facts,
    print_json,
    print_note,
    print_table,
    shorten_value,
    with_workspace,
)

if TYPE_CHECKING:
    from mainspring.records.lineage import Graph, Node
    from mainspring.rooms import Namespaces
    from mainspring.verification import Verification


@click.command("explain-origin")
@click.argument("ref")
@click.option("--depth", default=20, show_default=True, help="Steps to go back.")
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Read all bytes again (data, package, code, environment), and hold the edges against the chain.",
)
@json_option
@with_workspace
def explain_origin(workspace: Namespaces, ref: str, depth: int, verify: bool, as_json: bool) -> int:
    """Everything that led to REF (a prediction id, or kind:id such as model_version:delay@3), and who decided about it."""
    graph = workspace.lineage.get_origin(ref=_ref(ref), depth=depth)
    if not verify:
        print_json({"graph": graph}) if as_json else _show(graph, forward=False)
        return 0
    from mainspring.verification import verify as read_again

    verification = read_again(workspace, graph)
    if as_json:
        print_json(
            {
                "graph": graph,
                "verified": {c.what: c.ok for c in verification.checked},
                "checked": verification.checked,
                "decided": verification.decided,
                "edges": verification.edges,
                "ok": verification.ok,
            }
        )
    else:
        _show(graph, forward=False)
        _show_verification(verification)
    return 0 if verification.ok else 1


def _show_verification(verification: Verification) -> None:
    if verification.decided:
        click.echo()
        print_table(
            ("decided about", "what", "at", "by", "why"),
            [(d.ref.partition(":")[2], d.what, d.at, d.by, d.detail) for d in verification.decided],
        )
    click.echo()
    for c in verification.checked:
        detail = f" ({c.detail})" if c.detail else ""
        read = "bytes read again, digest " if c.outcome in {"as recorded", "DIFFERS"} else ""
        click.echo(f"{c.what}: {read}{c.outcome}{detail}")
    for title, edges in (("FORGED", verification.edges.forged), ("MISSING", verification.edges.missing)):
        for e in edges:
            reason = (
                "no event of the chain recorded it" if title == "FORGED" else "recorded, but taken away since"
            )
            click.echo(f"edge {e.source} → {e.target} ({e.kind}): {title}, {reason}")
    for problem in verification.edges.problems:
        click.echo(f"edges: {problem}")
    old = len(verification.edges.before_version_2)
    if old:
        click.echo(f"edges: {old} recorded before version 2, outside the chain")
    if not (verification.edges.forged or verification.edges.missing or verification.edges.problems):
        click.echo("edges: as the chain recorded them")


@click.command("blast-radius")
@click.argument("ref")
@click.option("--depth", default=20, show_default=True, help="Steps to go forward.")
@json_option
@with_workspace
def blast_radius(workspace: Namespaces, ref: str, depth: int, as_json: bool) -> None:
    """Everything that REF led to, for example dataset_version:ID."""
    graph = workspace.lineage.get_blast_radius(ref=_ref(ref), depth=depth)
    counts = {}
    for node in graph.nodes:
        if node.kind == "model_version":
            model, _, number = node.ref.partition(":")[2].rpartition("@")
            counts[node.ref] = workspace.monitoring.get_blast_radius(model=model, version=int(number))
    if as_json:
        print_json({"graph": graph, "predictions": counts})
        return
    _show(graph, forward=True)
    rows = [(name, c.predictions, c.shadow_predictions, c.first, c.last) for name, c in counts.items()]
    if rows:
        click.echo()
        print_table(("answered by", "predictions", "as shadow", "first", "last"), rows)


@click.group()
def audit() -> None:
    """The chain of events: verify it, or print an anchor to keep elsewhere."""


@audit.command()
@click.option(
    "--anchor", metavar="SEQ:HASH", help="An anchor kept elsewhere: shows whether events were cut off since."
)
@json_option
@with_workspace
def verify(workspace: Namespaces, anchor: str | None, as_json: bool) -> int:
    """Verify the whole chain, with the edges, verdicts, aliases and approvals that it recorded; exits 1 and names each that
    differs."""
    report = workspace.lineage.verify(anchor=anchor)
    if as_json:
        print_json(report)
    else:
        print_facts(
            [
                ("chain", "intact" if report.ok else "BROKEN"),
                ("events", report.events),
                ("first bad", report.first_bad),
                ("why", report.reason),
                ("edges", report.edges),
                ("edges recorded before version 2", report.edges_of_version_1 or None),
            ]
        )
        for problem in report.problems:
            click.echo(problem)
    return 0 if report.ok else 1


@audit.command()
@with_workspace
def anchor(workspace: Namespaces) -> None:
    """Print SEQ:HASH of the newest event. Keep it outside: it proves that nothing before was cut off or changed."""
    report = workspace.lineage.verify()
    click.echo(f"{report.events}:{report.head}")


_SHOWN = 5
"""Predictions shown of one version; the rest is counted below."""


def _show_tree(node: Node, children: dict[str, list[Node]], roles: dict[str, str], level: int) -> None:
    facts = "  ".join(f"{k}={shorten_value(v)}" for k, v in node.facts.items() if v is not None)
    role = click.style(roles[node.ref], dim=True) if node.ref in roles else ""
    click.echo("  ".join(part for part in (f"{'  ' * level}{node.ref}", role, facts) if part))
    left_out = 0
    shown: Counter[str] = Counter()
    for child in children.get(node.ref, []):
        shown[child.kind] += 1
        if child.kind == "prediction" and shown[child.kind] > _SHOWN:
            left_out += 1
            continue
        _show_tree(child, children, roles, level + 1)
    if left_out:
        click.echo(f"{'  ' * (level + 1)}and more predictions, counted below")


def _ref(text: str) -> str:
    """The reference that TEXT means. Without a kind, ``delay@3`` is a model version and anything else a prediction."""
    if ":" in text:
        return text
    return f"model_version:{text}" if "@" in text else f"prediction:{text}"


def _show(graph: Graph, *, forward: bool) -> None:
    roles: dict[str, str] = {}
    for edge in graph.edges:
        roles.setdefault(edge.target if forward else edge.source, edge.kind)
    parents: dict[str, str] = {}
    for edge in graph.edges:
        parents.setdefault(*((edge.target, edge.source) if forward else (edge.source, edge.target)))
    children: dict[str, list[Node]] = {}
    root = next(n for n in graph.nodes if n.ref == graph.root)
    for node in sorted(graph.nodes, key=lambda n: n.ref):
        if node is not root:
            children.setdefault(parents[node.ref], []).append(node)
    _show_tree(root, children, roles, 0)
    if graph.truncated:
        print_note("cut off; ask about one of the last things, or give --depth")
