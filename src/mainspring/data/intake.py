"""Uploads: an uploaded Parquet file becomes our Parquet with its digest; a framed stream becomes the files of a tree.

Uploads are staged in the workspace's private home, and the staged files are removed when the block ends, also after an error.
Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mainspring.data.tables import (
    BATCH_ROWS,
    READING_KEY,
    ContentDigest,
    TableWriter,
    check_names,
    checked_batches,
    columns_of,
    is_ours,
    open_parquet,
    plain_batches,
    plain_schema,
)
from mainspring.errors import InvalidInput, StorageFull, TooLarge
from mainspring.records.base import from_json
from mainspring.records.data import TableColumn
from mainspring.records.reading import ReadReport
from mainspring.streams import BodyStream

MAX_READING = 8 << 20
MAX_TABLE = 64 << 30
"""Bytes of one uploaded Parquet file."""
_STALE_S = 2 * 86400


@dataclass(frozen=True)
class StagedTable:
    """A table on disk, in our layout, with the facts that a version records."""

    path: Path
    digest: str
    rows: int
    columns: list[TableColumn]
    schema: pa.Schema
    reading: ReadReport | None = None


@contextlib.contextmanager
def open_staging(home: Path) -> Iterator[Path]:
    """A private directory for this block only."""
    root = home / "tmp"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in root.glob("data-*"):  # a killed process cannot remove its own
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_S:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="data-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def receive_table(body: Iterable[bytes], folder: Path, *, place: str) -> StagedTable:
    """Write an uploaded Parquet to ``folder``, read all of it once, and bring it into our layout if it is not.

    Raises :class:`InvalidInput` if it is no Parquet, or its columns cannot be kept.
    """
    raw = folder / "upload.parquet"
    _spool(body, raw)
    with open_parquet(raw, place=place) as file:
        schema = plain_schema(file.schema_arrow, place=place)
        check_names(schema, place=place)
        reading = _read_report(file, place)
        keep = is_ours(file, schema)
        digest = ContentDigest(schema)
        target = folder / "table.parquet"
        writer = None if keep else TableWriter(target, schema)
        try:
            plain = plain_batches(file.iter_batches(batch_size=BATCH_ROWS), schema, place=place)
            for batch in checked_batches(plain, place=place):
                digest.update(batch)
                if writer is not None:
                    writer.write(batch)
        finally:
            if writer is not None:
                writer.close()
    path = raw if keep else target
    return StagedTable(
        path=path,
        digest=digest.hexdigest(),
        rows=digest.rows,
        columns=columns_of(schema),
        schema=schema,
        reading=reading,
    )


def _read_report(file: pq.ParquetFile, place: str) -> ReadReport | None:
    """The client's report of how the table was read, from the file's metadata. It is stored and shown, and decides nothing."""
    encoded = (file.metadata.metadata or {}).get(READING_KEY)
    if encoded is None:
        return None
    if len(encoded) > MAX_READING:
        raise TooLarge("the report of how the table was read is too large", value=len(encoded), place=place)
    report: ReadReport = from_json(encoded, ReadReport)
    return report


def _spool(body: Iterable[bytes], target: Path) -> None:
    seen = 0
    try:
        with target.open("xb") as file:
            for piece in body:
                seen += len(piece)
                if seen > MAX_TABLE:
                    raise TooLarge(
                        "the table is too large for one upload",
                        value=f"more than {MAX_TABLE} bytes",
                        next_step="Split it.",
                    )
                file.write(piece)
    except OSError as error:
        raise StorageFull(
            f"the upload could not be staged: {error.strerror}",
            place=str(target.parent),
            next_step="Free space, then try again.",
        ) from error
    if not seen:
        raise InvalidInput("the upload is empty", place="body", next_step="Send the bytes of a Parquet file.")


# --- many files in one stream ----------------------------------------------------------------------------------------
# A frame is the length of the path (uint32), the size of the file (uint64), both little-endian, the path in UTF-8 and the
# bytes of the file. A frame with an empty path ends the stream, so that an interrupted stream is not taken for a complete one.

_HEAD = struct.Struct("<IQ")
MAX_PATH = 4096
MAX_FILES = 1_000_000
_PIECE = 1 << 20


def frame_files(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """The stream of these files, in pieces of about a megabyte. A file that changes size meanwhile is refused."""
    pending = bytearray()
    for name, path in files:
        encoded = name.encode()
        with path.open("rb") as file:
            size = path.stat().st_size
            pending += _HEAD.pack(len(encoded), size) + encoded
            seen = 0
            while piece := file.read(_PIECE):
                seen += len(piece)
                if seen > size:
                    break
                pending += piece
                if len(pending) >= _PIECE:
                    yield bytes(pending)
                    pending.clear()
            if seen != size:
                raise InvalidInput(
                    "the file changed while it was read",
                    value=name,
                    place=str(path),
                    next_step="Commit again when nothing writes to it.",
                )
    pending += _HEAD.pack(0, 0)
    yield bytes(pending)


class FramedFiles:
    """Reads a stream of frames: iterate for ``(path, size, file)``; each file must be read before the next."""

    def __init__(self, body: Iterable[bytes], *, limit: int) -> None:
        self._stream = io.BufferedReader(BodyStream(body, limit=limit), _PIECE)

    def __iter__(self) -> Iterator[tuple[str, int, io.BufferedReader]]:
        for _ in range(MAX_FILES):
            length, size = _HEAD.unpack(self._read_exactly(_HEAD.size))
            if length == 0:
                return
            if length > MAX_PATH:
                raise InvalidInput("a path is too long", value=length, place="body")
            try:
                path = self._read_exactly(length).decode()
            except UnicodeDecodeError:
                raise InvalidInput("a path is not UTF-8", place="body") from None
            part = _FilePart(self._stream, size)
            yield path, size, io.BufferedReader(part, _PIECE)
            if part.left:
                raise InvalidInput(
                    "the upload broke off", value=path, place="body", next_step="Send it again."
                )
        raise TooLarge("too many files in one commit", value=f"more than {MAX_FILES}", place="body")

    def _read_exactly(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:
            raise InvalidInput("the upload broke off", place="body", next_step="Send it again.")
        return data


class _FilePart(io.RawIOBase):
    """The next ``size`` bytes of a stream, as a file of their own."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__()
        self._stream = stream
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._stream.read(min(len(target), self.left))
        target[: len(data)] = data
        self.left -= len(data)
        return len(data)
