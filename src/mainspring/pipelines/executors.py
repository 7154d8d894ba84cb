"""The executors by name, as policy selects one: ``[pipelines] executor = "..."``.

A new one is a module with a class that meets :class:`mainspring.pipelines.executor.Executor`, a function here that imports and
makes it, its line in :data:`FACTORIES`, and its name in ``records.pipelines.ExecutorName``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mainspring.errors import ConfigError, near
from mainspring.lineage import Foundation
from mainspring.pipelines.executor import Executor
from mainspring.records.pipelines import ExecutorName


@dataclass(frozen=True)
class Setup:
    """The run for which an executor is made, of the project at ``root``. ``modules``: what its steps are known to import."""

    base: Foundation
    run: str
    root: Path
    modules: Sequence[str]


def _make_local(setup: Setup) -> Executor:
    from mainspring.pipelines.executor import LocalProcesses

    return LocalProcesses(run=setup.run, root=setup.root, modules=setup.modules)


def _make_offers(setup: Setup) -> Executor:
    from mainspring.pipelines.offers import Offers

    return Offers(setup.base.store, setup.base.project)


FACTORIES: Mapping[ExecutorName, Callable[[Setup], Executor]] = {"local": _make_local, "worker": _make_offers}


def check_executor(name: str) -> ExecutorName:
    """``name``, if an executor has it; raises :class:`ConfigError` otherwise."""
    for known in FACTORIES:
        if name == known:
            return known
    raise ConfigError(
        "no such executor", value=name, place="[pipelines] executor", next_step=near(name, FACTORIES, what="executor")
    )  # fmt: skip


def make_executor(name: ExecutorName, setup: Setup) -> Executor:
    """A new executor for one run; its user closes it."""
    return FACTORIES[name](setup)
