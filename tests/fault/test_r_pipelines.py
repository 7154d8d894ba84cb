"""SAFETY section R: steps that crash, hang, flood or lie, runners that die, and two runners on one run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import StepFailed
from mainspring.lineage import Foundation
from mainspring.pipelines import Pipelines, Runner, processes
from mainspring.pipelines.loading import forget_projects
from mainspring.records.base import from_json
from mainspring.records.pipelines import PipelineEvent

HEAD = "from mainspring.pipelines.step import pipeline, step\nfrom mainspring.pipelines import context\n"

RUN_CHILD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from mainspring.clock import ManualClock
from mainspring.lineage import Foundation, Ledger
from mainspring.pipelines import Pipelines, Runner
from mainspring.storage.leases import Leases
from mainspring.storage.objects import open_objects
from mainspring.storage.sql import open_store

home, root, what, arg = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
store = open_store("sqlite", home=home)
leases, clock = Leases(store), ManualClock(datetime(2013, 1, 1, tzinfo=UTC))
base = Foundation(project="default", home=home, store=store, objects=open_objects("local", home=home, leases=leases),
                  ledger=Ledger(store, project="default", clock=clock), leases=leases, clock=clock)
runner = Runner(base, Pipelines(base), root=root, environment="e", lease_ttl_s=float(sys.argv[5]) if len(sys.argv) > 5 else 15.0)
print("ready", flush=True)
sys.stdin.readline()
run = runner.run(arg) if what == "run" else runner.resume(arg)
print(run.state, flush=True)
store.close()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def put(root: Path, text: str, name: str = "p.py") -> None:
    (root / name).write_text(HEAD + text)
    forget_projects(root)


def a_runner(base: Foundation, root: Path, **options: Any) -> Runner:
    return Runner(base, Pipelines(base), root=root, environment="e", **options)


def child(
    home: Path, root: Path, what: str, arg: str, *more: str, **environment: str
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_CHILD, str(home), str(root), what, arg, *more],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.stderr.read() if process.stderr else ""
    return process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    return out, err


def fails(base: Foundation, root: Path, spec: str = "p.py:go") -> Any:
    with pytest.raises(StepFailed):
        a_runner(base, root).run(spec)
    return Pipelines(base).list_runs().items[0]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


CHAIN = """
import time
@step
def first() -> list[int]:
    with open("ran.txt", "a") as f: f.write("first\\n")
    time.sleep(0.02)
    return [1, 2, 3]
@step(isolation="inline")
def second(x: list[int], k: int) -> list[int]:
    with open(context.current().params["root"] + "/ran.txt", "a") as f: f.write(f"second{k}\\n")
    return [v * k for v in x]
@step(cache=False)
def third(x: list[int], y: list[int]) -> dict[str, int]:
    with open("ran.txt", "a") as f: f.write("third\\n")
    return {"sum": sum(x) + sum(y)}
@step
def last(d: dict[str, int]) -> bytes:
    with open("ran.txt", "a") as f: f.write("last\\n")
    return str(d["sum"]).encode() * 1000
@pipeline
def go(root: str = ROOT):
    a = first()
    last(third(second(a, 2), second(a, 3)))
