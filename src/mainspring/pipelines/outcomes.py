"""The result of an attempt: why it failed, its outputs by digest, and where its files are on the runner's machine."""

from __future__ import annotations

import contextlib
import io
import signal
from pathlib import Path

from mainspring.errors import MainspringError
from mainspring.pipelines.executor import Ended
from mainspring.pipelines.job import Output, Result, source_key
from mainspring.pipelines.logs import CappedLog
from mainspring.pipelines.places import Target, put_path
from mainspring.records.pipelines import Artifact, GraphStep, StepError, StepResult


class LogText(io.TextIOBase):
    """Text written by an inline step, into its log."""

    def __init__(self, log: CappedLog) -> None:
        super().__init__()
        self._log = log

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self._log.write(text.encode("utf-8", "replace"))
        return len(text)


def classify(ended: Ended, result: Result | None) -> StepError | None:
    """Why an attempt in a process failed; None if it did not. ``result`` is None if the process left none."""
    if ended.cancelled:
        return StepError(kind="cancelled", type="", message="the run was cancelled")
    if ended.timed_out:
        return StepError(
            kind="timeout",
            type="",
            message="the step did not end within its timeout; it and its children were killed",
        )
    if result is not None and result.error is not None:
        return result.error
    if ended.status is None:
        return StepError(
            kind="exit",
            type="",
            message="the parent of the step processes died (project code may crash when it is imported)",
        )
    code = ended.status & 0x7F
    if code:
        name = signal.Signals(code).name if code in {s.value for s in signal.Signals} else f"signal {code}"
        if code == signal.SIGKILL:
            return StepError(
                kind="memory",
                type="",
                message="killed by SIGKILL from outside, most likely for lack of memory",
                signal=name,
            )
        return StepError(kind="signal", type="", message=f"killed by {name}", signal=name)
    status = ended.status >> 8
    if result is None:
        return StepError(
            kind="exit", type="", message=f"the process ended with exit code {status} and without a result"
        )
    return (
        None
        if status == 0
        else StepError(kind="exit", type="", message=f"the process ended with exit code {status}")
    )


def describe(
    result: Result, error: StepError | None, target: Target, *, log: str | None, keep: Path
) -> StepResult:
    """The result of an attempt by digests: its outputs are put into ``target``, and moved to ``keep`` for the next steps on this machine.

    An output that cannot be stored fails the step. Raises the error of a store that itself has failed (status 500 and above).
    """
    outputs: list[Artifact] = []
    if error is None:
        try:
            outputs = [_put_output(target, o, keep) for o in result.outputs]
        except (MainspringError, FileNotFoundError) as problem:
            if not isinstance(problem, FileNotFoundError) and problem.status >= 500:
                raise
            error = StepError(kind="output", type=type(problem).__name__, message=str(problem))
    return StepResult(
        error=error,
        outputs=[] if error is not None else outputs,
        shape=result.shape,
        metrics=result.metrics,
        used=result.used,
        effects=result.effects,
        log=log,
    )


def _put_output(target: Target, output: Output, keep: Path) -> Artifact:
    path = Path(output.path)
    reference = (
        put_path(target, path) if output.kind == "tree" else target.put(path, table=output.kind == "table")
    )
    if output.kind not in {"file", "tree"}:
        # The next step reads the same bytes: moving the file saves reading it back from the store.
        kept = keep / reference.digest
        kept.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            path.replace(kept)
    return Artifact(
        name=output.name, kind=output.kind, digest=reference.digest, size=reference.size, type=output.type
    )


def run_folder(home: Path, run: str) -> Path:
    """Scratch of a run: inputs and working directories. Removed at its end."""
    return home / "pipelines" / "work" / run


def log_file(home: Path, run: str, execution: str) -> Path:
    """The live log of an attempt on the runner's machine."""
    return home / "pipelines" / "logs" / run / f"{execution}.log"


def list_source_keys(step: GraphStep) -> set[str]:
    """The keys (:func:`~mainspring.pipelines.job.source_key`) of everything that the arguments of a step refer to."""
    keys: set[str] = set()
    waiting = list(step.arguments.values())
    while waiting:
        argument = waiting.pop()
        waiting += argument.items
        if argument.kind == "output":
            keys.add(argument.step)
        elif argument.kind in {"path", "dataset"}:
            keys.add(source_key(argument))
    return keys
