"""Files that are arguments of a step: recognised in text, compared by content, their digests kept by file status.

An argument is a file argument if it is text (or a :class:`pathlib.Path`) that names an existing file or folder inside the
project, or by its absolute path a regular file anywhere; a pattern of ``glob`` means the files that it matches. The content is hashed once;
the status of the file (inode, size, times) says whether that must be done again. File times are coarser than the time between two
writes, so a status is trusted only if the file was last changed at least :data:`RACY_NS` before it was hashed. Git's index has the
same rule for entries as young as itself ("racy clean").
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
"""Folders that are never input: Mainspring's, Git's, the virtual environment, compiled code."""

MAX_FILES = 100_000
MAX_REMEMBERED = 200_000
RACY_NS = 2_000_000_000
"""Two seconds: the coarsest time stamp of a file system (FAT). A second change within that time shows no later stamp."""

_PIECE = 1 << 20
_MAX_TEXT = 4096

_Status = tuple[int, int, int, int, int]
_Entry = tuple[int, int, int, int, int, int, str]


@dataclass
class Fingerprint:
    """The content of a file argument. If it cannot be compared, ``problem`` says why and ``digest`` is a value that never repeats."""

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
        before = _status(path)  # taken before and after hashing: equal if nobody wrote meanwhile
        known = self.entries.get(name)
        if known is not None and known[:5] == before and _is_settled(known):
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
        """Write the index if it changed. A full disk or a file of another user does not fail the run."""
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
            saved = msgspec.json.decode(self.file.read_bytes(), type=dict[str, _Entry])
            self.entries = {**saved, **self.entries}


def _status(path: Path) -> _Status:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(entry: _Entry) -> bool:
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

    def find_named(self, value: Any) -> dict[str, Path]:
        """The files that text in plain data names (in lists and dicts, keys too), by their display names."""
        matches: dict[str, Path] = {}
        for text in _list_texts(value):
            place = self.resolve_text(text)
            if place is not None:
                matches[self.display_name(place)] = place
            elif _is_pattern(text):
                matches |= self._match_pattern(text)
        return matches

    def find_named_in_code(self, texts: Iterable[str]) -> dict[str, Path]:
        """Files of the project that text constants name. A folder counts only if the text has a slash: ``"data"`` is usually a plain word."""
        matches: dict[str, Path] = {}
        for text in texts:
            if os.path.isabs(text):  # noqa: PTH117 - text, not a path
                continue
            place = self.resolve_text(text)
            if place is not None and (place.is_file() or "/" in text.strip("./")):
                matches[self.display_name(place)] = place
            elif place is None and _is_pattern(text) and "/" in text:
                matches |= self._match_pattern(text)
        return matches

    def _match_pattern(self, pattern: str) -> dict[str, Path]:
        """The files of the project that a pattern of ``glob`` matches; an added or removed file is a change, too."""
        by_inode: dict[tuple[int, int], Path] = {}  # a file reached through several links counts once
        names = glob.iglob(pattern, root_dir=self.root, recursive=True)  # noqa: PTH207 - as the step will call it
        for name in sorted(itertools.islice(names, MAX_FILES), key=lambda n: (len(n), n)):
            place = self.resolve_text(name)
            if place is not None and place.is_file() and self.relative_to_project(place) is not None:
                status = place.stat()
                by_inode.setdefault((status.st_dev, status.st_ino), place)
        return {self.display_name(place): place for place in by_inode.values()}

    def resolve_text(self, text: str) -> Path | None:
        """The existing file or folder that ``text`` names, if it counts as an input."""
        if not text or len(text) > _MAX_TEXT or "\0" in text or "\n" in text:
            return None
        text = os.path.expanduser(text)  # noqa: PTH111 - text, not a path; an unknown user stays as it is
        path = Path(os.path.normpath(self.root / text))
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            return None
        inside = self.relative_to_project(path)
        if inside is None:
            return path if os.path.isabs(text) and stat.S_ISREG(mode) else None  # noqa: PTH117 - text, not a path
        if IGNORED & set(inside.parts):
            return None
        return path if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else None

    def display_name(self, path: Path) -> str:
        """The path relative to the project if it is inside, else the absolute path."""
        inside = self.relative_to_project(path)
        return str(path) if inside is None else inside.as_posix()

    def fingerprint(self, path: Path) -> Fingerprint:
        """The fingerprint of a file, or of everything below a folder: names, bytes, targets of links."""
        shown = self.display_name(path)
        try:
            if not path.is_dir():
                return Fingerprint(shown, self.index.digest(path))
            hasher = blake3.blake3()
            for count, (name, what) in enumerate(self._list_content(path), 1):
                if count > MAX_FILES:
                    return Fingerprint(shown, new_id(), f"holds more than {MAX_FILES:,} files")
                hasher.update(to_json([name, what]) + b"\n")
            return Fingerprint(shown, hasher.hexdigest())
        except FileNotFoundError:
            return Fingerprint(shown, "gone")
        except OSError as error:
            return Fingerprint(shown, new_id(), f"cannot be read: {error.strerror or error}")

    def list_plain_files(self, path: Path) -> Iterator[tuple[str, Path]]:
        """The plain files of a file argument inside the project, by their names in the project: itself, or all below a folder."""
        if not path.is_dir():
            yield self.display_name(path), path
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
                    yield self.display_name(file), file

    def _list_content(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Files below a folder by relative name, in a fixed order. Linked folders are entered once each."""
        seen: set[tuple[int, int]] = set()
        waiting = [(folder, "")]
        while waiting:
            here, prefix = waiting.pop()
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                yield prefix, "seen before"  # a link in a circle
                continue
            seen.add((status.st_dev, status.st_ino))
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

    def relative_to_project(self, path: Path) -> Path | None:
        """The path relative to the project, by its name or by the target of its links; None if it is outside."""
        if path.is_relative_to(self.root):
            return path.relative_to(self.root)
        with contextlib.suppress(OSError, RuntimeError):
            resolved = path.resolve()
            if resolved.is_relative_to(self._resolved):
                return resolved.relative_to(self._resolved)
        return None


def _is_pattern(text: str) -> bool:
    """Whether text is a pattern of file names: wildcards, and a slash or a dot. A lone ``*`` is a plain word."""
    return (
        len(text) <= _MAX_TEXT and "\n" not in text and glob.has_magic(text) and bool({"/", "."} & set(text))
    )


def _list_texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
