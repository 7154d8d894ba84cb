"""Opens a package before it is deployed, as a server does: in an isolated, confined process, which a bad package may kill."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from mainspring.errors import Unavailable, from_dict
from mainspring.serving import isolation

TRIAL_S = 100.0
"""Seconds for importing the libraries and loading the package; less than the deadline of the operations that wait for it."""


def try_package(folder: Path) -> None:
    """Raise what loading and warming up the package in ``folder`` raises; return if a server can load it.

    Raises :class:`Unavailable` if the process takes too long or dies. A library that only servers have (ONNX Runtime) is not
    needed here: without it nothing is tried.
    """
    command = isolation.command("mainspring.serving.trial", str(folder.absolute()))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_S,
            cwd=isolation.NEUTRAL,
            env=isolation.environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"the package did not load within {TRIAL_S:g} s",
            place=str(folder),
            next_step="Nothing was changed. Try again when the machine is less busy.",
        ) from None
    try:
        failure = json.loads(done.stdout)
    except ValueError:
        raise Unavailable(
            f"the process that tried the package ended with status {done.returncode}",
            value=done.stderr.decode(errors="replace").strip()[-300:],
            place=str(folder),
            next_step="Nothing was changed. A package that kills its process cannot be served.",
        ) from None
    if failure is not None and failure["code"] != "missing_extra":
        error = from_dict(failure)
        error.message = f"a server cannot load this version, so it was not deployed: {error.message}"
        raise error
