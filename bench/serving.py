"""Requests per second of the inference server beside the same stack answering a constant (goal: at least 60 %).

``python -m bench.serving`` needs ``wrk`` on the PATH. One worker, one wrk thread, keep-alive, on loopback: the load generator shares
the machine, as in the peers' figures. The constant reads the body and answers bytes of the same length: bare ASGI on
uvicorn with uvloop and httptools. Rounds alternate between the two, so that foreign load disturbs both alike; the medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
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


def make_bundle(folder: Path) -> dict[str, dict[str, float]]:
    """A bundle with a linear, a forest and a boosting model; returns one row for each."""
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    from mainspring.models import formats
    from mainspring.records.base import to_json
    from mainspring.records.models import Column, Signature, Task
    from mainspring.records.serving import Deployment, RouteTable, Target, sealed

    rng = np.random.default_rng(0)
    rows, deployments = {}, []
    models = (
        ("linear", LogisticRegression(), 4),
        ("forest", RandomForestClassifier(100), 30),
        ("boosting", HistGradientBoostingClassifier(), 20),
    )
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
        to_json(sealed(RouteTable(number=1, created_us=0, deployments=deployments)))
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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packages").mkdir()
        rows = make_bundle(folder)
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


if __name__ == "__main__":
    if sys.argv[1:2] == ["--constant"]:
        run_constant(int(sys.argv[2]))
    else:
        main()