"""


def _digests(base: Foundation, run: str) -> dict[str, list[str]]:
    return {e.step: [o.digest for o in e.outputs] for e in Pipelines(base).list_steps(run=run)}


def _kill_and_resume(make: Callable[..., Foundation], tmp_path: Path, kills: int) -> None:
    """Kill the runner ``kills`` times at random moments; each run ends as if nothing had happened."""
    rng = random.Random(7)
    expected: dict[str, list[str]] | None = None
    done = round_ = 0
    while done < kills:
        round_ += 1
        home, root = tmp_path / f"h{round_}", tmp_path / f"p{round_}"
        root.mkdir()
        base = make(home=home)
        put(root, CHAIN.replace("ROOT", repr(str(root))))
        if expected is None:
            expected = _digests(base, a_runner(base, root).run("p.py:go").id)
            continue
        what, arg = "run", "p.py:go"
        for _ in range(4):
            process = child(home, root, what, arg)
            begin(process)
            time.sleep(rng.uniform(0.0, 0.45))
            process.kill()
            end(process)
            done += 1
            finished = {e.step for e in _executions(base) if e.state == "finished"}
            before = (root / "ran.txt").read_text().split() if (root / "ran.txt").exists() else []
            runs = Pipelines(base).list_runs().items
            what, arg = ("resume", runs[0].id) if runs else ("run", "p.py:go")
            if runs and runs[0].state == "finished":
                break
        run = a_runner(base, root).resume(arg) if what == "resume" else a_runner(base, root).run(arg)
        assert run.state == "finished"
        assert _digests(base, run.id) == expected
        after = (root / "ran.txt").read_text().split()[len(before) :]
        names = {
            "first": "first",
            "second": "second2",
            "second_2": "second3",
            "third": "third",
            "last": "last",
        }
        assert not {names[s] for s in finished} & set(after), "a finished step ran again"
        assert processes.find_by_cookie(run.id) == []
        assert base.ledger.verify().ok
        per_step = [e.step for e in _executions(base) if e.state == "finished"]
        assert sorted(per_step) == sorted(names)


def _executions(base: Foundation) -> list[Any]:
    ops = Pipelines(base)
    return [e for r in ops.list_runs().items for e in ops.list_steps(run=r.id, attempts=True)]


def test_r01_a_runner_killed_at_random_resumes_to_the_same_digests(
    make_foundation: Callable[..., Foundation], tmp_path: Path
) -> None:
    """R01, 20 kills. Seen red with the look-up of this run's own results removed (``run=`` in ``planning.judge``)."""
    _kill_and_resume(make_foundation, tmp_path, 20)


@pytest.mark.soak
def test_r01_soak(make_foundation: Callable[..., Foundation], tmp_path: Path) -> None:
    """R01, 100 kills."""
    _kill_and_resume(make_foundation, tmp_path, 100)


@pytest.mark.parametrize(
    "point",
    [
        "pipelines.started",
        "pipelines.spawned",
        "pipelines.outputs",
        "sql.before_commit",
        "pipelines.committed",
    ],
)
def test_r02_a_kill_at_each_point_commits_outputs_exactly_once(
    point: str, make_foundation: Callable[..., Foundation], tmp_path: Path, root: Path
) -> None:
    """R02: before the start, after the spawn, after the outputs, in and after the commit.

    Seen red with ``planning.judge`` finding no earlier result: what was committed ran and was committed again."""
    base = make_foundation()
    put(root, CHAIN.replace("ROOT", repr(str(root))))
    process = child(
        base.home,
        root,
        "run",
        "p.py:go",
        MAINSPRING_FAILPOINTS=f"{point}:kill:{4 if point == 'sql.before_commit' else 2}",
    )
    begin(process)
    end(process)
    assert process.returncode == -signal.SIGKILL
    run = a_runner(base, root).resume(Pipelines(base).list_runs().items[0].id)
    assert run.state == "finished"
    finished = [e.step for e in _executions(base) if e.state == "finished"]
    assert len(finished) == len(set(finished)) == 5


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("import sys; sys.exit(1)", "exit", "exit(1)"),
        ("raise KeyError('k')", "exception", "'k'"),
        ("import os; os._exit(0)", "exit", "exit code 0 and without a result"),
        ("import os; os._exit(3)", "exit", "exit code 3"),
    ],
)
def test_r03_exit_raise_and_missing_output_are_failures_with_a_cause(
    foundation: Foundation, root: Path, body: str, kind: str, says: str
) -> None:
    """R03. Seen red with ``result is None`` dropped from ``outcomes.classify``."""
    put(
        root,
        f"@step\ndef bad() -> int:\n    print('kept', flush=True)\n    {body}\n@step\ndef below(x: int) -> int: return x\n@pipeline\ndef go(): below(bad())\n",
    )
    run = fails(foundation, root)
    assert run.error.kind == kind
    assert says in run.error.message
    assert [e.state for e in Pipelines(foundation).list_steps(run=run.id)] == ["failed", "skipped"]
    assert b"kept" in b"".join(Pipelines(foundation).download_log(run=run.id, step="bad").chunks)


@pytest.mark.parametrize(
    ("body", "kind", "name"),
    [
        ("import ctypes; ctypes.string_at(0)", "signal", "SIGSEGV"),
        ("import os; os.abort()", "signal", "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "signal", "SIGBUS"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory", "SIGKILL"),
    ],
)
def test_r04_signals_are_classified_and_the_runner_lives(
    foundation: Foundation, root: Path, body: str, kind: str, name: str
) -> None:
    """R04. Seen red with isolation="inline" instead of a process: the test run itself dies."""
    put(root, f"@step\ndef bad() -> int:\n    {body}\n@pipeline\ndef go(): bad()\n")
    run = fails(foundation, root)
    assert (run.error.kind, run.error.signal) == (kind, name)


