"""Docs say what is: snippets run, links resolve, reference pages are what the declarations say."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TERMS = """project, dataset, dataset version, step, pipeline, run, experiment, param, metric, artifact, model, model version, alias,
signature, gate, verdict, deployment, route, shadow, canary, prediction, feedback, reference profile, window, drift, alert, trigger, label task,
lineage, audit event"""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _fences(page: Path, language: str) -> list[str]:
    return [text for info, text in FENCE.findall(page.read_text()) if info.strip() == language]


@pytest.mark.parametrize("page", [p for p in PAGES if _fences(p, "python")], ids=_name)
def test_python_snippets_run(page: Path, tmp_path: Path) -> None:
    """The python fences of a page, one after another, in a new project."""
    (tmp_path / "mainspring.toml").write_text('[project]\nname = "docs"\n')
    script = tmp_path / "snippets.py"
    script.write_text("\n\n".join(_fences(page, "python")))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if _fences(p, "console")], ids=_name)
def test_console_snippets_run(page: Path, tmp_path: Path) -> None:
    """`$ mainspring ...` lines of a page, one after another; each exits 0. `cd DIR` is followed."""
    place = tmp_path
    for line in "\n".join(_fences(page, "console")).splitlines():
        if not line.startswith("$ "):
            continue
        words = shlex.split(line[2:], comments=True)
        if words[0] == "cd":
            place = place / words[1]
            continue
        if words[0] != "mainspring":
            continue  # `make` lines are run by CI itself
        done = subprocess.run(
            [sys.executable, "-m", "mainspring.cli", *words[1:]], cwd=place, capture_output=True, text=True, timeout=600, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{target} in {_name(page)}"
        if anchor:
            assert anchor in _anchors(found.read_text()), f"{target} in {_name(page)}"


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def test_the_glossary_defines_every_term() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    defined = {
        w.strip().lower()
        for row in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
        for w in re.split(r",|\(|\)", row)
    }
    assert {t.strip() for t in TERMS.replace("\n", " ").split(",")} - defined == set()


def test_the_walks_name_places_that_exist() -> None:
    """docs/design/walks.md leads through the code by file and function."""
    places = re.findall(r"`(src/[\w/]+\.py): ([\w.]+)`", (ROOT / "docs" / "design" / "walks.md").read_text())
    assert len(places) > 20
    for file, name in places:
        scope: list[ast.stmt] = ast.parse((ROOT / file).read_text()).body
        for part in name.split("."):
            named = [
                n
                for n in scope
                if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and n.name == part
            ]
            assert named, f"{file}: {name}"
            scope = named[0].body


def test_reference_pages_are_current() -> None:
    """Seen red with one option's help changed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make-reference"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_command_and_error_is_in_the_reference() -> None:
    from mainspring import errors
    from mainspring.cli.main import COMMANDS
    from mainspring.config import Config

    place = ROOT / "docs" / "reference"
    for field in Config.__struct_fields__:
        assert f"## `[{'monitor' if field == 'retrain' else field}" in (place / "settings.md").read_text()
    for command in COMMANDS:
        assert f"\n## mainspring {command}\n" in (place / "cli.md").read_text()
    for kind in errors.loaded_classes():
        if kind.__module__.startswith("mainspring."):
            assert f"| `{kind.code}` |" in (place / "errors.md").read_text()


def test_docs_name_no_command_that_is_not_there() -> None:
    from mainspring.cli.main import COMMANDS

    for page in PAGES:
        for command in re.findall(r"(?:^|`|\$ )mainspring ([a-z][a-z-]*)", page.read_text(), re.MULTILINE):
            assert command in COMMANDS, f"mainspring {command} in {_name(page)}"


def test_nothing_speaks_of_places_outside_the_project() -> None:
    """The project stands alone."""
    outside = "sha" + "red/"
    for page in PAGES:
        assert outside not in page.read_text(), _name(page)
