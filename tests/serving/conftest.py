"""Real packages, real bundles, a real server on a real socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3
import pytest

from mainspring.records.base import to_json
from mainspring.records.models import Column, Signature, Task
from mainspring.records.serving import ROUTES_FILE, Deployment, RouteTable, Shadow, Target, with_digest

SIGNATURE = Signature(
    inputs=[Column(name="x0", type="float64"), Column(name="x1", type="float64")],
    task=Task.BINARY,
    classes=["no", "yes"],
    class_type="int64",
    class_values=["0", "1"],
)


class Bundle:
    """A bundle on disk, written the way deploy does: packages first, then the table by rename."""

    def __init__(self, folder: Path, packages: Callable[[float], Path]) -> None:
        self.folder = folder
        self._packages = packages
        self.number = 0
        (folder / "packages").mkdir(parents=True)

    def package(self, answer: float) -> str:
        """The digest of a package that answers ``answer`` to everything."""
        source = self._packages(answer)
        digest = blake3.blake3(repr(answer).encode()).hexdigest()
        target = self.folder / "packages" / digest
        if not target.exists():
            target.mkdir()
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
        return digest

    def target(self, version: int, answer: float, *, weight: float = 1.0, role: str = "champion") -> Target:
        return Target(model="m", version=version, package=self.package(answer), weight=weight, role=role)  # type: ignore[arg-type]

    def shadow(self, version: int, answer: float, *, name: str, on: str = "all") -> Shadow:
        return Shadow(model="m", version=version, package=self.package(answer), name=name, on=on)  # type: ignore[arg-type]

    def route(
        self, *targets: Target, shadows: tuple[Shadow, ...] = (), number: int | None = None
    ) -> RouteTable:
        self.number = number or self.number + 1
        deployment = Deployment(name="d", signature=SIGNATURE, targets=list(targets), shadows=list(shadows))
        table = with_digest(RouteTable(number=self.number, created_us=0, deployments=[deployment]))
        self.write(to_json(table))
        return table

    def write(self, data: bytes) -> None:
        temporary = self.folder / ".routes.tmp"
        temporary.write_bytes(data)
        temporary.replace(self.folder / ROUTES_FILE)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """ONNX packages of constant models, made once per answer."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from mainspring.models import formats

    root = tmp_path_factory.mktemp("packages")

    def make(answer: float) -> Path:
        folder = root / repr(answer)
        if not folder.exists():
            rows = np.array([[0.0, 0.0], [1.0, 1.0]])
            estimator = LogisticRegression().fit(rows, np.array(["no", "yes"]))
            estimator.coef_ = np.zeros((1, 2))
            estimator.intercept_ = np.array([np.log(answer / (1 - answer))])
            formats.save(estimator, folder, signature=SIGNATURE, sample={"x0": [0.0, 1.0], "x1": [0.0, 1.0]})
        return folder

    return make


@pytest.fixture
def bundle(tmp_path: Path, packages: Callable[[float], Path]) -> Bundle:
    return Bundle(tmp_path / "bundle", packages)


class Client:
    """A keep-alive HTTP/1.1 client over one raw socket."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._buffer = b""

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> None:
        lines = {"Host": "127.0.0.1"} | (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} if body is not None else {}
        )
        lines |= headers or {}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        self._socket.sendall(head.encode("latin-1") + (body or b""))

    def raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(first.split(" ")[1]), headers, body

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self.send(method, path, data, headers)
        return self.receive()

    def json(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        return json.loads(self.call(method, path, body, headers)[2])

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer += data


class Server:
    """``python -m mainspring.serving`` as a process."""

    def __init__(self, bundle: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        argv = [
            sys.executable,
            "-m",
            "mainspring.serving",
            "--bundle",
            str(bundle),
            "--port",
            "0",
            "--poll",
            "0.05",
            *arguments,
        ]
        self.errors = bundle.parent / "stderr"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, env=env)
        assert self.process.stdout is not None
        try:
            line = self.process.stdout.readline()
            assert line, self.errors.read_text()
        except BaseException:
            self.process.kill()
            self.process.wait(30)
            self.process.stdout.close()
            raise
        self.ready: dict[str, Any] = json.loads(line)
        self.port: int = self.ready["port"]
        self._clients: list[Client] = []

    def client(self) -> Client:
        client = Client(self.port)
        self._clients.append(client)
        return client

    def stop(self) -> int:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(120)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def begin(bundle: Bundle, *arguments: str, env: dict[str, str] | None = None) -> Server:
        servers.append(Server(bundle.folder, *arguments, env=env))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory, packages: Callable[[float], Path]
) -> Iterator[Server]:
    """A server with short deadlines, one for all tests of a module."""
    bundle = Bundle(tmp_path_factory.mktemp("impatient") / "bundle", packages)
    bundle.route(bundle.target(1, 0.75))
    server = Server(bundle.folder, "--head-deadline", "0.6", "--body-deadline", "1.0")
    yield server
    server.stop()
