"""Commit and checkout of 10,000 files beside ``cp -r && sync``, and commit of one large file beside ``cp && sync``.

``python -m bench.objects [--files N] [--mib N] [--peers]``. Goals: commit of 1 GiB at most twice ``cp && sync``; DVC (with ``--peers``, in
.bench-venvs/) needs at least four times as long to add, and five times to check out. Rounds alternate; medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers import peer_bin

from mainspring.workspace import open_workspace


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync", "-f", str(target.parent)], check=True)


def make_files(folder: Path, count: int, seed: int) -> None:
    noise = random.Random(seed)
    for i in range(count):
        place = folder / f"{i // 500:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05d}.bin").write_bytes(noise.randbytes(2000))


def make_large(path: Path, mib: int, seed: int) -> None:
    noise = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(noise.randbytes(1 << 20))


def one_round(folder: Path, source: Path) -> dict[str, float]:
    """Commit ``source`` into a new workspace and check it out again; copy it beside."""
    root = folder / "project"
    root.mkdir()
    (root / "mainspring.toml").write_text('[project]\nname = "bench"\n')
    with open_workspace(root) as workspace:
        copied = timed(lambda: copy(source, folder / "copy"))
        commit = timed(lambda: workspace.data.commit("d", source, kind="files"))
        checkout = timed(lambda: workspace.data.checkout("d", "latest", folder / "out"))
    for name in ("project", "copy", "out"):
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return {"cp_sync_s": copied, "commit_s": commit, "checkout_s": checkout}


def dvc(folder: Path, source: Path) -> dict[str, float]:
    program = str(peer_bin("dvc", ["dvc"]) / "dvc")
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    root = folder / "dvc"
    root.mkdir()
    shutil.copytree(source, root / "d")

    def call(*arguments: str) -> None:
        subprocess.run([program, *arguments], cwd=root, env=env, check=True, capture_output=True)

    call("init", "--no-scm")
    add = timed(lambda: call("add", "d"))
    shutil.rmtree(root / "d")
    checkout = timed(lambda: call("checkout", "d.dvc"))
    shutil.rmtree(root)
    return {"dvc_add_s": add, "dvc_checkout_s": checkout}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for what in (f"{arguments.files} files", f"{arguments.mib} MiB"):
            source = folder / "source"
            if what.endswith("files"):
                make_files(source, arguments.files, 1)
            else:
                make_large(source, arguments.mib, 2)
            rounds = [one_round(folder, source) for _ in range(arguments.rounds)]
            medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
            if arguments.peers and source.is_dir():
                medians |= dvc(folder, source)
            medians["commit_over_cp_sync"] = medians["commit_s"] / medians["cp_sync_s"]
            print(json.dumps({"what": what} | {k: round(v, 3) for k, v in medians.items()}), flush=True)
            shutil.rmtree(source) if source.is_dir() else source.unlink()


if __name__ == "__main__":
    main()
