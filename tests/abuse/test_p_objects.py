"""Abuse of paths: hostile trees and targets (P04, P05)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mainspring.errors import Corrupt, InvalidInput, MainspringError, NotFound, TooLarge
from mainspring.records.objects import ObjectRef
from mainspring.storage import materialise
from mainspring.storage.materialise import SafeFolder
from mainspring.storage.objects import Objects, open_objects, trees


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return open_objects("local", home=tmp_path / "home")


@pytest.fixture
def hostile(objects: Objects) -> Callable[..., str]:
    """Stores a manifest as a hostile remote would: raw bytes, past our own checks. Returns its digest."""

    def store(*paths: str, size: int = 2, digest: str = "", text: str = "") -> str:
        with objects.writing() as w:
            ref = w.put(b"hi")
            entry = f'{{"digest":"{digest or ref.digest}","size":{size}}}'
            body = (
                text.replace("ENTRY", entry)
                or "{" + ",".join(f"{json.dumps(p, ensure_ascii=False)}:{entry}" for p in sorted(paths)) + "}"
            )
            return w.put(body.encode()).digest

    return store


BAD_PATHS = [
    "../up", "a/../../up", "..", ".", "", "/etc/passwd", "a//b", "a/./b", "a\\b", "C:/x", "a%2e%2e", "a;b", "a?b", "a#b", "nul\x00byte", "new\nline",
    "x" * 256, "trailing.", "trailing ", " leading", "a/ b", "e\u0301.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_p05_bad_path_refuses_the_whole_tree(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path, path: str
) -> None:
    """Seen red with ``check_path`` removed from ``check_tree``: the good file was written."""
    target = tmp_path / "out"
    with pytest.raises(InvalidInput):
        objects.materialise(hostile("0-good.txt", path), target)
    assert not target.exists()
    with pytest.raises(InvalidInput), objects.writing() as w:
        w.tree({"good.txt": w.put(b"hi"), path: w.put(b"hi")})


@pytest.mark.parametrize(
    "pair",
    [
        ("readme", "README"),
        ("stra\u00dfe", "strasse"),
        ("\ufb01le", "file"),
        ("a", "a/b"),
        ("A", "a/b"),
        ("a/b/c/d", "a/b"),
    ],
)
def test_p05_colliding_paths_refuse_the_whole_tree(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path, pair: tuple[str, str]
) -> None:
    """Seen red with the folding, and with the file-versus-directory loop, removed from ``check_tree``."""
    target = tmp_path / "out"
    with pytest.raises(InvalidInput):
        objects.materialise(hostile("0-good.txt", *pair), target)
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    ['{"a":ENTRY,"a":ENTRY}', '{"b":ENTRY,"a":ENTRY}', '{ "a":ENTRY}', '{"a":{"digest":"x","size":1}}', '{"a":{"size":1}}', "[]", "{", "", '{"a":ENTRY}x', "[" * 100_000],
)  # fmt: skip
def test_p05_duplicates_and_malformed_manifests(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path, text: str
) -> None:
    """A repeated path decodes silently to the last one. Seen red with the canonical form not compared."""
    target = tmp_path / "out"
    with pytest.raises(InvalidInput):
        objects.materialise(hostile(text=text or " "), target)
    assert not target.exists()


def test_p05_sizes_and_digests_that_do_not_match(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path
) -> None:
    """Seen red with the size comparison removed from ``Objects.materialise``."""
    target = tmp_path / "out"
    for size, error in [(3, Corrupt), (-1, InvalidInput), (1 << 60, InvalidInput)]:
        with pytest.raises(error):
            objects.materialise(hostile("a", "b", size=size), target)
        assert not target.exists()
    with pytest.raises(NotFound):
        objects.materialise(hostile("a", "b", digest="0" * 64), target)
    assert not target.exists()


def test_p05_a_million_entries(objects: Objects, hostile: Callable[..., str], tmp_path: Path) -> None:
    """Refused by counting, before decoding. Seen red with the limit removed."""
    entry = '{"digest":"' + "0" * 64 + '","size":1}'
    text = "{" + ",".join(f'"{i:07d}":{entry}' for i in range(1_000_000)) + "}"
    with pytest.raises(TooLarge):
        objects.materialise(hostile(text=text), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TooLarge):
        trees.check_tree(
            {f"{i:07d}": ObjectRef(digest="0" * 64, size=1) for i in range(trees.MAX_ENTRIES + 1)}
        )


PROTECTED_PATHS = [".git/hooks/post-checkout", "deep/.git/config", ".GIT/config", ".hg/hgrc", "x/.svn/a", ".mainspring/meta.db", ".g\u200cit/config", "git~1/config"]  # fmt: skip


@pytest.mark.parametrize("path", PROTECTED_PATHS)
def test_p04_protected_names_at_any_depth(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path, path: str
) -> None:
    """Seen red with ``check_not_protected`` emptied."""
    target = tmp_path / "out"
    with pytest.raises(InvalidInput):
        objects.materialise(hostile("0-good.txt", path), target)
    assert not target.exists()
    target.mkdir()
    with SafeFolder(target) as folder, pytest.raises(InvalidInput):
        folder.write(path, [b"x"])
    assert list(target.rglob("*")) == []


@pytest.mark.parametrize(
    "target", [".git", ".git/hooks", "sub/.Git/hooks", ".mainspring", ".mainspring/objects"]
)
def test_p04_target_inside_metadata(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path, target: str
) -> None:
    """Also through a harmless-looking link. Seen red with ``check_target`` only resolving."""
    place = tmp_path / target
    place.mkdir(parents=True)
    (tmp_path / "innocent").symlink_to(place)
    digest = hostile("a.txt")
    for way in (place, place / "new", tmp_path / "innocent", tmp_path / "innocent/new"):
        with pytest.raises(InvalidInput):
            objects.materialise(digest, way)
    assert list(place.iterdir()) == []
    objects.materialise(digest, place / "new", internal=True)  # the product's own directories


@pytest.mark.parametrize("use_openat2", [True, False], ids=["openat2", "walk"])
@pytest.mark.parametrize("where", ["a", "a/b", "a/b/c", "a/b/c/file.txt"])
def test_p04_a_link_in_the_way(tmp_path: Path, where: str, use_openat2: bool) -> None:
    """Absolute, relative and dangling links at each depth. Seen red with ``O_NOFOLLOW`` (walk) and ``_RESOLVE`` (openat2) zeroed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text("theirs")
    for number, link in enumerate(
        [str(outside), "../" * (where.count("/") + 1) + "outside", str(tmp_path / "nowhere")]
    ):
        target = tmp_path / f"target{number}"
        place = target / where
        place.parent.mkdir(parents=True)
        place.symlink_to(link)
        before = sorted(p for p in tmp_path.rglob("*"))
        with SafeFolder(target, use_openat2=use_openat2) as folder, pytest.raises(InvalidInput):
            folder.write("a/b/c/file.txt", [b"ours"])
        assert (outside / "file.txt").read_text() == "theirs"
        assert sorted(outside.iterdir()) == [outside / "file.txt"]
        assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.kernel
