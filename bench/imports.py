"""Seconds until the commands that must answer at once have answered: whole processes, median of several.

``python -m bench.imports [ROUNDS]``. Beside them an empty Python process in the same rounds. Goals: import 0.1 s, --help 0.15 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    command = str(Path(sys.executable).with_name("mainspring"))
    programs = {
        "python_pass": [sys.executable, "-c", "pass"],
        "import_mainspring": [sys.executable, "-c", "import mainspring"],
        "help": [command, "--help"],
        "status": [command, "status"],
    }
    taken: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mainspring.toml").write_text('[project]\nname = "bench"\n')
        for name, program in programs.items():  # the first start compiles, and makes the workspace
            subprocess.run(program, cwd=folder, capture_output=True, check=name != "status")
        for _ in range(rounds):
            for name, program in programs.items():
                began = time.perf_counter()
                subprocess.run(program, cwd=folder, capture_output=True, check=False)
                taken[name].append(time.perf_counter() - began)
    print(
        json.dumps({"rounds": rounds} | {f"{k}_s": round(statistics.median(v), 3) for k, v in taken.items()})
    )


if __name__ == "__main__":
    main()
