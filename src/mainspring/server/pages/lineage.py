"""Lineage: where does this come from, what did it lead to? A graph that starts small and grows by links, laid out here.

Layers go from cause (left) to effect (right). Of many neighbours of one kind some are drawn, and the rest is counted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import urlencode

from mainspring.errors import InvalidInput, NotFound
from mainspring.records.base import Record
from mainspring.records.lineage import Edge, Graph, Node, split_ref
from mainspring.server.pages.rendering import PageRequest, View
from mainspring.server.pages.text import abbreviate, compact
from mainspring.workspace import Workspace

_MAX_GROWN = 40
_FOLD = 5
"""Neighbours of one kind on one side that are drawn; the rest is only counted."""
WIDTH, HEIGHT, GAP_X, GAP_Y = 196, 46, 64, 14


class Folded(Record, frozen=True):
    """Neighbours that are not drawn."""

    ref: str
    kind: str
    forward: bool
    count: int


class LineagePage(Record, frozen=True):
    """What is shown around ``ref``; ``grown`` are the things whose neighbours are drawn."""

    ref: str | None
    grown: list[str]
    nodes: list[Node]
    edges: list[Edge]
    folded: list[Folded]
    suggestions: list[str]


def gather(workspace: Workspace, request: PageRequest) -> LineagePage:
    root = request.text("ref")
    if root is None:
        return LineagePage(
            ref=None, grown=[], nodes=[], edges=[], folded=[], suggestions=_list_suggestions(workspace)
        )
    grown = list(dict.fromkeys([root, *request.lists.get("grow", [])]))
    if len(grown) > _MAX_GROWN:
        raise InvalidInput(
            "the graph is large enough", value=len(grown), next_step="Start again around one of its things."
        )
    collected = _Collector(set(grown))
    for centre in grown:
        collected.add_neighbours(centre, _find_neighbours(workspace, centre, forward=False), forward=False)
        collected.add_neighbours(centre, _find_neighbours(workspace, centre, forward=True), forward=True)
    return LineagePage(
        ref=root,
        grown=grown,
        nodes=list(collected.nodes.values()),
        edges=list(collected.edges.values()),
        folded=collected.folded,
        suggestions=[],
    )


def _find_neighbours(workspace: Workspace, centre: str, *, forward: bool) -> Graph:
    """Direct neighbours on one side. A thing that has none there is looked up on the other side; NotFound if it has none at all."""
    here, opposite = workspace.lineage.get_origin, workspace.lineage.get_blast_radius
    if forward:
        here, opposite = opposite, here
    try:
        return here(ref=centre, depth=1)
    except NotFound:
        return Graph(root=centre, nodes=opposite(ref=centre, depth=1).nodes[:1], edges=[])


class _Collector:
    """Collects the things and edges to draw, each once."""

    def __init__(self, keep: set[str]) -> None:
        self._keep = keep
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str, str], Edge] = {}
        self.folded: list[Folded] = []

    def add_neighbours(self, centre: str, graph: Graph, *, forward: bool) -> None:
        known = {n.ref: n for n in graph.nodes}
        self.nodes.setdefault(centre, known[centre])
        by_kind: dict[str, list[Edge]] = defaultdict(list)
        for edge in graph.edges:
            by_kind[split_ref(edge.target if forward else edge.source)[0]].append(edge)
        for kind, edges in by_kind.items():
            drawn = 0
            for edge in edges:
                other = edge.target if forward else edge.source
                if other not in self._keep and other not in self.nodes and drawn >= _FOLD:
                    continue
                drawn += 1
                self.nodes.setdefault(other, known.get(other) or Node(ref=other, kind=kind, depth=1))
                self.edges[edge.source, edge.target, edge.kind] = edge
            if len(edges) > drawn:
                self.folded.append(Folded(ref=centre, kind=kind, forward=forward, count=len(edges) - drawn))


def _list_suggestions(workspace: Workspace) -> list[str]:
    """Things to start from: what is deployed, and the newest data."""
    refs = [
        f"model_version:{t.model}@{t.version}" for d in workspace.deploy.list_deployments() for t in d.targets
    ]
    refs += [f"deployment:{d.name}" for d in workspace.deploy.list_deployments()]
    return refs + [f"dataset_version:{d.latest_id}" for d in workspace.data.operations.list_datasets()[:8]]


# --- layout -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A thing in the drawing."""

    ref: str
    kind: str
    label: str
    detail: str
    x: float
    y: float
    grown: bool
    root: bool
    grow: str
    """The address of the page that also shows its neighbours; of its own graph if they are drawn already."""
    more: str


@dataclass(frozen=True)
class Line:
    path: str
    what: str


@dataclass(frozen=True)
class Drawing:
    width: float
    height: float
    boxes: list[Box]
    lines: list[Line]


