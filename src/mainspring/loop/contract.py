"""What a retrain will need of a project, looked for before it is needed: the pipeline and its parameters, the gate, the hold-out.

Without it, a policy that names a pipeline which is not there is noticed at the first retrain, months later. Files are parsed and
never imported: user code does not run where this is called (``mainspring up``, ``mainspring doctor``).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mainspring.config import Config
from mainspring.errors import NotFound, near
from mainspring.records.base import Record
from mainspring.records.loop import ModelPolicy, RetrainPolicy
from mainspring.records.models import ModelVersion

_OFFERED = frozenset({"until"})


class ContractProblem(Record, frozen=True, kw_only=True):
    """Why a retrain would fail, or could never lead to a rollout. ``next_step`` has the line to add."""

    place: str
    message: str
    next_step: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}. {self.next_step}"


class _Models(Protocol):
    def get_version(self, model: str, selector: str = "latest") -> ModelVersion: ...


def find_problems(config: Config, root: Path, models: _Models | None = None) -> list[ContractProblem]:
    """All that a retrain of the declared models would stumble over; ``models``: also what their newest versions lack."""
    found: list[ContractProblem] = []
    for name, policy in config.model.items():
        found += _check_pipeline(f"[model.{name}]", policy, root)
        found += _check_gate(name, policy, config.retrain, {d: p.model for d, p in config.deploy.items()})
        if models is not None and policy.gate:
            found += _check_newest(name, models)
    return found


# --- the pipeline ----------------------------------------------------------------------------------------------------


def _check_pipeline(place: str, policy: ModelPolicy, root: Path) -> list[ContractProblem]:
    file, _, name = policy.pipeline.rpartition(":")
    path = root / file
    if not path.is_file():
        known = (
            sorted(str(p.relative_to(root)) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        )
        return [
            ContractProblem(
                place=f"{place} pipeline",
                message=f"there is no file {file!r}",
                next_step=near(file, known, what="file there"),
            )
        ]
    try:
        module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as error:
        return [
            ContractProblem(
                place=f"{place} pipeline",
                message=f"{file} is not Python: {error}",
                next_step="Correct that line.",
            )
        ]
    function = _find_function(module, name)
    if function is None:
        if _is_bound(module, name):  # imported, or made by a call: only running it could tell more
            return []
        pipelines = [f.name for f in _functions(module) if _is_pipeline(f)]
        return [
            ContractProblem(
                place=f"{place} pipeline",
                message=f"{file} has no function {name!r}",
                next_step=near(name, pipelines, what="pipeline in this file"),
            )
        ]
    if not _is_pipeline(function) and not function.decorator_list:
        return [
            ContractProblem(
                place=f"{place} pipeline",
                message=f"{name!r} in {file} is a function, not a pipeline",
                next_step="Write @ms.pipeline (import mainspring as ms) above it.",
            )
        ]
    return _check_params(place, policy, function)


def _check_params(place: str, policy: ModelPolicy, function: ast.FunctionDef) -> list[ContractProblem]:
    arguments = function.args
    if arguments.kwarg is not None:
        return []
    positional = [*arguments.posonlyargs, *arguments.args]
    names = [a.arg for a in (*positional, *arguments.kwonlyargs)]
    required = [a.arg for a in positional[: len(positional) - len(arguments.defaults)]]
    required += [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    found = [
        ContractProblem(
            place=f"{place} params",
            message=f"pipeline {function.name!r} takes no parameter {name!r}",
            next_step=near(name, names, what="parameter"),
        )
        for name in policy.params
        if name not in names
    ]
    found += [
        ContractProblem(
            place=f"{place} params",
            message=f"pipeline {function.name!r} needs the parameter {name!r}, which the policy does not give",
            next_step=f"Add params = {{ {name} = ... }}, or give it a default in the function.",
        )
        for name in required
        if name not in policy.params and name not in _OFFERED
    ]
    return found


def _functions(module: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in module.body if isinstance(node, ast.FunctionDef)]


def _find_function(module: ast.Module, name: str) -> ast.FunctionDef | None:
    return next((f for f in reversed(_functions(module)) if f.name == name), None)


def _is_bound(module: ast.Module, name: str) -> bool:
    """Whether something else than a plain ``def`` at the top may give the name a value."""
    for node in ast.walk(module):
        if isinstance(node, ast.alias) and (node.asname or node.name) in {name, "*"}:
            return True
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            return True
        if (
            isinstance(node, ast.FunctionDef) and node.name == name
        ):  # under an "if", or within another function
            return True
    return False


def _is_pipeline(function: ast.FunctionDef) -> bool:
    targets = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    names = [
        t.attr if isinstance(t, ast.Attribute) else t.id if isinstance(t, ast.Name) else "" for t in targets
    ]
    return "pipeline" in names


# --- the gate and what it judges by -----------------------------------------------------------------------------------


def _check_gate(
    name: str, policy: ModelPolicy, retrains: Mapping[str, RetrainPolicy], deployed: Mapping[str, str]
) -> list[ContractProblem]:
    if policy.gate:
        return []
    return [
        ContractProblem(
            place=f"[monitor.{deployment}] retrain_on",
            message=f"retrains are asked for, and [model.{name}] has no gate: a gate without rules passes nothing",
            next_step=f'Add to [model.{name}] for example gate = [{{ metric = "accuracy", versus = "champion", max_worse = 0.01 }}].',
        )
        for deployment, retrain in retrains.items()
        if retrain.retrain_on and deployed.get(deployment) == name
    ]


def _check_newest(name: str, models: _Models) -> list[ContractProblem]:
    try:
        version = models.get_version(name, "latest")
    except NotFound:  # none yet
        return []
    missing = [field for field in ("holdout", "label") if getattr(version, field) is None]
    if not missing:
        return []
    return [
        ContractProblem(
            place=f"{name} version {version.version}",
            message=f"it was registered without {' and '.join(missing)}, by which the gate judges",
            next_step="Where it is registered, pass holdout=<id of a dataset version with the hold-out rows>, label=<the column of the labels>.",
        )
    ]
