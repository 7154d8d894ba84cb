"""Prediction by a booster's own library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from mainspring.errors import Corrupt, InvalidInput
from mainspring.models.formats.columns import floats, is_null, pick, strings
from mainspring.models.formats.packaged import PackagedPredictor
from mainspring.models.formats.predictor import Columns, Scores
from mainspring.records.models import Column, Package, Task


class BoosterPredictor(PackagedPredictor):
    """A booster in its library. Safe to call from many threads, as the libraries' own predictors are."""

    def __init__(self, package: Package, library: str, data: bytes) -> None:
        super().__init__(package)
        try:
            self._answer, described = import_module(
                f"mainspring.models.formats.boosters.{library}_model"
            ).opened(data)
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - each library raises its own kind, all meaning that it cannot read the file
            raise InvalidInput(f"{library} refuses the model: {str(error)[:300]}", place="booster") from None
        self._codes: dict[int, Mapping[Any, float]] = {}
        self._texts: frozenset[int] = frozenset()
        if isinstance(described, Mapping):
            self._codes = {f: {v: float(i) for i, v in enumerate(known)} for f, known in described.items()}
        else:
            self._texts = frozenset(described)
        self._single = library == "xgboost"
        self._score({c.name: ["" if c.type == "string" else 0.0] for c in package.signature.inputs})

    def _score(self, columns: Columns) -> Scores:
        signature = self._package.signature
        rows, values = pick(columns, signature.inputs)
        width = signature.width
        if not rows:
            return np.empty((0, width) if width else 0)
        listed = [
            self._column(i, c, v, rows) for i, (c, v) in enumerate(zip(signature.inputs, values, strict=True))
        ]
        table = np.empty((rows, len(listed)), dtype=object if self._texts else np.float64)
        for j, column in enumerate(listed):
            table[:, j] = column
        if self._single:
            with np.errstate(over="ignore"):
                table = table.astype(np.float32)
        raw = np.asarray(self._answer(table), dtype=np.float64)
        if signature.task is not Task.MULTICLASS:
            raw = raw[:, 1] if raw.shape == (rows, 2) else raw.reshape(-1)
        if raw.shape != ((rows, width) if width else (rows,)):
            raise Corrupt(
                "the model answers in another shape than its signature says", value=raw.shape, place="booster"
            )
        return raw

    def _column(self, feature: int, column: Column, values: Any, rows: int) -> Any:
        """A column as the library takes it: numbers, codes of categories, or texts."""
        if column.type != "string":
            numbers = floats(column.name, values, rows)
            if feature in self._texts:
                return [str(int(v)) for v in numbers.tolist()]
            if feature not in self._codes:
                return numbers
            return [self._codes[feature].get(v, np.nan) for v in numbers.tolist()]
        texts = strings(column.name, values, rows, null=None)
        if feature in self._codes:
            return [self._codes[feature].get(v, np.nan) for v in texts]
        if feature not in self._texts:
            raise InvalidInput("the model takes numbers in this column", place=f"column {column.name!r}")
        if any(is_null(v) for v in texts):
            raise InvalidInput(
                "the model takes no null in this column", value=None, place=f"column {column.name!r}"
            )
        return texts
