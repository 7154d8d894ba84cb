"""What errors say to the other side, and what the client makes of broken answers."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from mainspring.errors import InvalidInput, MainspringError, StorageFull, Unavailable
from mainspring.remote import RemoteWorkspace
from mainspring.server.routes import error_response


def test_l01_errors_do_not_tell_where_things_lie_on_the_server() -> None:
    """L01. Seen red with error.to_dict() sent as it is."""
    full = StorageFull("no space left for metadata", place="/srv/secret/meta.db", value="/srv/secret/x")
    told = json.loads(bytes(error_response(full).body))["error"]
    assert "secret" not in json.dumps(told)
    assert told["place"] == "meta.db"
    theirs = json.loads(bytes(error_response(InvalidInput("no", value="/theirs")).body))["error"]
    assert theirs["value"] == "/theirs", "what the caller sent is told back"


@pytest.fixture
def speaking() -> Iterator[Callable[[bytes], str]]:
    """A server that says these bytes to everybody and hangs up."""
    listeners: list[socket.socket] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_o13_a_proxy_that_speaks_for_a_dead_server_means_unavailable(
    speaking: Callable[[bytes], str],
) -> None:
    """O13. Seen red with every unexplained status a plain error: it was not tried again."""
    url = speaking(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
    with RemoteWorkspace(url, token="t") as remote, pytest.raises(Unavailable, match="502"):
        remote.loop.get_clock()


def test_o13_an_answer_that_is_not_ours_is_an_error_of_ours(speaking: Callable[[bytes], str]) -> None:
    """O13: 200 with HTML. Seen red with msgspec's own error let through."""
    url = speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
    with RemoteWorkspace(url, token="t") as remote, pytest.raises(MainspringError, match="cannot be read"):
        remote.loop.get_clock()


def test_o13_a_download_that_breaks_off_is_an_error_of_ours(speaking: Callable[[bytes], str]) -> None:
    """O13: truncated. Seen red with the transport's own error let through."""
    url = speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\nConnection: close\r\n\r\nabc")
    with RemoteWorkspace(url, token="t") as remote:
        download = remote.objects.get(digest="0" * 64)
        with pytest.raises(Unavailable, match="broke off"):
            b"".join(download.chunks)


@pytest.fixture
def deaf() -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes a request and hangs up without a word; and the requests that came."""
    listener = socket.create_server(("127.0.0.1", 0))
    came: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                came.append(connection.recv(65536))

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", came
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def _keys(requests: list[bytes]) -> list[bytes]:
    lines = [line.partition(b": ") for r in requests for line in r.partition(b"\r\n\r\n")[0].splitlines()]
    return [value for name, _, value in lines if name.lower() == b"idempotency-key"]


def test_c05_a_change_is_sent_again_with_its_key(deaf: tuple[str, list[bytes]]) -> None:
    """C05: nobody can tell whether the first one was done. Seen red with a new key for each attempt: it would be done twice."""
    url, came = deaf
    with RemoteWorkspace(url, token="t") as remote, pytest.raises(Unavailable):
        remote.loop.request_retrain(deployment="d", reason="r")
    keys = _keys(came)
    assert len(keys) == len(came) == 4
    assert len(set(keys)) == 1
    assert keys[0]


def test_an_upload_is_sent_once(deaf: tuple[str, list[bytes]]) -> None:
    """Its body is spent after the first attempt. Seen red with uploads tried again: the second one was empty."""
    url, came = deaf
    with RemoteWorkspace(url, token="t") as remote, pytest.raises(Unavailable):
        remote.objects.put(body=iter([b"some", b"bytes"]))
    assert len(came) == 1
