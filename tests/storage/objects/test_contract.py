"""The shipped contract suites over both engines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mainspring.storage.objects import ByteStore, LocalBytes, Objects, open_objects
from mainspring.storage.objects.s3 import S3Bytes
from mainspring.testing.objects import ByteStoreContract, ObjectsContract

_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict[str, str]]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "endpoint": f"http://{host}:{port}",
        "region": "us-east-1",
        "allow_http": "true",
        "access_key_id": "test",
        "secret_access_key": "test",
    }
    client: Any = boto3.client(
        "s3",
        endpoint_url=options["endpoint"],
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="objects-test")
    client.close()
    yield options
    server.stop()


class TestLocalBytes(ByteStoreContract):
    @pytest.fixture
    def byte_store(self, tmp_path: Path) -> ByteStore:
        return LocalBytes(tmp_path / "store")


class TestS3Bytes(ByteStoreContract):
    @pytest.fixture
    def byte_store(self, s3_options: dict[str, str]) -> ByteStore:
        return S3Bytes(f"s3://objects-test/bytes-{next(_numbers)}", options=s3_options)


class TestLocalObjects(ObjectsContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Callable[[], Objects]:
        return lambda: open_objects("local", home=tmp_path / "home")


class TestS3Objects(ObjectsContract):
    @pytest.fixture
    def reopen(self, tmp_path: Path, s3_options: dict[str, str]) -> Callable[[], Objects]:
        url = f"s3://objects-test/objects/{next(_numbers)}"
        return lambda: open_objects(url, home=tmp_path / "home", options=s3_options)
