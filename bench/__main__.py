"""``make bench``: every module of this directory, each in a process of its own. ``python -m bench [--peers] [NAME...]``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
WITH_PEERS = {"objects", "tracking"}
HELPERS = {"__main__", "peers"}


def main() -> int:
    names = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in HELPERS)
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument(
        "--peers", action="store_true", help="install the peers into .bench-venvs/ and measure them too"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = []
    for name in arguments.names or names:
        print(f"== {name}", flush=True)
        began = time.perf_counter()
        extra = ["--peers"] if arguments.peers and name in WITH_PEERS else []
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *extra], cwd=HERE.parent, check=False)
        print(f"   ({time.perf_counter() - began:.0f} s)", flush=True)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
