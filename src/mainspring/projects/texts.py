"""The files that ``mainspring new`` writes: a pipeline, its test, and the sections of the policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from mainspring.projects.survey import Survey
from mainspring.records.base import seconds
from mainspring.records.models import Task
from mainspring.training.automl.problem import MIN_ROWS

_PAIRED_ROWS = 200
"""With fewer rows to judge by, the interval of a difference is too wide to show that nothing became worse."""
_MAX_CHECKED = 30
_MARGIN = 0.05


@dataclass(frozen=True)
class Choices:
    """What was asked for. ``source`` is relative to the project."""

    name: str
    source: str
    target: str
    time: str | None
    group: str | None
    task: str | None
    keep: Sequence[str]
    label_delay: str
    budget: str
    command: str


def pipeline_text(choices: Choices, survey: Survey) -> str:
    """The pipeline: one step that keeps what was known, one that searches and registers."""
    name, timed = choices.name, survey.timed
    head = [
        f'"""Predict {_in_docstring(repr(choices.target))} from the dataset {name!r}: its rows in, a registered model version out.',
        "",
        f"Written by: {_in_docstring(choices.command)}",
        "It is yours: the loop runs it as it is here.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        *(["from datetime import datetime, timedelta"] if timed else []),
        "from typing import Any",
        "",
        "import pyarrow as pa",
        *(["import pyarrow.compute as pc"] if timed else []),
        "",
        "import mainspring as ms",
        *(["from mainspring.training.dates import parse_times"] if timed else []),
        "",
        f"MODEL = {_quoted(name)}",
        f"TARGET = {_quoted(choices.target)}",
        *([f"TASK = {_quoted(choices.task)}"] if choices.task else []),
        *([f"TIME = {_quoted(choices.time)}  # the newest rows are held out"] if choices.time else []),
        *([f"GROUP = {_quoted(choices.group)}  # whole groups are held out"] if choices.group else []),
        *(
            [f"LABEL_DELAY = {_timedelta(choices.label_delay)}  # the target is known so long after the time"]
            if timed
            else []
        ),
        f"KEEP: list[str] = {_list(choices.keep)}  # columns to use although they look like identifiers, or give the target away",
        "",
        "",
    ]
    known = [
        "@ms.step",
        'def keep_known(rows: pa.Table, until: str = "") -> pa.Table:',
        '    """The rows whose target was known at ``until``, the moment at which the loop decided to retrain (default: all)."""',
        "    if not until:",
        "        return rows",
        "    latest = datetime.fromisoformat(until) - LABEL_DELAY",
        '    return rows.filter(pc.less_equal(parse_times(rows[TIME]), pa.scalar(latest, pa.timestamp("us", "UTC"))))',
        "",
        "",
    ]
    options = [
        "target=TARGET",
        *(["task=TASK"] if choices.task else []),
        *(["time=TIME"] if choices.time else []),
    ]
    options += [*(["group=GROUP"] if choices.group else []), "keep=KEEP", "budget=budget", "name=MODEL"]
    fit = [
        "@ms.step",
        "def fit(rows: pa.Table, budget: str) -> dict[str, float]:",
        '    """Search for a model, evaluate the chosen one on rows held out, and register it with its origin."""',
        '    version = ms.commit(f"{MODEL}-rows", rows)',
        f"    model = ms.train(version, {', '.join(options)})",
        "    for name, value in model.metrics.items():",
        "        ms.current().log_metric(name, value)",
        '    return {"version": float(model.version), **model.metrics}',
        "",
        "",
    ]
    until = ', until: str = ""' if timed else ""
    rows = "ms.dataset(data, version)"
    body = f"fit(keep_known({rows}, until), budget)" if timed else f"fit({rows}, budget)"
    pipeline = [
        "@ms.pipeline",
        f'def train(data: str = {_quoted(name)}, version: str = "latest", budget: str = {_quoted(choices.budget)}{until}) -> Any:',
        f'    """From a version of the dataset to a version of the model{"; the loop gives ``until``" if timed else ""}."""',
        f"    return {body}",
    ]
    return "\n".join([*head, *(known if timed else []), *fit, *pipeline]) + "\n"


