"""Files that are arguments of a step: found, compared by content, remembered by their status.

An argument is a file argument if it is text (or a :class:`pathlib.Path`) that names an existing file or folder inside the
project, or by its absolute path a regular file anywhere; a pattern of ``glob`` stands for the files that it matches. Its content is hashed once; the status of the file (inode, size,
times) says whether that must be done again. Times are coarser than writes, so a status is believed only if it is older than
the hashing by :data:`RACY_NS`, as Git's index does with entries that are as young as itself ("racy clean").
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import msgspec

from mainspring.records.base import new_id, to_json

IGNORED = frozenset({".mainspring", ".git", ".venv", "__pycache__"})
"""Folders that are never input: ours, Git's, the environment's, compiled code."""

MAX_FILES = 100_000
MAX_REMEMBERED = 200_000
RACY_NS = 2_000_000_000
"""File systems stamp times in steps of up to two seconds (FAT); a file changed within one shows no later time."""

_PIECE = 1 << 20
_MAX_TEXT = 4096

_Status = tuple[int, int, int, int, int]
_Entry = tuple[int, int, int, int, int, int, str]


@dataclass
class Fingerprint:
    """What a file argument holds. ``digest`` is never equal to another one if ``problem`` says that it cannot be compared."""

    path: str
    digest: str
    problem: str = ""


@dataclass
class StatIndex:
    """Digests of files by status, kept in one file from run to run; a lost or broken index only costs time."""

    file: Path
    entries: dict[str, _Entry] = field(default_factory=dict)
    _loaded: bool = False
    _changed: bool = False

    def digest(self, path: Path) -> str:
        """BLAKE3 of the file's bytes. Raises :class:`OSError` for what cannot be read."""
        self._load()
        name = str(path)
        before = _status(path)
        known = self.entries.get(name)
        if known is not None and known[:5] == before and _settled(known):
            return known[6]
        for _ in range(3):
            began = time.time_ns()
            digest = _hash(path)
            after = _status(path)
            if after == before:
                self.entries[name] = (*after, began, digest)
                self._changed = True
                return digest
            before = after
        msg = "it is being written"
        raise OSError(msg)

    def save(self) -> None:
        """Keep what was learnt; a full disk or a foreign owner is no reason to fail a run."""
        if not self._changed:
            return
        self._changed = False
        while len(self.entries) > MAX_REMEMBERED:
            self.entries.pop(next(iter(self.entries)))
        part = self.file.with_name(f"{self.file.name}.{os.getpid()}.part")
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.write_bytes(msgspec.json.encode(self.entries))
            part.chmod(0o600)
            part.replace(self.file)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            found = msgspec.json.decode(self.file.read_bytes(), type=dict[str, _Entry])
            self.entries = {**found, **self.entries}


def _status(path: Path) -> _Status:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(entry: _Entry) -> bool:
    """Whether the file was old enough when it was hashed that a later change must show in its times."""
    return max(entry[3], entry[4]) < entry[5] - RACY_NS


def _hash(path: Path) -> str:
    hasher = blake3.blake3()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


