"""Every command and option that a message, a page or a document names exists, with the words of the real command tree."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mainspring.cli.main import app

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "mainspring"

PROSE = {
    "workspace",
    "project",
    "import",
    "as",
    "home",
    "is",
    "has",
    "does",
    "and",
    "or",
    "itself",
    "needs",
    "here",
}
"""Words that may follow the product's name in a sentence."""

FOREIGN = re.compile(
    r"\b(?:git|docker|uv|pip|apt-get|kubectl|helm|sudo|unshare|mlflow|dvc|pytest|python -m \S+|bench|curl|make)\b[^.;]*$"
)
"""A sentence that speaks of another program's option."""

_NAMED = re.compile(r"(?<![\w./@-])mainspring((?:[ \t]+(?:[^\s`'\"),;]|'[^']*'|\"[^\"]*\")+)+)")
_OPTION = re.compile(r"(?<![\w/-])--[a-z][a-z-]*[a-z]")


def options(command: click.Command) -> set[str]:
    found = {
        name for p in command.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)
    }
    return found | {"--help", "-h"}


def every_command(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from every_command(inner)


OPTIONS = set().union(*(options(command) for command in every_command(app)))


def wrong(words: list[str]) -> str | None:
    """What is wrong with ``mainspring WORDS...``, or nothing."""
    command: click.Command = app
    path = "mainspring"
    allowed = options(app)
    words = list(words)
    while words:
        word = words.pop(0).rstrip(".:")
        if word in {"...", "", "|", "\\", "&&", ">", "#", "["} or word.startswith(("#", ">")):
            return None
        if word.startswith("-"):
            name = word.partition("=")[0].rstrip("]")
            if name not in allowed:
                return f"{path} has no option {name}"
            option = (
                next(p for p in (*command.params, *app.params) if name in (*p.opts, *p.secondary_opts))
                if name not in {"--help", "-h"}
                else None
            )
            if isinstance(option, click.Option) and not option.is_flag and "=" not in word and words:
                words.pop(0)
            continue
        if not isinstance(command, click.Group):
            continue
        for name in word.split("|"):
            inner = command.get_command(click.Context(command), name)
            if inner is None:
                return f"{path} has no command {name!r}"
        assert inner is not None
        command, path = inner, f"{path} {name}"
        allowed = options(command) | options(app)
    return None


def said(text: str) -> Iterator[str]:
    """What is wrong in ``text``."""
    for match in _NAMED.finditer(text):
        rest = match[1].strip()
        try:
            words = shlex.split(rest, comments=False)
        except ValueError:
            words = rest.split()
        if words[0].rstrip(".,;") in PROSE or not re.match(r"[a-z-]", words[0]) or words[0] == "serving:":
            continue
        problem = wrong(words)
        if problem:
            yield f"mainspring {rest}: {problem}"


@functools.cache
def strings(path: Path) -> list[tuple[int, str, bool]]:
    """Every string of a Python file, f-strings with ``...`` for their values: line, text, whether it is a docstring."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append((node.lineno, node.value, id(node) in docs))
        elif isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else "VALUE" for p in node.values]
            found.append((node.lineno, "".join(map(str, parts)), False))
    return found


def test_the_check_itself_sees_what_is_wrong() -> None:
    assert list(said("Run 'mainspring data gc' first.")) == [
        "mainspring data gc: mainspring data has no command 'gc'"
    ]
    assert list(said("mainspring up --api-key-file F")) == [
        "mainspring up --api-key-file F: mainspring up has no option --api-key-file"
    ]
    assert list(said("Run: mainspring -C DIR fsck --read-data, then wait.")) == []
    assert list(said("this is not a mainspring workspace")) == []
    assert list(said("mainspring data commit|log|no")) != []


def test_every_command_in_a_message_exists() -> None:
    """Seen red on version 0.1: ``mainspring data gc``."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text, _ in strings(path)
        for problem in said(text)
    ]
    assert not found, "\n".join(found)


def test_every_option_in_a_message_exists() -> None:
    """Seen red on version 0.1: ``--api-key-file`` and ``--auth token``, which no command has."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {option} in {text[:90]!r}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text, doc in strings(path)
        if not doc and " " in text.strip()
        for match in _OPTION.finditer(text)
        if (option := match[0]) not in OPTIONS and not FOREIGN.search(text[: match.start()])
    ]
    assert not found, "\n".join(found)


DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "bench").glob("*.md"),
        *SOURCE.rglob("*"),
    ]
    if path.suffix in {".md", ".html", ".toml", ".txt", ".j2", ".yml", ".yaml", ".sql"}
    and path.is_file()
    and path.name != "CHANGELOG.md"
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_a_document_exists(path: Path) -> None:
    """Code only: fenced blocks and code spans of Markdown, everything else of other files."""
    text = path.read_text()
    if path.suffix == ".md":
        text = "\n".join(
            [
                *re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE),
                *re.findall(r"`([^`\n]+)`", text),
            ]
        )
    else:
        text = re.sub(r"<[^>]*>|{[{%].*?[%}]}", "`", text)
    found = [problem for line in text.splitlines() for problem in said(line)]
    assert not found, "\n".join(found)
