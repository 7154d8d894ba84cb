"""Rules are classes of their own: each is known, documented, and added by the files that CONTRIBUTING.md names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import mainspring
from mainspring.data.rules import Check, check_of
from mainspring.records.data import CheckRule, NotNullRule, Rule

ROOT = Path(__file__).resolve().parents[2]
PLACES = ["src/mainspring/records/data.py", "src/mainspring/data/rules/", "docs/rooms/data.md"]

RECORD = '''class LengthRule(Rule, frozen=True, kw_only=True, tag="length"):
    """Every text that is not null has at most ``most`` characters."""

    column: str
    most: int


CheckRule = (
    LengthRule
    | TypeRule
'''
CLASS = """
import pyarrow as pa
import pyarrow.compute as pc
import narwhals as nw

from mainspring.data.rules.base import Check, Derived, Plan, Scan
from mainspring.errors import InvalidInput
from mainspring.records.data import LengthRule


class LengthCheck(Check[LengthRule]):
    record = LengthRule

    def validate(self, place: str) -> None:
        if self.rule.most < 0:
            raise InvalidInput("a length is not negative", value=self.rule.most, place=place)

    def plan(self, table: Scan) -> Plan:
        long = Derived(self.columns(), pa.bool_(), lambda text: pc.greater(pc.utf8_length(text), self.rule.most))
        return Plan(mask=nw.col(self.name("long")), derived={self.name("long"): long}, reason=f"longer than {self.rule.most}")
"""
USE = """
import httpx2

import mainspring
import mainspring as ms
from mainspring.errors import CheckFailed, InvalidInput
from mainspring.records.data import LengthRule
from mainspring.testing.server import running_server

print("from", mainspring.__file__)
with ms.open(".") as workspace:
    workspace.data.commit("names", {"name": ["Ada", "Grace", None]})
    try:
        workspace.data.commit("names", {"name": ["Ada", "Grace", "Katherine", None]}, checks=[LengthRule(column="name", most=5)])
    except CheckFailed as error:
        print("commit", error)
    try:
        workspace.data.check("names", [LengthRule(column="name", most=-1)])
    except InvalidInput as error:
        print("invalid", error)
    (report,) = workspace.data.list_refusals("names")
    print("kept", report.findings[0].rule, report.findings[0].sample[0].row)
    with running_server(workspace) as server, httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        sent = client.post(f"/api/v1/{workspace.project}/data/check", json={"dataset": "names", "rules": [{"check": "length", "column": "name", "most": 4}]})
        print("http", sent.status_code, sent.text)
        print("page", client.get("/data/names", headers={"Accept": "text/html"}).text)
"""


def test_every_rule_has_a_class_and_a_line_in_the_docs() -> None:
    page = (ROOT / "docs" / "rooms" / "data.md").read_text()
    for rule in get_args(CheckRule):
        tag = rule.__struct_config__.tag
        assert f"| `{tag}` |" in page, tag
        assert any(cls.record is rule for cls in Check.__subclasses__()), tag


def test_two_classes_for_one_rule_are_refused() -> None:
    with pytest.raises(TypeError, match="two classes check NotNullRule"):

        class Again(Check[NotNullRule]):
            record = NotNullRule

    assert type(check_of(NotNullRule(column="x"))).__name__ == "NotNullCheck"


def test_a_check_without_a_plan_is_refused_when_it_is_made() -> None:
    """Seen red without ``@abstractmethod``: the check was made, and only its use raised NotImplementedError, without a message."""

    class UnplannedRule(Rule, frozen=True, kw_only=True, tag="unplanned"):
        column: str

    class Unplanned(Check[UnplannedRule]):
        record = UnplannedRule

    with pytest.raises(TypeError, match=r"abstract method '?plan"):
        check_of(UnplannedRule(column="x"))


def test_a_rule_is_added_by_the_files_that_contributing_names(tmp_path: Path) -> None:
    """A copy of the package gets a new rule as CONTRIBUTING.md says; commit, the kept refusal, HTTP, page and command know it."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide[guide.index("**Adding a check rule.**") :].split("\n\n")[0]
    assert re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE) == PLACES

    source = tmp_path / "source"
    shutil.copytree(
        Path(mainspring.__file__).parent, source / "mainspring", ignore=shutil.ignore_patterns("__pycache__")
    )
    records = source / "mainspring" / "records" / "data.py"
    before = records.read_text()
    records.write_text(before.replace("CheckRule = (\n    TypeRule\n", RECORD))
    assert records.read_text() != before
    (source / "mainspring" / "data" / "rules" / "length.py").write_text(CLASS)

    place = tmp_path / "project"
    place.mkdir()
    (place / "mainspring.toml").write_text(
        '[project]\nname = "names"\n[data.names]\nchecks = [{ check = "length", column = "name", most = 4 }]\n'
    )
    environment = os.environ | {"PYTHONPATH": str(source)}
    used = subprocess.run([sys.executable, "-c", USE], cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert used.returncode == 0, used.stderr
    assert f"from {source}" in used.stdout
    assert "length(name): longer than 5, e.g. row 2 {'name': 'Katherine'}" in used.stdout
    assert "invalid a length is not negative" in used.stdout
    assert "kept LengthRule(refuse=True, column='name', most=5) 2" in used.stdout
    assert re.search(r'http 200 .*"rule":\{"check":"length"', used.stdout)
    page = used.stdout[used.stdout.index("\npage ") :]
    assert "longer than 5" in page
    assert "Katherine" in page

    shown = subprocess.run([sys.executable, "-m", "mainspring.cli", "data", "check", "names"], cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert (shown.returncode, "FAIL length name  longer than 4" in shown.stdout) == (1, True), shown.stderr
