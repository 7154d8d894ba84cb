"""What the loop is compared with: a plain refit every month, in a process of its own.

``python -m mainspring.demo.baseline --control URL --token-file FILE --project DIR`` reads one moment per line (the start of
a month), refits version 1's family and params on everything whose label had arrived in the feed by then, registers it as a
version of ``delay-monthly`` and answers ``{"version": n}``. No gate, no canary, no monitoring: what a cron job would do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainspring.remote import RemoteWorkspace

MODEL = "delay-monthly"


def refit(workspace: RemoteWorkspace, train: Any, until: str, feed: Path, *, seed: int) -> int:
    """One refit; returns the registered version."""
    from mainspring.training.timed import take_evenly

    first = workspace.models.get_version("delay", 1)
    rows = take_evenly(train.clean(train.collect(str(feed), until)), train.FIT_ROWS, seed)
    family = first.tags["family"]
    inputs = rows.select(train.NUMBERS + train.TEXTS)
    fitted = train.fit_family(family, json.loads(first.tags["params"]), rows, 0, seed)
    version = workspace.models.save_and_register(
        fitted,
        model=MODEL,
        signature=first.signature,
        sample=inputs.slice(0, 300),
        training=inputs,
        tags={"until": until, "family": family},
    )
    return int(version.version)


def main() -> None:
    """The process; the module's docstring describes its arguments."""
    from mainspring.pipelines.loading import load_module
    from mainspring.remote import RemoteWorkspace

    parser = argparse.ArgumentParser(prog="python -m mainspring.demo.baseline")
    parser.add_argument("--control", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    token = options.token_file.read_text().strip()
    train = load_module(options.project / "pipelines" / "train.py", root=options.project)
    with RemoteWorkspace(options.control, token=token, project="flights") as workspace:
        for line in sys.stdin:
            version = refit(workspace, train, line.strip(), options.project / "feed", seed=options.seed)
            print(json.dumps({"version": version}), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
