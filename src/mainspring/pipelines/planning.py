"""Which steps would run: keys from ingredients, cache entries from keys, and the words that explain it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mainspring.data import rows as dataset_rows
from mainspring.errors import Corrupt, InvalidInput, NotFound
from mainspring.lineage import Foundation
from mainspring.pipelines import effects, keys, rows
from mainspring.pipelines.closure import Closure, Closures
from mainspring.pipelines.files import Files, Fingerprint
from mainspring.pipelines.graph import Built
from mainspring.pipelines.job import source_key
from mainspring.pipelines.places import put_path
from mainspring.records.lineage import ref, split_ref
from mainspring.records.pipelines import (
    Argument,
    Artifact,
    ArtifactKind,
    Change,
    Effect,
    Graph,
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
        self,
        base: Foundation,
        built: Built,
        *,
        root: Path,
        environment: str,
        closures: Closures,
        context: Mapping[str, object],
    ) -> None:
        """``context``: what a step can ask ``current()`` for, ``params`` and ``at``; it counts where a step's code does."""
        self._context = context
        self._base = base
        self._built = built
        self._root = root
        self._environment = environment
        self._files = Files(root, base.home)
        self._prints: dict[str, tuple[int, dict[str, Fingerprint]]] = {}
        self.moment = 0
        """Grows whenever a step has run: what it may have written must be looked at again."""
        self._codes: dict[str, Closure] = {
            s.name: closures.of(built.functions[s.name]) for s in built.graph.steps
        }
        self._defaults = {s.name: _defaults(built.functions[s.name]) for s in built.graph.steps}

    def modules(self) -> list[str]:
        """What the steps' code imports from outside the project, as ``module`` or ``module:name``: worth importing once for all."""
        named = {
            v.removeprefix("import ")
            for c in self._codes.values()
            for v in c.parts.values()
            if v.startswith("import ") and not v.startswith("import .")
        }
        return sorted(named)

    def source_files(self) -> list[str]:
        """The project's files that the steps' code is made of, relative to the project."""
        return sorted({f for c in self._codes.values() for f in c.files})

    def code_of(self, step: str) -> bytes:
        """The document that the digest of a step's code names: its definitions with their digests."""
        return self._codes[step].document()

    def variables(self, step: GraphStep) -> dict[str, str | None]:
        """The variables of the environment that a step's code reads, with short digests of what they hold here."""
        return {n: keys.variable_digest(n) for n in sorted(self._codes[step.name].variables)}

    def pack(self, writer: ObjectWriter, step: GraphStep) -> str:
        """Put what a step needs of the project where the project is not: its source files, and files that it names by text.

        Returns the digest of a tree. Raises :class:`InvalidInput` for what cannot travel.
        """
        from mainspring.tracking.sources import KEPT_BACK, Sources, imported, is_secret

        place = f"pipeline {self._built.graph.pipeline}, step {step.name}"
        if Path(step.function.rpartition(":")[0]).is_absolute():
            raise InvalidInput(
                "a step from outside the project cannot run at a worker",
                value=step.function,
                place=place,
                next_step='Call it from a step of the project, or set executor = "local" in [pipelines].',
            )
        sources = Sources()
        needed = self.source_files()
        for shown in sorted({*needed, *imported(self._root)}):
            sources.add(shown, self._root / shown, root=self._root)
        kept_back = next((s for s in sources.states if s.skipped and s.path in needed), None)
        if kept_back is not None:
            raise InvalidInput(
                f"a source file of the pipeline cannot travel to a worker: {kept_back.skipped}",
                value=kept_back.path,
                place=place,
                next_step='Rename or split it, or set executor = "local" in [pipelines].',
            )
        entries = {name: writer.put(data) for name, data in sources.contents.items()}
        for shown, path in self._named(step).items():
            if self._files.inside(path) is None:
                raise InvalidInput(
                    "a file outside the project, named by text, cannot travel to a worker",
                    value=shown,
                    place=place,
                    next_step="Pass it as a pathlib.Path, or commit it as a dataset and read that by version.",
                )
            for name, file in self._files.below(path):
                if is_secret(name):  # whoever may view the project could read it in the object store
                    raise InvalidInput(
                        f"a file named by text cannot travel to a worker: {KEPT_BACK}",
                        value=name,
                        place=place,
                        next_step='Set executor = "local" in [pipelines], or pass the secret as an environment variable at the worker.',
                    )
                entries[name] = writer.put(file)
        return writer.tree(entries).digest

    def done(self) -> None:
        """Nothing more will be asked: keep what was learnt of files for the next time."""
        self._files.index.save()

    # --- what comes from outside the graph ---------------------------------------------------------------------------

    def take_sources(
        self, writer: Callable[[], AbstractContextManager[ObjectWriter]], pinned: Mapping[str, str]
    ) -> dict[str, Done]:
        """Resolve datasets to versions, and put files and directories that are arguments into the store.

        ``pinned``: versions that an interrupted run has been reading, by source key.
        """
        found = {k: self._version(a, pinned.get(k)) for k, a in self._sources("dataset").items()}
        paths = self._sources("path")
        if paths:
            with writer() as opened:
                found |= {k: Done("single", [self._take(opened, str(a.value))]) for k, a in paths.items()}
        return found

    def _sources(self, kind: str) -> dict[str, Argument]:
        """Arguments of a kind, by source key."""
        found: dict[str, Argument] = {}
        for step in self._built.graph.steps:
            found |= {source_key(a): a for a in _flat(step) if a.kind == kind}
        return found

    def _version(self, argument: Argument, pinned: str | None) -> Done:
        name, selector = str(argument.value), pinned or argument.output or dataset_rows.LATEST
        base = self._base
        try:
            with base.store.read() as tx:
                row = dataset_rows.find_version(tx, base.project, name, selector)
        except NotFound as error:
            raise NotFound(
                error.message,
                value=f"{name}@{selector}",
                place=f"pipeline {self._built.graph.pipeline}",
                next_step=f"Commit it first: mainspring data commit {name} FILE.",
            ) from None
        source, tree = ref("dataset_version", str(row["id"])), str(row["tree"])
        if row["kind"] == "table":
            file = next(iter(base.objects.tree(tree).values()))
            return Done("single", [Artifact(name="value", kind="table", digest=file.digest, size=file.size, source=source)])  # fmt: skip
        return Done("single", [Artifact(name="value", kind="tree", digest=tree, size=int(row["bytes"]), type=name, source=source)])  # fmt: skip

    # --- files named by text -----------------------------------------------------------------------------------------

    def look(self, steps: Iterable[GraphStep]) -> None:
        """Read the file arguments of ``steps`` as they are now; done outside transactions where it can be."""
        for step in steps:
            self._prints[step.name] = (self.moment, self.fingerprints(step))

    def fingerprints(self, step: GraphStep) -> dict[str, Fingerprint]:
        """What the files hold that text among the arguments names, by their names in the project."""
        return {shown: self._files.fingerprint(path) for shown, path in self._named(step).items()}

    def _named(self, step: GraphStep) -> dict[str, Path]:
        """The files that text among the arguments, defaults and code of a step names, by their names in the project."""
        places: dict[str, Path] = {}
        for name, argument in step.arguments.items():
            if step.paths is True or (step.paths is not False and name in step.paths):
                for part in _flatten(argument):
                    if part.kind == "value":
                        places |= self._files.named(part.value)
        if step.paths is not False:
            places |= self._files.named([self._defaults[step.name][n] for n in self._left_out(step)])
            places |= self._files.named_in_code(self._codes[step.name].texts)
        return dict(sorted(places.items()))

    def _left_out(self, step: GraphStep) -> list[str]:
        """Arguments that the call leaves to their defaults, where text in them counts."""
        wanted = self._defaults[step.name].keys() - step.arguments.keys()
        return sorted(n for n in wanted if step.paths is True or n in (step.paths or []))

    def _looked(self, step: GraphStep) -> dict[str, Fingerprint]:
        moment, found = self._prints.get(step.name, (-1, {}))
        if moment != self.moment:
            self.look([step])
            found = self._prints[step.name][1]
        return found

    def disturbed(self, step: GraphStep, before: Judgement) -> str | None:
        """Whether files among the arguments changed while the step ran: nobody knows then what it read."""
        now = {name: p.digest for name, p in self.fingerprints(step).items()}
        was = before.ingredients.files
        for name in sorted(now.keys() | was.keys()):
            if now.get(name) != was.get(name):
                return f"file {name} changed while the step ran last"
        return None

    # --- judging -----------------------------------------------------------------------------------------------------

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
        code, files = self._codes[step.name], self._looked(step)
        ingredients = keys.ingredients_of(
            step,
            code=code.digest,
            parts=code.parts,
            resolved=resolved,
            environment=self._environment,
            files={name: p.digest for name, p in files.items()},
            asked={
                **{f"current().{name}": self._context[name] for name in sorted(code.asks)},
                **{f"variable {name}": value for name, value in self.variables(step).items()},
            },
        )
        key = keys.key_of(ingredients)
        inputs = list({(a.name, a.digest): a for found in resolved.values() for a in found}.values())
        entry = rows.find_entry(tx, self._base.project, key, run=run) if run is not None else None
        if entry is None and step.cache:
            entry = rows.find_entry(tx, self._base.project, key)
        if entry is not None:
            return self._judge_entry(tx, step, ingredients, inputs, entry, run=run, verified=verified)
        problem = next((p for p in files.values() if p.problem), None)
        if not step.cache:
            reason = "the step is declared cache=False"
        elif problem is not None:
            reason = f"file {problem.path} {problem.problem}, so nothing tells whether it changed"
        else:
            earlier = rows.find_earlier(tx, self._base.project, pipeline, step.name)
            return Judgement(
                ingredients, inputs, keys.explain_miss(step.name, key, ingredients, earlier), None, []
            )
        return Judgement(
            ingredients, inputs, Why(step=step.name, hit=False, reason=reason, key=key), None, []
        )

    def _judge_entry(
        self,
        tx: Reader,
        step: GraphStep,
        ingredients: Ingredients,
        inputs: list[Artifact],
        entry: StepExecution,
        *,
        run: str | None,
        verified: set[str],
    ) -> Judgement:
        """Whether an entry with the right key can be taken: its artifacts are whole and its effects still there."""
        key, origin = entry.key, entry.cached_from or entry.id
        bad: list[str] = []
        change: Change | None = None
        broken = next((a for a in entry.outputs if not self._usable(a, verified)), None)
        if broken is not None:
            change = Change(what="artifact", name=broken.name, before=broken.digest[:12])
            reason, bad = f"artifact {broken.name} is gone or corrupt", [entry.id, origin]
        elif entry.run == run:  # its effects are this run's own
            reason = "it had finished in this run"
        else:
            left = effects.of_execution(tx, self._base.project, origin)
            missing = effects.gone(tx, self._base, left)
            if missing is not None:
                change = Change(what="effect", name=missing)
                reason = missing
            else:
                reason = _as_it_was(ingredients, left)
        hit = change is None
        why = Why(
            step=step.name,
            hit=hit,
            reason=reason,
            changes=[] if change is None else [change],
            compared_to=origin,
            key=key,
        )
        return Judgement(ingredients, inputs, why, entry if hit else None, bad)

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

    def _take(self, writer: ObjectWriter, text: str) -> Artifact:
        path = (self._root / text).absolute()
        if not path.exists():
            raise NotFound(
                "a path given to a step does not exist",
                value=text,
                place=f"pipeline {self._built.graph.pipeline}, relative to {self._root}",
            )
        kind: ArtifactKind = "tree" if path.is_dir() else "file"
        reference = put_path(writer, path)
        return Artifact(name="value", kind=kind, digest=reference.digest, size=reference.size, type=path.name)


