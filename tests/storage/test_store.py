"""The SQL contract on both engines, and what only the SQLite file can go through."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.errors import ConfigError, Corrupt, StorageFull
from mainspring.storage.sql import open_store
from mainspring.storage.sql.numbers import decode_float, encode_float
from mainspring.testing.sql import SqlContract, settings


class TestSqlite(SqlContract):
    @pytest.fixture
    def engine_url(self) -> str:
        return "sqlite"


class TestPostgres(SqlContract):
    @pytest.fixture
    def engine_url(self, postgres_url: str) -> str:
        return postgres_url


def test_an_unknown_database_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mysql") as caught:
        open_store("mysql://user:secret@mysql.example/db", home=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "meta.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Corrupt):
        open_store("sqlite", home=tmp_path)


def test_o07_a_full_disk_is_said_and_the_store_goes_on(tmp_path: Path) -> None:
    """O07's twin for metadata. Seen red with the translation of SQLite's 'full' removed."""
    store = open_store("sqlite", home=tmp_path / "h")
    with store.write() as tx:
        pages = tx.scalar("PRAGMA page_count")
        tx.all(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull), store.write() as tx:
        for number in range(2000):
            tx.execute(
                "INSERT INTO settings (project, name, value) VALUES ('p', ?, ?)", str(number), "x" * 500
            )
    assert settings(store) == {}
    with store.write() as tx:
        tx.all("PRAGMA max_page_count = 1000000")
        tx.execute("INSERT INTO settings (project, name, value) VALUES ('p', 'a', '')")
    assert settings(store) == {"a": ""}
    store.close()


@given(st.floats())
def test_floats_survive_bit_for_bit(value: float) -> None:
    back = decode_float(*encode_float(value))
    assert math.copysign(1, back) == math.copysign(1, value)
    assert back == value or (math.isnan(back) and math.isnan(value))
