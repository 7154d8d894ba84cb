"""The inputs of a job on the machine that executes it: fetched by digest, from the object store here or from a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import blake3

from mainspring.errors import Corrupt, InvalidInput
from mainspring.pipelines.job import input_key
from mainspring.records.objects import ObjectRef
from mainspring.records.pipelines import Artifact, StepJob
from mainspring.storage.materialise import SafeFolder
from mainspring.storage.objects.trees import load_tree
from mainspring.streams import read_pieces

if TYPE_CHECKING:
    from mainspring.lineage.uploads import Uploads
    from mainspring.storage.objects import Objects


class Source(Protocol):
    """Where bytes come from, by digest; they are verified as they are read. Raises :class:`Corrupt` or :class:`NotFound`."""

    def chunks(self, digest: str) -> Iterable[bytes]:
        """The bytes of an object."""
        ...

    def write_tree(self, digest: str, target: Path) -> None:
        """Write the files of a tree below ``target``, which does not exist yet."""
        ...


class Target(Protocol):
    """Where bytes are put: an object writer here, or a server."""

    def put(self, source: Path, /, *, table: bool = False) -> ObjectRef: ...

    def tree(self, entries: dict[str, ObjectRef], /) -> ObjectRef: ...


class StoredObjects:
    """The object store of this machine."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def chunks(self, digest: str) -> Iterable[bytes]:
        return self._objects.chunks(digest)

    def write_tree(self, digest: str, target: Path) -> None:
        self._objects.materialise(digest, target, internal=True)


class ServedObjects:
    """Objects of a server. The bytes that arrive are checked against their digest."""

    def __init__(self, room: Uploads) -> None:
        self._room = room

    def chunks(self, digest: str) -> Iterable[bytes]:
        hasher = blake3.blake3()
        for piece in self._room.get(digest=digest).chunks:
            hasher.update(piece)
            yield piece
        if hasher.hexdigest() != digest:
            raise Corrupt(
                "the server sent other bytes than their digest says",
                value=digest,
                next_step="Run 'mainspring fsck' where the server runs.",
            )

    def write_tree(self, digest: str, target: Path) -> None:
        entries = load_tree(b"".join(self.chunks(digest)), place=f"tree {digest}")
        target.mkdir(parents=True)
        with SafeFolder(target, fresh=True) as folder:
            for path, ref in entries.items():
                folder.write(path, self.chunks(ref.digest))


class SentObjects:
    """Puts files on a server, as an object writer does here. ``retry`` makes a call, and repeats it while the server does not answer."""

    def __init__(self, room: Uploads, *, retry: Callable[[Callable[[], ObjectRef]], ObjectRef]) -> None:
        self._room = room
        self._retry = retry

    def put(self, source: Path, /, *, table: bool = False) -> ObjectRef:  # noqa: ARG002 - the server chunks every object in its own way
        return self._retry(lambda: self._room.put(body=read_pieces(source)))

    def tree(self, entries: dict[str, ObjectRef], /) -> ObjectRef:
        return self._retry(lambda: self._room.create_tree(files=entries))


def put_path(target: Target, path: Path) -> ObjectRef:
    """A file as its bytes; a directory as a tree of all files below it. Symbolic links are refused: they point elsewhere."""
    if not path.is_dir():
        return target.put(path)
    entries: dict[str, ObjectRef] = {}
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise InvalidInput(
                "a directory with symbolic links cannot be an artifact",
                value=str(file),
                next_step="Copy what they point to.",
            )
        if file.is_file():
            entries[file.relative_to(path).as_posix()] = target.put(file)
    return target.tree(entries)


def fetch_inputs(job: StepJob, source: Source, *, scratch: Path, shared: Path) -> dict[str, str]:
    """Bring every input of ``job`` to this machine; returns the path of each, by :func:`input_key`.

    Files that the step sees as paths are copied into ``scratch``, so that it may change its copy. Other inputs are read only, and are in
    ``shared`` once for all steps.
    """
    paths: dict[str, str] = {}
    for artifact in (o for s in job.sources.values() for o in s.outputs):
        key = input_key(artifact)
        if key not in paths:
            paths[key] = str(_fetch_artifact(artifact, source, scratch / "in" / key, shared / key))
    return paths


def _fetch_artifact(artifact: Artifact, source: Source, own: Path, common: Path) -> Path:
    target = own if artifact.kind in {"file", "tree"} else common
    target.parent.mkdir(parents=True, exist_ok=True)
    if artifact.kind == "tree":
        source.write_tree(artifact.digest, target)
    elif not target.exists():
        part = target.with_name(f"{target.name}.part")
        with part.open("wb") as file:
            for chunk in source.chunks(artifact.digest):
                file.write(chunk)
        part.replace(target)
    return target
