"""Checks of the results that workers send, before anything of them is kept."""

from __future__ import annotations

from typing import Any

from mainspring.errors import InvalidInput
from mainspring.lineage import Foundation
from mainspring.lineage.uploads import check_owned, owned_size, owned_tree
from mainspring.pipelines.context import MAX_METRICS, MAX_REFERENCE, MAX_REFERENCES
from mainspring.pipelines.effects import MAX_EFFECTS
from mainspring.records.lineage import split_ref
from mainspring.records.objects import ObjectRef
from mainspring.records.pipelines import Effect, StepResult

MAX_OUTPUTS = 10_000
MAX_MESSAGE = 10_000
_SHAPES = frozenset({"single", "tuple", "named", "dict"})
_NOT_A_NUMBER = frozenset({"nan", "inf", "-inf"})

_EFFECT_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "alias": {"model": str, "alias": str, "version": int},
    "artifact": {"run": (str, type(None)), "path": str, "digest": str, "size": int},
}
"""The fields of an effect's data, by its kind, that later runs read."""


def check_result(base: Foundation, result: StepResult) -> None:
    """Check a result that a worker sent.

    Raises :class:`InvalidInput` for a result that no step can have, :class:`NotFound` for a digest of an object that is not this
    project's.
    """
    for what, count, most in (
        ("outputs", len(result.outputs), MAX_OUTPUTS),
        ("metrics", len(result.metrics), MAX_METRICS),
        ("references", len(result.used), MAX_REFERENCES),
        ("effects", len(result.effects), MAX_EFFECTS),
    ):
        if count > most:
            raise InvalidInput(f"a step has at most {most} {what}", value=count, place="result")
    _check_shape(result)
    for value in result.metrics.values():
        if isinstance(value, str) and value not in _NOT_A_NUMBER:
            raise InvalidInput("not a metric value", value=value, place="result.metrics")
    for reference in result.used:
        _check_reference(reference)
    for artifact in result.outputs:
        if artifact.kind == "tree":
            owned_tree(base, artifact.digest, place="result.outputs")
    plain = [ObjectRef(digest=a.digest, size=a.size) for a in result.outputs if a.kind != "tree"]
    check_owned(base, plain, place="result.outputs")
    if result.log is not None:
        owned_size(base, result.log)
    for effect in result.effects:
        _check_effect(base, effect)


def _check_shape(result: StepResult) -> None:
    names = [a.name for a in result.outputs]
    if result.shape not in _SHAPES or len(set(names)) != len(names):
        raise InvalidInput(
            "outputs are named once each, in a known shape", value=result.shape, place="result"
        )
    for artifact in result.outputs:
        if artifact.source:
            raise InvalidInput(
                "an output is no dataset version", value=artifact.source, place="result.outputs"
            )
        # The base name becomes a path wherever the output is an input next.
        if artifact.kind in {"file", "tree"} and not _is_file_name(artifact.type):
            raise InvalidInput("not the name of a file", value=artifact.type, place="result.outputs")
    if result.error is not None and len(result.error.message) > MAX_MESSAGE:
        raise InvalidInput(f"a message has at most {MAX_MESSAGE} characters", value=len(result.error.message), place="result.error")  # fmt: skip
    if result.error is not None and result.outputs:
        raise InvalidInput("a step that failed has no outputs", value=names[:5], place="result")
    if result.error is None and result.shape == "single" and names != ["value"]:
        raise InvalidInput("a single output is called 'value'", value=names[:5], place="result")


def _is_file_name(text: str) -> bool:
    return (
        text not in {".", ".."}
        and not set(text) & {"/", "\0"}
        and len(text.encode("utf-8", "surrogateescape")) <= 255
    )


def _check_effect(base: Foundation, effect: Effect) -> None:
    if effect.kind == "action":
        return
    _check_reference(effect.ref)
    data: dict[str, Any] = effect.data
    for name, kind in _EFFECT_FIELDS.get(effect.kind, {}).items():
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool):
            raise InvalidInput(f"an effect of kind {effect.kind} names its {name}", value=effect.ref, place="result.effects")  # fmt: skip
    if effect.kind == "artifact":
        check_owned(base, [ObjectRef(digest=data["digest"], size=data["size"])], place="result.effects")


def _check_reference(reference: str) -> None:
    kind, ident = split_ref(reference)
    if not kind or not ident or len(reference) > MAX_REFERENCE:
        raise InvalidInput("not a reference", value=reference, place="result", next_step="References look like 'dataset_version:<id>'.")  # fmt: skip
