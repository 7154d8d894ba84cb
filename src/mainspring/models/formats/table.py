"""The table of model formats: all that a package can be. A package cannot add to it, nor can a caller.

A name is looked up first and its module imported then, so that asking for one format costs nothing of another.
"""

from __future__ import annotations

from importlib import import_module

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.model_format import ModelFormat

_ENTRIES: dict[str, str | ModelFormat] = {
    "onnx": "mainspring.models.formats.onnx:ONNX",
    "skops": "mainspring.models.formats.skops:SKOPS",
}
"""Name to entry. In this order ``auto`` asks who can store an estimator: the fastest to predict comes first."""


def names() -> tuple[str, ...]:
    """The names of all formats, the fastest first."""
    return tuple(_ENTRIES)


def model_format(name: object, *, place: str | None = None) -> ModelFormat:
    """The entry of this name. Raises :class:`~mainspring.errors.UnsafeFormat` for any other value, of whatever type."""
    entry = _ENTRIES.get(name) if isinstance(name, str) else None
    if entry is None:
        raise UnsafeFormat(
            "not a format that is loaded here",
            value=name,
            place=place,
            next_step=f"Formats are {listed(' and ')}; pickle, joblib, cloudpickle and torch files run code when loaded and are refused.",
        )
    if isinstance(entry, ModelFormat):
        return entry
    module, _, attribute = entry.partition(":")
    found: ModelFormat = getattr(import_module(module), attribute)
    return found


def model_formats() -> list[ModelFormat]:
    """All entries, the fastest first."""
    return [model_format(name) for name in _ENTRIES]


def listed(last: str) -> str:
    """All names, quoted, for a message; ``last`` stands before the last one."""
    quoted = [repr(name) for name in _ENTRIES]
    return f"{', '.join(quoted[:-1])}{last}{quoted[-1]}"
