"""What every model format must do behind :func:`mainspring.models.formats.save` and ``load``.

Subclass in a test module and give the fixtures; pytest collects the rest::

    class TestMine(FormatContract):
        form = "mine"

        @pytest.fixture
        def estimator(self) -> Any: ...       # fitted, binary, classes "fine" and "late"

        @pytest.fixture
        def columns(self) -> dict[str, Any]: ...  # rows it was fitted on: at least one number, one string and one null

        @pytest.fixture
        def expected(self) -> Any: ...        # P("late") of each row, float64, by the estimator itself

A format that is not in the table is put there for a test by :func:`registered`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainspring.errors import Corrupt, InvalidInput, MainspringError, NotFound, UnsafeFormat
from mainspring.models import formats
from mainspring.models.formats import table
from mainspring.models.formats.model_format import ModelFormat

TOLERANCE = 1e-5
"""Absolute, on probabilities."""


@contextmanager
def registered(entry: ModelFormat) -> Iterator[None]:
    """The table with one more entry, the last, in this process and those it forks. For tests only: the product cannot add a format."""
    assert entry.name not in table.names()
    table._ENTRIES[entry.name] = entry
    try:
        yield
    finally:
        del table._ENTRIES[entry.name]


def first_rows(columns: dict[str, Any], count: int) -> dict[str, Any]:
    """The first ``count`` rows as lists of plain Python values."""
    return {
        name: [v.item() if isinstance(v, np.generic) else v for v in list(values)[:count]]
        for name, values in columns.items()
    }


class FormatContract:
    """Needs fixtures ``estimator``, ``columns`` and ``expected`` (see the module); ``form`` names the format."""

    form = ""

    @pytest.fixture
    def package(self, estimator: Any, columns: dict[str, Any], tmp_path: Path) -> Path:
        """A freshly saved package of this format."""
        folder = tmp_path / "package"
        signature = formats.infer_signature(columns, task="binary", classes=["fine", "late"])
        formats.save(estimator, folder, signature=signature, sample=columns, format=self.form)
        return folder

    def payload(self, package: Path) -> Path:
        """The first payload file."""
        return min(p for p in package.iterdir() if p.name != formats.MANIFEST)

    # --- round trip

    def test_the_answers_are_those_of_the_estimator(
        self, package: Path, columns: dict[str, Any], expected: Any
    ) -> None:
        scores = formats.load(package).compute_scores(columns)
        assert scores.dtype == np.float64
        assert scores.shape == (len(expected),)
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)

    def test_the_manifest_describes_the_payload(self, package: Path, columns: dict[str, Any]) -> None:
        manifest = formats.verify(package)
        assert manifest.format == self.form
        sizes = {p.name: p.stat().st_size for p in package.iterdir() if p.name != formats.MANIFEST}
        assert {file.path: file.size for file in manifest.files} == sizes
        assert table.model_format(self.form).names_files(list(sizes))
        assert [c.name for c in manifest.signature.inputs] == list(columns)
        assert manifest.parity is not None
        assert manifest.parity.label_mismatches == 0
        assert formats.load(package).package == manifest

    def test_a_row_scores_the_same_alone_and_in_company(
        self, package: Path, columns: dict[str, Any], expected: Any
    ) -> None:
        loaded = formats.load(package)
        rows = first_rows(columns, 5)
        together = loaded.compute_scores(rows)
        for i in range(5):
            alone = loaded.compute_scores({name: values[i : i + 1] for name, values in rows.items()})
            np.testing.assert_allclose(alone, together[i : i + 1], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(together, expected[:5], atol=TOLERANCE, rtol=0)

    def test_no_rows_give_no_scores(self, package: Path, columns: dict[str, Any]) -> None:
        assert formats.load(package).compute_scores({name: [] for name in columns}).shape == (0,)

    def test_columns_may_come_in_any_order_and_with_others(
        self, package: Path, columns: dict[str, Any]
    ) -> None:
        loaded, rows = formats.load(package), first_rows(columns, 3)
        shuffled = {"stranger": [None] * 3} | {name: rows[name] for name in reversed(rows)}
        np.testing.assert_array_equal(loaded.compute_scores(shuffled), loaded.compute_scores(rows))

    # --- wrong columns

    def test_wrong_columns_are_named(self, package: Path, columns: dict[str, Any]) -> None:
        loaded, rows = formats.load(package), first_rows(columns, 1)
        wrong: list[tuple[str, dict[str, Any]]] = []
        for column in loaded.signature.inputs:
            value: Any = 7 if column.type == "string" else "text"
            wrong.append((column.name, rows | {column.name: [value]}))
            if not column.nullable:
                wrong.append((column.name, {n: v for n, v in rows.items() if n != column.name}))
        assert len(wrong) > len(columns), "the contract needs a column that may not be null"
        for name, bad in wrong:
            with pytest.raises(InvalidInput) as caught:
                loaded.compute_scores(bad)
            assert name in str(caught.value)

    def test_columns_of_different_lengths_are_refused(self, package: Path, columns: dict[str, Any]) -> None:
        rows = first_rows(columns, 2)
        name = next(iter(rows))
        with pytest.raises(InvalidInput, match="different lengths"):
            formats.load(package).compute_scores(rows | {name: rows[name][:1]})

    # --- tampering

    def test_i01_a_changed_byte_anywhere_is_refused(self, package: Path) -> None:
        """I01. Seen red with the digest comparison of ``_check_file`` removed."""
        payload = self.payload(package)
        good = payload.read_bytes()
        for position in (0, len(good) // 3, len(good) - 1):
            payload.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            self._refused(package, Corrupt)
        payload.write_bytes(good)
        formats.load(package)

    @pytest.mark.parametrize("change", ["shorter", "longer", "empty", "missing", "link"])
    def test_a_payload_that_is_not_the_declared_file_is_refused(
        self, package: Path, change: str, tmp_path: Path
    ) -> None:
        payload = self.payload(package)
        data = payload.read_bytes()
        payload.unlink()
        if change == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            payload.symlink_to(tmp_path / "elsewhere")
        elif change != "missing":
            payload.write_bytes({"shorter": data[:-1], "longer": data + b"\0", "empty": b""}[change])
        self._refused(package, Corrupt)

    def test_an_extra_file_is_refused(self, package: Path) -> None:
        (package / "requirements.txt").write_text("something")
        self._refused(package, Corrupt)

    def test_without_a_manifest_it_is_no_package(self, package: Path) -> None:
        (package / formats.MANIFEST).unlink()
        self._refused(package, NotFound)

    def test_x03_bytes_of_another_format_under_a_true_digest_are_refused(self, package: Path) -> None:
        """X03. Whoever rewrites the digests too still cannot pass other bytes off.

        Not seen red: with ``check_payload`` emptied the parsers behind it refuse, and their refusal is translated.
        """
        payload = self.payload(package)
        for data in (
            b"\x80\x04K\x01.",
            b"{}",
            b"PK\x05\x06" + b"\0" * 18,
            payload.read_bytes()[: min(100, payload.stat().st_size // 2)],
        ):
            payload.write_bytes(data)
            self._redescribe(package, payload)
            self._refused(package, UnsafeFormat, verify=False)

    def test_x02_the_manifest_cannot_ask_for_more(self, package: Path) -> None:
        """X02. Fields that the record does not have are refused by name. Seen red with unknown fields dropped."""
        path = package / formats.MANIFEST
        manifest = json.loads(path.read_bytes())
        for field in ("trust", "trusted", "code_path", "requirements"):
            path.write_text(json.dumps(manifest | {field: ["os.system"]}))
            with pytest.raises(InvalidInput, match=field):
                formats.load(package)

    # --- helpers

    @staticmethod
    def _refused(package: Path, error: type[MainspringError], *, verify: bool = True) -> None:
        openers: list[Callable[[Path], Any]] = [formats.load, *([formats.verify] if verify else [])]
        for open_package in openers:
            with pytest.raises(error):
                open_package(package)

    @staticmethod
    def _redescribe(package: Path, payload: Path) -> None:
        from mainspring.models.formats.package import describe_file
        from mainspring.records.base import to_json

        path = package / formats.MANIFEST
        manifest = json.loads(path.read_bytes())
        described = json.loads(to_json(describe_file(payload.name, payload.read_bytes())))
        manifest["files"] = [described if f["path"] == payload.name else f for f in manifest["files"]]
        path.write_text(json.dumps(manifest))