def test_r05_a_memory_limit_ends_the_step_as_memory_and_is_not_retried(
    foundation: Foundation, root: Path
) -> None:
    """R05. Seen red with ``_limit_memory`` not called."""
    put(
        root,
        "@step(memory_mb=64, retries=3, backoff=0.01)\ndef big() -> int:\n    return len(bytearray(1 << 30))\n@pipeline\ndef go(): big()\n",
    )
    run = fails(foundation, root)
    assert run.error.kind == "memory"
    assert len(Pipelines(foundation).list_steps(run=run.id, attempts=True)) == 1


def test_r06_a_hang_that_ignores_sigterm_dies_with_its_whole_tree(foundation: Foundation, root: Path) -> None:
    """R06: children, one in its own session, one orphaned. Seen red with ``kill_tree`` replaced by a kill of the step alone
    and ``_kill_orphans`` removed."""
    put(
        root,
        """
import os, signal, subprocess, time
@step(timeout=5.0)
def hang() -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loop = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    import sys
    pids = [subprocess.Popen([sys.executable, "-c", loop]).pid]
    pids.append(subprocess.Popen([sys.executable, "-c", loop], start_new_session=True, env={}).pid)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        inner = os.fork()
        if inner:
            open("orphan", "w").write(str(inner))
            os._exit(0)
        time.sleep(300)
    os.waitpid(pid, 0)
    while not os.path.exists("orphan") or not open("orphan").read(): time.sleep(0.01)
    open("pids", "w").write(" ".join(map(str, [os.getpid(), *pids])) + " " + open("orphan").read())
    while True:
        try: time.sleep(300)
        except BaseException: pass
@pipeline
def go(): hang()
""",
    )
    survivors: list[int] = []

    def look(
        event: PipelineEvent,
    ) -> None:  # when the step is over, not when the run is: its end clears up once more
        if event.kind == "failed":
            pids = [int(p) for p in (root / "pids").read_text().split()]
            assert len(pids) == 4
            survivors.extend(p for p in pids if alive(p))

    run = a_runner(foundation, root).run("p.py:go", on_event=look, check=False)
    assert run.error is not None
    assert run.error.kind == "timeout"
    assert survivors == []


def test_r06_what_a_finished_step_leaves_running_is_ended_too(foundation: Foundation, root: Path) -> None:
    """R06, after success. Seen red with ``_kill_orphans`` removed."""
    put(
        root,
        """
import subprocess
@step
def leave() -> int:
    return subprocess.Popen(["sleep", "300"], start_new_session=True, env={}).pid
@pipeline
def go(): leave()
""",
    )
    survivors: list[int] = []

    def look(event: PipelineEvent) -> None:
        if event.kind == "finished":
            output = Pipelines(foundation).list_steps(run=event.run)[0].outputs[0]
            pid: int = from_json(foundation.objects.read(output.digest))
            survivors.extend([pid] if alive(pid) else [])

    a_runner(foundation, root).run("p.py:go", on_event=look)
    assert survivors == []


def test_r07_the_steps_of_a_dead_runner_are_gone_before_the_run_goes_on(
    foundation: Foundation, root: Path
) -> None:
    """R07: runner and warm server killed together; an orphan in its own session is found by its cookie.

    Seen red with neither ``kill_by_cookie`` nor ``kill_ownerless`` called in ``resume``; either alone is enough here."""
    put(
        root,
        """
import os, subprocess, time
@step
def long() -> int:
    if os.path.exists("pids"):  # the second copy: is the first one still at work?
        orphan = open("pids").read().split()[2]
        return int(os.path.exists(f"/proc/{orphan}") and open(f"/proc/{orphan}/stat").read().split()[2] not in "ZX")
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    open("pids.part", "w").write(f"{os.getppid()} {os.getpid()} {child.pid}")
    os.rename("pids.part", "pids")
    time.sleep(300)
@pipeline
def go(): long()
""",
    )
    process = child(foundation.home, root, "run", "p.py:go")
    begin(process)
    while not (root / "pids").exists():
        time.sleep(0.01)
    server, step, orphan = (int(p) for p in (root / "pids").read_text().split())
    os.kill(server, signal.SIGSTOP)  # it cannot clean up
    process.kill()
    os.kill(server, signal.SIGKILL)
    end(process)
    assert alive(orphan)
    run = a_runner(foundation, root).resume(Pipelines(foundation).list_runs().items[0].id)
    assert run.state == "finished"
    output = Pipelines(foundation).list_steps(run=run.id)[0].outputs[0]
    assert from_json(foundation.objects.read(output.digest)) == 0, "the orphan lived beside its successor"
    assert not [p for p in (server, step, orphan) if alive(p)]


