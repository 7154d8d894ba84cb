"""CONTRIBUTING.md is followed to the letter: a copy of the package gets a new operation, and everything else follows.

(`tests/data/test_rules.py` does the same for a check rule, `tests/serving/test_dialects.py` for a dialect,
`tests/models/formats/test_third_format.py` for a model format.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mainspring

ROOT = Path(__file__).resolve().parents[1]
PLACES = ["src/mainspring/<room>/operations.py", "docs/rooms/<room>.md"]

BEFORE = "    @operation(role=Role.EDITOR, changes=True)\n    def tag_version("
METHOD = '''    @operation(role=Role.EDITOR, changes=True)
    def note_version(self, dataset: str, selector: Selector = "latest", *, text: str) -> DatasetVersion:
        """Write a remark about a version into the event log."""
        with self._base.ledger.decision() as decision:
            row = rows.find_version(decision.tx, self._base.project, dataset, selector)
            decision.event(EventKind.DATASET_TAGGED, ref("dataset_version", row["id"]), {"dataset": dataset, "text": text})
            return decision.done(rows.version_of(decision.tx, self._base.project, row))

'''
USE = """
import httpx2

import mainspring as ms
from mainspring.errors import PermissionDenied
from mainspring.operations import Role, acting
from mainspring.testing.server import running_server

print("from", ms.__file__)
with ms.open(".") as workspace:
    workspace.data.commit("names", {"name": ["Ada"]})
    print("here", workspace.data.note_version("names", 1, text="first").number)
    with acting("vera", role=Role.VIEWER):
        try:
            workspace.data.note_version("names", text="refused")
        except PermissionDenied as error:
            print("refused", error)
    with running_server(workspace) as server:
        with ms.open(server.url, token=server.token, project=workspace.project) as remote:
            print("there", remote.data.note_version("names", "latest", text="second").number)
        with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            address = f"/api/v1/{workspace.project}/data/note_version"
            sent = client.post(address, json={"dataset": "names", "text": "third"})
            print("http", sent.status_code, sent.json()["number"])
            print("wrong", client.post(address, json={"dataset": "names", "words": "x"}).json()["error"]["value"])
            described = client.get("/api/v1/openapi.json").json()["paths"]
            print("described", [p for p in described if p.endswith("/data/note_version")])
    for event in workspace.lineage.list_events(kind="dataset.tagged", newest_first=False).items:
        print("event", event.operation, event.data["text"])
"""


def test_an_operation_is_added_by_the_files_that_contributing_names(tmp_path: Path) -> None:
    """One method: Python here and there, HTTP, its description, the role and the event log know it."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    section = guide[guide.index("**Adding an operation.**") :].split("\n\n")[0]
    assert re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE) == PLACES

    source = tmp_path / "source"
    shutil.copytree(
        Path(mainspring.__file__).parent, source / "mainspring", ignore=shutil.ignore_patterns("__pycache__")
    )
    operations = source / "mainspring" / "data" / "operations.py"
    before = operations.read_text()
    assert before.count(BEFORE) == 1
    operations.write_text(before.replace(BEFORE, METHOD + BEFORE))

    place = tmp_path / "project"
    place.mkdir()
    (place / "mainspring.toml").write_text('[project]\nname = "names"\n')
    environment = os.environ | {"PYTHONPATH": str(source)}
    used = subprocess.run([sys.executable, "-c", USE], cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert used.returncode == 0, used.stderr
    lines = used.stdout.splitlines()
    assert lines[0].startswith(f"from {source}")
    assert "here 1" in lines
    assert "there 1" in lines
    assert "http 200 1" in lines
    assert "wrong words" in lines
    assert any(line.startswith("refused ") and "needs the role editor" in line for line in lines)
    assert any(line.startswith("described ['") for line in lines)
    events = [line.split()[1:] for line in lines if line.startswith("event ")]
    assert events == [["data.note_version", text] for text in ("first", "second", "third")]
