"""Worker processes against a real server: steps run away from the project, from the runner, and through kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mainspring.errors import DeadlineExceeded, InvalidInput, MainspringError, StorageFull, Unavailable
from mainspring.lineage.uploads import Uploads
from mainspring.operations import Principal, Role
from mainspring.pipelines import Runner, worker
from mainspring.pipelines.loading import forget_projects
from mainspring.records.pipelines import PipelineEvent, PipelineRun, StepExecution, StepJob, StepLease
from mainspring.server.access import ensure_token
from mainspring.testing.server import Running, running_server
from mainspring.tracking.capture import environment_digest
from mainspring.workspace import Workspace, open_workspace

pytestmark = pytest.mark.timeout(1800)

HELD_S = 600.0
"""A lease that outlives any slow test: only a test about lost workers has a short one."""

HELPER = """
FACTOR = 3

def scaled(x: int) -> int:
    return x * FACTOR
"""

WHOLE = """
from pathlib import Path
import numpy as np
import pyarrow as pa
import mainspring as ms
from lib.helper import scaled
from mainspring.records.models import Column, Signature, Task

@ms.step
def load(folder: Path, limit: int) -> pa.Table:
    text = (folder / "numbers.txt").read_text().split()
    print("read", len(text), "numbers")
    return pa.table({"x": [scaled(int(t)) for t in text][:limit]})

@ms.step(outputs=("report", "package", "array"))
def split(rows: pa.Table, named: str):
    here = ms.current()
    here.log_metric("rows", rows.num_rows)
    report = here.scratch / "report.txt"
    report.write_text(Path(named).read_text() + str(rows.num_rows))
    package = here.scratch / "package"
    (package / "deep").mkdir(parents=True)
    (package / "deep" / "a.bin").write_bytes(b"\\x00\\xff" * 500)
    (package / "b.txt").write_text("b")
    return {"report": report, "package": package, "array": np.arange(rows.num_rows)}

@ms.step
def fit(rows: pa.Table) -> dict[str, int]:
    from sklearn.linear_model import LinearRegression
    here = ms.current()
    workspace = here.workspace()
    data = workspace.data.commit("clean", rows, inputs=[here.run_ref])
    x = np.array(rows["x"].to_pylist(), dtype=float).reshape(-1, 1)
    workspace.models.save_and_register(
        LinearRegression().fit(x, 2 * x[:, 0]), model="twice", run=here.run, dataset_version=data.id,
        signature=Signature(inputs=[Column(name="x", type="float64")], task=Task.REGRESSION),
        sample={"x": rows["x"].to_pylist()},
    )
    return {"rows": rows.num_rows}

@ms.step
def total(report: Path, package: Path, array: np.ndarray, old: pa.Table, fitted: dict[str, int]) -> list[int]:
    return [len(report.read_text()), len((package / "deep" / "a.bin").read_bytes()), int(array.sum()), old.num_rows]

@ms.pipeline
def train(folder: Path = Path("raw"), limit: int = 10):
    rows = load(folder, limit)
    parts = split(rows, "notes.txt")
    return total(parts["report"], parts["package"], parts["array"], ms.dataset("old"), fit(rows))
"""

SMALL = """
import os, time
from pathlib import Path
import mainspring as ms

@ms.step
def held(folder: str) -> int:
    here = ms.current()
    part = Path(folder) / "part"
    part.write_text(f"{os.getpid()} {here.attempt}")
    part.rename(Path(folder) / f"begun-{here.attempt}")
    while not (Path(folder) / f"go-{here.attempt}").exists():
        time.sleep(0.01)
    return here.attempt

@ms.step
def after(x: int) -> int:
    return x + 1

@ms.step(retries=1, backoff=0.01)
def fails(x: int) -> int:
    print("about to fail")
    raise ValueError("no such luck")

@ms.step
def below(x: int) -> int:
    return x

@ms.pipeline
def hold(folder: str):
    after(held(folder))

@ms.pipeline
def fail():
    below(fails(1))
    after(1)
