"""The exported script makes the same estimator again."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest

from mainspring.records.models import Task
from mainspring.training.automl.families import Candidate, build, propose
from mainspring.training.automl.script import write_script

PART: Any = SimpleNamespace(version=SimpleNamespace(dataset="churn-train", id="ab" * 32))
NUMBERS, TEXTS, DATES = ["1st x", "it's", "n"], ["plan"], ["seen"]


def _script(candidate: Candidate, task: Task) -> tuple[Any, str]:
    made = build(
        candidate, task=task, numbers=NUMBERS, texts=TEXTS, dates={"seen": ["month", "hour"]}, seed=4
    )
    text = write_script(
        made,
        run="r",
        chosen=candidate.name,
        model="churn",
        training=PART,
        holdout=PART,
        lists={"NUMBERS": NUMBERS, "TEXTS": TEXTS, "DATES": DATES},
        settings={"TARGET": "y"},
    )
    return made, text


@pytest.mark.parametrize("task", [Task.BINARY, Task.REGRESSION])
@pytest.mark.parametrize("candidate", propose(10, seed=1), ids=lambda c: c.name)
def test_the_script_makes_the_same_estimator(candidate: Candidate, task: Task) -> None:
    """Seen red while NaN, the default of ``missing_values``, was written into the script as a name."""
    made, text = _script(candidate, task)
    there: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, "train.py", "exec"), there)
    again = there["estimator"]()
    assert repr(again) == repr(made)
    assert _plain(again) == _plain(made)


def _plain(estimator: Any) -> dict[str, Any]:
    return {k: v if not hasattr(v, "get_params") else type(v) for k, v in estimator.get_params().items()
            if not isinstance(v, list)}  # fmt: skip


def test_the_script_is_short_and_names_its_columns_once() -> None:
    _, text = _script(propose(3, seed=0)[3], Task.BINARY)
    assert len(text.splitlines()) <= 90
    assert text.count("1st x") == 1
    assert max(map(len, text.splitlines())) <= 130
    ast.parse(text)
