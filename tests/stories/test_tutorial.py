"""docs/tutorial.md as a new user types it: every block in its order, with the server of the second terminal beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.config import load
from mainspring.records.loop import RolloutState
from mainspring.workspace import Workspace

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```bash ?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LIMIT_S = 1500


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reader:
    """Types the blocks, with free ports in place of the usual ones."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.where = place / "where"
        self.ports = {"8700": str(free_port()), "8710": str(free_port())}
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def type(self, block: str) -> str:
        """Run a block as ``bash`` would; a failing line fails the test. ``cd`` lasts, as in a terminal."""
        for usual, own in self.ports.items():
            block = block.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{own}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{block}\npwd > {self.where}"],
            cwd=self.place, env=self.environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        self.place = Path(self.where.read_text().strip())
        policy = self.place / "mainspring.toml"
        if policy.exists() and "[serving]" not in policy.read_text():
            ports = f"\n[server]\nport = {self.ports['8700']}\n\n[serving]\nport = {self.ports['8710']}\n"
            policy.write_text(policy.read_text() + ports)
        return done.stdout + done.stderr

    def start(self, line: str) -> subprocess.Popen[str]:
        """The command of the second terminal."""
        return subprocess.Popen(
            ["mainspring", *line.split()[1:], "--end-with-stdin", "--json"],
            cwd=self.place, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def blocks() -> list[tuple[str, str]]:
    return [(kind, body) for kind, body in _FENCE.findall((ROOT / "docs" / "tutorial.md").read_text())]


def happened(root: Path, wanted: str) -> bool:
    with Workspace(load(root)) as workspace:
        if wanted == "drift":
            jobs = [j for j in workspace.loop.list_jobs(deployment="tumours") if j.trigger == "drift"]
            return bool(jobs) and jobs[0].finished_at is not None
        rollouts = workspace.loop.list_rollouts(deployment="tumours")
        if wanted == "rollout":
            return bool(rollouts)
        ended = [r for r in rollouts if r.state is not RolloutState.RUNNING]
        assert all(r.state is RolloutState.PROMOTED for r in ended), ended
        return bool(ended)


@pytest.fixture
def typed(tmp_path: Path) -> Iterator[Callable[[], tuple[Reader, dict[str, str]]]]:
    servers: list[subprocess.Popen[str]] = []

    def run() -> tuple[Reader, dict[str, str]]:
        reader, said = Reader(tmp_path), {}
        for number, (kind, body) in enumerate(blocks()):
            if kind == "background":
                servers.append(reader.start(body.strip()))
                assert servers[0].stdout is not None
                assert json.loads(servers[0].stdout.readline())["inference"]
                continue
            said[f"{number} {kind}"] = reader.type(body)
            if kind.startswith("until "):
                end = time.monotonic() + _LIMIT_S
                while not happened(reader.place, kind.removeprefix("until ")):
                    assert servers[0].poll() is None, "the server ended"
                    assert time.monotonic() < end, f"{kind}: {said[f'{number} {kind}']}"
                    time.sleep(0.5)
                    if kind == "until promoted":
                        reader.type(body)
        return reader, said

    try:
        yield run
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=300)


@pytest.mark.timeout(3600)
def test_every_block_of_the_tutorial(typed: Callable[[], Any]) -> None:
    reader, said = typed()
    everything = "\n".join(said.values())
    assert "the task is binary" in everything
    assert "gate         passed" in everything
    with Workspace(load(reader.place)) as workspace:
        moves = workspace.models.list_alias_moves(model="tumours", alias="champion")
        assert [m.version for m in sorted(moves, key=lambda m: m.at)][:1] == [1]
        assert moves[0].version == 1 or moves[-1].version == 1, "rolled back to the first"
        assert {m.version for m in moves} >= {1, 2}
        drifted = {
            a.subject for a in workspace.monitoring.list_alerts(deployment="tumours") if a.kind == "drift"
        }
    assert {"mean radius", "worst radius"} <= drifted
