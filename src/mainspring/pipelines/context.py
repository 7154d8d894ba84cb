"""What a running step can read and record: ``mainspring.pipelines.context.current()``.

Standard library only. Outside a recorded execution ``current()`` returns a context that keeps everything in memory, so that a step
which uses it can still be called as a plain function in a test.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mainspring.errors import InvalidInput, Unavailable

MAX_METRICS = 10_000
MAX_REFERENCES = 10_000
MAX_REFERENCE = 2000

_opener: Callable[..., Any] | None = None


def import_named(name: str) -> Any:
    """What ``module:name`` names: how this room reaches what is composed above it, without importing it."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass
class StepContext:
    """One execution of a step. ``run``, ``execution`` are ids, empty outside a pipeline; ``at`` is policy time (RFC 3339)."""

    project: str = ""
    run: str = ""
    execution: str = ""
    pipeline: str = ""
    step: str = ""
    attempt: int = 1
    at: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    """The pipeline's parameters."""
    inputs: dict[str, list[str]] = field(default_factory=dict)
    """References (``object:<digest>``) of the inputs by argument name."""
    workspace_opener: str | None = None
    workspace_options: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    references_used: list[str] = field(default_factory=list)
    references_produced: list[str] = field(default_factory=list)
    _scratch: Path | None = None
    _workspace: Any = None

    @property
    def ref(self) -> str:
        """The reference of this execution in lineage: ``step:<id>``."""
        return f"step:{self.execution}"

    @property
    def run_ref(self) -> str:
        """The reference of the run in lineage: ``run:<id>``."""
        return f"run:{self.run}"

    @property
    def scratch(self) -> Path:
        """A private directory, removed after the step; write files to return here."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="mainspring-step-"))
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def log_metric(self, name: str, value: float) -> None:
        """Keep a number with this execution; NaN and infinities are kept as they are. A later value of the same name replaces the earlier one."""
        if len(self.metrics) >= MAX_METRICS and name not in self.metrics:
            raise InvalidInput(
                f"a step keeps at most {MAX_METRICS} metrics",
                value=name,
                next_step="Log curves to a tracking run.",
            )
        self.metrics[name] = float(value)

    def used(self, reference: str) -> None:
        """Declare that this step used a thing (``dataset_version:<id>``): an edge from it to this execution."""
        self._add_reference(self.references_used, reference)

    def produced(self, reference: str) -> None:
        """Declare that this step made a thing (``model_version:delay@3``): an edge from this execution to it."""
        self._add_reference(self.references_produced, reference)

    def workspace(self) -> Any:
        """The workspace the runner works in, opened in this process; the same one at every call."""
        if self._workspace is None:
            opener = _opener
            if opener is None and self.workspace_opener is not None:
                opener = import_named(self.workspace_opener)
            if opener is None:
                raise Unavailable(
                    "this step runs outside a workspace",
                    place=self.step or "context.current().workspace()",
                    next_step="Run the pipeline with a workspace's runner, or pass what you need as an argument.",
                )
            self._workspace = opener(**self.workspace_options)
        return self._workspace

    def close(self) -> None:
        """Close the workspace if it was opened."""
        opened, self._workspace = self._workspace, None
        if opened is not None and hasattr(opened, "close"):
            opened.close()

    def _add_reference(self, references: list[str], reference: str) -> None:
        kind, _, ident = reference.partition(":")
        if not kind or not ident:
            raise InvalidInput(
                "not a reference", value=reference, next_step="References look like 'dataset_version:<id>'."
            )
        if len(reference) > MAX_REFERENCE:
            raise InvalidInput(
                f"a reference has at most {MAX_REFERENCE} characters", value=f"{reference[:80]}..."
            )
        if len(references) >= MAX_REFERENCES:
            raise InvalidInput(f"a step declares at most {MAX_REFERENCES} references", value=reference)
        if reference not in references:
            references.append(reference)


active: ContextVar[StepContext | None] = ContextVar("mainspring_step", default=None)
"""The context of the step that runs here; set by ``execute`` around the call."""


def current() -> StepContext:
    """The context of the step that runs here; outside a pipeline a context that belongs to no run, one per thread."""
    context = active.get()
    if context is None:
        context = StepContext()
        active.set(context)
    return context


def set_opener(opener: Callable[..., Any] | None) -> None:
    """Register how ``workspace()`` opens the workspace in this process (the workspace module does)."""
    global _opener  # noqa: PLW0603 - one per process, like the workspace module itself
    _opener = opener


def encode_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Metrics for JSON: non-finite numbers become text (``nan``, ``inf``, ``-inf``)."""
    return {k: v if math.isfinite(v) else repr(v) for k, v in metrics.items()}