def layout(page: LineagePage) -> Drawing:
    """Layers by the longest way from a cause, order within a layer by the mean position of neighbours (Sugiyama, 1981)."""
    layers = _assign_layers([n.ref for n in page.nodes], page.edges)
    columns: dict[int, list[str]] = defaultdict(list)
    for node in page.nodes:
        columns[layers[node.ref]].append(node.ref)
    _order_columns(columns, page.edges)
    tallest = max((len(c) for c in columns.values()), default=1)
    height = tallest * (HEIGHT + GAP_Y) + GAP_Y
    at = {
        ref: (
            layer * (WIDTH + GAP_X) + 2,
            (height - len(refs) * (HEIGHT + GAP_Y) + GAP_Y) / 2 + i * (HEIGHT + GAP_Y),
        )
        for layer, refs in columns.items()
        for i, ref in enumerate(refs)
    }
    folded: dict[str, list[str]] = defaultdict(list)
    for f in page.folded:
        folded[f.ref].append(
            f"{f.count:,} more {f.kind.replace('_', ' ')}{'s' if f.count > 1 else ''} {'after' if f.forward else 'before'}"
        )
    boxes = [
        Box(
            ref=n.ref,
            kind=n.kind.replace("_", " "),
            label=_format_label(n),
            detail=_format_detail(n),
            x=at[n.ref][0],
            y=at[n.ref][1],
            grown=n.ref in page.grown,
            root=n.ref == page.ref,
            grow=_grow_address(page, n.ref),
            more="; ".join(folded.get(n.ref, [])),
        )
        for n in page.nodes
    ]
    lines = [
        Line(_draw_curve(at[e.source], at[e.target]), f"{e.source} → {e.kind} → {e.target}")
        for e in page.edges
    ]
    width = (max(columns, default=0) + 1) * (WIDTH + GAP_X) - GAP_X + 4
    return Drawing(width, height, boxes, lines)


def _assign_layers(refs: list[str], edges: list[Edge]) -> dict[str, int]:
    """The layer of each thing: one more than the highest layer of its causes.

    A cycle (there should be none) ends after as many rounds as there are things.
    """
    layers = dict.fromkeys(refs, 0)
    for _ in range(len(refs)):
        moved = False
        for edge in edges:
            if edge.source != edge.target and layers[edge.target] <= layers[edge.source] < len(refs):
                layers[edge.target] = layers[edge.source] + 1
                moved = True
        if not moved:
            break
    for ref in sorted(refs, key=lambda r: -layers[r]):  # move causes next to their effects, for short edges
        after = [layers[e.target] for e in edges if e.source == ref]
        if after:
            layers[ref] = max(layers[ref], min(after) - 1)
    used = {layer: i for i, layer in enumerate(sorted(set(layers.values())))}
    return {ref: used[layer] for ref, layer in layers.items()}


def _order_columns(columns: dict[int, list[str]], edges: list[Edge]) -> None:
    neighbours: dict[str, list[str]] = defaultdict(list)
    for edge in edges:
        neighbours[edge.source].append(edge.target)
        neighbours[edge.target].append(edge.source)
    place = {ref: i - len(refs) / 2 for refs in columns.values() for i, ref in enumerate(refs)}
    for _ in range(4):
        for layer in sorted(columns):
            columns[layer].sort(
                key=lambda r: sum(place[n] for n in neighbours[r]) / (len(neighbours[r]) or 1)
            )
            place |= {ref: i - len(columns[layer]) / 2 for i, ref in enumerate(columns[layer])}


def _draw_curve(source: tuple[float, float], target: tuple[float, float]) -> str:
    x1, y1, x2, y2 = source[0] + WIDTH, source[1] + HEIGHT / 2, target[0], target[1] + HEIGHT / 2
    bend = max(24.0, (x2 - x1) / 2)
    return f"M{x1:.1f} {y1:.1f} C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"


def _grow_address(page: LineagePage, ref: str) -> str:
    if ref in page.grown:
        return "/lineage?" + urlencode({"ref": ref})
    return "/lineage?" + urlencode([("ref", page.ref or ref), *(("grow", g) for g in [*page.grown[1:], ref])])


def _format_label(node: Node) -> str:
    facts = node.facts
    if "dataset" in facts:
        text = f"{facts['dataset']} {facts.get('number', '')}".strip()
    elif "name" in facts:
        text = f"{facts['name']} {abbreviate(split_ref(node.ref)[1])}"
    else:
        text = abbreviate(split_ref(node.ref)[1])
    return text if len(text) <= 24 else f"{text[:23]}…"


def _format_detail(node: Node) -> str:
    return "\n".join(f"{k}: {compact(v)}" for k, v in node.facts.items())


VIEW = View(
    "/lineage",
    "lineage.html",
    lambda p: f"Lineage of {p.ref}" if p.ref else "Lineage",
    gather,
    command=lambda p: f"mainspring explain-origin {p.ref}" if p.ref else "",
    extras=lambda p: {"drawing_of": layout(p), "box": (WIDTH, HEIGHT)},
)
