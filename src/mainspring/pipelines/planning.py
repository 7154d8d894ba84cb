"""Which steps would run: keys from ingredients, cache entries from keys, and the words that explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import Corrupt, InvalidInput, NotFound
from mainspring.lineage import Foundation
from mainspring.pipelines import keys, state
from mainspring.pipelines.closure import Closure, Closures
from mainspring.pipelines.graph import Built
from mainspring.pipelines.job import source_key
from mainspring.records.objects import ObjectRef
from mainspring.records.pipelines import (
    Argument,
    Artifact,
    ArtifactKind,
    Change,
    GraphStep,
    Ingredients,
    StepExecution,
    Why,
)
from mainspring.storage.objects import ObjectWriter
from mainspring.storage.sql import Reader

VERIFY_BYTES = 64 << 20
"""A cache hit re-reads and re-hashes an artifact up to this size; a larger one is verified when it is read."""


@dataclass(frozen=True)
class Done:
    """The outputs of a step that is over, or of a path from outside."""

    shape: str
    outputs: list[Artifact]
    execution: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What is known of a step before it runs. ``entry`` is what can be taken instead; ``bad`` are entries that cannot."""

    ingredients: Ingredients
    inputs: list[Artifact]
    why: Why
    entry: StepExecution | None
    bad: list[str]


class Planner:
    """Judges the steps of one graph, with one environment."""

    def __init__(
        self, base: Foundation, built: Built, *, root: Path, environment: str, closures: Closures
    ) -> None:
        self._base = base
        self._built = built
        self._root = root
        self._environment = environment
        self._codes: dict[str, Closure] = {
            s.name: closures.of(built.functions[s.name]) for s in built.graph.steps
        }

    def modules(self) -> list[str]:
        """What the steps' code imports from outside the project, as ``module`` or ``module:name``: worth importing once for all."""
        named = {
            v.removeprefix("import ")
            for c in self._codes.values()
            for v in c.parts.values()
            if v.startswith("import ") and not v.startswith("import .")
        }
        return sorted(named)

    def has_paths(self) -> bool:
        return bool(self._paths())

    def take_paths(self, writer: ObjectWriter) -> dict[str, Done]:
        """Put every file and directory that is an argument into the store; its bytes are the input, not its name."""
        return {
            k: Done("single", [self._take(writer, text, step)]) for k, (text, step) in self._paths().items()
        }

    def _paths(self) -> dict[str, tuple[str, str]]:
        """Paths among the arguments, by source key: their text and a step that takes them."""
        found: dict[str, tuple[str, str]] = {}
        for step in self._built.graph.steps:
            waiting = list(step.arguments.values())
            while waiting:
                argument = waiting.pop()
                waiting += argument.items
                if argument.kind == "path":
                    found[source_key(argument)] = (str(argument.value), step.name)
        return found

    def judge(
        self,
        tx: Reader,
        step: GraphStep,
        done: Mapping[str, Done],
        *,
        pipeline: str,
        run: str | None,
        verified: set[str],
    ) -> Judgement:
        """The key of a step whose upstream is done, and the entry that can stand for running it."""
        resolved = {n: _resolve(a, done) for n, a in step.arguments.items() if _refers(a)}
        code = self._codes[step.name]
        ingredients = keys.ingredients_of(
            step, code=code.digest, parts=code.parts, resolved=resolved, environment=self._environment
        )
        key = keys.key_of(ingredients)
        inputs = list({(a.name, a.digest): a for found in resolved.values() for a in found}.values())
        entry = state.find_entry(tx, self._base.project, key, run=run) if run is not None else None
        if entry is None and step.cache:
            entry = state.find_entry(tx, self._base.project, key)
        if entry is not None:
            broken = next((a for a in entry.outputs if not self._usable(a, verified)), None)
            origin = entry.cached_from or entry.id
            if broken is None:
                reason = (
                    "everything it depends on is as it was"
                    if entry.run != run
                    else "it had finished in this run"
                )
                return Judgement(
                    ingredients,
                    inputs,
                    Why(step=step.name, hit=True, reason=reason, compared_to=origin, key=key),
                    entry,
                    [],
                )
            change = Change(what="artifact", name=broken.name, before=broken.digest[:12])
            why = Why(
                step=step.name,
                hit=False,
                reason=f"artifact {broken.name} is gone or corrupt",
                changes=[change],
                compared_to=origin,
                key=key,
            )
            return Judgement(ingredients, inputs, why, None, [entry.id, origin])
        if not step.cache:
            return Judgement(
                ingredients,
                inputs,
                Why(step=step.name, hit=False, reason="the step is declared cache=False", key=key),
                None,
                [],
            )
        earlier = state.find_earlier(tx, self._base.project, pipeline, step.name)
        why = keys.explain_miss(
            step.name, key, ingredients, earlier[1] if earlier else None, earlier[0] if earlier else None
        )
        return Judgement(ingredients, inputs, why, None, [])

    def _usable(self, artifact: Artifact, verified: set[str]) -> bool:
        if artifact.digest in verified:
            return True
        objects = self._base.objects
        try:
            if artifact.kind == "tree":
                good = all(objects.has(r.digest) for r in objects.tree(artifact.digest).values())
            elif artifact.size > VERIFY_BYTES:
                good = objects.has(artifact.digest)
            else:
                good = (
                    objects.has(artifact.digest)
                    and sum(len(c) for c in objects.chunks(artifact.digest)) == artifact.size
                )
        except (Corrupt, NotFound):
            return False
        if good:
            verified.add(artifact.digest)
        return good

    def _take(self, writer: ObjectWriter, text: str, step: str) -> Artifact:
        path = (self._root / text).absolute()
        if not path.exists():
            raise NotFound(
                "a path given to a step does not exist", value=text, place=f"{step}, relative to {self._root}"
            )
        kind: ArtifactKind = "tree" if path.is_dir() else "file"
        reference = put_path(writer, path)
        return Artifact(name="value", kind=kind, digest=reference.digest, size=reference.size, type=path.name)


def put_path(writer: ObjectWriter, path: Path) -> ObjectRef:
    """A file as its bytes; a directory as a tree of all files below it. Symbolic links are refused: they point elsewhere."""
    if not path.is_dir():
        return writer.put(path)
    entries: dict[str, ObjectRef] = {}
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise InvalidInput(
                "a directory with symbolic links cannot be an artifact",
                value=str(file),
                next_step="Copy what they point to.",
            )
        if file.is_file():
            entries[file.relative_to(path).as_posix()] = writer.put(file)
    return writer.tree(entries)


def _refers(argument: Argument) -> bool:
    return argument.kind in {"output", "path", "list", "dict"}


def _resolve(argument: Argument, done: Mapping[str, Done]) -> list[Artifact]:
    if argument.kind in {"output", "path"}:
        found: Sequence[Artifact] = done[source_key(argument)].outputs
        wanted = argument.output if argument.kind == "output" else None
        chosen = [a for a in found if a.name == wanted]
        return chosen or list(found)
    return [a for item in argument.items for a in _resolve(item, done)]