def pin(graph: Graph, sources: Mapping[str, Done]) -> Graph:
    """The graph with the version in every argument that is a dataset."""

    def pinned(argument: Argument) -> Argument:
        if argument.kind == "dataset":
            source = sources[source_key(argument)].outputs[0].source
            return msgspec.structs.replace(argument, version=split_ref(source)[1])
        return msgspec.structs.replace(argument, items=[pinned(a) for a in argument.items])

    steps = [
        msgspec.structs.replace(s, arguments={n: pinned(a) for n, a in s.arguments.items()})
        for s in graph.steps
    ]
    return msgspec.structs.replace(graph, steps=steps)


def _as_it_was(ingredients: Ingredients, left: list[Effect]) -> str:
    """Why an entry is taken: what was compared by content, and which things of other rooms it stands for."""
    by_content = [f"file {name}" for name in ingredients.files] + list(ingredients.paths.values())
    reason = "everything it depends on is as it was"
    if by_content:
        more = f" and {len(by_content) - 3} more" if len(by_content) > 3 else ""
        reason += f" (compared by content: {', '.join(by_content[:3])}{more})"
    kept = [e.ref for e in left if e.kind in {"dataset_version", "model_version"}]
    return reason + (f"; takes {len(kept)} versions it made before" if kept else "")


def _defaults(function: Callable[..., object]) -> dict[str, object]:
    """Defaults of a step's arguments, paths as text."""
    found = {
        n: p.default for n, p in inspect.signature(function).parameters.items() if p.default is not p.empty
    }
    return {n: str(v) if isinstance(v, Path) else v for n, v in found.items()}


def _refers(argument: Argument) -> bool:
    return argument.kind in {"output", "path", "dataset", "list", "dict"}


def _flatten(argument: Argument) -> Iterator[Argument]:
    yield argument
    for item in argument.items:
        yield from _flatten(item)


def _flat(step: GraphStep) -> Iterator[Argument]:
    for argument in step.arguments.values():
        yield from _flatten(argument)


def _resolve(argument: Argument, done: Mapping[str, Done]) -> list[Artifact]:
    if argument.kind in {"output", "path", "dataset"}:
        found: Sequence[Artifact] = done[source_key(argument)].outputs
        wanted = argument.output if argument.kind == "output" else None
        chosen = [a for a in found if a.name == wanted]
        return chosen or list(found)
    return [a for item in argument.items for a in _resolve(item, done)]
