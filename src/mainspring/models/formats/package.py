"""Reading a package: the manifest first, then every payload byte against it, before anything is parsed."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from mainspring.durable import sync_folder
from mainspring.errors import Corrupt, InvalidInput, NotFound, TooLarge, UnsafeFormat
from mainspring.models.formats.table import model_format
from mainspring.models.formats.trust import DEFAULT
from mainspring.records.base import to_json
from mainspring.records.models import Package, PackageFile, Signature, Task

MANIFEST = "model.json"
MAX_MANIFEST = 4 << 20

_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def verify(folder: Path) -> Package:
    """Check a package on disk: its manifest, no file missing or extra, every size and BLAKE3 digest. Parses no payload.

    Raises Corrupt, InvalidInput, NotFound, TooLarge or UnsafeFormat.
    """
    return read_package(folder)[0]


def read_package(folder: Path) -> tuple[Package, dict[str, bytes]]:
    """The manifest and the verified payload bytes. Each file is read once, so that the bytes that were hashed are those that are used."""
    return check_package(
        _list_files(folder), lambda path, limit: _read_file(folder / path, limit), place=str(folder)
    )


def check_package(
    names: Mapping[str, int],
    read: Callable[[str, int], bytes],
    *,
    place: str,
    max_bytes: int = DEFAULT.max_bytes,
) -> tuple[Package, dict[str, bytes]]:
    """Verify a package, from a directory or a tree object: ``names`` has each file's size in bytes, and ``read(path, limit)`` returns
    its bytes, of which at most ``limit`` are wanted."""
    if MANIFEST not in names:
        raise NotFound(
            "not a model package: it has no model.json",
            place=place,
            next_step="A package is what `save` writes.",
        )
    package = parse_manifest(read(MANIFEST, MAX_MANIFEST), place=f"{place}/{MANIFEST}")
    declared = {file.path: file for file in package.files}
    present = set(names) - {MANIFEST}
    if missing := sorted(set(declared) - present):
        raise Corrupt(
            "a file of the package is missing",
            value=missing[0],
            place=place,
            next_step="Fetch the package again.",
        )
    if extra := sorted(present - set(declared)):
        raise Corrupt(
            "a file that model.json does not know",
            value=extra[0],
            place=place,
            next_step="Fetch the package again.",
        )
    if sum(file.size for file in package.files) > max_bytes:
        raise TooLarge(
            "the package is larger than the loader allows",
            value=sum(f.size for f in package.files),
            place=place,
        )
    return package, {
        path: _check_file(file, names[path], read, place=place) for path, file in declared.items()
    }


def parse_manifest(data: bytes, *, place: str) -> Package:
    """Parse ``model.json``. An unknown field is refused by name, so that a package that asks for trust is not silently taken."""
    try:
        head = msgspec.json.decode(data, type=dict[str, Any])
        entry = model_format(head.get("format"), place=place)
        package = msgspec.json.decode(data, type=Package)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown:
            raise InvalidInput(
                f"model.json has a field that this program does not define: {unknown[1]!r}",
                value=unknown[1],
                place=place,
                next_step="What a loader trusts is its operator's TrustPolicy; a package cannot ask for it.",
            ) from None
        raise InvalidInput(f"model.json is malformed: {error}", place=place) from None
    if package.format_version != 1:
        raise InvalidInput(
            "a package of a newer format version",
            value=package.format_version,
            place=place,
            next_step="Upgrade mainspring.",
        )
    paths = [file.path for file in package.files]
    if not entry.names_files(paths):
        raise UnsafeFormat(
            f"a package of format {entry.name!r} holds exactly {', '.join(map(repr, entry.payloads))}",
            value=paths,
            place=place,
        )
    _check_signature(package.signature, place)
    return package


def _check_signature(signature: Signature, place: str) -> None:
    """Refuse names that answers cannot be written with: one that is there twice would take the place of the other."""
    columns = [c.name for c in signature.inputs]
    named = {"inputs": columns, "classes": signature.classes, "outputs": signature.outputs}
    for what, names in named.items():
        if len(set(names)) != len(names):
            raise InvalidInput(
                f"the {what} of the signature have a name twice", value=names[:20], place=place
            )
    classes, own = len(signature.classes), len(signature.class_values)
    if (
        (signature.task is Task.BINARY and classes not in (0, 2))
        or (signature.task is Task.MULTICLASS and not classes)
        or (signature.task is Task.VALUES and not signature.outputs)
        or own not in (0, classes)
    ):
        raise InvalidInput(
            f"a signature of the task {signature.task.value} has other classes or outputs",
            value=f"{classes} classes, {own} values of classes, {len(signature.outputs)} outputs",
            place=place,
        )


def describe_file(path: str, data: bytes) -> PackageFile:
    """The manifest's entry of a payload file."""
    return PackageFile(
        path=path, size=len(data), blake3=blake3(data).hexdigest(), sha256=hashlib.sha256(data).hexdigest()
    )


def write_package(folder: Path, package: Package, payloads: Mapping[str, bytes]) -> None:
    """Write the payloads first and the manifest last, each synced: what a crash leaves without ``model.json`` is not a package."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in [
        *payloads.items(),
        (MANIFEST, msgspec.json.format(to_json(package), indent=1) + b"\n"),
    ]:
        with (folder / path).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder)


def _check_file(file: PackageFile, size: int, read: Callable[[str, int], bytes], *, place: str) -> bytes:
    if size == file.size:
        data = read(file.path, file.size)
        if len(data) == file.size and blake3(data).hexdigest() == file.blake3:
            return data
    raise Corrupt(
        "the bytes are not what model.json says",
        value=file.path,
        place=place,
        next_step="Do not use this copy; fetch the package again from the registry.",
    )


def _list_files(folder: Path) -> dict[str, int]:
    """Sizes of the regular files in ``folder`` by name. Links, devices and sub-directories are refused."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("no such package directory", value=str(folder)) from None
    names: dict[str, int] = {}
    for entry in entries:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise Corrupt("only regular files belong in a package", value=entry.name, place=str(folder))
        names[entry.name] = status.st_size
    return names


def _read_file(path: Path, limit: int) -> bytes:
    # O_NOFOLLOW: the file may have become a link since it was listed.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Corrupt("a file is larger than declared", value=path.name, place=str(path.parent))
    return data
