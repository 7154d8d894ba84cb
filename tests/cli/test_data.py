"""``mainspring data commit``: how a CSV is read stands in the policy file or in options, and is said column by column."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.cli import main as command_line
from mainspring.config import parse
from mainspring.errors import ConfigError

POLICY = """
[project]
name = "shop"
[data.sales.reading]
delimiter = ";"
decimal = ","
nulls = ["kA"]
dates = ["%d.%m.%Y"]
types = { zip = "string" }
"""
CSV = "zip;amount;when;note\n10115;1,50;03.04.2021;Grün\n80331;kA;05.06.2021;NA\n"
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    (tmp_path / "mainspring.toml").write_text(POLICY)
    (tmp_path / "sales.csv").write_bytes(CSV.encode("cp1252"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            command_line.main(["-C", str(tmp_path), "data", "commit", *arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_the_policy_file_declares_and_the_command_says_what_was_decided(shell: Shell) -> None:
    code, out, err = shell("sales", "sales.csv")
    assert code == 0
    assert "read as cp1252, fields separated by ';'" in err
    assert "zip: string (declared)" in err
    assert "amount: float64; null: 'kA' (1)" in err
    assert "when: date32; %d.%m.%Y" in err
    assert "byte" in err
    version = json.loads(shell("sales", "sales.csv", "--json")[1])
    assert [c["type"] for c in version["columns"]] == ["string", "float64", "date32", "string"]
    assert {c["name"]: c["nulls"] for c in version["reading"]["columns"]} == {
        "zip": 0,
        "amount": 1,
        "when": 0,
        "note": 0,
    }


def test_options_go_before_the_policy_file(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_bytes("3\t1.5\tMüller\n4\tx\tMeier\n".encode("utf-16"))
    arguments = [
        "sales",
        "other.csv",
        "--delimiter",
        r"\t",
        "--decimal",
        ".",
        "--no-header",
        "--columns",
        "n,x,name",
    ]
    code, _, err = shell(*arguments)
    assert (code, "a column that is not there" in err) == (2, True), "the file declares a type for zip"
    (tmp_path / "mainspring.toml").write_text(POLICY.replace("zip = ", "n = "))
    code, _, err = shell(*arguments, "--type", "x=float64")
    assert code == 2
    assert "column 'x' is declared float64" in err
    assert "row 2" in err
    code, out, _ = shell(*arguments, "--type", "x=float64", "--lossy", "--json")
    reading = json.loads(out)["reading"]
    assert (code, reading["lost"], reading["header"], reading["encoding"]) == (0, 1, False, "utf-16")
    code, _, err = shell("sales", "other.csv", "--type", "x")
    assert (code, "not COLUMN=TYPE" in err) == (2, True)


def test_a_wide_file_says_only_what_is_remarkable(shell: Shell, tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(100)]
    (tmp_path / "wide.csv").write_text(
        ",".join(names) + "\n" + ",".join(["007" if n == "c50" else "7" for n in names]) + "\n"
    )
    _, _, err = shell("wide", "wide.csv")
    assert "c50: string; kept as text: '007' has leading zeros (row 1)" in err
    assert "c51" not in err
    assert "and 99 more columns" in err


def test_a_misspelt_declaration_is_named_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'delimiter'"):
        parse(POLICY.replace("delimiter", "delimeter").encode())
    assert parse(POLICY.encode()).data["sales"].reading.dates == ["%d.%m.%Y"]


def test_a_bound_in_the_policy_file_is_exact() -> None:
    """Seen red: 2^53 + 1 was read as the float 2^53."""
    rules = (
        parse(b"[data.x]\nchecks = [{ check = 'range', column = 'id', max = 9007199254740993 }]")
        .data["x"]
        .checks
    )
    assert rules[0].max == 9007199254740993  # type: ignore[union-attr]
    assert isinstance(rules[0].max, int)  # type: ignore[union-attr]