def test_text(choices: Choices, survey: Survey, pipeline: str) -> str:
    """Tests of the pipeline that take no training: what it reads is there, and nothing of the future is used."""
    depth = len(PurePosixPath(choices.source).parts)
    source = choices.source if depth else ""
    options = [
        "target=train.TARGET",
        *(["task=train.TASK"] if choices.task else []),
        *(["time=train.TIME"] if choices.time else []),
    ]
    options += [*(["group=train.GROUP"] if choices.group else []), "keep=train.KEEP"]
    lines = [
        f'"""The pipeline of {choices.name!r}: its steps are plain functions."""',
        "",
        "from __future__ import annotations",
        "",
        "import importlib.util",
        "from pathlib import Path",
        "from types import ModuleType",
        "",
        *(["import pyarrow as pa"] if survey.timed else []),
        "import pytest",
        "",
        "from mainspring import config",
        "from mainspring.data.sources import read_file",
        "from mainspring.training.automl.problem import read_problem",
        "",
        "ROOT = Path(__file__).parents[1]",
        "",
        "",
        '@pytest.fixture(scope="module")',
        "def train() -> ModuleType:",
        f"    spec = importlib.util.spec_from_file_location({_quoted(_identifier(choices.name) + '_pipeline')}, ROOT / {_quoted(pipeline)})",
        "    assert spec is not None",
        "    assert spec.loader is not None",
        "    module = importlib.util.module_from_spec(spec)",
        "    spec.loader.exec_module(module)",
        "    return module",
        "",
        "",
        "def test_the_file_has_what_the_model_needs(train: ModuleType) -> None:",
        f"    reading = config.load(ROOT).config.data[{_quoted(choices.name)}].reading",
        f"    problem = read_problem(read_file(ROOT / {_quoted(source)}, reading), {', '.join(options)})",
        f"    assert problem.task == {_quoted(survey.problem.task.value)}",
        "    assert problem.inputs",
    ]
    if survey.timed:
        lines += [
            "",
            "",
            "def test_what_was_not_known_yet_is_left_out(train: ModuleType) -> None:",
            "    early = (2020, 1, 1)",
            '    rows = pa.table({train.TIME: ["2020-01-01", "2024-01-01"]})',
            "    assert train.keep_known(rows).num_rows == 2",
            '    assert train.keep_known(rows, "2024-01-01T00:00:00+00:00").num_rows == (1 if train.LABEL_DELAY else 2)',
            '    assert train.keep_known(rows, "2019-01-01T00:00:00+00:00").num_rows == 0',
        ]
        lines.remove("    early = (2020, 1, 1)")
    return "\n".join(lines) + "\n"


def policy_text(choices: Choices, survey: Survey, table: pa.Table, pipeline: str, *, with_data: bool) -> str:
    """The sections for ``mainspring.toml``."""
    name, metric = _toml_key(choices.name), survey.metric
    margin = _rounded(survey.guessing * _MARGIN)
    paired = ', test = "paired"' if survey.holdout_rows >= _PAIRED_ROWS else ""
    horizon = _horizon(choices.label_delay)
    delay = [f"label_delay = {_toml(choices.label_delay)}"] if seconds(choices.label_delay) else []
    data = [
        f"[data.{name}]",
        f"source = {_toml(choices.source)}",
        "checks = [",
        *(f"  {rule}," for rule in _checks(choices, survey, table)),
        "]",
        "",
    ]
    return (
        "\n".join(
            [
                "",
                f"# {choices.name}: written by 'mainspring new', and yours to change.",
                *(data if with_data else []),
                f"[model.{name}]",
                f"pipeline = {_toml(pipeline + ':train')}",
                *delay,
                "gate = [",
                f'  {{ metric = "{metric}", max = {_rounded(survey.guessing)} }},  # what guessing scores',
                f'  {{ metric = "{metric}", versus = "champion", max_worse = {margin}{paired} }},',
                "]",
                "",
                f"[deploy.{name}]",
                f"model = {_toml(choices.name)}",
                "stages = [",
                '  { shadow = true, min_requests = 100, max_for = "7d" },  # answers nobody, and is compared',
                '  { canary = 0.2, min_requests = 200, max_for = "14d" },  # answers a fifth',
                "  { full = true },",
                "]",
                'rollback = [{ metric = "error_rate", max = 0.01 }]',
                "",
                f"[monitor.{name}]",
                'window = "1d"',
                f'metric = "{metric}"',
                *delay,
                *horizon,
                'retrain_on = ["drift", "performance"]',
                'cooldown = "1d"',
            ]
        )
        + "\n"
    )


def _checks(choices: Choices, survey: Survey, table: pa.Table) -> list[str]:
    problem, target = survey.problem, choices.target
    rules = [f'{{ check = "row_count", min = {max(MIN_ROWS, survey.rows // 2)} }}']
    if not table[target].null_count:
        rules.append(f'{{ check = "not_null", column = {_toml(target)} }}')
    if problem.task is not Task.REGRESSION:
        values = sorted(problem.table[target].unique().to_pylist())
        rules.append(
            f'{{ check = "set", column = {_toml(target)}, allowed = [{", ".join(map(_toml, values))}] }}'
        )
    used = [n for n in table.column_names if n in {target, choices.time, choices.group, *problem.inputs}]
    for name in used[:_MAX_CHECKED]:
        kind = _check_type(table[name].type)
        if kind is not None:
            rules.append(f'{{ check = "type", column = {_toml(name)}, type = "{kind}" }}')
    return rules


def _check_type(kind: pa.DataType) -> str | None:
    if pt.is_boolean(kind):
        return "bool"
    if pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind):
        return "number"
    return "string" if pt.is_string(kind) or pt.is_large_string(kind) else None


def _horizon(delay: str) -> list[str]:
    """Labels are awaited for 90 days; for longer where they are later."""
    return [f'label_horizon = "{int(seconds(delay) * 2)}s"'] if seconds(delay) * 2 > seconds("90d") else []


def _timedelta(duration: str) -> str:
    length = seconds(duration)
    days, rest = divmod(length, 86_400)
    if not length:
        return "timedelta(0)"
    return f"timedelta(days={days:g})" if not rest else f"timedelta(seconds={length:g})"


def _rounded(value: float) -> float:
    """Three digits, never more than the value."""
    rounded = float(f"{value:.3g}")
    return rounded if rounded <= value else float(f"{value * 0.9985:.3g}")


def _quoted(text: str) -> str:
    """As Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _in_docstring(text: str) -> str:
    """As Python in a docstring, which it cannot end."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, names))}]"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(name: str) -> str:
    """Names of ours may hold dots, which TOML reads as a path."""
    return _toml(name) if "." in name else name


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
