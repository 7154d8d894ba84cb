"""Which class a label names: by its value in the classes' type, never by its position.

A label comes as JSON, from a table, from pandas (which makes floats of whole numbers with gaps) or from NumPy; a class
stands in a signature as text. One reader brings both to one value, for feedback, windows, comparisons, gates and checks.

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
"""Up to here each whole number is a float of its own."""


class LabelReader:
    """Reads labels of one task: a class index, or the number itself for regression.

    ``own`` are the classes as the estimator knows them, in the same order, where ``classes`` gives them other names: a label
    may then be either. ``kind`` is the type of ``own`` (of ``classes`` without it); None: inferred from their text.
    """

    def __init__(
        self, task: Task, classes: Sequence[str] = (), kind: ClassType | None = None, own: Sequence[str] = ()
    ) -> None:
        self.task = task
        if task is Task.BINARY and not classes:
            classes, kind, own = ["0", "1"], "int64", ()
        self.classes = list(classes)
        self._tables = [_Table(list(own) or self.classes, kind)]
        if own:  # names are declared in words; the estimator's values keep their type
            self._tables.append(_Table(self.classes, None))

    @classmethod
    def of(cls, signature: Signature) -> LabelReader:
        return cls(signature.task, signature.classes, signature.class_type, signature.class_values)

    def read(self, value: Any) -> float | None:
        """The class index (or, for regression, the number) as a float; None if it is no label of this task."""
        value = _plain(value)
        if self.task is Task.REGRESSION:
            if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
                return None
            return _finite(value)
        found = {i for t in self._tables if (i := t.index(value)) is not None}
        return float(found.pop()) if len(found) == 1 else None

    def index(self, value: Any) -> int:
        """The class index of a label. Raises :class:`InvalidInput` naming the classes."""
        found = self.read(value)
        if found is None or self.task is Task.REGRESSION:
            raise self.refusal(value)
        return int(found)

    def refusal(self, value: Any, *, place: str | None = None) -> InvalidInput:
        """The error that says why a label is none of this task, with the classes named."""
        if self.task is Task.REGRESSION:
            return InvalidInput(
                "the label of a regression model is a finite number",
                value=_shown(value),
                place=place,
                next_step="Send a number, not text or a truth value.",
            )
        return InvalidInput(
            f"the label is none of the model's classes: {self.named()}",
            value=_shown(value),
            place=place,
            next_step="Send one of them, by its value.",
        )

    def named(self) -> str:
        """The classes for people, the first twenty of them."""
        if self.task is Task.REGRESSION:
            return "a number"
        own = self._tables[0].texts
        texts = [c if c == o else f"{c} ({o})" for c, o in zip(self.classes, own, strict=True)]
        more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
        return (", ".join(texts[:_SHOWN]) or "none") + more


class _Table:
    """Class values of one type, and their indices."""

    def __init__(self, texts: list[str], kind: ClassType | None) -> None:
        self.texts = texts
        self._kind: ClassType = kind or infer_class_type(texts)
        values = [_value(text, self._kind) for text in texts]
        if any(v is None for v in values) or len(set(values)) != len(values):
            self._kind, values = "string", list(texts)  # texts that are not distinct values are only texts
        self._index: dict[Hashable, int] = {}
        for i, value in enumerate(values):
            self._index.setdefault(value, i)
        self._zero_one = self._kind == "int64" and set(values) == {0, 1}

    def index(self, value: Any) -> int | None:
        if self._kind == "string":
            return self._text(value)
        if self._kind == "bool":
            truth = _truth(value)
            return None if truth is None else self._index.get(truth)
        if isinstance(value, bool):
            return self._index.get(int(value)) if self._zero_one else None
        number = _number(value)
        if number is None:
            return None
        found = self._index.get(number)
        if isinstance(number, float) and abs(number) >= _EXACT and found is not None:
            # A float that large stands for several whole numbers: pandas makes 2^53 of 2^53 + 1.
            return found if self._alike(number) == 1 else None
        if found is None and self._kind == "float64" and isinstance(number, Decimal):
            found = self._index.get(float(number))  # "0.1" is the float that is written so
        return found

    def _alike(self, number: float) -> int:
        """How many classes have this float."""
        return sum(1 for v in self._index if isinstance(v, int | float) and _finite(v) == number)

    def _text(self, value: Any) -> int | None:
        if isinstance(value, str):
            return self._index.get(value)
        if isinstance(value, bool):
            texts = [str(value), str(value).lower()]
        elif isinstance(value, int | float | Decimal) and _finite(value) is not None:
            exact = not isinstance(value, float) or abs(value) < _EXACT
            texts = [str(value)] + ([str(int(value))] if exact and value == int(value) else [])
        else:
            return None
        return next((self._index[t] for t in texts if t in self._index), None)


def infer_class_type(texts: Sequence[str]) -> ClassType:
    """The type of classes of which only the text is known (records of before types were kept).

    Only texts in the usual form of a number count as numbers: "01" and "1.50" are text.
    """
    if texts and all(_canonical(t, int) for t in texts):
        return "int64"
    if texts and all(_canonical(t, int) or _canonical(t, float) for t in texts):
        return "float64"
    if texts and len({t.lower() for t in texts}) == len(texts) and all(t.lower() in _TRUTH for t in texts):
        return "bool"
    return "string"


def _canonical(text: str, kind: type[int | float]) -> bool:
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


def _value(text: str, kind: ClassType) -> Hashable | None:
    """A class as a value of its type; None if its text is none of that type."""
    if kind == "string":
        return text
    if kind == "bool":
        return _truth(text)
    number = _number(text)
    if number is None:
        return None
    if kind == "float64":
        return float(number)
    return int(number) if number == int(number) else None


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's. A narrow float is the number that it is written as: float32 0.1 is 0.1."""
    if type(value).__module__ != "numpy" or not hasattr(value, "item"):
        return value
    if getattr(value, "ndim", 0):
        return None
    plain = value.item()
    return float(str(value)) if isinstance(plain, float) and value.itemsize < 8 else plain


def _truth(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    number = _number(value)
    return bool(number) if number is not None and number in (0, 1) else None


def _number(value: Any) -> int | float | Decimal | None:
    """A finite number, or what text reads as one, exactly; None for the rest."""
    if isinstance(value, str):
        return Decimal(value) if len(value) <= _MAX_DIGITS and _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    return None if isinstance(value, float | Decimal) and not math.isfinite(value) else value


def _finite(value: float | Decimal) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