class Files:
    """The file arguments of one project."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - lexical: a link in the project is part of it
        self._resolved = root.resolve()
        self.index = StatIndex(home / "pipelines" / "files.json")

    def named(self, value: Any) -> dict[str, Path]:
        """The file arguments in plain data (text in lists and dicts, keys too), by the name they are shown with."""
        found: dict[str, Path] = {}
        for text in _texts(value):
            place = self.place(text)
            if place is not None:
                found[self.show(place)] = place
            elif _is_pattern(text):
                found |= self._matching(text)
        return found

    def named_in_code(self, texts: Iterable[str]) -> dict[str, Path]:
        """Files of the project that text in the code names. A folder only by a name with a slash: ``"data"`` is a word first."""
        found: dict[str, Path] = {}
        for text in texts:
            if os.path.isabs(text):  # noqa: PTH117 - text, not a path
                continue
            place = self.place(text)
            if place is not None and (place.is_file() or "/" in text.strip("./")):
                found[self.show(place)] = place
            elif place is None and _is_pattern(text) and "/" in text:
                found |= self._matching(text)
        return found

    def _matching(self, pattern: str) -> dict[str, Path]:
        """The files of the project that a pattern of ``glob`` matches; one more or less is a change, too."""
        found: dict[tuple[int, int], Path] = {}  # a file that links lead to several times is one
        names = glob.iglob(pattern, root_dir=self.root, recursive=True)  # noqa: PTH207 - as the step will call it
        for name in sorted(itertools.islice(names, MAX_FILES), key=lambda n: (len(n), n)):
            place = self.place(name)
            if place is not None and place.is_file() and self.inside(place) is not None:
                status = place.stat()
                found.setdefault((status.st_dev, status.st_ino), place)
        return {self.show(place): place for place in found.values()}

    def place(self, text: str) -> Path | None:
        """The existing file or folder that ``text`` names, if it counts as an input."""
        if not text or len(text) > _MAX_TEXT or "\0" in text or "\n" in text:
            return None
        text = os.path.expanduser(text)  # noqa: PTH111 - text, not a path; an unknown user stays as it is
        path = Path(os.path.normpath(self.root / text))
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            return None
        inside = self.inside(path)
        if inside is None:
            return path if os.path.isabs(text) and stat.S_ISREG(mode) else None  # noqa: PTH117 - text, not a path
        if IGNORED & set(inside.parts):
            return None
        return path if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None

    def show(self, path: Path) -> str:
        inside = self.inside(path)
        return str(path) if inside is None else inside.as_posix()

    def fingerprint(self, path: Path) -> Fingerprint:
        """The content of a file, or of everything below a folder: names, bytes, what links lead to."""
        shown = self.show(path)
        try:
            if not path.is_dir():
                return Fingerprint(shown, self.index.digest(path))
            hasher = blake3.blake3()
            for count, (name, what) in enumerate(self._below(path), 1):
                if count > MAX_FILES:
                    return Fingerprint(shown, new_id(), f"holds more than {MAX_FILES:,} files")
                hasher.update(to_json([name, what]) + b"\n")
            return Fingerprint(shown, hasher.hexdigest())
        except FileNotFoundError:
            return Fingerprint(shown, "gone")
        except OSError as error:
            return Fingerprint(shown, new_id(), f"cannot be read: {error.strerror or error}")

    def below(self, path: Path) -> Iterator[tuple[str, Path]]:
        """The plain files that a file argument inside the project stands for, by their names in the project."""
        if not path.is_dir():
            yield self.show(path), path
            return
        seen: set[tuple[int, int]] = set()
        for folder, folders, names in os.walk(path, followlinks=True):
            here = os.stat(folder)  # noqa: PTH116 - it is text already
            if (here.st_dev, here.st_ino) in seen:
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            folders[:] = sorted(n for n in folders if n not in IGNORED)
            for name in sorted(names):
                file = Path(folder, name)
                if file.is_file():
                    yield self.show(file), file

    def _below(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Files below a folder by relative name, in a fixed order. Linked folders are entered once each."""
        seen: set[tuple[int, int]] = set()
        waiting = [(folder, "")]
        while waiting:
            here, prefix = waiting.pop()
            found = here.stat()
            if (found.st_dev, found.st_ino) in seen:
                yield prefix, "seen before"
                continue
            seen.add((found.st_dev, found.st_ino))
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda e: e.name)
            for entry in listed:
                if entry.name in IGNORED:
                    continue
                name = (prefix + entry.name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                if entry.is_dir():
                    waiting.append((Path(entry.path), prefix + entry.name + "/"))
                elif entry.is_file():
                    yield name, self.index.digest(Path(entry.path))
                elif entry.is_symlink():
                    yield name, f"broken link to {os.fsencode(Path(entry.path).readlink()).hex()}"
                else:
                    yield name, "not a plain file"

    def inside(self, path: Path) -> Path | None:
        """The path relative to the project, by its name or by where it leads."""
        if path.is_relative_to(self.root):
            return path.relative_to(self.root)
        with contextlib.suppress(OSError, RuntimeError):
            resolved = path.resolve()
            if resolved.is_relative_to(self._resolved):
                return resolved.relative_to(self._resolved)
        return None


def _is_pattern(text: str) -> bool:
    """Whether text is a pattern of file names: the marks of one, and a slash or an ending. A lone ``*`` is a word."""
    return (
        len(text) <= _MAX_TEXT and "\n" not in text and glob.has_magic(text) and bool({"/", "."} & set(text))
    )


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            waiting += one.keys()
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
