"""The table of model formats: every format that a package can have. Neither a package nor a caller can add to it.

A name is looked up first and its module imported then, so that the use of one format does not import another's libraries.
"""

from __future__ import annotations

from importlib import import_module

from mainspring.errors import UnsafeFormat
from mainspring.models.formats.model_format import ModelFormat

_ENTRIES: dict[str, str | ModelFormat] = {
    "onnx": "mainspring.models.formats.onnx:ONNX",
    "skops": "mainspring.models.formats.skops:SKOPS",
    "lightgbm": "mainspring.models.formats.boosters.formats:LIGHTGBM",
    "xgboost": "mainspring.models.formats.boosters.formats:XGBOOST",
    "catboost": "mainspring.models.formats.boosters.formats:CATBOOST",
}
"""Name to entry, the fastest to predict first: the order in which ``auto`` tries them."""


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
            next_step=f"Formats are {list_names(' and ')}; pickle, joblib, cloudpickle and torch files run code when loaded and are refused.",
        )
    if isinstance(entry, ModelFormat):
        return entry
    module, _, attribute = entry.partition(":")
    loaded: ModelFormat = getattr(import_module(module), attribute)
    return loaded


def model_formats() -> list[ModelFormat]:
    """All entries, the fastest first."""
    return [model_format(name) for name in _ENTRIES]


def list_names(last: str) -> str:
    """All names, quoted, for a message; ``last`` goes before the last of them."""
    quoted = [repr(name) for name in _ENTRIES]
    return f"{', '.join(quoted[:-1])}{last}{quoted[-1]}"
