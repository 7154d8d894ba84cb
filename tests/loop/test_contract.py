"""What a retrain will need is looked for when the policy is loaded, without running the project's code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mainspring.config import parse
from mainspring.errors import NotFound
from mainspring.loop.contract import find_problems

POLICY = """
[project]
name = "shop"
[model.buy]
pipeline = "pipelines/train.py:train"
gate = [{ metric = "accuracy", min = 0.5 }]
[deploy.buy]
model = "buy"
[monitor.buy]
retrain_on = ["drift"]
"""
PIPELINE = "import mainspring as ms\n\n@ms.pipeline\ndef train(data: str = 'rows', *, seed: int = 0): ...\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "train.py").write_text(PIPELINE)
    return tmp_path


def problems(root: Path, policy: str = POLICY, models: Any = None) -> list[str]:
    return [str(p) for p in find_problems(parse(policy.encode()), root, models)]


def test_a_whole_contract_has_no_problem_and_runs_nothing(root: Path) -> None:
    file = root / "pipelines" / "train.py"
    file.write_text(f"raise SystemExit('imported')\n{PIPELINE}")
    assert problems(root) == []
    for taken_elsewhere in (
        "from shared import train\n",
        "from shared import *\n",
        "train = make()\n",
        "if True:\n    def train(): ...\n",
    ):
        file.write_text(taken_elsewhere)
        assert problems(root) == [], taken_elsewhere


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "there is no file 'pipelines/train.py'. Did you mean 'pipelines/trains.py'?"),
        ("def (:\n", "pipelines/train.py is not Python"),
        (PIPELINE.replace("def train", "def trian"), "has no function 'train'. Did you mean 'trian'?"),
        (PIPELINE.replace("@ms.pipeline\n", ""), "is a function, not a pipeline. Write @ms.pipeline"),
        (
            PIPELINE.replace("= 'rows'", ""),
            "needs the parameter 'data', which the policy does not give. Add params = { data = ... }",
        ),
        (PIPELINE.replace("int = 0", "int"), "needs the parameter 'seed'"),
    ],
)
def test_a_pipeline_that_cannot_run_is_named_with_what_to_write(
    root: Path, code: str | None, said: str
) -> None:
    """Seen red while nothing was looked for: the first retrain failed instead."""
    file = root / "pipelines" / "train.py"
    if code is None:
        file.rename(root / "pipelines" / "trains.py")
    else:
        file.write_text(code)
    (found,) = problems(root)
    assert found.startswith("[model.buy] p")
    assert said in found


def test_a_param_that_the_pipeline_does_not_take(root: Path) -> None:
    policy = POLICY.replace("gate =", "params = { sead = 1 }\ngate =")
    (found,) = problems(root, policy)
    assert found == "[model.buy] params: pipeline 'train' takes no parameter 'sead'. Did you mean 'seed'?"
    (root / "pipelines" / "train.py").write_text(PIPELINE.replace("*, seed: int = 0", "**params"))
    assert problems(root, policy) == []


def test_a_pipeline_may_require_until_which_the_loop_gives(root: Path) -> None:
    (root / "pipelines" / "train.py").write_text(PIPELINE.replace("data: str = 'rows'", "until: str"))
    assert problems(root) == []


def test_retrains_without_a_gate_could_never_lead_to_a_rollout(root: Path) -> None:
    (found,) = problems(root, POLICY.replace('gate = [{ metric = "accuracy", min = 0.5 }]\n', ""))
    assert "has no gate" in found
    assert "[monitor.buy] retrain_on" in found


def test_a_version_without_a_holdout_or_a_label_is_named(root: Path) -> None:
    class Version:
        version, holdout, label = 3, None, None

    class Models:
        known = True

        def get_version(self, _model: str, _selector: str) -> Any:
            if not self.known:
                raise NotFound("no such model")
            return Version

    (found,) = problems(root, models=Models())
    assert "buy version 3: it was registered without holdout and label" in found
    Models.known = False
    assert problems(root, models=Models()) == []