def test_r08_a_flood_of_output_is_capped_with_a_marker(foundation: Foundation, root: Path) -> None:
    """R08: 200 MB without newline. Seen red with the tail left unbounded in ``CappedLog.write``."""
    put(
        root,
        """
import os
@step
def flood() -> int:
    os.write(1, b"BEGIN\\x1b[31m\\xff")
    block = b"x" * (1 << 20)
    for _ in range(200):
        left = memoryview(block)
        while left: left = left[os.write(1, left):]
    os.write(1, b"END")
    return 1
@pipeline
def go(): flood()
""",
    )
    run = a_runner(foundation, root).run("p.py:go")
    text = b"".join(Pipelines(foundation).download_log(run=run.id, step="flood").chunks)
    assert len(text) < (1 << 20) + 200
    assert text.startswith(b"BEGIN\x1b[31m\xff")
    assert text.endswith(b"END")
    assert b"bytes left out" in text


def test_r12_of_two_runners_that_resume_one_run_one_wins(foundation: Foundation, root: Path) -> None:
    """R12. Seen red with ``is_dead`` always true, so that the second takes the lease by force: the step ran twice."""
    put(
        root,
        """
import os, time
@step
def once() -> int:
    with open("ran.txt", "a") as f: f.write("x")
    if not os.path.exists("pass"): raise ValueError("first time")
    time.sleep(0.5)
    return 1
@pipeline
def go(): once()
""",
    )
    run = fails(foundation, root)
    (root / "pass").touch()
    (root / "ran.txt").unlink()
    both = [child(foundation.home, root, "resume", run.id) for _ in range(2)]
    for process in both:
        begin(process)
    results = [(*end(p), p.returncode) for p in both]
    winners = [r for r in results if r[2] == 0]
    losers = [r for r in results if r[2] != 0]
    assert len(winners) >= 1
    assert all("is in use by" in r[1] for r in losers), results
    assert (root / "ran.txt").read_text() == "x"
    assert [e.state for e in Pipelines(foundation).list_steps(run=run.id, attempts=True)] == [
        "failed",
        "finished",
    ]


def test_r16_a_runner_that_was_stopped_cannot_commit_late(foundation: Foundation, root: Path) -> None:
    """R16: SIGSTOP, another takes over, SIGCONT. Seen red with ``leases.check`` removed from ``Drive._advance`` and
    the renewer's flag ignored."""
    put(
        root,
        """
import os, time
@step
def slow() -> int:
    with open("began", "a") as f: f.write("x")
    time.sleep(1.5 if os.path.getsize("began") == 1 else 0)
    return 1
@pipeline
def go(): slow()
""",
    )
    process = child(foundation.home, root, "run", "p.py:go", "1.0")
    begin(process)
    while not (root / "began").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.2)
    try:
        run = a_runner(foundation, root).resume(Pipelines(foundation).list_runs().items[0].id)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    _, err = end(process)
    assert process.returncode != 0
    assert "was lost to another process" in err
    executions = Pipelines(foundation).list_steps(run=run.id, attempts=True)
    assert [e.state for e in executions] == ["lost", "finished"]
    assert Pipelines(foundation).get_run(id=run.id).state == "finished"


def test_r15_sigterm_interrupts_and_the_run_resumes(foundation: Foundation, root: Path) -> None:
    """R15. Seen red without the SIGTERM handler of ``Drive.go``: the run stays ``running``."""
    put(
        root,
        "import os, time\n@step\ndef slow() -> int:\n    first = not os.path.exists('began')\n    open('began', 'w').close()\n    time.sleep(60 if first else 0)\n    return 1\n@pipeline\ndef go(): slow()\n",
    )
    process = child(foundation.home, root, "run", "p.py:go")
    begin(process)
    while not (root / "began").exists():
        time.sleep(0.01)
    process.terminate()
    end(process)
    run = Pipelines(foundation).list_runs().items[0]
    assert run.state == "interrupted"
    assert processes.find_by_cookie(run.id) == []
    assert a_runner(foundation, root).resume(run.id).state == "finished"


