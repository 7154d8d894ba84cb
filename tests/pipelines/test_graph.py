"""Steps outside a pipeline, graphs as data, parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import InvalidInput
from mainspring.pipelines.graph import after, build, convert_params, named
from mainspring.pipelines.step import pipeline, step
from mainspring.records.base import from_json, to_json
from mainspring.records.pipelines import Graph


@step
def one(x: int) -> tuple[int, int]:
    return x, x + 1


@step(outputs=("a", "b"))
def two(values: list[int]) -> dict[str, int]:
    return {"a": sum(values), "b": len(values)}


@pipeline
def both(n: int, day: date = date(2013, 1, 1), flag: bool = False, rates: list[float] | None = None) -> Any:
    left, right = one(n)
    t = named(two([left, right, 7]), "total")
    return after(two([t["a"]]), t)


def test_a_step_and_a_pipeline_are_plain_functions() -> None:
    assert one(1) == (1, 2)
    assert both(1) == {"a": 10, "b": 1}
    assert one.__name__ == "one"


def test_the_graph_is_data_and_survives_json() -> None:
    graph = build(both, {"n": 3}, root=Path(__file__).parent).graph
    assert [s.name for s in graph.steps] == ["one", "total", "two"]
    assert graph.steps[2].after == ["total"]
    assert [a.kind for a in graph.steps[1].arguments["values"].items] == ["output", "output", "value"]
    assert from_json(to_json(graph), Graph) == graph


def test_parameters_are_read_strictly_from_text() -> None:
    values = convert_params(both, {"n": "3", "day": "2013-02-01", "flag": "true", "rates": "[0.5, 1]"})
    assert values == {"n": 3, "day": date(2013, 2, 1), "flag": True, "rates": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": "three"}, "parameter n of pipeline both"),
        ({"n": 1.5}, "parameter n"),
        ({"m": "3"}, "Known: 'day', 'flag', 'n', 'rates'"),
        ({"n": "1", "rate": "[]"}, "Did you mean 'rates'"),
        ({}, "missing parameter; got n"),
    ],
)
def test_parameters_that_do_not_fit_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        convert_params(both, given)
    assert says in str(caught.value)


def test_looking_into_a_result_is_refused_while_recording() -> None:
    @pipeline
    def nosy() -> None:
        if two([1]):
            one(1)

    with pytest.raises(InvalidInput, match="has no value yet"):
        build(nosy, {}, root=Path())

    @pipeline
    def misspelt() -> None:
        two([1])["c"]

    with pytest.raises(InvalidInput, match="Known: 'a', 'b'"):
        build(misspelt, {}, root=Path())


def test_the_decorators_load_nothing_heavy() -> None:
    code = "import sys, json; import mainspring.pipelines.step, mainspring.pipelines.context; print(json.dumps(sorted(sys.modules)))"
    loaded = set(
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    )
    assert not loaded & {
        "msgspec",
        "numpy",
        "pyarrow",
        "sqlite3",
        "blake3",
        "multiprocessing",
        "mainspring.storage",
    }
