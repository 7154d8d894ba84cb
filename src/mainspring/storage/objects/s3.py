"""Bytes in an S3-compatible store, through obstore. One blob is one PUT, create-only (``If-None-Match: *``)."""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.errors import ConfigError, Conflict, NotFound, PermissionDenied, Unauthenticated, Unavailable
from mainspring.storage.failpoints import failpoint

if TYPE_CHECKING:
    from obstore.store import S3Store


class S3Bytes:
    """``s3://bucket/prefix``. ``options`` are obstore's S3 settings (``endpoint``, ``region``, keys ...), and two of ours:
    ``allow_http`` and ``path_style``, ``true`` or ``false``. Without ``allow_http`` an endpoint must be ``https://``.
    """

    name = "s3"

    def __init__(self, url: str, *, options: Mapping[str, str] | None = None) -> None:
        from obstore.store import S3Store

        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError("not an object store", value=url, next_step="Write s3://bucket/prefix.")
        settings: dict[str, Any] = dict(options or {})
        plain = settings.pop("allow_http", "false") == "true"
        if not plain and str(settings.get("endpoint", "")).startswith("http://"):
            raise ConfigError(
                "objects would be sent unencrypted",
                value=settings["endpoint"],
                place=url,
                next_step="Use https://, or allow http.",
            )
        settings["virtual_hosted_style_request"] = settings.pop("path_style", "true") != "true"
        self._place = f"s3://{parts.netloc}{parts.path}"
        self._store: S3Store = S3Store(
            parts.netloc,
            prefix=parts.path.strip("/") or None,
            client_options={"allow_http": plain, "timeout": "120s", "connect_timeout": "10s"},
            retry_config={"max_retries": 5},
            **settings,
        )

    def put(self, key: str, data: bytes) -> None:
        import obstore

        failpoint("objects.put.temp")
        with self._translate_errors(key):
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        failpoint("objects.put.done")

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        import obstore

        with self._translate_errors(key):
            if length is None and offset == 0:
                return bytes(obstore.get(self._store, key).bytes())
            end = self.size(key) if length is None else offset + length
            if end <= offset:
                return b""
            try:
                return bytes(obstore.get_range(self._store, key, start=offset, end=end))
            except FileNotFoundError:
                raise
            except Exception:  # a range beyond the end: return what exists, as a local file does
                size = self.size(key)
                if size >= end:
                    raise
                return (
                    b""
                    if size <= offset
                    else bytes(obstore.get_range(self._store, key, start=offset, end=size))
                )

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        import obstore

        with self._translate_errors(prefix):
            for batch in obstore.list(self._store, prefix.rstrip("/")):
                for meta in batch:
                    yield str(meta["path"]), int(meta["size"])

    def delete(self, keys: Sequence[str]) -> None:
        import obstore

        if keys:
            with self._translate_errors(keys[0]), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, list(keys))

    def size(self, key: str) -> int:
        import obstore

        with self._translate_errors(key):
            return obstore.head(self._store, key)["size"]

    @contextlib.contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        from obstore import exceptions

        place = f"{self._place}/{key}"
        try:
            yield
        except FileNotFoundError:
            raise NotFound("there are no such bytes", value=key, place=self._place) from None
        except exceptions.AlreadyExistsError:
            raise Conflict("these bytes exist already", value=key, place=self._place) from None
        except exceptions.UnauthenticatedError:
            raise Unauthenticated(
                "the object store rejects the credentials", place=place, next_step="Check the access key."
            ) from None
        except exceptions.PermissionDeniedError:
            raise PermissionDenied(
                "the object store denies access", place=place, next_step="Check the bucket's policy."
            ) from None
        except exceptions.BaseError as error:
            raise Unavailable(
                f"the object store failed: {str(error).splitlines()[0][:200]}",
                place=place,
                next_step="Try again.",
            ) from error