"""


class Workers:
    """Worker processes that this test has started: each in a folder of its own, without the project's files."""

    def __init__(self, folder: Path, url: str, token: str) -> None:
        self.folder = folder
        self.url = url
        self.token = token
        self.started: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *more: str, token: str | None = None) -> subprocess.Popen[str]:
        place = self.folder / name
        place.mkdir(parents=True)
        secret = place / "token"
        secret.write_text(token or self.token)
        self.started[name] = subprocess.Popen(
            [
                sys.executable, "-m", "mainspring.pipelines.worker", "--url", self.url, "--token-file", str(secret),
                "--project", "numbers", "--name", name, "--dir", str(self.folder / "scratch"), *more,
            ],
            cwd=place, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.started[name]

    def end(self, name: str, how: int = signal.SIGTERM) -> tuple[int, str]:
        process = self.started[name]
        process.send_signal(how)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    def close(self) -> None:
        for process in self.started.values():
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=60)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "project"
    (root / "lib").mkdir(parents=True)
    (root / "raw").mkdir()
    (root / "mainspring.toml").write_text(
        '[project]\nname = "numbers"\n[pipelines]\nexecutor = "worker"\nworkers = 3\n'
    )
    (root / "lib" / "__init__.py").write_text("")
    (root / "lib" / "helper.py").write_text(HELPER)
    (root / "p.py").write_text(WHOLE)
    (root / "small.py").write_text(SMALL)
    (root / "notes.txt").write_text("noted: ")
    (root / "raw" / "numbers.txt").write_text(" ".join(map(str, range(20))))
    forget_projects(root)
    with open_workspace(root) as opened:
        opened.data.commit("old", pa.table({"x": [1, 2, 3]}))
        yield opened


@pytest.fixture
def server(workspace: Workspace) -> Iterator[Running]:
    people = [
        Principal("reader", {"numbers": Role.VIEWER}),
        Principal("machine", {"numbers": Role.EDITOR}),
        Principal("stranger", {"other": Role.EDITOR}),
    ]
    with running_server(workspace, principals=people) as running:
        yield running


