"""Seven weeks of the demo's story, in its real processes; the whole year is `make demo ONCE=1`, which CI runs too."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from mainspring.config import load
from mainspring.demo.progress import Progress
from mainspring.demo.story import Choices, Story, make_project


def test_seven_weeks(tmp_path: Path) -> None:
    place = tmp_path / "flights"
    place.mkdir()
    found = Story(Choices(directory=place, until=date(2013, 3, 20), port=0), Progress(quiet=True)).run()

    assert found["failed_requests"] == 0, found["errors"]
    assert found["problems"] == []
    assert found["requests"] > 48 * 100
    assert found["requests"] == found["log_rows"] == found["metrics_requests"]
    assert found["refused_batch"]["failing_rows"] > 0
    assert found["audit_ok"]
    assert found["replay_same"]
    assert found["origin"]["digest_ok"]
    assert all(
        found["origin"][k]
        for k in ("prediction_id", "model_version", "run", "code", "environment", "dataset_version")
    )
    assert [m["month"] for m in found["monthly"]] == [2, 3]
    assert found["versions"]["monthly_refits"] == 1
    assert found["peak_pss_mb"] < 2048

    # Somebody else, with nothing but SQL, comes to the same figures.
    script = Path(__file__).parents[2] / "scripts" / "recount.py"
    done = subprocess.run(
        [sys.executable, str(script), str(place)], capture_output=True, text=True, check=True
    )
    again = json.loads(done.stdout)
    assert again["requests"] == found["requests"]
    for ours, theirs in zip(found["monthly"], again["monthly"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("without", ["gate", "canary", "retrain", "faults", None])
def test_each_switch_leaves_its_part_out(tmp_path: Path, without: str | None) -> None:
    make_project(tmp_path / "p", without=without)
    config = load(tmp_path / "p").config
    assert (len(config.model["delay"].gate) > 1) == (without != "gate")
    assert (len(config.deploy["delay"].stages) > 1) == (without != "canary")
    assert bool(config.deploy["delay"].rollback) == (without != "canary")
    assert bool(config.retrain["delay"].retrain_on) == (without != "retrain")
    assert config.storage.clock == "manual"
