"""Repeated requests: a client that lost the answer sends the request again under the same id, and it counts once.

The header ``Idempotency-Key`` (a UUIDv7 that the client makes) becomes the prediction id. Answers are kept for a while, bounded in number
and bytes, and sent again without predicting, counting or logging. A worker that replaced another has none of its answers: it predicts
again, and the log then holds one id twice, of which the control plane takes one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import blake3

from mainspring.errors import Conflict, InvalidInput, Unavailable
from mainspring.records.labels import is_issued_id
from mainspring.serving.wire import Reply

HEADER = b"idempotency-key"


@dataclass(slots=True)
class _Entry:
    request: bytes
    """Digest of where the request went and of its body."""
    answer: Reply | None = None


class Repeats:
    """Answers by the id that the client chose; the oldest are dropped first. For one event loop."""

    def __init__(self, *, entries: int = 16_384, max_bytes: int = 16 << 20) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._max_entries, self._max_bytes, self._bytes = entries, max_bytes, 0

    def begin(self, key: bytes, place: str, body: bytes) -> tuple[str, Reply | None]:
        """``(prediction id, the answer if there is one already)``. Without an answer the id is reserved until :meth:`end`.

        Raises :class:`InvalidInput` for a key that is not a UUIDv7, :class:`Conflict` if it was used for another request,
        :class:`Unavailable` while the first request with it is still being answered.
        """
        ident = key.decode("latin-1")
        if not is_issued_id(ident):
            raise InvalidInput(
                "an idempotency key of a prediction is a UUIDv7 in canonical form",
                value=ident[:64],
                place="header Idempotency-Key",
                next_step="Make one per request (RFC 9562), in lower case, or leave the header out.",
            )
        digest = blake3.blake3(place.encode() + b"\0" + body).digest()
        entry = self._entries.get(ident)
        if entry is None:
            self._entries[ident] = _Entry(digest)
            self._drop_oldest()
            return ident, None
        if entry.request != digest:
            raise Conflict(
                "this idempotency key was used for another request",
                value=ident,
                place="header Idempotency-Key",
                next_step="Use a fresh key for each new request; repeat a key only to retry.",
            )
        if entry.answer is None:
            raise Unavailable(
                "the first request with this idempotency key is still being answered",
                value=ident,
                next_step="Try again after a second.",
            )
        return ident, entry.answer

    def end(self, ident: str, answer: Reply | None) -> None:
        """Keep the answer; None releases the id, for a request that was neither counted nor logged."""
        entry = self._entries.get(ident)
        if entry is None:
            return
        if answer is None:
            del self._entries[ident]
            return
        entry.answer = answer
        self._bytes += len(answer.body)
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            if dropped.answer is not None:
                self._bytes -= len(dropped.answer.body)
