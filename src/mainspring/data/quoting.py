"""Checks that the quotes of a file are where cells begin and end. Where they are not, a CSV reader joins cells and rows silently.

A quote that is not closed puts all lines after it into one cell. Text after a closing quote becomes part of the cell, and the
quotes are dropped. Quotes inside a cell that does not begin with one are text. Imports numpy; import it lazily.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CONTEXT = 64
_SHOWN = 60


@dataclass(frozen=True)
class MisplacedQuote:
    """The first quote that is out of place."""

    line: int
    """From 1, where the data begins."""
    what: str
    shown: str


class Quotes:
    """Checks the quotes of a file block by block. Only a block with a quote out of place is scanned quote by quote."""

    def __init__(self, delimiter: str, quote: str) -> None:
        self._quote = quote.encode()
        self._ends = delimiter.encode() + b"\r\n"
        edge = np.zeros(256, dtype=bool)
        edge[list(self._ends + self._quote)] = True
        self._edge = edge
        self._before, self._held, self._inside = b"\n", b"", False
        self._line = 1
        self._opened = MisplacedQuote(1, "", "")
        self.first: MisplacedQuote | None = None

    def add(self, block: bytes) -> None:
        """The next bytes of the file."""
        data = self._held + block
        kept = data.rstrip(
            self._quote
        )  # the byte after a quote decides whether it closes the cell, so quotes at the end wait for the next block
        self._held = data[len(kept) :]
        if kept:
            self._scan_block(kept)

    def end(self) -> MisplacedQuote | None:
        """The first quote out of place, or None."""
        if self._held:
            self._scan_block(self._held)
            self._held = b""
        if self._inside and self.first is None:
            self.first = self._opened
        return self.first

    def _scan_block(self, data: bytes) -> None:
        if self.first is not None:
            return
        bytes_ = np.frombuffer(data, np.uint8)
        at = np.flatnonzero(bytes_ == self._quote[0])
        if len(at):
            if self._all_in_place(bytes_, at):
                self._inside ^= bool(len(at) % 2)
                if self._inside:
                    self._remember_opening(data, int(at[-1]))
            else:
                self._scan_quotes(data, at.tolist())
        self._line += data.count(b"\n")
        self._before = (self._before + data)[-_CONTEXT:]

    def _all_in_place(self, data: np.ndarray, at: np.ndarray) -> bool:
        """Whether each opening quote follows the end of a cell, and an end of a cell follows each closing one; a doubled quote closes and opens."""
        opens, closes = at[int(self._inside) :: 2], at[int(not self._inside) :: 2]
        before = np.where(opens > 0, data[opens - 1], self._before[-1])
        after = data[np.minimum(closes + 1, len(data) - 1)]
        fine = self._edge[after] | (closes == len(data) - 1)
        return bool(self._edge[before].all() and fine.all())

    def _scan_quotes(self, data: bytes, at: list[int]) -> None:
        number = 0
        while number < len(at) and self.first is None:
            place = at[number]
            number += 1
            after = data[place + 1 : place + 2]
            if self._inside:
                if after == self._quote:
                    number += 1
                    continue
                self._inside = False
                if after and after not in self._ends:
                    self._report_quote(data, place, "there is text after the closing quote of a cell")
            else:
                led = (self._before + data[max(0, place - _CONTEXT) : place])[-_CONTEXT:]
                if led[-1:] in self._ends:
                    self._inside = True
                    self._remember_opening(data, place)
                elif led.rstrip(b" ")[-1:] in self._ends:
                    self._report_quote(data, place, "there is a space before the opening quote of a cell")

    def _remember_opening(self, data: bytes, place: int) -> None:
        self._opened = self._describe_quote(
            data, place, "a quote is not closed: everything after it would be one cell"
        )

    def _report_quote(self, data: bytes, place: int, what: str) -> None:
        self.first = self._describe_quote(data, place, what)

    def _describe_quote(self, data: bytes, place: int, what: str) -> MisplacedQuote:
        start = max(data.rfind(b"\n", 0, place) + 1, place - _SHOWN // 2)
        shown = data[start : place + _SHOWN // 2].splitlines()[0].decode("utf-8", "replace")
        return MisplacedQuote(self._line + data.count(b"\n", 0, place), what, shown)
