"""Values to bytes and back, by type; never by pickle.

| value | kind | bytes |
| --- | --- | --- |
| ``pyarrow.Table``, frames of pandas and Polars | table | Parquet with content-defined pages |
| ``numpy.ndarray`` | array | npy, without object arrays |
| an estimator of scikit-learn | estimator | skops: plain data of types on a fixed list |
| ``bytes`` | bytes | as they are |
| ``pathlib.Path`` | file, tree | the file, or every file below the directory |
| a record or dataclass that the annotation names | record | canonical JSON |
| None, bool, int, float, str, lists and dicts of these | json | canonical JSON; NaN and infinities survive |

A value with a method ``__mainspring_output__(context)`` is what that returns: so ``ms.Fitted`` registers its estimator.

Equal values give equal bytes. A tuple inside JSON comes back as a list, as JSON has it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec

from mainspring.errors import Corrupt, InvalidInput
from mainspring.pipelines import estimators, frames
from mainspring.pipelines.job import Output
from mainspring.records.base import to_json
from mainspring.records.pipelines import ArtifactKind

_FLOAT_KEY = "$float"
_MAX_DEPTH = 200


def split(value: object, *, names: tuple[str, ...] | None, place: str) -> tuple[str, dict[str, object]]:
    """The outputs in a returned value: ``(shape, {name: value})``. Raises :class:`InvalidInput` if it does not fit ``names``.

    ``names`` are the declared ones. Undeclared: a tuple has outputs ``0``, ``1``, ...; a dict with a value that is not
    plain JSON has its keys; anything else is the one output ``value``.
    """
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        declared = names or fields or tuple(str(i) for i in range(len(value)))
        if len(declared) != len(value):
            raise InvalidInput(
                f"{len(value)} outputs returned, {len(declared)} declared", value=declared, place=place
            )
        return ("named" if fields else "tuple"), dict(zip(declared, value, strict=True))
    if isinstance(value, dict) and (names is not None or not _is_plain(value)):
        if names is not None and set(value) != set(names):
            raise InvalidInput(
                "the returned dict does not have the declared outputs",
                value=sorted(map(str, value)),
                place=place,
                next_step=f"Return exactly {sorted(names)}.",
            )
        if not all(isinstance(k, str) for k in value):
            raise InvalidInput("outputs are named by text", value=list(value)[:5], place=place)
        return "dict", dict(value)
    if names is not None:
        raise InvalidInput(
            f"the step declares the outputs {', '.join(names)} and returned one {type(value).__name__}",
            place=place,
            next_step="Return a tuple or a dict with one value for each.",
        )
    return "single", {"value": value}


def join(shape: str, values: dict[str, object], *, hint: object = None) -> object:
    """The inverse of :func:`split`; ``hint`` is the producer's return type, for named tuples."""
    if shape == "single":
        return values["value"]
    if shape == "dict":
        return values
    if shape == "named" and isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_make"):
        return hint._make(values.values())
    return tuple(values.values())


def save(value: object, folder: Path, *, name: str, number: int, hint: object, place: str) -> Output:
    """Write ``value`` into ``folder`` as output ``number``; raises :class:`InvalidInput` for a type that is not data.

    ``hint`` is the annotation of the output; ``place`` names it in errors.
    """
    path = folder / f"out-{number}"
    kind: ArtifactKind
    module = type(value).__module__.split(".")[0]
    if isinstance(value, Path):
        return _save_path(value, name=name, place=place)
    if isinstance(value, (bytes, bytearray, memoryview)):
        path.write_bytes(value)
        return Output(name=name, kind="bytes", path=str(path))
    if module == "pyarrow" and type(value).__name__ == "Table":
        _write_table(value, path)
        return Output(name=name, kind="table", path=str(path))
    if frames.is_frame(value):
        _write_table(frames.to_table(value, place=place), path)
        return Output(name=name, kind="table", path=str(path), type=frames.name_kind(type(value)))
    if estimators.is_estimator(value):
        path.write_bytes(estimators.to_bytes(value, place=place))
        return Output(name=name, kind="estimator", path=str(path), type=frames.name_kind(type(value)))
    if module == "numpy" and type(value).__name__ == "ndarray":
        _write_array(value, path, place=place)
        return Output(name=name, kind="array", path=str(path))
    if isinstance(value, msgspec.Struct) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        kind, type_name = "record", _type_name(type(value))
        if hint is not type(value):
            raise InvalidInput(
                f"a {type(value).__name__} needs its name in the annotation",
                place=place,
                next_step=f"Annotate the output as {type(value).__name__}.",
            )
        data = msgspec.to_builtins(value, str_keys=True)
    else:
        kind, type_name, data = "json", "", value
    path.write_bytes(to_json(_encode_json(data, place=place)))
    return Output(name=name, kind=kind, path=str(path), type=type_name)


