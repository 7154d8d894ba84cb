"""Matching of labels to classes: by value in the type of the classes, never by position.

A label comes as JSON, from a table, from pandas (which makes floats of whole numbers with gaps) or from NumPy; a signature
holds classes as text. One reader converts both to one value, for feedback, windows, comparisons, gates and checks.

==========  =====================================================================================================
classes     a label names a class if
==========  =====================================================================================================
int64       it is that number (1, 1.0, Decimal("1.00")), or text that reads as exactly that number ("1", "1.0");
            true and false only where the classes are 0 and 1; a float from 2^53 on only if no other class is the same float
float64     the same
bool        it is that truth value, the text "true"/"false" in any case, or a number (or its text) equal to 1 or 0
string      it is that text; or a number or truth value whose usual text (1, 1.0, True, true) is that class, a whole
            number also without its point (1.0 names "1"), as a float below 2^53
==========  =====================================================================================================

None, NaN, infinities and everything else name no class. A binary model without declared classes has the classes 0 and 1.
A regression label is a finite number; text and truth values are not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any

from mainspring.errors import InvalidInput
from mainspring.records.models import ClassType, Signature, Task

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_MAX_DIGITS = 400
_TRUTH = {"true": True, "false": False}
_SHOWN = 20
_EXACT = 2.0**53
"""Below this every whole number is a distinct float."""


class LabelReader:
    """Reads labels of one task: a class index, or the number itself for regression.

    ``own`` are the classes as the estimator knows them, in the same order, if ``classes`` gives them other names: a label may
    then be either of the two. ``kind`` is the type of ``own`` (of ``classes`` without it); None: inferred from their text.
    """

    def __init__(
        self, task: Task, classes: Sequence[str] = (), kind: ClassType | None = None, own: Sequence[str] = ()
    ) -> None:
        self.task = task
        if task is Task.BINARY and not classes:
            classes, kind, own = ["0", "1"], "int64", ()
        self.classes = list(classes)
        self._tables = [_ClassTable(list(own) or self.classes, kind)]
        if own:  # declared names are text; the estimator's values keep their type
            self._tables.append(_ClassTable(self.classes, None))

    @classmethod
    def of(cls, signature: Signature) -> LabelReader:
        """The reader for labels of a model with this signature."""
        return cls(signature.task, signature.classes, signature.class_type, signature.class_values)

    def read(self, value: Any) -> float | None:
        """The class index (or, for regression, the number) as a float; None if it is no label of this task."""
        value = _python_value(value)
        if self.task is Task.VALUES:
            return None
        if self.task is Task.REGRESSION:
            if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
                return None
            return _to_finite_float(value)
        positions = {i for t in self._tables if (i := t.index(value)) is not None}
        return float(positions.pop()) if len(positions) == 1 else None

    def index(self, value: Any) -> int:
        """The class index of a label. Raises :class:`InvalidInput` naming the classes."""
        position = self.read(value)
        if position is None or self.task is Task.REGRESSION:
            raise self.refusal(value)
        return int(position)

    def refusal(self, value: Any, *, place: str | None = None) -> InvalidInput:
        """The error for a label that is not valid for this task; it names the classes."""
        if self.task is Task.VALUES:
            return InvalidInput(
                "a model that answers several values has no label",
                value=_short_repr(value),
                place=place,
                next_step="Keep what became of it in a dataset of its own.",
            )
        if self.task is Task.REGRESSION:
            return InvalidInput(
                "the label of a regression model is a finite number",
                value=_short_repr(value),
                place=place,
                next_step="Send a number, not text or a truth value.",
            )
        return InvalidInput(
            f"the label is none of the model's classes: {self.named()}",
            value=_short_repr(value),
            place=place,
            next_step="Send one of them, by its value.",
        )

    def named(self) -> str:
        """The classes as text for messages, at most twenty of them."""
        if self.task in (Task.REGRESSION, Task.VALUES):
            return "a number" if self.task is Task.REGRESSION else "no label"
        own = self._tables[0].texts
        texts = [c if c == o else f"{c} ({o})" for c, o in zip(self.classes, own, strict=True)]
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return (", ".join(texts[:_SHOWN]) or "none") + more


def class_labels(signature: Signature) -> list[Any]:
    """The classes as they were given in training, in the order of the signature: numbers, truth values or texts.

    Classes that the signature gives names are texts: the names. Without declared classes a binary model has 0 and 1.
    """
    if signature.task not in (Task.BINARY, Task.MULTICLASS):
        return []
    texts = signature.classes
    if signature.task is Task.BINARY and not texts:
        return [0, 1]
    kind = "string" if signature.class_values else signature.class_type or infer_class_type(texts)
    if kind == "string":
        return list(texts)
    values = [_class_value(text, kind) for text in texts]
    return list(texts) if any(v is None for v in values) else values


class _ClassTable:
    """Class values of one type, and their indices."""

    def __init__(self, texts: list[str], kind: ClassType | None) -> None:
        self.texts = texts
        self._kind: ClassType = kind or infer_class_type(texts)
        values = [_class_value(text, self._kind) for text in texts]
        if any(v is None for v in values) or len(set(values)) != len(values):
            self._kind, values = (
                "string",
                list(texts),
            )  # two texts have the same value (1 and 1.0): compare them as text
        self._index: dict[Hashable, int] = {}
        for i, value in enumerate(values):
            self._index.setdefault(value, i)
        self._zero_one = self._kind == "int64" and set(values) == {0, 1}

    def index(self, value: Any) -> int | None:
        """The index of the class that this value names; None if it names none."""
        if self._kind == "string":
            return self._index_by_text(value)
        if self._kind == "bool":
            truth = _to_truth(value)
            return None if truth is None else self._index.get(truth)
        if isinstance(value, bool):
            return self._index.get(int(value)) if self._zero_one else None
        number = _to_number(value)
        if number is None:
            return None
        position = self._index.get(number)
        if isinstance(number, float) and abs(number) >= _EXACT and position is not None:
            # A float that large may come from several whole numbers: pandas makes 2^53 of 2^53 + 1.
            return position if self._count_equal_floats(number) == 1 else None
        if position is None and self._kind == "float64" and isinstance(number, Decimal):
            position = self._index.get(float(number))  # "0.1" is the float that is written so
        return position

    def _count_equal_floats(self, number: float) -> int:
        """How many classes have this float."""
        return sum(1 for v in self._index if isinstance(v, int | float) and _to_finite_float(v) == number)

    def _index_by_text(self, value: Any) -> int | None:
        if isinstance(value, str):
            return self._index.get(value)
        if isinstance(value, bool):
            texts = [str(value), str(value).lower()]
        elif isinstance(value, int | float | Decimal) and _to_finite_float(value) is not None:
            exact = not isinstance(value, float) or abs(value) < _EXACT
            texts = [str(value)] + ([str(int(value))] if exact and value == int(value) else [])
        else:
            return None
        return next((self._index[t] for t in texts if t in self._index), None)


def infer_class_type(texts: Sequence[str]) -> ClassType:
    """The type of classes of which only the text is known (in records that were written before types were kept).

    Only texts in the usual form of a number count as numbers: "01" and "1.50" are text.
    """
    if texts and all(_is_canonical(t, int) for t in texts):
        return "int64"
    if texts and all(_is_canonical(t, int) or _is_canonical(t, float) for t in texts):
        return "float64"
    if texts and len({t.lower() for t in texts}) == len(texts) and all(t.lower() in _TRUTH for t in texts):
        return "bool"
    return "string"


def _is_canonical(text: str, kind: type[int | float]) -> bool:
    if (
        len(text) > _MAX_DIGITS
        or not _NUMBER.fullmatch(text)
        or (kind is int and not text.lstrip("-").isdigit())
    ):
        return False
    try:
        return str(kind(text)) == text
    except ValueError:
        return False


def _class_value(text: str, kind: ClassType) -> Hashable | None:
    """A class as a value of its type; None if its text is no value of that type."""
    if kind == "string":
        return text
    if kind == "bool":
        return _to_truth(text)
    number = _to_number(text)
    if number is None:
        return None
    if kind == "float64":
        return float(number)
    return int(number) if number == int(number) else None


def _python_value(value: Any) -> Any:
    """NumPy's scalars as Python's. A narrow float has the value that it prints: float32 0.1 is 0.1."""
    if type(value).__module__ != "numpy" or not hasattr(value, "item"):
        return value
    if getattr(value, "ndim", 0):
        return None
    plain = value.item()
    return float(str(value)) if isinstance(plain, float) and value.itemsize < 8 else plain


def _to_truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    number = _to_number(value)
    return bool(number) if number is not None and number in (0, 1) else None


def _to_number(value: Any) -> int | float | Decimal | None:
    """A finite number, also from text, without rounding; None for any other value."""
    if isinstance(value, str):
        return Decimal(value) if len(value) <= _MAX_DIGITS and _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return None if isinstance(value, float | Decimal) and not math.isfinite(value) else value


def _to_finite_float(value: float | Decimal) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
