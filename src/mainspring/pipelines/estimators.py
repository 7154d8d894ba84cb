"""Estimators between steps: as skops, which is plain data of types on a fixed list; never by pickle."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import msgspec

from mainspring.errors import InvalidInput, MainspringError

_SCHEMA = "schema.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def is_estimator(value: object) -> bool:
    """Whether a value is an estimator by scikit-learn's conventions."""
    return not isinstance(value, type) and hasattr(value, "fit") and hasattr(value, "get_params")


def to_bytes(estimator: Any, *, place: str) -> bytes:
    """An estimator as skops; equal estimators give equal bytes. Raises :class:`InvalidInput` for one that holds more than data."""
    from mainspring.models.formats.skops.predictor import dump
    from mainspring.models.formats.skops.schema import check_skops

    try:
        data = _renumber(dump(estimator))
        check_skops(data)
    except MainspringError as error:
        raise InvalidInput(
            f"a {type(estimator).__module__}.{type(estimator).__qualname__} cannot be kept between steps as data: {error.message}",
            value=error.value,
            place=place,
            next_step="Estimators are never pickled: return ms.Fitted(...), which registers it in a format of its own, or fit it where it is used.",
        ) from None
    return data


def from_bytes(data: bytes) -> Any:
    """The estimator again. Raises :class:`~mainspring.errors.UnsafeFormat` for bytes that hold anything but data of trusted types."""
    from mainspring.models.formats.skops.predictor import restore

    return restore(data)


def _renumber(data: bytes) -> bytes:
    """The same with counted numbers in place of memory addresses, and without times: what changes from process to process."""
    numbers: dict[int, int] = {}
    names: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(v) for v in node]
        if not isinstance(node, dict):
            return node
        made: dict[str, Any] = {}
        for key, value in node.items():
            if key == "__id__" and isinstance(value, int):
                made[key] = numbers.setdefault(value, len(numbers) + 1)
            elif key == "file" and isinstance(value, str):
                _, _, suffix = value.rpartition(".")
                made[key] = names.setdefault(value, f"{len(names) + 1}.{suffix}")
            else:
                made[key] = walk(value)
        return made

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = msgspec.json.encode(walk(msgspec.json.decode(files.pop(_SCHEMA))))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in sorted((names.get(n, n), c) for n, c in files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        archive.writestr(zipfile.ZipInfo(_SCHEMA, _EPOCH), schema)
    return out.getvalue()
