"""The boosters' own forms without their libraries; with them: tests/engines (`make test-engines`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from mainspring.errors import MainspringError, MissingExtra, UnsafeFormat
from mainspring.models.formats.model_format import ModelFormat, extra_needed
from mainspring.models.formats.table import model_format
from mainspring.models.formats.trust import DEFAULT

LIBRARIES = ("lightgbm", "xgboost", "catboost")
NONSENSE = (
    b"",
    b"{}",
    b"[" * 100_000,
    b"tree\nversion=v4\n",
    b'{"learner": {}}',
    b'{"oblivious_trees": []}',
    b"\x80\x04\x95",
    b"\xff" * 1000,
)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("payload", NONSENSE, ids=lambda p: repr(p[:8]))
def test_what_is_no_model_is_refused_without_the_library(library: str, payload: bytes) -> None:
    entry = model_format(library)
    package: Any = None
    with pytest.raises(UnsafeFormat):
        entry.check(package, {entry.payloads[0]: payload}, trust=DEFAULT)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_names_the_extra(library: str) -> None:
    entry: ModelFormat = model_format(library)
    assert entry.extra == "boosting"
    if find_spec(library) is not None:
        return
    with pytest.raises(MissingExtra, match="boosting") as caught, extra_needed(entry):
        __import__(library)
    assert isinstance(caught.value, MainspringError)
