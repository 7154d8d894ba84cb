"""``mainspring new``: from a table of one's own to a served model that the loop retrains."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import mainspring
from mainspring.cli import main as command_line
from mainspring.config import load
from mainspring.errors import Conflict, InvalidInput
from mainspring.projects import starting
from mainspring.projects.survey import survey

COMMAND = [sys.executable, "-m", "mainspring.cli"]


def table(rows: int = 400) -> pa.Table:
    """Who stays, by age and plan; with an identifier, a column that gives the answer away, and a date."""
    import numpy as np

    r = np.random.default_rng(0)
    age = r.integers(18, 80, rows)
    stays = (age + r.normal(0, 8, rows) > 45).astype(int)
    dates = np.datetime64("2024-01-01") + np.arange(rows).astype("timedelta64[D]")
    return pa.table(
        {
            "customer_id": [f"c{i}" for i in range(rows)],
            "signed_up": [str(d) for d in dates],
            "age": age,
            "plan": r.choice(["basic", "pro"], rows),
            "closed_on": [None if s else "2025-01-01" for s in stays],
            "says": ["stays" if s else "goes" for s in stays],
            "stays": stays,
        }
    )


def write_csv(frame: pa.Table, path: Path) -> Path:
    import pyarrow.csv

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.csv.write_csv(frame, path)
    return path


# --- looking at the data ---------------------------------------------------------------------------------------------


def test_the_survey_says_what_it_assumes_and_what_to_beware_of() -> None:
    found = survey(table(), target="stays")
    said = "\n".join(found.lines)
    assert "the task is binary" in said
    assert "'says' is left out: it gives the target away" in said
    assert "'customer_id' is left out: an identifier" in said
    assert {"age", "plan"} <= set(found.problem.inputs)
    assert not {"says", "customer_id"} & set(found.problem.inputs)
    assert any("add --time signed_up" in c for c in found.cautions)
    assert any("400 rows are few" in c for c in found.cautions)
    assert 0.3 < found.guessing < 0.8
    timed = survey(table(), target="stays", time="signed_up", keep=["says"])
    assert timed.timed
    assert not any("--time" in c for c in timed.cautions)
    assert "says" in timed.problem.inputs


def test_a_rare_class_is_named() -> None:
    rows = table(2000)
    rare = pa.array([int(i % 50 == 0) for i in range(2000)])
    found = survey(rows.drop_columns(["says", "closed_on"]).set_column(4, "stays", rare), target="stays")
    assert any("only 2.0% of the rows are 1" in c for c in found.cautions)


def test_what_explains_much_alone_is_spoken_of_and_used() -> None:
    """Seen red: 98% explained by one column was below the limit of what is left out, and nothing was said of it."""
    stays = table(1000)["stays"].to_numpy()
    tells = stays.copy()
    tells[::60] = 1 - tells[::60]
    found = survey(table(1000).append_column("tells", pa.array(tells)), target="stays")
    assert "tells" in found.problem.inputs
    assert next(c for c in found.cautions if "alone explains" in c).startswith("'tells' alone explains 9")
    assert not any("'age' alone" in c for c in found.cautions)


def test_the_survey_counts_in_words() -> None:
    """Seen red: "2 numberss", truth values among the numbers, and an option whose value a shell takes apart."""
    rows = table().rename_columns(["id no", "signed up", "age", "plan", "closed_on", "says", "stays"])
    found = survey(rows.append_column("is on", pa.array([i % 3 == 0 for i in range(400)])), target="stays")
    said = [line for line in found.lines if line.startswith("predicted from")]
    assert said[:3] == [
        "predicted from 1 number: age",
        "predicted from 1 truth value: is on",
        "predicted from 1 text: plan",
    ]
    assert any("add --time 'signed up'" in c for c in found.cautions)


def test_guessing_is_what_the_dummy_scores() -> None:
    """Against scikit-learn, for each task."""
    import numpy as np
    from sklearn.metrics import log_loss, root_mean_squared_error

    x = np.arange(500.0)
    for target in (x % 2, x % 3, x + 0.5):
        found = survey(pa.table({"x": np.sin(x), "y": target}), target="y")
        from mainspring.training.automl.parts import divide

        parts = divide(found.problem, seed=0)
        y = found.problem.table["y"].to_numpy()
        train, held = y[parts.train], y[parts.holdout]
        if found.metric == "rmse":
            expected = root_mean_squared_error(held, np.full(len(held), train.mean()))
        else:
            shares = np.unique(train, return_counts=True)[1] / len(train)
            expected = log_loss(held, np.tile(shares, (len(held), 1)))
        assert found.guessing == pytest.approx(expected, rel=1e-9)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "mainspring.toml").write_text(
        '# ours\n[project]\nname = "shop"  # the shop\n[serving]\nport = 0'
    )
    write_csv(table(), tmp_path / "data" / "stays.csv")
    return tmp_path


def plan(root: Path, name: str = "stays", file: str = "data/stays.csv", **options: Any) -> starting.Start:
    return starting.plan(
        root, name, root / file, command="mainspring new ...", **{"target": "stays", **options}
    )


def test_the_policy_is_added_and_keeps_what_was_there(project: Path) -> None:
    before = (project / "mainspring.toml").read_text()
    written = starting.write(project, plan(project, time="signed_up", label_delay="100d"))
    assert written == ["pipelines/stays.py", "tests/test_stays.py", "mainspring.toml"]
    after = (project / "mainspring.toml").read_text()
    assert after.startswith(f"{before}\n")
    config = load(project).config
    assert config.model["stays"].label_delay == config.monitor["stays"].label_delay == "100d"
    assert config.retrain["stays"].retrain_on == ["drift", "performance"]
    assert config.data["stays"].source == "data/stays.csv"
    assert len((project / "pipelines" / "stays.py").read_text().splitlines()) <= 60
    second = starting.write(project, plan(project, "again"))
    assert second[0] == "pipelines/again.py"
    assert set(load(project).config.model) == {"stays", "again"}


def test_nothing_is_overwritten_and_what_is_there_is_named(project: Path) -> None:
    start = plan(project)
    starting.write(project, start)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    with pytest.raises(Conflict, match="stays is there already") as caught:
        plan(project)
    assert "mainspring run stays" in str(caught.value.next_step)
    with pytest.raises(Conflict):
        starting.write(project, start)  # two at once: the second finds the files of the first
    assert {p: p.read_bytes() for p in project.rglob("*") if p.is_file()} == before
    (project / "pipelines" / "mine.py").write_text("precious")
    with pytest.raises(Conflict, match=r"pipelines/mine\.py"):
        plan(project, "mine")


def test_what_is_in_the_way_leaves_nothing_half_written(project: Path) -> None:
    start = plan(project)
    (project / "tests").mkdir()
    (project / "tests" / "test_stays.py").write_text("precious")
    with pytest.raises(Conflict):
        starting.write(project, start)
    assert not (project / "pipelines" / "stays.py").exists()
    assert "[model.stays]" not in (project / "mainspring.toml").read_text()


def test_a_declared_dataset_keeps_its_section_and_its_reading(project: Path) -> None:
    text = (project / "data" / "stays.csv").read_text().replace(",", ";")
    (project / "data" / "semi.csv").write_text(text)
    file = project / "mainspring.toml"
    file.write_text(f'{file.read_text()}\n[data.semi.reading]\ndelimiter = ";"\n')
    starting.write(project, plan(project, "semi", "data/semi.csv"))
    assert load(project).config.data["semi"].checks == []
    assert load(project).config.data["semi"].reading.delimiter == ";"


@pytest.mark.parametrize("name", ["random", "a.b", "my-model", "sklearn"])
def test_names_that_are_modules_or_no_identifiers(project: Path, name: str) -> None:
    """Seen red for ``random``: the project's module took the place of Python's."""
    start = plan(project, name)
    starting.write(project, start)
    pipeline = load(project).config.model[name].pipeline
    stem = Path(pipeline.partition(":")[0]).stem
    assert stem not in {"random", "sklearn"}
    assert stem.isidentifier()


def test_columns_with_quotes_and_other_letters(project: Path) -> None:
    odd = 'ja "nein" \\ é\x7f 𝄞'
    frame = table().rename_columns({"age": odd, "stays": 'the "target"'})
    write_csv(frame, project / "data" / "odd.csv")
    starting.write(project, plan(project, "odd", "data/odd.csv", target='the "target"'))
    rules = load(project).config.data["odd"].checks
    assert odd in {getattr(r, "column", None) for r in rules}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("end", ['"""', '\\"""', "\0"])
def test_no_name_of_a_column_ends_the_docstring(project: Path, end: str) -> None:
    """Seen red: ``mainspring new`` wrote the code in the name of the column into the pipeline, which the loop would run."""
    name = f'x{end}+__import__("evil")+{end}'
    frame = table().rename_columns({"stays": name})
    write_csv(frame, project / "data" / "odd.csv")
    start = starting.plan(
        project,
        "odd",
        project / "data" / "odd.csv",
        target=name,
        command=f"mainspring new odd --target {name}",
    )
    module = ast.parse(start.files["pipelines/odd.py"])
    assert name in str(ast.get_docstring(module, clean=False)).split("Written by: ", 1)[1]
    assert "evil" not in {n.value for n in ast.walk(module) if isinstance(n, ast.Constant)}


def test_bad_options_write_nothing(project: Path) -> None:
    before = sorted(project.rglob("*"))
    for options in ({"target": "stayes"}, {"label_delay": "soon"}, {"time": "plan"}, {"keep": ["nobody"]}):
        with pytest.raises(InvalidInput):
            plan(project, **options)
    assert sorted(project.rglob("*")) == before


def test_dry_run_writes_nothing_and_json_tells_all(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    arguments = ["new", "stays", "data/stays.csv", "--target", "stays", "--dry-run"]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            command_line.main([*arguments, *more])
        assert end.value.code == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out.splitlines()[-1])
    assert told["written"] == []
    assert told["left_out"]["says"].startswith("it gives the target away")
    assert told["files"]["pipelines/stays.py"] in shown.out
    assert "nothing was written" in shown.err
    assert sorted(project.rglob("*")) == before


# --- the whole path --------------------------------------------------------------------------------------------------


def shipped(name: str) -> Any:
    from sklearn.datasets import load_breast_cancer, load_diabetes

    if name == "cancer":
        import pandas as pd

        frame = load_breast_cancer(as_frame=True).frame
        frame["seen"] = pd.date_range("2023-01-01", periods=len(frame), freq="6h")
        return frame
    return load_diabetes(as_frame=True, scaled=False).frame


def typed(root: Path, *arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str], limit_s: float = 1200) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended"
        if value := found():
            return value
        time.sleep(0.2)
    pytest.fail("it did not happen")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["cancer", "diabetes"])
def test_from_a_csv_to_a_served_model_that_the_loop_retrains(tmp_path: Path, name: str) -> None:
    frame = shipped(name)
    timed = ["--time", "seen"] if name == "cancer" else []
    (tmp_path / "data").mkdir()
    frame[: int(len(frame) * 0.8)].to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    said = typed(tmp_path, "new", name, f"data/{name}.csv", "--target", "target", *timed, "--budget", "2s")
    assert "begins in this directory" in said
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    trained = typed(tmp_path, "run", name)
    assert f"deployed to  {name}" in trained
    assert "gate         passed" in trained
    policy = tmp_path / "mainspring.toml"
    policy.write_text(
        policy.read_text()
        .replace('retrain_on = ["drift", "performance"]', 'retrain_on = ["schedule"]\nevery = "1s"')
        .replace('cooldown = "1d"', 'cooldown = "1s"')
    )
    frame.to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    typed(tmp_path, "data", "commit", name, f"data/{name}.csv")
    up = [*COMMAND, "up", "--port", "0", "--serving-port", "0", "--tick", "0.5", "--end-with-stdin", "--json"]
    with subprocess.Popen(
        up, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            assert ready["problems"] == []
            row = frame.iloc[0].drop(["target", *(["seen"] if timed else [])]).to_dict()
            row |= {"seen": "2023-01-01"} if timed else {}
            answer = predict(ready["inference"], name, row)
            assert answer["version"] == 1
            with mainspring.open(tmp_path) as workspace:
                jobs = lambda: [j for j in workspace.loop.list_jobs(deployment=name) if j.finished_at]  # noqa: E731
                job = wait_for(jobs, process)[-1]
                decided = lambda: [  # noqa: E731
                    e
                    for e in workspace.lineage.list_events(kind="loop.", limit=50).items
                    if e.kind in ("loop.gate_pass", "loop.gate_stop")
                ]
                wait_for(decided, process)
            assert job.error is None
            assert (job.trigger, job.version) == ("schedule", 2)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(300)


def predict(address: str, name: str, row: dict[str, Any]) -> dict[str, Any]:
    import httpx2

    url = f"{address}/v1/deployments/{name}/predict"
    answer = httpx2.post(url, json={"rows": [row]}, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
