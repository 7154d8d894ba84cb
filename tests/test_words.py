"""Plain English: the glossary's terms and no others for the same things, verbs for operations, no literary words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.operations import operations_of
from mainspring.rooms import ROOMS, room_class

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
LITERARY = [
    "told",
    "wear",
    "wears",
    "stands",
    "unto",
    "thereof",
    "thereby",
    "hitherto",
    "betwixt",
    "whilst",
    "upon",
    "amongst",
]
"""Words that make a sentence hard to read aloud; there is always a plainer one."""

NAMES_OF_OTHERS = re.compile(r"signal\.alarm|false[- ]alarms?|a false alarm", re.IGNORECASE)
"""Other people's names, and terms of statistics, that hold a word of the list."""


def _texts(*suffixes: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / "src" / "mainspring").rglob("*")):
        others = path.name.startswith("vega") or "__pycache__" in path.parts  # files of other projects
        if path.suffix in suffixes and not others:
            yield path, path.read_text()


def _pages() -> Iterator[tuple[Path, str]]:
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path != GLOSSARY:
            yield path, path.read_text()


def _hits(words: list[str], texts: Iterator[tuple[Path, str]]) -> list[str]:
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, words))})s?(?![\w-])", re.IGNORECASE)
    hits = []
    for path, text in texts:
        for number, line in enumerate(text.splitlines(), 1):
            match = pattern.search(NAMES_OF_OTHERS.sub("", line))
            if match is not None:
                hits.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}")
    return hits


def _rows(title: str) -> list[list[str]]:
    """The cells of the table under ``title``, without its head."""
    section = GLOSSARY.read_text().split(title, 1)[1]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = lines[2:] if title == "# Glossary" else [line for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def _synonyms() -> list[str]:
    terms = [row for row in _rows("# Glossary") if len(row) == 3]
    return [word.strip() for row in terms for word in row[2].split(",") if word.strip()]


def _verbs() -> set[str]:
    return {verb.strip() for row in _rows("## Verbs") for verb in row[0].split(",")}


def test_a_synonym_of_a_glossary_term_is_not_used() -> None:
    """Seen red: three places said "data set", "training set" and "metadata store"."""
    synonyms = _synonyms()
    assert len(synonyms) > 20
    hits = _hits(synonyms, _texts(".py", ".html", ".js", ".toml", ".md")) + _hits(synonyms, _pages())
    assert not hits, hits


def test_the_code_uses_no_literary_words() -> None:
    """Seen red: 211 lines of version 0.1."""
    hits = _hits(LITERARY, _texts(".py", ".html", ".js", ".toml", ".md"))
    assert not hits, hits


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_every_operation_begins_with_a_verb_of_the_glossary(room: str) -> None:
    """Seen red with the names of version 0.1: lineage.events, models.card, pipelines.why and 60 others."""
    verbs = _verbs()
    others = [o.id for o in operations_of(room_class(room)).values() if o.name.split("_")[0] not in verbs]
    assert not others, others


def test_every_verb_of_the_glossary_is_in_use() -> None:
    used = {o.name.split("_")[0] for room in ROOMS for o in operations_of(room_class(room)).values()}
    assert _verbs() == used