def load(kind: str, path: Path, *, type_name: str, hint: object, place: str) -> object:
    """Read an artifact back. ``hint`` (from the producer's or the consumer's annotation) gives a record its class, and a table its kind.

    Raises :class:`InvalidInput` without such an annotation, :class:`Corrupt` for a stored record that does not fit it.
    """
    if kind in {"file", "tree"}:
        return path
    if kind == "bytes":
        return path.read_bytes()
    if kind == "table":
        import pyarrow.parquet as pq

        return frames.from_table(pq.read_table(path, memory_map=True), made=type_name, hint=hint)
    if kind == "estimator":
        return estimators.from_bytes(path.read_bytes())
    if kind == "array":
        import numpy as np

        return np.load(path, allow_pickle=False)
    data = _decode_json(msgspec.json.decode(path.read_bytes()))
    if kind == "json":
        return data
    if not isinstance(hint, type) or _type_name(hint) != type_name:
        raise InvalidInput(
            "no annotation names the class of this record",
            value=type_name,
            place=place,
            next_step=f"Annotate the parameter with {type_name.rsplit(':', maxsplit=1)[-1]}.",
        )
    try:
        return msgspec.convert(data, hint, str_keys=True)
    except msgspec.ValidationError as error:
        raise Corrupt(
            f"stored record does not fit its class: {error}", value=type_name, place=place
        ) from None


def _is_plain(value: object, depth: int = 0) -> bool:
    if value is None or isinstance(value, (bool, int, float, str)) or _is_scalar(value):
        return True
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v, depth + 1) for v in value)
    return isinstance(value, dict) and all(
        isinstance(k, str) and _is_plain(v, depth + 1) for k, v in value.items()
    )


def _is_scalar(value: object) -> bool:
    """Whether the value is a numpy scalar, which counts as plain data."""
    return (
        type(value).__module__ == "numpy"
        and getattr(value, "shape", None) == ()
        and type(value).__name__ not in {"ndarray", "datetime64", "timedelta64", "void"}
    )


def _encode_json(value: Any, *, place: str, depth: int = 0) -> Any:
    """Plain data with non-finite floats as ``{"$float": text}``; raises :class:`InvalidInput` for what JSON would change or refuse."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT_KEY: repr(float(value))}
    if isinstance(value, str):
        return _check_text(value, place=place)
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"nested deeper than {_MAX_DEPTH}", place=place)
    if isinstance(value, (list, tuple)):
        return [_encode_json(v, place=place, depth=depth + 1) for v in value]
    if isinstance(value, dict) and _FLOAT_KEY not in value:
        if not all(isinstance(k, str) for k in value):
            raise InvalidInput(
                "keys of a returned dict must be text",
                value=[k for k in value if not isinstance(k, str)][:3],
                place=place,
                next_step="Write {str(key): ...}.",
            )
        return {
            _check_text(k, place=place): _encode_json(v, place=place, depth=depth + 1)
            for k, v in value.items()
        }
    if _is_scalar(value):
        return _encode_json(value.item(), place=place, depth=depth)
    raise InvalidInput(
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be an output",
        place=place,
        next_step=_suggest_output(value),
    )


def _check_text(value: str, *, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(
            "text with half a surrogate pair cannot be stored", value=ascii(value), place=place
        ) from None
    return str(value)


def _suggest_output(value: object) -> str:
    """The next step in the error for a value that is not data: what to return instead."""
    module = type(value).__module__.split(".")[0]
    if module == "duckdb":
        return "Return relation.fetch_arrow_table() or relation.to_arrow_table()."
    if module == "pyarrow":
        return "Return a pyarrow.Table, e.g. pyarrow.table({'column': array})."
    if estimators.is_estimator(value):
        return "Return it by itself, or as one of several outputs of a tuple, not within a list."
    return "Return a pyarrow.Table, a frame, a numpy array, an estimator, plain JSON data, bytes, an annotated record, or a pathlib.Path to files you wrote."


def _decode_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_json(v) for v in value]
    if isinstance(value, dict):
        if len(value) == 1 and _FLOAT_KEY in value:
            return float(value[_FLOAT_KEY])
        return {k: _decode_json(v) for k, v in value.items()}
    return value


def _save_path(path: Path, *, name: str, place: str) -> Output:
    path = path.absolute()
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        raise InvalidInput(
            "the returned path is not a file or directory",
            value=str(path),
            place=place,
            next_step="Write it first, below context.current().scratch.",
        )
    return Output(name=name, kind="tree" if path.is_dir() else "file", path=str(path), type=path.name)


def _write_table(table: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", use_content_defined_chunking=True)


def _write_array(array: Any, path: Path, *, place: str) -> None:
    import numpy as np

    if array.dtype.hasobject:
        raise InvalidInput(
            "an array of Python objects cannot be an output",
            value=str(array.dtype),
            place=place,
            next_step="Convert it to numbers or fixed-width text, or return a pyarrow.Table.",
        )
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _type_name(kind: type) -> str:
    # Not the module: the same file may be imported under different names by a script and by a step's process.
    return kind.__qualname__
