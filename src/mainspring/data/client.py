"""The data client: commits frames, files and directories, and returns tables. It only calls operations, local or remote."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from mainspring.data.operations import Data
from mainspring.errors import InvalidInput, NotFound
from mainspring.operations import delegating
from mainspring.records.base import Selector, to_json
from mainspring.records.data import CheckRule, DatasetVersion
from mainspring.records.reading import Reading, ReadReport
from mainspring.streams import read_pieces

if TYPE_CHECKING:
    import pyarrow as pa

    from mainspring.lineage.uploads import Uploads

_PIECE = 1 << 20
_IN_MEMORY = 256 << 20


if TYPE_CHECKING:
    _Operations = Data
else:
    _Operations = delegating(Data)
"""All operations of the room are the client's too: ``get_version``, ``diff``, ``get_profile``, ..."""


class DataClient(_Operations):
    """Datasets of one project, and the methods that take or return what JSON cannot carry: frames, paths, directories."""

    def __init__(self, ops: Data, objects: Uploads | None = None) -> None:
        self.operations = ops
        self._objects = objects

    # --- in ----------------------------------------------------------------------------------------------------------

    def find_profile(self, rows: Any, version: str | None) -> str | None:
        """The digest of the profile of ``rows`` (a table of any library, an array or a mapping of columns), which is stored; without rows
        that of the dataset version with this id. None if there is neither, or the version holds no table."""
        if rows is not None and self._objects is not None:
            from mainspring.data.profile import ProfileBuilder
            from mainspring.data.sources import open_source

            if type(rows).__name__ == "ndarray":  # the names that scikit-learn gives its columns
                rows = {f"x{i}": rows[:, i] for i in range(rows.shape[1])}
            builder = ProfileBuilder()
            with open_source(rows, Reading(), place="training rows") as read:
                for batch in read.batches:
                    builder.add(batch)
            return str(self._objects.put(body=[to_json(builder.build())]).digest)
        if version is None:
            return None
        try:
            record = self.operations.get_version_by_id(id=version)
            return str(self.operations.get_profile_object(dataset=record.dataset, selector=record.id).digest)
        except (NotFound, InvalidInput):
            return None

    def commit(
        self,
        dataset: str,
        source: object,
        *,
        message: str | None = None,
        inputs: Iterable[str] = (),
        tags: Iterable[str] = (),
        checks: Sequence[CheckRule] = (),
        kind: Literal["table", "files"] | None = None,
        reading: Reading | Mapping[str, Any] | None = None,
    ) -> DatasetVersion:
        """Make a version of ``dataset`` from a table or from files; equal content returns the version there is.

        ``source``: a pandas, Polars or Arrow table, a DuckDB relation, a list of dicts, a dict of columns, or a path. A CSV or
        Parquet path becomes a table (``kind="files"`` keeps its exact bytes); any other file or a directory becomes files.
        ``inputs`` are references (``run:<id>``, ``dataset_version:<id>``). ``checks`` (tables only) run before anything is
        visible. ``reading`` declares how a CSV or a frame is read (a :class:`~mainspring.records.reading.Reading` or a dict of
        its fields); what it leaves open is decided from the data, and the version's ``reading`` says how. A reading that loses
        values is refused, unless it says ``lossy``. Raises CheckFailed, InvalidInput, NotFound.
        """
        declared = _to_reading(reading)
        common: dict[str, Any] = {
            "dataset": dataset,
            "message": message or "",
            "inputs": list(inputs),
            "tags": list(tags),
        }
        if isinstance(source, str | Path):
            from mainspring.data.sources import is_table_file, require_path

            path = require_path(Path(source))
            as_files = kind == "files" or (kind is None and not is_table_file(path))
            if as_files or path.is_dir():
                if checks:
                    raise InvalidInput(
                        "checks need a table",
                        value=str(path),
                        next_step="Commit a CSV, a Parquet file or a frame.",
                    )
                return self._commit_files(path, common)
        elif kind == "files":
            raise InvalidInput("files come from a path", value=type(source).__name__)
        return self._commit_table(source, list(checks), common, declared)

    def _commit_table(
        self, source: object, checks: list[CheckRule], common: dict[str, Any], reading: Reading
    ) -> DatasetVersion:
        from mainspring.data.sources import open_source
        from mainspring.data.tables import write_batches

        place = str(source) if isinstance(source, str | Path) else f"dataset {common['dataset']!r}"
        report: ReadReport | None = None

        def report_json() -> bytes | None:
            nonlocal report
            report = read.report()
            return to_json(report) if report is not None else None

        with tempfile.TemporaryDirectory(prefix="mainspring-") as folder:
            file = Path(folder) / "table.parquet"
            with open_source(source, reading, place=place) as read:
                write_batches(file, read.schema, read.batches, place=place, reading=report_json)
            version = self.operations.commit_table(body=read_pieces(file), checks=checks or None, **common)
        # For content that was already there the record holds the report of its first reading; the caller needs that of this one.
        return replace(version, reading=report)

    def _commit_files(self, path: Path, common: dict[str, Any]) -> DatasetVersion:
        from mainspring.data.intake import frame_files

        files = [(path.name, path)] if path.is_file() else sorted(_list_plain_files(path))
        if not files:
            raise InvalidInput("the directory holds no file", value=str(path))
        return self.operations.commit_stream(body=frame_files(files), **common)

    # --- out ---------------------------------------------------------------------------------------------------------

    def read(
        self,
        dataset: str,
        selector: Selector = "latest",
        *,
        columns: Sequence[str] | None = None,
        filters: Any = None,
    ) -> pa.Table:
        """A table version, or a part of it: ``columns`` by name, ``filters`` as pyarrow takes them (e.g. ``[("x", ">", 1)]``)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        version = self.get_version(dataset, selector)
        if version.kind != "table":
            raise InvalidInput(
                "this version holds files, not a table",
                value=str(selector),
                place=f"dataset {dataset!r}",
                next_step="Use checkout.",
            )
        if columns is not None:
            from mainspring.errors import near

            known = [c.name for c in version.columns]
            for name in columns:
                if name not in known:
                    raise InvalidInput(
                        "no such column",
                        value=name,
                        place=f"dataset {dataset!r}",
                        next_step=near(name, known, what="column"),
                    )
        wanted: dict[str, Any] = {"columns": None if columns is None else list(columns), "filters": filters}
        download = self.operations.download(dataset=dataset, selector=version.id)
        if version.bytes <= _IN_MEMORY:
            table = pq.read_table(pa.BufferReader(b"".join(download.chunks)), **wanted)
        else:
            with tempfile.NamedTemporaryFile(prefix="mainspring-") as file:
                for chunk in download.chunks:
                    file.write(chunk)
                file.flush()
                table = pq.read_table(file.name, memory_map=False, **wanted)
        return table.replace_schema_metadata(None)

    def checkout(self, dataset: str, selector: Selector, to: str | Path) -> list[Path]:
        """Write the files of a version below ``to``; returns their paths. Links and protected places are refused."""
        from mainspring.storage.materialise import SafeFolder, check_target

        target = check_target(Path(to))
        version = self.get_version(dataset, selector)
        entries = self.list_files(dataset, version.id)
        base = getattr(self.operations, "_base", None)
        if base is not None:  # the objects are local: one pass over the packs instead of a download per file
            base.objects.materialise(version.tree, target)
            return [target / entry.path for entry in entries]
        target.mkdir(parents=True, exist_ok=True)
        with SafeFolder(target) as folder:
            for entry in entries:
                folder.write(
                    entry.path,
                    self.operations.download(dataset=dataset, selector=version.id, path=entry.path).chunks,
                )
        return [target / entry.path for entry in entries]


def _to_reading(reading: Reading | Mapping[str, Any] | None) -> Reading:
    """The declaration as a record; a misspelt field is refused."""
    import msgspec

    if reading is None or isinstance(reading, Reading):
        return reading or Reading()
    try:
        return msgspec.convert(dict(reading), Reading)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"not a declaration of how to read: {error}",
            place="reading",
            next_step=f"Its fields: {', '.join(Reading.__struct_fields__)}.",
        ) from None


def _list_plain_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Plain files below ``root`` by logical path; anything else there is refused by name (SAFETY P03)."""
    from mainspring.records.base import check_path

    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInput(
                "not a plain file",
                value=name,
                place=str(root),
                next_step="Links, sockets and devices are not data; copy what they point to.",
            )
        with contextlib.suppress(OSError):
            if path.is_dir():
                continue
        yield check_path(name), path
