"""Which steps would run: cache keys from ingredients, cache entries by key, and the reason for each hit or miss."""

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
    """The outputs of a step that has ended, or of a path or dataset from outside the graph."""

    shape: str
    outputs: list[Artifact]
    execution: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The decision about a step before it runs.

    ``entry`` is the cache entry to take instead of running it, if there is one; ``bad`` are ids of entries to invalidate.
    """

    ingredients: Ingredients
    inputs: list[Artifact]
    why: Why
    entry: StepExecution | None
    bad: list[str]


class Planner:
    """Decides for each step of one graph, in one environment, whether it must run."""

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
        """``context``: what a step can read from ``current()``, ``params`` and ``at``; part of the key of steps whose code reads it."""
        self._context = context
        self._base = base
        self._built = built
        self._root = root
        self._environment = environment
        self._files = Files(root, base.home)
        self._fingerprints: dict[str, tuple[int, dict[str, Fingerprint]]] = {}
        self.generation = 0
        """Grows whenever an attempt has ended: fingerprints of an earlier generation are stale, since the step may have written files."""
        self._codes: dict[str, Closure] = {
            s.name: closures.analyse(built.functions[s.name]) for s in built.graph.steps
        }
        self._defaults = {s.name: _read_defaults(built.functions[s.name]) for s in built.graph.steps}

    def list_modules(self) -> list[str]:
        """What the steps' code imports from outside the project, as ``module`` or ``module:name``, for the warm server to preload."""
        named = {
            v.removeprefix("import ")
            for c in self._codes.values()
            for v in c.parts.values()
            if v.startswith("import ") and not v.startswith("import .")
        }
        return sorted(named)

    def list_source_files(self) -> list[str]:
        """The project's files that the steps' code is made of, relative to the project."""
        return sorted({f for c in self._codes.values() for f in c.files})

    def get_code_document(self, step: str) -> bytes:
        """The document that the digest of a step's code names: its definitions with their digests."""
        return self._codes[step].document()

    def list_variables(self, step: GraphStep) -> dict[str, str | None]:
        """The variables of the environment that a step's code reads, with short digests of what they hold here."""
        return {n: keys.variable_digest(n) for n in sorted(self._codes[step.name].variables)}

    def pack_files(self, writer: ObjectWriter, step: GraphStep) -> str:
        """Store what a step needs of the project on another machine: its source files, and the files that it names by text.

        Returns the digest of a tree. Raises :class:`InvalidInput` for a file that cannot be sent to a worker.
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
        needed = self.list_source_files()
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
        for shown, path in self._list_named_files(step).items():
            if self._files.relative_to_project(path) is None:
                raise InvalidInput(
                    "a file outside the project, named by text, cannot travel to a worker",
                    value=shown,
                    place=place,
                    next_step="Pass it as a pathlib.Path, or commit it as a dataset and read that by version.",
                )
            for name, file in self._files.list_plain_files(path):
                if is_secret(name):  # whoever may view the project could read it in the object store
                    raise InvalidInput(
                        f"a file named by text cannot travel to a worker: {KEPT_BACK}",
                        value=name,
                        place=place,
                        next_step='Set executor = "local" in [pipelines], or pass the secret as an environment variable at the worker.',
                    )
                entries[name] = writer.put(file)
        return writer.tree(entries).digest

    def save_index(self) -> None:
        """Save the digests of files that were computed, for the next run."""
        self._files.index.save()

    # --- inputs from outside the graph -------------------------------------------------------------------------------

    def resolve_sources(
        self, writer: Callable[[], AbstractContextManager[ObjectWriter]], pinned: Mapping[str, str]
    ) -> dict[str, Done]:
        """Resolve datasets to versions, and store files and directories that are path arguments; both by source key.

        ``pinned``: versions that an interrupted run has been reading, by source key. Raises :class:`NotFound` for a dataset, version
        or path that does not exist.
        """
        sources = {
            k: self._resolve_dataset(a, pinned.get(k)) for k, a in self._list_sources("dataset").items()
        }
        paths = self._list_sources("path")
        if paths:
            with writer() as opened:
                sources |= {
                    k: Done("single", [self._store_path(opened, str(a.value))]) for k, a in paths.items()
                }
        return sources

    def _list_sources(self, kind: str) -> dict[str, Argument]:
        """Arguments of a kind, by source key."""
        arguments: dict[str, Argument] = {}
        for step in self._built.graph.steps:
            arguments |= {source_key(a): a for a in _list_arguments(step) if a.kind == kind}
        return arguments

    def _resolve_dataset(self, argument: Argument, pinned: str | None) -> Done:
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

    def read_fingerprints(self, steps: Iterable[GraphStep]) -> None:
        """Fingerprint the file arguments of ``steps``. Called outside transactions where possible, because it reads whole files."""
        for step in steps:
            self._fingerprints[step.name] = (self.generation, self.fingerprint_files(step))

    def fingerprint_files(self, step: GraphStep) -> dict[str, Fingerprint]:
        """Fingerprints of the files that a step names by text, by their names in the project."""
        return {shown: self._files.fingerprint(path) for shown, path in self._list_named_files(step).items()}

    def _list_named_files(self, step: GraphStep) -> dict[str, Path]:
        """The files that text among the arguments, defaults and code of a step names, by their names in the project."""
        places: dict[str, Path] = {}
        for name, argument in step.arguments.items():
            if step.paths is True or (step.paths is not False and name in step.paths):
                for part in _walk_argument(argument):
                    if part.kind == "value":
                        places |= self._files.find_named(part.value)
        if step.paths is not False:
            places |= self._files.find_named(
                [self._defaults[step.name][n] for n in self._list_defaulted(step)]
            )
            places |= self._files.find_named_in_code(self._codes[step.name].texts)
        return dict(sorted(places.items()))

    def _list_defaulted(self, step: GraphStep) -> list[str]:
        """Arguments that the call leaves to their defaults, as far as text in them counts as a file name."""
        wanted = self._defaults[step.name].keys() - step.arguments.keys()
        return sorted(n for n in wanted if step.paths is True or n in (step.paths or []))

    def _current_fingerprints(self, step: GraphStep) -> dict[str, Fingerprint]:
        """Fingerprints of this generation; read now, inside the transaction, if :meth:`read_fingerprints` was not called."""
        generation, fingerprints = self._fingerprints.get(step.name, (-1, {}))
        if generation != self.generation:
            self.read_fingerprints([step])
            fingerprints = self._fingerprints[step.name][1]
        return fingerprints

    def find_changed_file(self, step: GraphStep, before: Judgement) -> str | None:
        """The reason not to reuse a result: a file among the arguments that changed while the step ran. None if none did.

        It is unknown then which content the step read.
        """
        now = {name: p.digest for name, p in self.fingerprint_files(step).items()}
        earlier = before.ingredients.files
        for name in sorted(now.keys() | earlier.keys()):
            if now.get(name) != earlier.get(name):
                return f"file {name} changed while the step ran last"
        return None

    # --- decisions ---------------------------------------------------------------------------------------------------

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
        """The cache key of a step whose upstream is done, and the entry to take instead of running it.

        ``run`` is the run at hand (None for a plan), ``verified`` the digests that were read and checked before; it grows.
        """
        resolved = {n: _resolve_artifacts(a, done) for n, a in step.arguments.items() if _refers(a)}
        code, files = self._codes[step.name], self._current_fingerprints(step)
        ingredients = keys.ingredients_of(
            step,
            code=code.digest,
            parts=code.parts,
            resolved=resolved,
            environment=self._environment,
            files={name: p.digest for name, p in files.items()},
            from_context={
                **{f"current().{name}": self._context[name] for name in sorted(code.context_fields)},
                **{f"variable {name}": value for name, value in self.list_variables(step).items()},
            },
        )
        key = keys.key_of(ingredients)
        inputs = list({(a.name, a.digest): a for artifacts in resolved.values() for a in artifacts}.values())
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
        """Whether an entry with the right key can be taken: its artifacts must be intact and its effects must still exist."""
        key, origin = entry.key, entry.cached_from or entry.id
        bad: list[str] = []
        change: Change | None = None
        broken = next((a for a in entry.outputs if not self._is_usable(a, verified)), None)
        if broken is not None:
            change = Change(what="artifact", name=broken.name, before=broken.digest[:12])
            reason, bad = f"artifact {broken.name} is gone or corrupt", [entry.id, origin]
        elif entry.run == run:  # a resumed run: the effects are its own
            reason = "it had finished in this run"
        else:
            origin_effects = effects.read_effects(tx, self._base.project, origin)
            missing = effects.find_missing(tx, self._base, origin_effects)
            if missing is not None:
                change = Change(what="effect", name=missing)
                reason = missing
            else:
                reason = _explain_hit(ingredients, origin_effects)
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

    def _is_usable(self, artifact: Artifact, verified: set[str]) -> bool:
        """Whether the bytes of an artifact are there; up to :data:`VERIFY_BYTES` they are read, which checks their digest."""
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

    def _store_path(self, writer: ObjectWriter, text: str) -> Artifact:
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
    """The graph with the resolved version in every dataset argument."""

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


def _explain_hit(ingredients: Ingredients, taken_effects: list[Effect]) -> str:
    """The reason for a hit: what was compared by content, and how many versions of datasets and models it repeats."""
    by_content = [f"file {name}" for name in ingredients.files] + list(ingredients.paths.values())
    reason = "everything it depends on is as it was"
    if by_content:
        more = f" and {len(by_content) - 3} more" if len(by_content) > 3 else ""
        reason += f" (compared by content: {', '.join(by_content[:3])}{more})"
    kept = [e.ref for e in taken_effects if e.kind in {"dataset_version", "model_version"}]
    return reason + (f"; takes {len(kept)} versions it made before" if kept else "")


def _read_defaults(function: Callable[..., object]) -> dict[str, object]:
    """Defaults of a step's arguments, paths as text."""
    defaults = {
        n: p.default for n, p in inspect.signature(function).parameters.items() if p.default is not p.empty
    }
    return {n: str(v) if isinstance(v, Path) else v for n, v in defaults.items()}


def _refers(argument: Argument) -> bool:
    """Whether the argument refers to artifacts, itself or in its items."""
    return argument.kind in {"output", "path", "dataset", "list", "dict"}


def _walk_argument(argument: Argument) -> Iterator[Argument]:
    """The argument and everything nested in it."""
    yield argument
    for item in argument.items:
        yield from _walk_argument(item)


def _list_arguments(step: GraphStep) -> Iterator[Argument]:
    """All arguments of a step, nested ones included."""
    for argument in step.arguments.values():
        yield from _walk_argument(argument)


def _resolve_artifacts(argument: Argument, done: Mapping[str, Done]) -> list[Artifact]:
    """The artifacts that an argument refers to, given the results of the steps and sources that are done."""
    if argument.kind in {"output", "path", "dataset"}:
        artifacts: Sequence[Artifact] = done[source_key(argument)].outputs
        wanted = argument.output if argument.kind == "output" else None
        chosen = [a for a in artifacts if a.name == wanted]
        return chosen or list(artifacts)
    return [a for item in argument.items for a in _resolve_artifacts(item, done)]
