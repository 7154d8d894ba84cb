"""Values to bytes and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainspring.errors import InvalidInput
from mainspring.pipelines import artifacts

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | _text,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_text.filter(lambda k: k != "$float"), inner, max_size=4)
    ),
    max_leaves=20,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


@given(_plain)
@settings(max_examples=200, deadline=None)
def test_plain_data_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    saved = artifacts.save(value, folder, name="value", number=0, hint=None, place="test")
    assert same(artifacts.load("json", Path(saved.path), type_name="", hint=None, place="test"), value)


def test_objects_and_foreign_types_are_refused_with_advice(tmp_path: Path) -> None:
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import FunctionTransformer

    for value, advice in [
        (np.array([object()]), "fixed-width text"),
        (pd.DataFrame({"x": [1, "a"]}), "one type"),
        ([LogisticRegression()], "by itself"),
        (FunctionTransformer(len), "never pickled"),
        ({1: 2}, "str(key)"),
        ("\ud800", "surrogate"),
        (tmp_path / "missing", "Write it first"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            artifacts.save(value, tmp_path, name="value", number=0, hint=None, place="what step 's' returned")
        assert advice in str(caught.value)
        assert "step 's'" in str(caught.value)


def test_outputs_must_be_those_declared() -> None:
    assert artifacts.split({"a": 1}, names=None, place="p") == ("single", {"value": {"a": 1}})
    assert artifacts.split((1, b"x"), names=None, place="p") == ("tuple", {"0": 1, "1": b"x"})
    assert artifacts.split({"a": b"x"}, names=None, place="p") == ("dict", {"a": b"x"})
    for value in ({"a": 1}, (1, 2, 3), 5):
        with pytest.raises(InvalidInput):
            artifacts.split(value, names=("a", "b"), place="p")
