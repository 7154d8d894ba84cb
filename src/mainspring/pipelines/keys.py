"""Cache keys, and what changed between two executions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import blake3

from mainspring.records.base import to_json
from mainspring.records.pipelines import Argument, Artifact, Change, GraphStep, Ingredients, Why

FORMAT = 2
"""Grows when the meaning of a key changes: old entries are then missed, never misread."""


@dataclass(frozen=True)
class Earlier:
    """An execution with which a miss is compared. ``unfit`` is the reason why its result is never taken from the cache."""

    id: str
    key: str
    ingredients: Ingredients
    unfit: str | None = None


def ingredients_of(
    step: GraphStep,
    *,
    code: str,
    parts: Mapping[str, str],
    resolved: Mapping[str, Sequence[Artifact]],
    environment: str,
    files: Mapping[str, str] = {},
    from_context: Mapping[str, object] = {},
) -> Ingredients:
    """The ingredients of the key of ``step``. ``resolved`` gives the artifacts behind each argument that refers to some,
    ``files`` the digests of files that are named by text, ``from_context`` what the code reads from the run and its environment."""
    inputs: dict[str, str] = {}
    params: dict[str, Any] = dict(from_context)
    paths: dict[str, str] = {}
    for name, argument in step.arguments.items():
        if name in resolved:
            if argument.kind in {"path", "dataset"}:
                paths[name] = f"{'file' if argument.kind == 'path' else 'dataset'} {argument.value}"
            content = [[a.name, a.kind, a.source or a.digest, a.type] for a in resolved[name]]
            inputs[name] = blake3.blake3(to_json([_argument_shape(argument), content])).hexdigest()
        else:
            params[name] = argument.value
    return Ingredients(
        code=code,
        parts=dict(parts),
        inputs=inputs,
        params=params,
        environment=environment,
        version=step.version,
        files=dict(files),
        paths=paths,
    )


def key_of(ingredients: Ingredients) -> str:
    """The cache key: BLAKE3 over the canonical JSON of the ingredients."""
    fields = [
        FORMAT,
        ingredients.code,
        ingredients.inputs,
        ingredients.params,
        ingredients.environment,
        ingredients.version,
        ingredients.files,
    ]
    return blake3.blake3(to_json(fields)).hexdigest()


def variable_digest(name: str) -> str | None:
    """The value of an environment variable as a short digest; None if it is not set. The value itself may be a secret."""
    value = os.environ.get(name)  # read for the step: not a setting of Mainspring
    return None if value is None else blake3.blake3(value.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def compare_ingredients(before: Ingredients, now: Ingredients) -> list[Change]:
    """What differs between two sets of ingredients, by name; empty if their keys are equal."""
    differences = []
    if before.code != now.code:
        for name in sorted(before.parts.keys() | now.parts.keys()):
            old, new = before.parts.get(name), now.parts.get(name)
            if old != new:
                differences.append(Change(what="code", name=name, before=_short(old), after=_short(new)))
    for name in sorted(before.inputs.keys() | now.inputs.keys()):
        was, now_is = _short(before.inputs.get(name)), _short(now.inputs.get(name))
        if was != now_is:
            shown = now.paths.get(name) or before.paths.get(name) or f"input {name}"
            what: Literal["file", "input"] = "file" if shown.startswith("file ") else "input"
            differences += [Change(what=what, name=shown.partition(" ")[2], before=was, after=now_is)]
    for name in sorted(before.files.keys() | now.files.keys()):
        was, now_is = _short(before.files.get(name)), _short(now.files.get(name))
        if was != now_is:
            differences += [Change(what="file", name=name, before=was, after=now_is)]
    for name in sorted(before.params.keys() | now.params.keys()):
        old, new = before.params.get(name), now.params.get(name)
        if to_json(old) != to_json(new) or (name in before.params) != (name in now.params):
            differences.append(Change(what="param", name=name, before=old, after=new))
    if before.environment != now.environment:
        differences.append(
            Change(
                what="environment",
                name="environment",
                before=_short(before.environment),
                after=_short(now.environment),
            )
        )
    if before.version != now.version:
        differences.append(Change(what="version", name="version", before=before.version, after=now.version))
    return differences


def explain_miss(step: str, key: str, now: Ingredients, earlier: Earlier | None) -> Why:
    """Why no earlier result can be taken: there is none, or what changed since the execution ``earlier``."""
    if earlier is None:
        return Why(step=step, hit=False, reason="no earlier execution of this step", key=key)
    differences = compare_ingredients(earlier.ingredients, now)
    if not differences:
        reason = earlier.unfit or (
            "the earlier execution gave no usable result"
            if earlier.key == key
            else "an earlier version of Mainspring recorded the result, and did not know all that it depends on"
        )
        return Why(step=step, hit=False, reason=reason, compared_to=earlier.id, key=key)
    reason_text = "; ".join(_describe_change(c) for c in differences[:4]) + (
        f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    )
    return Why(step=step, hit=False, reason=reason_text, changes=differences, compared_to=earlier.id, key=key)


def _describe_change(change: Change) -> str:
    if change.what == "param":
        return f"param {change.name}: {change.before!r} became {change.after!r}"
    if change.what in {"environment", "version"}:
        return f"the {change.what} changed"
    if change.before is None:
        return f"{change.what} {change.name} is new"
    return f"{change.what} {change.name} {'is gone' if change.after is None else 'changed'}"


def _argument_shape(argument: Argument) -> Any:
    """How artifacts make up an argument. Names of steps are left out: only the content of their outputs counts."""
    if argument.kind in {"list", "dict"}:
        return [argument.kind, argument.keys, [_argument_shape(a) for a in argument.items]]
    if argument.kind == "dataset":
        return "dataset"  # the artifact has the version
    return argument.value if argument.kind == "value" else [argument.kind, argument.output]


def _short(digest: str | None) -> str | None:
    return None if digest is None else digest if digest.startswith("import ") else digest[:12]