CACHED = """
from pathlib import Path
import helper
@step
def source(folder: Path) -> str:
    return (folder / "in.txt").read_text()
@step
def middle(x: str, k: int) -> str:
    return helper.join(x, k)
@step
def last(x: str) -> int:
    return len(x)
@pipeline
def go(k: int = 2):
    last(middle(source(Path("raw")), k))
"""


def _matrix(
    base: Foundation, root: Path, *, environment: str = "e", **params: object
) -> dict[str, bool | None]:
    forget_projects(root)
    run = Runner(base, Pipelines(base), root=root, environment=environment).run("p.py:go", params)
    return {e.step: e.state == "cached" for e in Pipelines(base).list_steps(run=run.id)}


def test_r10_any_changed_ingredient_is_a_miss_and_nothing_else_is(foundation: Foundation, root: Path) -> None:
    """R10: code, helper's code, param, input, environment, upstream. Seen red with each of ``code``, ``inputs``, ``params`` and
    ``environment`` left out of ``keys.key_of``."""
    (root / "raw").mkdir()
    (root / "raw" / "in.txt").write_text("abc")
    (root / "helper.py").write_text("def join(x, k):\n    return x * k\n\ndef unused():\n    return 1\n")
    put(root, CACHED)
    hits = {"source": True, "middle": True, "last": True}
    assert _matrix(foundation, root) == dict.fromkeys(hits, False)
    assert _matrix(foundation, root) == hits
    put(root, CACHED.replace("def last(x", "def last(\n    x").replace("len(x)", "len(x)  # a comment"))
    (root / "helper.py").write_text("def join(x, k):\n    return x * k\n\ndef unused():\n    return 2\n")
    assert _matrix(foundation, root) == hits, "layout, comments and unused helpers do not matter"
    (root / "helper.py").write_text("def join(x, k):\n    return k * x\n")
    assert _matrix(foundation, root) == hits | {"middle": False}, "equal output: downstream is a hit again"
    assert _matrix(foundation, root, k=3) == hits | {"middle": False, "last": False}
    run = Pipelines(foundation).list_runs().items[0].id
    assert Pipelines(foundation).explain_step(run=run, step="middle").reason == "param k: 2 became 3"
    (root / "raw" / "in.txt").write_text("xyz")
    assert _matrix(foundation, root) == dict.fromkeys(hits, False)
    assert _matrix(foundation, root, environment="f") == dict.fromkeys(hits, False)
    put(root, CACHED.replace("len(x)", "len(x) + 1"))
    assert _matrix(foundation, root) == hits | {"last": False}
    run = Pipelines(foundation).list_runs().items[0].id
    assert (
        Pipelines(foundation).explain_step(run=run, step="last").reason.startswith("code p.py:last changed")
    )


def test_r10_a_corrupt_or_lost_cache_entry_is_executed_again(foundation: Foundation, root: Path) -> None:
    """R10, lying cache. Seen red with ``Planner._usable`` always true."""
    put(
        root,
        "import os\n@step\ndef big() -> bytes:\n    return b'0123456789' * 5000\n@step(cache=False)\ndef use(x: bytes) -> int: return len(x)\n@pipeline\ndef go(): use(big())\n",
    )
    assert _matrix(foundation, root) == {"big": False, "use": False}
    assert _matrix(foundation, root) == {"big": True, "use": False}
    for pack in (
        p
        for p in foundation.home.rglob("*")
        if p.is_file() and "pack" in str(p.parent) and "objects" in str(p)
    ):
        pack.chmod(0o600)
        data = bytearray(pack.read_bytes())
        at = len(data) // 2
        data[at : at + 64] = bytes(b ^ 0xFF for b in data[at : at + 64])
        pack.write_bytes(bytes(data))
    plan = a_runner(foundation, root).plan("p.py:go")
    assert plan[0].hit is False
    assert "gone or corrupt" in plan[0].reason
    assert _matrix(foundation, root)["big"] is False
    last = Pipelines(foundation).list_runs().items[0].id
    big = next(e for e in Pipelines(foundation).list_steps(run=last) if e.step == "big")
    assert len(foundation.objects.read(big.outputs[0].digest)) == 50_000, (
        "run again, the bytes are good again"
    )
