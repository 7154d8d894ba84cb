"""Commands as a user types them: output, JSON, and what bad input says and leaves untouched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mainspring
from mainspring.cli import main as command_line
from mainspring.cli.main import COMMANDS

POLICY = """
[project]
name = "shop"
[data.rows]
checks = [{ check = "range", column = "a", min = 1 }, { check = "not_null", column = "b" }]
"""


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs commands in this process, on one project."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command_line.main(["-C", str(self.root), *arguments])
        out, err = self._capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    root = tmp_path / "project"
    root.mkdir()
    (root / "mainspring.toml").write_text(POLICY)
    (root / "rows.csv").write_text("a,b\n1,x\n2,y\n")
    monkeypatch.chdir(root)
    return Shell(root, capsys)


def _failed(result: Result, *, code: str, exit_code: int) -> str:
    """The error on stderr, with value and next step; nothing on stdout."""
    assert result.code == exit_code, (result.out, result.err)
    assert result.out == ""
    assert f"error[{code}]:" in result.err
    assert "next:" in result.err
    assert "Traceback" not in result.err
    return result.err


# --- a walk through the commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(shell: Shell, name: str) -> None:
    result = shell(name, "--help")
    assert result.code == 0
    assert result.out.startswith("Usage: ")


def test_every_command_that_prints_data_takes_json() -> None:
    import click

    talks = {"up", "serve", "demo"}
    for name, command in _commands(command_line.app):
        options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts}
        if name.split()[0] not in talks and name not in {"runs log", "audit anchor", "loop follow"}:
            assert "--json" in options, name


def test_data(shell: Shell) -> None:
    made = shell("data", "commit", "rows", "rows.csv", "-m", "first", "--json").data
    assert (made["number"], made["rows"]) == (1, 2)
    assert "2 held" in shell("data", "commit", "rows", "rows.csv").out
    (shell.root / "rows.csv").write_text("a,b\n1,x\n2,z\n3,y\n")
    shell("data", "commit", "rows", "rows.csv")
    assert [d["name"] for d in shell("data", "list", "--json").data] == ["rows"]
    assert len(shell("data", "log", "rows").out.splitlines()) == 3
    found = shell("data", "diff", "rows", "1", "2", "--key", "a", "--json").data
    assert (found["rows"]["added"], found["rows"]["changed"]) == (1, 1)
    shell("data", "checkout", "rows", "1", str(shell.root / "out"))
    assert (shell.root / "out" / "table.parquet").exists()
    assert "2 of 2 rules hold on 3 rows" in shell("data", "check", "rows").err
    assert "a" in shell("data", "profile", "rows").out


def test_runs_and_what_a_dead_process_left(shell: Shell) -> None:
    script = (
        "import os, mainspring\nrun = mainspring.open().tracking.start_run(capture=False, experiment='tuning')\n"
        "run._stop = True; run._wake.set(); run._thread.join(); run.log_metric('loss', 0.25)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=shell.root, check=False)
    listed = shell("runs", "list", "--json")
    (run,) = listed.data["items"]
    assert "took in" in listed.err
    assert run["metrics"]["loss"]["value"] == 0.25
    assert run["id"] in shell("runs", "list", "-f", "metrics.loss < 1").out
    assert "took in" not in shell("runs", "show", run["id"]).err


def test_experiments(shell: Shell) -> None:
    made = shell("experiments", "create", "tuning", "--tag", "team=a=b", "--json").data
    assert (made["name"], made["tags"], made.get("deleted", False)) == ("tuning", {"team": "a=b"}, False)
    assert shell("experiments", "show", "--id", made["id"], "--json").data == made
    assert shell("experiments", "show", "tuning", "--json").data == made
    assert made["id"] in shell("experiments", "list").out
    assert shell("experiments", "rename", "tuning", "--to", "search", "--json").data["id"] == made["id"]
    assert "deleted" in shell("experiments", "delete", "search").out
    assert "nothing yet" in shell("experiments", "list").err
    assert [e["name"] for e in shell("experiments", "list", "--view", "all", "--json").data["items"]] == [
        "search"
    ]
    assert "active" in shell("experiments", "restore", "--id", made["id"]).out
    assert "by its name or by its id" in shell("experiments", "show").err
    assert "--tag KEY=VALUE" in shell("experiments", "create", "x", "--tag", "team").err


def test_runs_sort_by_several_keys(shell: Shell) -> None:
    script = (
        "import mainspring\n"
        "for depth, loss in (('1', 2.0), ('2', 1.0), ('3', 2.0)):\n"
        "    with mainspring.open().tracking.start_run(capture=False, params={'depth': depth}) as run: run.log_metric('loss', loss)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=shell.root, check=True)

    def depths(*options: str) -> list[str]:
        return [r["params"]["depth"] for r in shell("runs", "list", "--json", *options).data["items"]]

    assert depths("--sort", "-metrics.loss,params.depth") == ["1", "3", "2"]
    unknown = _failed(shell("runs", "list", "--sort", "loss"), code="invalid_input", exit_code=2)
    assert "A metric is metrics.NAME" in unknown  # seen red while only attributes were named
    assert depths("--sort", "metrics.loss", "--sort", "-params.depth") == ["2", "3", "1"]
    assert depths("-o", "-metrics.loss, -started") == ["3", "1", "2"]
    assert depths("--order-by", "metrics.loss DESC", "--order-by", "params.depth") == ["1", "3", "2"]


def test_overview(shell: Shell) -> None:
    assert "nothing is deployed yet" in shell("status").err
    assert shell("status", "--json").data["deployments"] == []
    settings = shell("env", "--json").data["settings"]
    assert settings["project.name"] == {"value": "shop", "origin": "mainspring.toml"}
    assert settings["root"]["origin"] == "argument"
    assert settings["server.port"] == {"value": 8700, "origin": "default"}
    assert "msp_" not in shell("env").out
    exported = shell("env", "--export").out.splitlines()
    assert [line.split("=")[0] for line in exported] == ["export MAINSPRING_URL", "export MAINSPRING_TOKEN"]
    assert {c["check"] for c in shell("doctor", "--json").data} >= {
        "python",
        "sqlite",
        "disk",
        "fsync",
        "server",
    }
    shell("data", "commit", "rows", "rows.csv")
    assert "data" in shell("timeline").out


def test_upkeep_and_audit(shell: Shell) -> None:
    shell("data", "commit", "rows", "rows.csv")
    assert shell("fsck", "--read-data", "--json").data["problems"] == []
    assert "nothing was removed" in shell("gc").err
    anchor = shell("audit", "anchor").out.strip()
    shell("data", "commit", "more", "rows.csv")
    assert shell("audit", "verify", "--anchor", anchor).code == 0
    bad = shell("audit", "verify", "--anchor", f"1:{'0' * 64}")
    assert (bad.code, "BROKEN" in bad.out) == (1, True)


def test_a_password_is_never_shown(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_DATABASE", "postgresql://me:hunter2@db/x")
    result = shell("env", "--json")
    assert "hunter2" not in result.out
    assert result.data["settings"]["storage.database"]["origin"] == "environment"


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_unknown_column(shell: Shell) -> None:
    (shell.root / "mainspring.toml").write_text(POLICY.replace('column = "a"', 'column = "aa"'))
    said = _failed(shell("data", "commit", "rows", "rows.csv"), code="invalid_input", exit_code=2)
    assert "aa" in said
    assert "Did you mean" in said or "Known" in said
    assert shell("data", "list", "--json").data == []


def test_wrong_type_and_broken_rows(shell: Shell) -> None:
    shell("data", "commit", "rows", "rows.csv")
    (shell.root / "rows.csv").write_text("a,b\n0,x\none,\n")
    result = shell("data", "commit", "rows", "rows.csv")
    assert result.code == 2
    assert "error[check_failed]" in result.err
    assert "number" in result.err or "range" in result.err
    assert len(shell("data", "log", "rows", "--json").data) == 1


def test_missing_file(shell: Shell) -> None:
    said = _failed(shell("data", "commit", "rows", "row.csv"), code="not_found", exit_code=3)
    assert "rows.csv" in said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[project]\nname = "shop', "mainspring.toml"),
        ('[project]\nnam = "shop"', "[project]"),
        ('[server]\nport = "many"', "port"),
        ('[deploy.x]\nmodel = "y"', "deploy.x"),
        ("[data.rows]\nchecks = [{ check = 'rang', column = 'a' }]", "check"),
    ],
)
def test_half_written_config(shell: Shell, text: str, place: str) -> None:
    shell("data", "commit", "rows", "rows.csv")
    (shell.root / "mainspring.toml").write_text(text)
    result = shell("status")
    assert result.code == 2
    assert "error[invalid_config]" in result.err
    assert "mainspring.toml" in result.err
    assert place in result.err
    (shell.root / "mainspring.toml").write_text(POLICY)
    assert len(shell("data", "log", "rows", "--json").data) == 1


def test_unknown_names(shell: Shell) -> None:
    shell("data", "commit", "rows", "rows.csv")
    assert "Did you mean 'rows'?" in _failed(shell("data", "log", "row"), code="not_found", exit_code=3)
    assert "Known" in _failed(shell("data", "check", "rows", "v9"), code="not_found", exit_code=3)
    shell("models", "list")
    _failed(shell("models", "show", "nope", "champion"), code="not_found", exit_code=3)
    _failed(shell("runs", "show", "nope"), code="not_found", exit_code=3)
    _failed(shell("runs", "list", "-f", "metrics.auc >"), code="invalid_input", exit_code=2)
    _failed(shell("run", "nope"), code="invalid_input", exit_code=2)
    misspelt = shell("statu")
    assert (misspelt.code, "Did you mean 'status'?" in misspelt.err) == (2, True)


def test_errors_as_json(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mainspring", "data", "log", "row", "--json"])
    error = json.loads(shell("data", "log", "row", "--json").err)["error"]
    assert error["code"] == "not_found"
    assert error["value"] == "row"
    assert error["next_step"]


def test_port_in_use(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = _failed(shell("up", "--no-serving", "--port", str(port)), code="conflict", exit_code=1)
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said


def test_no_server_answers(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_TOKEN", "x" * 40)
    _failed(
        shell("predict", "rows", "--row", "{}", "--at", "http://127.0.0.1:9"), code="unavailable", exit_code=1
    )
    assert "not JSON" in shell("predict", "rows", "--row", "{").err


def test_a_project_is_named_on_a_server_and_tokens_are_of_here(shell: Shell) -> None:
    """Seen red while nothing named the project of --url, and a token command went on with what is here."""
    assert "projects list" in _failed(shell("--project", "other", "status"), code="not_found", exit_code=3)
    elsewhere = shell("--url", "http://127.0.0.1:9", "token", "list")
    assert "without --url" in _failed(elsewhere, code="invalid_input", exit_code=2)
    added = shell("token", "add", "bob", "--role", "viewer")
    assert "mainspring --url URL --project shop status" in added.err


def test_a_profile_shows_times_as_times(shell: Shell) -> None:
    """Seen red while they were seconds since 1970 with four digits."""
    (shell.root / "days.csv").write_text("day;n\n03.04.2021;1\n15.06.2021;2\n")
    assert shell("data", "commit", "days", "days.csv").code == 0
    line = next(row for row in shell("data", "profile", "days").out.splitlines() if row.startswith("day"))
    assert ("2021-04-03 00:00:00" in line, "2021-06-15 00:00:00" in line) == (True, True)


def test_a_command_elsewhere_makes_no_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen red with check_project emptied."""
    shell = Shell(tmp_path, capsys)
    assert "mainspring init" in _failed(shell("status"), code="not_found", exit_code=3)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(shell: Shell) -> None:
    """A limit on file size is what a full disk looks like to one process: refused, and nothing is lost."""
    shell("data", "commit", "rows", "rows.csv")
    big = shell.root / "big.bin"
    big.write_bytes(os.urandom(3 << 20))
    script = (
        "import resource, signal, sys\nfrom mainspring.cli.main import main\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\nmain(['data', 'commit', 'big', 'big.bin', '--files'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shell.root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "error[storage_full]" in done.stderr
    assert "next:" in done.stderr
    assert "Traceback" not in done.stderr
    assert [d["name"] for d in shell("data", "list", "--json").data] == ["rows"]
    assert shell("fsck", "--read-data").code == 0
    assert shell("data", "commit", "big", "big.bin", "--files").code == 0


# --- init --------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(1800)
def test_init_makes_a_project_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(tmp_path / "flats", capsys)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command_line.main(["init", str(shell.root)])
    assert end.value.code == 0
    # Seen red while it named the run alone, which has nothing to read before the commit.
    assert "mainspring data commit rents data/rents.csv, then mainspring run rent" in capsys.readouterr().err
    assert 'name = "flats"' in (shell.root / "mainspring.toml").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests"],
        cwd=shell.root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert shell("data", "commit", "rents", str(shell.root / "data" / "rents.csv")).code == 0
    command = [sys.executable, "-m", "mainspring.cli", "-C", str(shell.root)]
    ran = subprocess.run([*command, "run", "rent"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "+ fit" in ran.stderr
    assert "finished" in ran.stdout
    first = shell("models", "promote", "rent", "1", "--reason", "first")
    assert (first.code, "undo:" in first.err) == (
        0,
        False,
    )  # seen red while it named a rollback that was refused
    assert "promote" in _failed(
        shell("models", "rollback", "rent", "--reason", "r"), code="not_found", exit_code=3
    )
    assert "rent version 1" in shell("status").out
    # Without newer data a retrain finds everything as it was: the same version, and nothing to roll out. Seen red while the
    # gate fetched the champion a second time into the folder of the candidate that it was.
    assert "version 1 is the champion already" in _retrained(shell, command)
    offers = (shell.root / "data" / "rents.csv").read_text()
    newest = offers.splitlines()[-1]
    (shell.root / "data" / "newer.csv").write_text(f"{offers.rstrip()}\n{newest}\n{newest}\n")
    assert shell("data", "commit", "rents", str(shell.root / "data" / "newer.csv")).code == 0
    assert "gate_pass" in _retrained(shell, command)
    with mainspring.open(shell.root) as workspace:
        raw = [f"dataset_version:{v.id}" for v in reversed(workspace.data.list_versions("rents").items)]
        origin = [workspace.lineage.get_origin(ref=f"model_version:rent@{n}").nodes for n in (1, 2)]
    refs = [{n.ref for n in nodes} for nodes in origin]
    assert {"dataset_version", "run", "code", "environment"} <= {n.kind for n in origin[1]}
    assert [[one in found for one in raw] for found in refs] == [[True, False], [False, True]]
    by_kind, bare = shell("explain-origin", "model_version:rent@2"), shell("explain-origin", "rent@2")
    assert (by_kind.code, bare.out) == (0, by_kind.out)  # seen red while the bare name was a prediction's


def _retrained(shell: Shell, command: list[str]) -> str:
    """What the loop says after a retrain by hand."""
    assert shell("loop", "retrain", "rent", "--reason", "again").code == 0
    job = next(j["id"] for j in shell("loop", "jobs", "--json").data if j["state"] == "queued")
    worked = subprocess.run([*command, "loop", "work", job], capture_output=True, text=True, check=False)
    assert worked.returncode == 0, worked.stderr
    return shell("loop", "tick").out


def test_init_refuses_a_directory_with_something_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(SystemExit) as end:
        command_line.main(["init", str(tmp_path)])
    assert end.value.code == 1
    assert "error[conflict]" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    import click

    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_serve_has_the_options_of_the_module_and_each_is_one_of_the_server() -> None:
    """Seen red before ``serve`` had a spare, a deadline and the memory of models."""
    from mainspring.cli.servers import serve
    from mainspring.serving.__main__ import _parser
    from mainspring.serving.options import ServeOptions

    of_module = {a.dest for a in _parser()._actions} - {"help", "bundle", "end_with_stdin"}
    of_command = {p.name for p in serve.params} - {"deployment"}
    assert of_command == of_module
    assert of_command - {"api_key_file"} <= set(ServeOptions.__struct_fields__)


def test_v10_nothing_outlives_up_however_it_ends(tmp_path: Path) -> None:
    """V10: killed without a chance to say goodbye. Seen red with the inference server not told to end with its input: it kept its
    port, with a worker, a spare and their children, for ever."""
    import json
    import signal
    import subprocess
    import sys

    import psutil

    (tmp_path / "mainspring.toml").write_text('[project]\nname = "p"\n')
    argv = [
        sys.executable,
        "-m",
        "mainspring.cli",
        "-C",
        str(tmp_path),
        "up",
        "--port",
        "0",
        "--serving-port",
        "0",
        "--json",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["event"] == "ready"
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=300)
    assert alive == []
