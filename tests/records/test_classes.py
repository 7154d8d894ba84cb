"""Which class a label names: by value in the classes' type, never by position."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.errors import InvalidInput
from mainspring.records.classes import LabelReader, infer_class_type
from mainspring.records.models import Column, Signature, Task
from mainspring.records.scores import class_of, classes_of

WHOLE, FLOATS, WORDS = ["1", "2", "3"], ["-1.0", "0.1", "1.0"], ["no", "yes", "1", "1.5"]


@pytest.mark.parametrize(
    ("classes", "value", "expected"),
    [
        # Whole numbers, as pandas, JSON, SQL and NumPy send them.
        (WHOLE, 1, 0), (WHOLE, 1.0, 0), (WHOLE, "1", 0), (WHOLE, "1.0", 0), (WHOLE, "3e0", 2), (WHOLE, Decimal("2.00"), 1),
        (WHOLE, np.int64(3), 2), (WHOLE, np.float32(2), 1), (WHOLE, np.array(3), 2),
        (WHOLE, 0, None), (WHOLE, 4, None), (WHOLE, 1.5, None), (WHOLE, True, None), (WHOLE, "one", None), (WHOLE, " 1", None),
        (WHOLE, "1_0", None), (["0", "1", "2"], True, None), (["0", "1"], True, 1), (["0", "1"], "true", None),
        (["9007199254740993", "1"], 9007199254740992.0, None), (["9007199254740993", "1"], 9007199254740993, 0),
        # Other numbers.
        (FLOATS, -1, 0), (FLOATS, 1, 2), (FLOATS, "1", 2), (FLOATS, 0.1, 1), (FLOATS, "0.10", 1), (FLOATS, Decimal("0.1"), 1),
        (FLOATS, np.float32(0.1), 1), (FLOATS, 0.2, None), (FLOATS, True, None),
        # Truth values.
        (["False", "True"], True, 1), (["False", "True"], "true", 1), (["False", "True"], "TRUE", 1), (["False", "True"], 1, 1),
        (["False", "True"], 0.0, 0), (["False", "True"], np.bool_(True), 1), (["False", "True"], 2, None), (["False", "True"], "yes", None),
        # Words: equal text, or a number's usual text.
        (WORDS, "yes", 1), (WORDS, 1, 2), (WORDS, 1.0, 2), (WORDS, 1.5, 3), (WORDS, "1.0", None), (WORDS, True, None), (WORDS, 0, None),
        (["no", "yes"], 1, None), (["no", "yes"], True, None), (["no", "yes"], "Yes", None), (["01", "1"], 1, 1), (["01", "1"], "01", 0),
        # Never.
        (WHOLE, None, None), (WHOLE, math.nan, None), (WHOLE, math.inf, None), (WORDS, math.nan, None), (FLOATS, np.nan, None),
        (WHOLE, [1], None), (WHOLE, np.array([1]), None), (WORDS, b"yes", None), (WHOLE, "9" * 500, None), (WHOLE, "1e99999", None),
    ],
)  # fmt: skip
def test_a_label_is_matched_by_value(classes: list[str], value: Any, expected: int | None) -> None:
    """Seen red against 0.1: 1.0 of the classes 1, 2, 3 was read as 2, and as the positive class of 1 and 2."""
    assert LabelReader(Task.MULTICLASS, classes).read(value) == expected


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True), st.data())
def test_order_and_spelling_of_the_classes_do_not_matter(numbers: list[int], data: st.DataObject) -> None:
    named = data.draw(st.sampled_from(numbers))
    spelling = data.draw(
        st.sampled_from([int, float, str, Decimal, lambda n: f"{n}.0", np.int32, np.float64])
    )
    kind = data.draw(st.sampled_from([("int64", str), ("float64", lambda n: str(float(n)))]))
    classes = [kind[1](n) for n in numbers]
    for reader in (LabelReader(Task.MULTICLASS, classes), LabelReader(Task.MULTICLASS, classes, kind[0])):
        assert reader.read(spelling(named)) == numbers.index(named)
        assert reader.read(spelling(51)) is None


@pytest.mark.parametrize(
    ("classes", "value", "expected"),
    [(["1", "2"], 1.0, 0), (["1", "2"], 2.0, 1), (["-1.0", "1.0"], -1, 0), ([], 1, 1), ([], True, 1), ([], "0", 0), ([], 2, None), ([], "yes", None)],
)  # fmt: skip
def test_binary_classes(classes: list[str], value: Any, expected: int | None) -> None:
    assert LabelReader(Task.BINARY, classes).read(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (2.5, 2.5), (np.float32(0.5), 0.5), (Decimal("1.5"), 1.5), (True, None), ("3", None), (math.nan, None), (10**400, None), (None, None)],
)  # fmt: skip
def test_numbers_of_regression(value: Any, expected: float | None) -> None:
    assert LabelReader(Task.REGRESSION).read(value) == expected


def test_a_float_that_stands_for_several_classes_names_none() -> None:
    """pandas makes the float 2^53 of 2^53 + 1. Seen red: 2^53 + 1, sent as a float, counted as the class 2^53."""
    big = 2**53
    for kind, classes in (("int64", [big, big + 1, big + 4]), ("string", [big, big + 1, big + 4])):
        reader = LabelReader(Task.MULTICLASS, [str(c) for c in classes], kind)
        assert reader.read(float(big + 1)) is None
        assert [reader.read(c) for c in classes] == [0, 1, 2]
        assert [reader.read(str(c)) for c in classes] == [0, 1, 2]
    reader = LabelReader(Task.MULTICLASS, [str(big), str(big + 1), str(big + 4), str(10**350)], "int64")
    assert reader.read(float(big + 4)) == 2
    assert reader.read(float(big - 1)) is None


def test_classes_with_other_names_keep_their_own_values() -> None:
    signature = Signature(
        inputs=[Column(name="x", type="float64")], task=Task.BINARY,
        classes=["on_time", "late"], class_type="int64", class_values=["0", "1"],
    )  # fmt: skip
    reader = LabelReader.of(signature)
    for value in (1, 1.0, True, "1", "late"):
        assert reader.index(value) == 1, value
    assert reader.read("Late") is None
    swapped = LabelReader(Task.BINARY, ["1", "0"], "int64", ["0", "1"])
    assert swapped.read(1) is None, "a name that is another class's value names nothing"


def test_a_refusal_names_the_classes_and_the_next_step() -> None:
    with pytest.raises(InvalidInput, match="none of the model's classes: 1, 2, 3") as caught:
        LabelReader(Task.MULTICLASS, WHOLE).index(7)
    assert caught.value.value == "7"
    assert caught.value.next_step
    many = LabelReader(Task.MULTICLASS, [str(n) for n in range(1000)]).refusal("x")
    assert "and 980 more" in many.message
    assert "finite number" in LabelReader(Task.REGRESSION).refusal("x").message


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["0", "1"], "int64"), (["-1", "10"], "int64"), (["1.0", "2.0"], "float64"), (["0.1", "1"], "float64"), (["False", "True"], "bool"),
        (["false", "true"], "bool"), (["no", "yes"], "string"), (["01", "02"], "string"), (["1.50", "2.0"], "string"), (["nan", "1.0"], "string"), ([], "string"),
    ],
)  # fmt: skip
def test_types_of_old_records_are_inferred(texts: list[str], kind: str) -> None:
    assert infer_class_type(texts) == kind


def test_the_class_said_is_the_first_of_equals() -> None:
    """As scikit-learn's predict. Seen red against 0.1, where 0.5 was positive."""
    scores = np.array([0.2, 0.5, np.nextafter(0.5, 1), 0.9])
    assert classes_of(scores).tolist() == [0, 0, 1, 1]
    assert [class_of(s) for s in scores.tolist()] == [0, 0, 1, 1]
    rows = np.array([[0.4, 0.4, 0.2], [0.1, 0.45, 0.45]])
    assert classes_of(rows).tolist() == [0, 1]
    assert [class_of(r) for r in rows.tolist()] == [0, 1]
    two = np.column_stack([1 - scores, scores])
    assert classes_of(two).tolist() == classes_of(scores).tolist()
