"""Policy files: what is wrong is named, with its place and the next step; nothing half-read ever starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.config import FILE, Config, digest, load, parse
from mainspring.errors import ConfigError, InvalidInput, NotFound

GOOD = b"""
[project]
name = "shop"
[data.sales]
checks = [{ check = "not_null", column = "price" }, { check = "range", column = "price", min = 0 }]
[model.price]
pipeline = "pipelines/train.py:train"
gate = [{ metric = "mae", max = 10 }]
[deploy.price]
model = "price"
stages = [{ shadow = true, min_requests = 10 }, { full = true }]
[monitor.price]
window = "1d"
retrain_on = ["drift"]
cooldown = "7d"
"""


def test_a_whole_policy_is_typed() -> None:
    config = parse(GOOD)
    assert config.project.name == "shop"
    assert [s.shadow for s in config.deploy["price"].stages] == [True, False]
    assert config.monitor["price"].window == "1d"
    assert config.retrain["price"].cooldown == "7d"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"[projct]\nname = 'x'\n", "Did you mean 'project'"),
        (GOOD.replace(b"cooldown", b"cooldwn"), "Did you mean 'cooldown'"),
        (GOOD.replace(b"min_requests", b"min_request"), "Did you mean 'min_requests'"),
        (GOOD.replace(b"metric =", b"metrc ="), "Did you mean 'metric'"),
        (GOOD.replace(b'column = "price", min', b'colum = "price", min'), "Did you mean 'column'"),
        (GOOD.replace(b'check = "range"', b'check = "rnge"'), "Did you mean 'range'"),
        (GOOD.replace(b'check = "range", ', b""), "'check' is missing"),
        (GOOD.replace(b'model = "price"', b'model = "prise"'), "Did you mean 'price'"),
        (GOOD.replace(b"[monitor.price]", b"[monitor.prize]"), "a monitor names a deployment"),
        (GOOD.replace(b"pipelines/train.py:train", b"../train.py:train"), "file.py:function"),
        (
            GOOD.replace(b'"7d"', b'"7 days"'),
            "not a duration; got 7 days; in mainspring.toml, monitor.price.cooldown",
        ),
        (GOOD.replace(b"min_requests = 10", b'min_requests = "ten"'), "deploy.price.stages[0].min_requests"),
        (GOOD + b"[retrain.price]\ncooldown = '1d'\n", "no section"),
        (GOOD + b"[deploy.price\n", "not valid TOML"),
        (GOOD[: len(GOOD) // 2], "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[project]\nname = '../x'\n", "not a valid project name"),
        (b"[pipelines]\nexecutor = 'slurm'\n", "Known: 'local', 'worker'."),
        (b"[pipelines]\nexecutor = 'workers'\n", "Did you mean 'worker'?"),
        (b"[pipelines]\nworkers = 0\n", "Write 1 to 1000."),
    ],
)
def test_what_is_wrong_is_named(wrong: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(wrong, place="mainspring.toml")
    assert said in str(caught.value)


def test_a_broken_file_names_itself(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[project\n")
    with pytest.raises(ConfigError, match=r"mainspring\.toml"):
        load(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such project directory"):
        load(tmp_path / "nowhere")


def test_the_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_bytes(GOOD)
    monkeypatch.setenv("MAINSPRING_HOME", str(tmp_path / "elsewhere"))
    settings = load(tmp_path)
    assert settings.home == tmp_path / "elsewhere"
    assert settings.origins["home"] == "environment"


def test_without_a_file_everything_has_a_default(tmp_path: Path) -> None:
    assert load(tmp_path).config == Config()


def test_the_digest_of_policy_follows_its_content() -> None:
    one, two = parse(GOOD), parse(GOOD.replace(b"max = 10", b"max = 11"))
    assert digest(one.model["price"].gate) == digest(parse(GOOD).model["price"].gate)
    assert digest(one.model["price"].gate) != digest(two.model["price"].gate)
