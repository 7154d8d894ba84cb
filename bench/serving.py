"""Requests per second of the inference server beside the same stack answering a constant (goal: at least 60 %).

``python -m bench.serving`` needs ``wrk`` on the PATH. One worker, one wrk thread, keep-alive, on loopback: the load generator shares
the machine, as in the peers' figures. The constant reads the body and answers bytes of the same length: bare ASGI on
uvicorn with uvloop and httptools. ``--overload`` measures goodput under more than the capacity. Rounds alternate between the two, so that foreign load disturbs both alike; the medians count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

REPLY = json.dumps(
    {
        "deployment": "linear",
        "model": "linear",
        "version": 1,
        "prediction_id": "0" * 36,
        "predictions": [{"label": "1", "score": 0.610741138458252}],
    }
).encode()


async def constant(_scope, receive, send):
    """The ceiling: read the body, answer the same bytes always."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REPLY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": REPLY})


def run_constant(fd: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        constant,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])


def make_bundle(folder: Path, *, heavy: bool = False) -> dict[str, dict[str, float]]:
    """A bundle with a linear, a forest and a boosting model (and one of milliseconds); returns one row for each."""
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    from mainspring.models import formats
    from mainspring.records.base import to_json
    from mainspring.records.models import Column, Signature, Task
    from mainspring.records.serving import Deployment, RouteTable, Target, with_digest

    rng = np.random.default_rng(0)
    rows, deployments = {}, []
    models = (
        ("linear", LogisticRegression(), 4),
        ("forest", RandomForestClassifier(100), 30),
        ("boosting", HistGradientBoostingClassifier(), 20),
        ("heavy", RandomForestClassifier(1000), 4),
    )[: 4 if heavy else 3]
    for number, (name, estimator, width) in enumerate(models):
        table = pd.DataFrame(
            rng.normal(size=(1000, width)).astype("float32").astype("float64"),
            columns=[f"x{i}" for i in range(width)],
        )
        target = (table["x0"] + rng.normal(size=1000) > 0).astype(int)
        estimator.fit(table.to_numpy(), target)
        signature = Signature(
            inputs=[Column(name=c, type="float64") for c in table], task=Task.BINARY, classes=["0", "1"]
        )
        digest = f"{number:064x}"
        formats.save(
            estimator,
            folder / "packages" / digest,
            signature=signature,
            sample={c: table[c].tolist()[:200] for c in table},
        )
        deployments.append(
            Deployment(
                name=name, signature=signature, targets=[Target(model=name, version=1, package=digest)]
            )
        )
        rows[name] = {c: round(float(table[c][0]), 3) for c in table}
    (folder / "routes.json").write_bytes(
        to_json(with_digest(RouteTable(number=1, created_us=0, deployments=deployments)))
    )
    return rows


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used: what a noisy neighbour cannot take away."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wrk(
    url: str, row: dict[str, float], *, connections: int, seconds: int, folder: Path, pid: int
) -> tuple[float, float]:
    """Requests per second and microseconds of the server's processor time per request; raises if any answer was not 2xx."""
    body = json.dumps({"rows": [row]}, separators=(",", ":"))
    script = folder / "post.lua"
    script.write_text(
        f"wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\nwrk.body='{body}'\n"
    )
    before = cpu_s(pid)
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url],
        capture_output=True,
        text=True,
        check=True,
    )
    if "Non-2xx" in done.stdout:
        raise SystemExit(done.stdout)
    count = int(re.search(r"(\d+) requests in", done.stdout)[1])
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)[1])
    return rate, (cpu_s(pid) - before) * 1e6 / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--overload", action="store_true", help="goodput at 1, 2, 5 and 10 times the capacity instead"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packages").mkdir()
        rows = make_bundle(folder, heavy=options.overload)
        listener = socket.create_server(("127.0.0.1", 0))
        ceiling = subprocess.Popen(
            [sys.executable, __file__, "--constant", str(listener.fileno())], pass_fds=(listener.fileno(),)
        )
        server = subprocess.Popen(
            [sys.executable, "-m", "mainspring.serving", "--bundle", name, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            hello = json.loads(server.stdout.readline())
            if options.overload:
                asyncio.run(overload((hello["port"], hello["worker"]), rows["heavy"], options.seconds))
                return
            constant_url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            places = [(constant_url, ceiling.pid), (hello["url"], hello["worker"])]
            wrk(constant_url, rows["linear"], connections=4, seconds=1, folder=folder, pid=ceiling.pid)
            print(
                f"{os.cpu_count()} cores, wrk -t1, {options.rounds} x {options.seconds} s, medians; CPU is the server's own"
            )
            for connections in options.connections:
                report(places, rows, connections, options, folder)
        finally:
            for process in (server, ceiling):
                process.terminate()
                process.wait(20)


def report(places, rows, connections, options, folder) -> None:
    (constant_url, constant_pid), (ours, pid) = places
    given = {"connections": connections, "seconds": options.seconds, "folder": folder}
    for model, row in rows.items():
        url = f"{ours}/v1/deployments/{model}/predict"
        pairs = [
            (wrk(constant_url, row, pid=constant_pid, **given), wrk(url, row, pid=pid, **given))
            for _ in range(options.rounds)
        ]
        top, got = ([statistics.median(p[i][j] for p in pairs) for j in (0, 1)] for i in (0, 1))
        share = statistics.median(b[0] / a[0] for a, b in pairs)
        print(
            f"c={connections:<3} {model:<9} constant {top[0]:7.0f}/s {top[1]:5.1f} us   ours {got[0]:7.0f}/s {got[1]:5.1f} us   {100 * share:5.1f} %",
            flush=True,
        )


# --- overload (V05): an open-loop client sends at its own pace, whatever the answers do

_BATCH = 512
_CONNECTIONS = 1024


class Crowd:
    """Requests on kept-alive raw sockets: what came of them, and how long after they were due."""

    def __init__(self, port: int, row: dict[str, float]) -> None:
        body = json.dumps({"rows": [row] * _BATCH}, separators=(",", ":")).encode()
        head = f"POST /v1/deployments/heavy/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._open = 0
        self.seen: Counter[str] = Counter()
        self.accepted_s: list[float] = []

    async def one(self, due: float) -> None:
        if self._free:
            reader, writer = self._free.pop()
        elif self._open >= _CONNECTIONS:
            self.seen["unsent"] += 1
            return
        else:
            self._open += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        except (OSError, EOFError):
            self.seen["reset"] += 1
            self._open -= 1
            return
        status = head[9:12].decode()
        self.seen[status] += 1
        if status == "200":
            self.accepted_s.append(time.perf_counter() - due)
        self._free.append((reader, writer))

    async def closed_loop(self, clients: int, seconds: float) -> float:
        """Answers per second to ``clients`` who wait for each answer: the capacity."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
        return self.seen["200"] / seconds

    async def open_loop(self, rate: float, seconds: float) -> float:
        """Answers per second when ``rate`` requests per second are due."""
        tasks, start = [], time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            while (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            tasks.append(asyncio.create_task(self.one(due)))
            if number % 16 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return self.seen["200"] / (time.perf_counter() - start)

    def line(self) -> str:
        times = sorted(self.accepted_s) or [0.0]
        p50, p99 = (1000 * times[min(len(times) - 1, int(len(times) * q))] for q in (0.5, 0.99))
        return f"p50 {p50:6.0f} ms  p99 {p99:6.0f} ms  {dict(self.seen)}"

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def overload(place: tuple[int, int], row: dict[str, float], seconds: int) -> None:
    """Print goodput under 1, 2, 5 and 10 times the capacity, then at half of it again.

    The capacity is measured again before each, and answers are shown per second of the server's processor time too: the
    machine is not ours alone.
    """
    port, pid = place
    os.nice(10)  # clients are other machines: this one must not take the server's processor
    with contextlib.closing(Crowd(port, row)) as crowd:
        await crowd.closed_loop(4, seconds)
    print(f"{_BATCH} rows of a forest of 1000 trees, {seconds} s each")
    for times in (1, 2, 5, 10, 0.5):
        with contextlib.closing(Crowd(port, row)) as crowd:
            start = cpu_s(pid)
            capacity = await crowd.closed_loop(4, seconds)
            before = crowd.seen["200"] / (cpu_s(pid) - start)
        with contextlib.closing(Crowd(port, row)) as crowd:
            start = cpu_s(pid)
            good = await crowd.open_loop(capacity * times, seconds)
            per_cpu = crowd.seen["200"] / (cpu_s(pid) - start)
        print(
            f"{times:>4}x: capacity {capacity:4.0f}/s, goodput {good:4.0f}/s ({100 * good / capacity:3.0f} %); per CPU second {before:4.0f} and {per_cpu:4.0f}"
            f" ({100 * per_cpu / before:3.0f} %)  {crowd.line()}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--constant"]:
        run_constant(int(sys.argv[2]))
    else:
        main()
