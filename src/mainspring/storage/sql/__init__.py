"""One implementation over SQLite and PostgreSQL: plain SQL, bound parameters, no ORM (docs/design/sql.md)."""

from mainspring.storage.sql.opening import open_store
from mainspring.storage.sql.store import Reader, Row, Store, Writer

__all__ = ["Reader", "Row", "Store", "Writer", "open_store"]