@pytest.fixture
def workers(tmp_path: Path, server: Running) -> Iterator[Workers]:
    found = Workers(tmp_path / "workers", server.url, server.tokens["machine"])
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where steps and tests leave each other notes."""
    place = tmp_path / "signs"
    place.mkdir()
    return place


@pytest.fixture
def pool(workspace: Workspace) -> Iterator[ThreadPoolExecutor]:
    """For runners; a run that is still under way when the test is over ends then."""
    with ThreadPoolExecutor(2) as opened:
        yield opened
        for run in workspace.pipelines.list_runs().items:
            if run.state == "running":
                workspace.pipelines.cancel_run(run=run.id)
        with workspace.base.store.write() as tx:
            tx.execute("UPDATE step_offers SET expires_us = 0")


def runner(workspace: Workspace, *, executor: str = "worker", lease_ttl_s: float = HELD_S) -> Runner:
    root = workspace.settings.root
    return Runner(
        workspace.base, workspace.pipelines, root=root, environment=environment_digest(), executor=executor, lease_ttl_s=lease_ttl_s,
        opener="mainspring.workspace:open_workspace", workspace={"root": str(root), "project": "numbers"},
    )  # fmt: skip


def until(what: Callable[[], Any], limit_s: float = 120.0) -> Any:
    """What ``what`` gives, as soon as it gives something."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def begun(folder: Path, attempt: int) -> int:
    """The process of the held step, as soon as it runs."""
    sign = folder / f"begun-{attempt}"
    until(sign.exists)
    return int(sign.read_text().split()[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def attempts(workspace: Workspace, run: str, step: str) -> list[StepExecution]:
    return [e for e in workspace.pipelines.list_steps(run=run, attempts=True) if e.step == step]


def shape(workspace: Workspace, run: str) -> set[tuple[str, str, str]]:
    """The edges around each step of a run, with steps by their names and the run as such."""
    names = {f"step:{e.id}": f"step {e.step}" for e in workspace.pipelines.list_steps(run=run)} | {
        f"run:{run}": "run"
    }
    found = set()
    for ref in names:
        for graph in (
            workspace.lineage.get_origin(ref=ref, depth=1),
            workspace.lineage.get_blast_radius(ref=ref, depth=1),
        ):
            found |= {
                (names.get(e.source, e.source), names.get(e.target, e.target), e.kind) for e in graph.edges
            }
    return found


def test_two_workers_do_what_the_runner_would(workspace: Workspace, workers: Workers, tmp_path: Path) -> None:
    """Tables, files, trees, arrays, a dataset read by version, a model; code and files travel by content."""
    workers.start("one")
    workers.start("two")
    away = workspace.execution.run("p.py:train")
    steps = {e.step: e for e in workspace.pipelines.list_steps(run=away.id)}
    assert {e.state for e in steps.values()} == {"finished"}
    assert {e.worker for e in steps.values()} <= {"one", "two"}
    assert {e.environment for e in steps.values()} == {environment_digest()}
    assert steps["split"].metrics == {"rows": 10}
    assert [a.kind for a in steps["split"].outputs] == ["file", "tree", "array"]
    assert b"read 20 numbers" in b"".join(workspace.pipelines.download_log(run=away.id, step="load").chunks)
    told = {(e.step, e.effect.kind, e.effect.ref) for e in workspace.pipelines.get_effects(run=away.id)}
    clean = workspace.data.get_version("clean")
    assert ("fit", "model_version", "model_version:twice@1") in told
    assert ("fit", "dataset_version", f"dataset_version:{clean.id}") in told
    assert workspace.models.get_version(model="twice").run == away.id
    # The runner takes each of these results from the cache, and would have made the same bytes.
    local = runner(workspace, executor="local")
    again = local.run("p.py:train")
    assert {e.step: e.state for e in workspace.pipelines.list_steps(run=again.id)} == dict.fromkeys(
        steps, "cached"
    )
    with workspace.base.store.write() as tx:
        tx.execute("UPDATE step_executions SET state = 'lost' WHERE state IN ('finished', 'cached')")
    here = local.run("p.py:train")
    made = {e.step: e for e in workspace.pipelines.list_steps(run=here.id)}
    for step in ("load", "split", "total"):
        assert (made[step].state, made[step].worker, made[step].outputs) == (
            "finished",
            "",
            steps[step].outputs,
        )
        assert made[step].key == steps[step].key
    # What explains a result says the same of both, but for the model's number and the tracked run's own edges.
    unlike = ("model_version:", "code:", "dataset_version:")

    def explained(run: str) -> set[tuple[str, str, str]]:
        return {e for e in shape(workspace, run) if not e[0].startswith(unlike) and not e[1].startswith(unlike) and "step fit" not in e}  # fmt: skip

    assert {e for e in explained(here.id) if "step" in e[0] + e[1]} == {e for e in explained(away.id) if "step" in e[0] + e[1]}  # fmt: skip
    assert workspace.lineage.verify().ok
    for name in ("one", "two"):
        assert workers.end(name)[0] == 0
    assert [p.name for p in (tmp_path / "workers" / "scratch").iterdir()] == ["lock"]


def test_a_failure_is_retried_and_told_as_at_home(workspace: Workspace, workers: Workers) -> None:
    workers.start("one")
    told: list[PipelineEvent] = []
    run = runner(workspace).run("small.py:fail", check=False, on_event=told.append)
    assert {e.detail for e in told if e.kind == "waiting"} == {"waits for a worker"}
    assert (run.state, run.failed_step) == ("failed", "fails")
    assert run.error is not None
    assert (run.error.kind, run.error.type, run.error.message) == ("exception", "ValueError", "no such luck")
    assert [e.state for e in attempts(workspace, run.id, "fails")] == ["failed", "failed"]
    assert {e.step: e.state for e in workspace.pipelines.list_steps(run=run.id)} == {"fails": "failed", "below": "skipped", "after": "finished"}  # fmt: skip
    log = b"".join(workspace.pipelines.download_log(run=run.id, step="fails").chunks)
    assert b"about to fail" in log
    assert b"Traceback" in log


def test_a_cancel_reaches_the_child_of_a_worker(
    workspace: Workspace, workers: Workers, folder: Path, pool: ThreadPoolExecutor
) -> None:
    workers.start("one")
    # Heartbeats come every second; a late one only means that the attempt is lost, which a cancelled run does not retry.
    future = pool.submit(
        runner(workspace, lease_ttl_s=3.0).run, "small.py:hold", {"folder": str(folder)}, check=False
    )
    child = begun(folder, 1)
    run = workspace.pipelines.list_runs().items[0]
    workspace.pipelines.cancel_run(run=run.id)
    assert future.result(120).state == "cancelled"
    until(lambda: not alive(child))
    assert workers.end("one")[0] == 0


def test_a_killed_workers_step_is_done_once_by_another(
    workspace: Workspace, workers: Workers, folder: Path, pool: ThreadPoolExecutor
) -> None:
    """Seen red with an offer that never expires: the run waited for ever."""
    workers.start("one")
    future: Future[PipelineRun] = pool.submit(
        runner(workspace, lease_ttl_s=20.0).run, "small.py:hold", {"folder": str(folder)}
    )
    child = begun(folder, 1)
    assert workers.end("one", signal.SIGKILL)[0] == -signal.SIGKILL
    until(lambda: not alive(child))  # nothing of it goes on
    (folder / "go-2").touch()
    workers.start("two")
    run = future.result(300)
    tries = attempts(workspace, run.id, "held")
    assert [(e.state, e.worker) for e in tries] == [("lost", "one"), ("finished", "two")]
    finished = [e.subject for e in workspace.lineage.list_events(kind="step.finished").items]
    assert sorted(finished) == sorted(
        f"step:{e.id}" for e in (tries[1], *attempts(workspace, run.id, "after"))
    )
    assert workers.end("two")[0] == 0
    left = [p.name for p in (workers.folder / "scratch").iterdir()]
    assert left == ["lock"]  # the second has cleared away what the first left


def test_a_stopped_worker_gives_its_step_back(
    workspace: Workspace, workers: Workers, folder: Path, pool: ThreadPoolExecutor
) -> None:
    workers.start("one")
    future: Future[PipelineRun] = pool.submit(runner(workspace).run, "small.py:hold", {"folder": str(folder)})
    child = begun(folder, 1)
    code, said = workers.end("one")
    assert code == 0, said
    assert not alive(child)
    (folder / "go-2").touch()
    workers.start("two")
    run = future.result(300)  # the lease of the first would have held for ten minutes
    tries = attempts(workspace, run.id, "held")
    assert [(e.state, e.worker) for e in tries] == [("lost", "one"), ("finished", "two")]
    assert tries[0].error is not None
    assert tries[0].error.message == "worker one was stopped"


def test_a_worker_is_stopped_while_its_libraries_are_imported(
    workspace: Workspace,
    workers: Workers,
    tmp_path: Path,
    folder: Path,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen red without the end of the importing server in LocalProcesses.kill: the program waited for the import."""
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "slow_library.py").write_text(
        f"import time\nfrom pathlib import Path\nPath({str(folder / 'importing')!r}).touch()\n"
        f"while not Path({str(folder / 'go')!r}).exists():\n    time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site-packages"), prepend=os.pathsep)
    root = workspace.settings.root
    (root / "slow.py").write_text(
        "import mainspring as ms\n\n@ms.step\ndef use() -> str:\n    import slow_library\n    return slow_library.__name__\n\n"
        "@ms.pipeline\ndef go():\n    use()\n"
    )
    forget_projects(root)
    workers.start("one")
    future = pool.submit(runner(workspace).run, "slow.py:go", check=False)
    until((folder / "importing").exists)
    code, said = workers.end("one")
    assert (code, "step use: lost" in said) == (0, True), said
    run = workspace.pipelines.list_runs().items[0]
    workspace.pipelines.cancel_run(run=run.id)
    assert future.result(120).state == "cancelled"


def test_a_worker_outlives_a_killed_server(
    tmp_path: Path, workspace: Workspace, folder: Path, pool: ThreadPoolExecutor
) -> None:
    """Seen red without the patience of Worker._retry: the result was dropped, and the run waited for the lease to end."""
    first, address = _up(workspace.settings.root, 0)
    second, fleet = None, Workers(tmp_path / "workers", address["url"], ensure_token(workspace.settings.home))
    try:
        worker = fleet.start("one")
        future: Future[PipelineRun] = pool.submit(
            runner(workspace).run, "small.py:hold", {"folder": str(folder)}
        )
        pid = begun(folder, 1)
        first.kill()
        first.wait(60)
        (folder / "go-1").touch()  # it ends while nobody answers
        until(lambda: not alive(pid))
        assert worker.poll() is None
        second, _ = _up(workspace.settings.root, int(address["url"].rpartition(":")[2]))
        run = future.result(300)
        assert [e.state for e in attempts(workspace, run.id, "held")] == ["finished"]
        assert fleet.end("one")[0] == 0
    finally:
        fleet.close()
        for process in (first, second):
            if process is not None:
                process.terminate()
                process.communicate(timeout=60)


def _up(root: Path, port: int) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    import json

    process = subprocess.Popen(
        [sys.executable, "-m", "mainspring.cli", "-C", str(root), "up", "--json", "--no-serving", "--port", str(port), "--tick", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the server did not start"
    return process, json.loads(line)


@pytest.mark.parametrize(
    ("who", "said"), [("reader", "needs the role editor"), ("stranger", "no such project"), (None, "token")]
)
def test_a_worker_without_the_role_ends_at_once(
    workers: Workers, server: Running, who: str | None, said: str
) -> None:
    process = workers.start("one", token=server.tokens[who] if who else "msp_" + "x" * 43)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in told
    assert "Traceback" not in told


def test_a_step_at_a_worker_leaves_one_stored_answer(
    workspace: Workspace, workers: Workers, folder: Path, pool: ThreadPoolExecutor
) -> None:
    """That of ``begin_step``, which makes a token. Seen red without ``keyed=False``: each heartbeat left one for ever."""
    future: Future[PipelineRun] = pool.submit(
        runner(workspace, lease_ttl_s=3.0).run, "small.py:hold", {"folder": str(folder)}
    )
    until(workspace.pipelines.list_waiting_steps)
    workers.start("one", "--once")
    begun(folder, 1)
    with workspace.base.store.read() as tx:
        given = tx.scalar("SELECT expires_us FROM step_offers")

    def prolonged() -> bool:
        with workspace.base.store.read() as tx:
            return bool(tx.scalar("SELECT max(expires_us) FROM step_offers") != given)

    until(prolonged)
    (folder / "go-1").touch()
    assert workers.started["one"].wait(120) == 0
    with workspace.base.store.read() as tx:
        kept = tx.all("SELECT operation FROM idempotency WHERE operation LIKE 'pipelines.%'")
    assert {str(r["operation"]) for r in kept} == {"pipelines.begin_step"}
    workspace.pipelines.cancel_run(run=workspace.pipelines.list_runs().items[0].id)
    future.exception(120)


def test_once_is_one_step_or_none(
    workspace: Workspace, workers: Workers, folder: Path, pool: ThreadPoolExecutor
) -> None:
    assert workers.start("none", "--once").wait(120) == 0
    future: Future[PipelineRun] = pool.submit(runner(workspace).run, "small.py:hold", {"folder": str(folder)})
    (folder / "go-1").touch()
    until(workspace.pipelines.list_waiting_steps)
    assert workers.start("one", "--once").wait(120) == 0
    until(lambda: [w for w in workspace.pipelines.list_waiting_steps() if w.step == "after"])
    assert workers.start("two", "--once").wait(120) == 0
    run = future.result(120)
    assert {e.step: e.worker for e in workspace.pipelines.list_steps(run=run.id)} == {
        "held": "one",
        "after": "two",
    }


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def far(x: str = OUTSIDE) -> int:\n    return len(open(x).read())", "a file outside the project, named by text"),
        ("def far() -> int:\n    import secrets_of_ours\n    return secrets_of_ours.N", "named like a secret"),
        ("def far() -> int:\n    return len(open('.env').read())", "a file named by text cannot travel to a worker: named like a secret"),
        ("def far(x: str = 'conf') -> int:\n    return len(open(x + '/db.key').read())", "named like a secret"),
    ],
)  # fmt: skip
def test_what_cannot_travel_is_said_before_a_worker_takes_the_step(
    workspace: Workspace, tmp_path: Path, code: str, said: str
) -> None:
    """The file '.env': seen red without is_secret in Planner.pack; the step was offered to workers, and the run waited for one."""
    root = workspace.settings.root
    (tmp_path / "outside.txt").write_text("x")
    (root / "secrets_of_ours.py").write_text("N = 1\n")
    (root / ".env").write_text("PASSWORD=x")
    (root / "conf").mkdir()
    (root / "conf" / "db.key").write_text("x")
    text = code.replace("OUTSIDE", repr(str(tmp_path / "outside.txt")))
    (root / "far.py").write_text(
        f"import mainspring as ms\n\n@ms.step\n{text}\n\n@ms.pipeline\ndef go():\n    far()\n"
    )
    forget_projects(root)
    run = runner(workspace).run("far.py:go", check=False)
    assert run.error is not None
    assert run.error.kind == "input"
    assert said in run.error.message


def test_a_result_that_the_server_refuses_fails_the_step_and_not_the_worker(
    workspace: Workspace, workers: Workers
) -> None:
    """Seen red without _refused in Worker._finish: the program ended, and the run waited for another."""
    root = workspace.settings.root
    (root / "refused.py").write_text(
        "import mainspring as ms\n\n@ms.step\ndef long() -> int:\n    raise SystemExit('x' * 20_000)\n\n"
        "@ms.pipeline\ndef go():\n    long()\n"
    )
    forget_projects(root)
    workers.start("one")
    run = runner(workspace).run("refused.py:go", check=False)
    assert run.error is not None
    assert (run.error.kind, run.error.type) == ("output", "InvalidInput")
    assert "a message has at most 10000 characters" in run.error.message
    assert workers.end("one")[0] == 0


@pytest.mark.parametrize("error", [Unavailable, DeadlineExceeded, StorageFull, MainspringError])
def test_what_the_server_may_do_later_is_asked_for_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[MainspringError]
) -> None:
    """Seen red with ``except Unavailable`` in Worker._retry: a full disk cost the result."""
    monkeypatch.setattr(worker, "_RETRY_S", 0.0)
    one, beats = _worker_here(workspace, tmp_path)
    answers = iter([error("not now"), error("not now"), None])

    def call() -> str:
        problem = next(answers)
        if problem is not None:
            raise problem
        return "done"

    assert one._retry(call, beats) == "done"
    with pytest.raises(InvalidInput):
        one._retry(lambda: _raise(InvalidInput("never")), beats)


def test_a_step_that_this_machine_cannot_run_is_given_back(workspace: Workspace, tmp_path: Path) -> None:
    """Seen red without the OSError in Worker._run_attempt: it ended the program."""
    one, beats = _worker_here(workspace, tmp_path)
    (tmp_path / "taken").write_text("")
    result = one._run_attempt(beats._lease.job, tmp_path / "taken" / "scratch", beats)
    assert result.error is not None
    assert (result.error.kind, result.error.type) == ("lost", "NotADirectoryError")


def _worker_here(workspace: Workspace, folder: Path) -> tuple[worker.Worker, worker._Heartbeats]:
    here = worker.WorkerSettings("one", folder, environment_digest(), {})
    job = StepJob(
        project="numbers",
        run="r",
        pipeline="p",
        step="s",
        execution="e",
        attempt=1,
        function="p.py:s",
        arguments={},
        sources={},
    )
    lease = StepLease(job=job, token="t", ttl_s=HELD_S)
    return worker.Worker(workspace.pipelines, Uploads(workspace.base), here), worker._Heartbeats(
        workspace.pipelines, lease
    )


def _raise(error: Exception) -> str:
    raise error


def test_a_variable_of_the_environment_is_the_same_or_the_step_fails(
    workspace: Workspace, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen red without _check_variables: the result of another value stood under the runner's cache key."""
    root = workspace.settings.root
    (root / "sized.py").write_text(
        "import os\nimport mainspring as ms\n\n@ms.step\ndef size() -> int:\n    return int(os.environ['SIZE_OF_IT'])\n\n"
        "@ms.pipeline\ndef go():\n    size()\n"
    )
    forget_projects(root)
    monkeypatch.setenv("SIZE_OF_IT", "5")
    workers.start("one")
    monkeypatch.setenv("SIZE_OF_IT", "7")
    run = runner(workspace).run("sized.py:go", check=False)
    assert run.error is not None
    assert "SIZE_OF_IT" in run.error.message
    monkeypatch.setenv("SIZE_OF_IT", "5")
    assert runner(workspace).run("sized.py:go").state == "finished"


def test_an_inline_step_stays_with_the_runner(workspace: Workspace) -> None:
    root = workspace.settings.root
    (root / "inline.py").write_text(
        "import os\nimport mainspring as ms\n\n@ms.step(isolation='inline')\ndef pid() -> int:\n    return os.getpid()\n\n"
        "@ms.pipeline\ndef go():\n    pid()\n"
    )
    forget_projects(root)
    run = runner(workspace).run("inline.py:go")
    done = workspace.pipelines.list_steps(run=run.id)[0]
    assert (done.state, done.worker) == ("finished", "")
    assert workspace.base.objects.read(done.outputs[0].digest) == str(os.getpid()).encode()
