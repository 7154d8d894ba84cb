"""Peers in environments of their own under .bench-venvs/, made only when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / ".bench-venvs"


def peer_bin(name: str, packages: list[str]) -> Path:
    """The program directory of the peer's environment, installed at the first call."""
    venv = PLACE / name
    if not (venv / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", *packages], check=True)
        (venv / ".installed").touch()
    return venv / "bin"


def run_peer(name: str, packages: list[str], arguments: list[str]) -> str:
    """The last line that the peer's Python prints."""
    done = subprocess.run(
        [str(peer_bin(name, packages) / "python"), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1]