def test_p04_openat2_is_really_used_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    used: list[str] = []
    real = materialise._openat2

    def spy(folder: int, path: str) -> int:
        fd = real(folder, path)
        used.append(path)
        return fd

    monkeypatch.setattr(materialise, "_openat2", spy)
    with SafeFolder(tmp_path) as folder:
        folder.write("a/x", [b"1"])
    if not used:
        pytest.skip("this kernel or sandbox has no openat2; the walk is tested above")
    assert used == ["a"]


def test_p04_a_link_planted_while_we_write(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path
) -> None:
    """The directory is exchanged for a link after the first file: the second must not follow it outside."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    with SafeFolder(target) as folder:
        folder.write("a/one", [b"1"])
        (target / "a").rename(target / "moved")
        (target / "a").symlink_to(outside)
        folder.write("a/two", [b"2"])  # lands in the directory that was opened, wherever it is called now
        with pytest.raises(InvalidInput):
            folder.write("a/deeper/three", [b"3"])
    assert list(outside.iterdir()) == []


def test_p04_nothing_arrives_executable(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path
) -> None:
    """Seen red with mode 0o777. An executable file in the way is replaced by a plain one."""
    target = tmp_path / "out"
    (target / "bin").mkdir(parents=True)
    (target / "bin/run.sh").write_text("old")
    (target / "bin/run.sh").chmod(0o755)
    previous = os.umask(0)
    try:
        digest = hostile("bin/run.sh", "b")
        objects.materialise(digest, target)
        objects.materialise(digest, tmp_path / "fresh")
    finally:
        os.umask(previous)
    for place in (target / "bin/run.sh", tmp_path / "fresh/bin/run.sh"):
        assert place.read_text() == "hi"
        assert stat.S_IMODE(place.stat().st_mode) == 0o644


def test_p04_directories_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with SafeFolder(tmp_path) as folder:
        for path in ("taken", "pipe", "pipe/x"):
            with pytest.raises(InvalidInput):
                folder.write(path, [b"x"])


def test_a_failed_materialise_leaves_no_target(
    objects: Objects, hostile: Callable[..., str], tmp_path: Path
) -> None:
    """Bytes that turn out to be damaged half way: a new target does not appear, not even in part."""
    digest = hostile("a", "b")
    (pack,) = [p for p in (tmp_path / "home/objects/packs").iterdir() if b"hi" in p.read_bytes()[:20]]
    data = bytearray(pack.read_bytes())
    data[8] ^= 1
    pack.write_bytes(data)
    with pytest.raises(MainspringError):
        objects.materialise(digest, tmp_path / "place/out")
    assert list((tmp_path / "place").iterdir()) == []
