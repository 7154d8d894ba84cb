"""The format of a CSV file: encoding, delimiter, quoting, header. It is decided before any cell is read.

The encoding is decided from every byte, the rest from the first megabyte. Imports pyarrow; import it lazily.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from mainspring.data import dates
from mainspring.data.cells import NULL_WORDS
from mainspring.data.memory import free_name
from mainspring.errors import InvalidInput
from mainspring.records.reading import Reading

DELIMITERS = (",", ";", "\t", "|")
SAMPLE = 1 << 20
_BLOCK = 4 << 20
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_LETTERS = np.array([chr(b).isalpha() and b < 128 for b in range(256)])
_UNUSED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # no characters of Windows-1252
_WESTERN = 0.35
"""Text in a Western language has a smaller share of letters outside ASCII than this; Cyrillic, Greek, Japanese have a larger one."""


@dataclass(frozen=True)
class Shape:
    """The format of a file, as declared or as inferred."""

    encoding: str
    delimiter: str
    quote: str
    header: bool
    names: list[str]
    """One per column, from the file or declared; an unnamed column gets a generated name."""
    skip_bytes: int
    """Bytes of UTF-8 before the first row of data."""
    skip_lines: int
    """Line ends in these bytes."""
    quoted: list[bool]
    """For each column whether all of its text is quoted: there an unquoted null word is null."""
    notes: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    """Why a column has another name than in the file, by its name."""


class Utf8Stream(io.RawIOBase):
    """The bytes of a file as UTF-8 from an offset on, without a byte order mark."""

    def __init__(
        self,
        path: Path,
        encoding: str,
        *,
        skip: int = 0,
        lossy: bool = False,
        watch: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__()
        self._watch = watch
        self._source: Any = pa.input_stream(str(path), compression="detect", buffer_size=_BLOCK)
        errors = "replace" if lossy else "strict"
        plain = encoding in {"utf-8", "utf-8-sig", "ascii"} and not lossy
        self._decoder = None if plain else codecs.getincrementaldecoder(encoding)(errors)
        self._start = True
        self._skip, self._pending, self._done = skip, b"", False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end: Arrow's CSV reader treats a short piece as a complete block."""
        pieces, wanted = [], size if size is not None and size >= 0 else 1 << 62
        while wanted and self.peek():
            piece, self._pending = self._pending[:wanted], self._pending[wanted:]
            pieces.append(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def peek(self) -> bool:
        """Whether anything is left."""
        while not self._pending and not self._done:
            self._read_block()
        return bool(self._pending)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()

    def _read_block(self) -> None:
        raw = self._source.read(_BLOCK)
        self._done = not raw
        if self._decoder is not None:
            raw = self._decoder.decode(raw, final=self._done).encode("utf-8", "replace")
        if self._start and raw:
            raw, self._start = raw.removeprefix(codecs.BOM_UTF8), False
        dropped = min(self._skip, len(raw))
        self._skip -= dropped
        self._pending = raw[dropped:]
        if self._watch is not None and self._pending:
            self._watch(self._pending)


def shape_of(path: Path, reading: Reading) -> Shape:
    """The format of the file. Raises :class:`InvalidInput` where it cannot be decided, with what to declare."""
    encoding, notes = _find_encoding(path, reading)
    sample, whole = _read_sample(path, encoding, lossy=reading.lossy)
    body, before = _split_lines(sample, reading.skip_lines)
    if not body.strip():
        raise _unreadable(path, "the file is empty")
    if reading.delimiter is None and (named := _SEP.match(body)):  # Excel writes and reads such a line
        body, before = body[named.end() :], before + body[: named.end()]
        reading = msgspec.structs.replace(reading, delimiter=named[1])
        notes.append(f"the line {named[0].strip()!r} names the delimiter")
    delimiter = (
        reading.delimiter if reading.delimiter is not None else _guess_delimiter(body, path, reading, whole)
    )
    if len(delimiter.encode()) != 1 or delimiter in "\r\n":
        raise _unreadable(path, "a delimiter is one ASCII character", value=delimiter)
    quote = '"' if reading.quote is None else reading.quote
    if len(quote.encode()) > 1:
        raise _unreadable(path, "a quote is one ASCII character, or empty", value=quote)
    rows = _parse_records(body, delimiter, quote, whole)
    first = rows[0]
    renamed: dict[str, str] = {}
    header = _has_header(path, first, rows[1:], reading)
    names = [cell.strip() for cell in first] if header else []
    if header and rows[1:] and all(len(r) == len(first) + 1 for r in rows[1:]):
        _check_short_header(path, first, rows[1:], reading)
        names = ["", *names]
        notes.append("the header has one name less than the rows have cells: the first column is unnamed")
    if not header:
        names = [f"column_{i + 1}" for i in range(len(first))]
    names = _column_names(names, reading, path, renamed)
    skipped = before + (_first_record(body, delimiter, quote) if header else "")
    quoted = _quoted_columns(body, delimiter, quote, len(names)) if quote else [False] * len(names)
    if len(names) == 1 and reading.delimiter is None and " " in first[0].strip():
        notes.append("there is one column; if spaces separate the fields, declare delimiter = ' '")
    return Shape(
        encoding,
        delimiter,
        quote,
        header,
        names,
        len(skipped.encode()),
        skipped.count("\n"),
        quoted,
        notes,
        renamed,
    )


# --- encoding --------------------------------------------------------------------------------------------------------


def _find_encoding(path: Path, reading: Reading) -> tuple[str, list[str]]:
    if reading.encoding is not None:
        try:
            name = codecs.lookup(reading.encoding).name
        except LookupError:
            raise _unreadable(
                path,
                "no such encoding",
                value=reading.encoding,
                next_step="For example utf-8, cp1252, utf-16.",
            ) from None
        _check_decodes(path, name, lossy=reading.lossy)
        return name, []
    with contextlib.closing(pa.input_stream(str(path), compression="detect")) as stream:
        start = stream.read(4096)
    for mark, name in _BOMS:
        if start.startswith(mark):
            _check_decodes(path, name, lossy=reading.lossy)
            return name, []
    zeros = start.count(0)
    if zeros > len(start) // 4:
        name = "utf-16-le" if start[1::2].count(0) > zeros // 2 else "utf-16-be"
        _check_decodes(path, name, lossy=reading.lossy)
        return name, [f"every other byte is zero: read as {name}"]
    return _guess_eight_bit(path, reading)


def _read_blocks(path: Path) -> Iterator[bytes]:
    with contextlib.closing(pa.input_stream(str(path), compression="detect", buffer_size=_BLOCK)) as stream:
        while block := stream.read(_BLOCK):
            yield block


def _check_decodes(path: Path, name: str, *, lossy: bool) -> None:
    if lossy:
        return
    decoder, at = codecs.getincrementaldecoder(name)(), 0
    try:
        for block in _read_blocks(path):
            decoder.decode(block)
            at += len(block)
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        place = at + getattr(error, "start", 0)
        raise _unreadable(
            path,
            f"byte {place} is not of the encoding {name}",
            next_step="Declare the encoding that it has, or lossy = true to replace what is not.",
        ) from None


def _guess_eight_bit(path: Path, reading: Reading) -> tuple[str, list[str]]:
    """UTF-8 if every byte is valid; else a Western encoding of one byte per character, if the share of letters fits one."""
    broken = _first_not_utf8(path)
    if broken is None:
        return "utf-8", []
    counts, loose, good, bad = (
        np.zeros(256, dtype=np.int64),
        codecs.getincrementaldecoder("utf-8")("replace"),
        0,
        0,
    )
    for block in _read_blocks(path):
        counts += np.bincount(np.frombuffer(block, np.uint8), minlength=256)
        text = loose.decode(block)
        replaced = text.count("\N{REPLACEMENT CHARACTER}")
        bad += replaced
        good += sum(map(len, re.findall(r"[^\x00-\x7f]+", text))) - replaced
    if reading.lossy and good > bad:
        return "utf-8", ["what is not UTF-8 was replaced"]
    high, letters = int(counts[128:].sum()), int(counts[_LETTERS].sum())
    if good > bad or high > _WESTERN * (high + letters):
        why = ", though most of the text is" if good > bad else ", and the text is not of a Western encoding"
        raise _unreadable(
            path,
            f"byte {broken} is not UTF-8{why}",
            next_step="Declare its encoding, e.g. encoding = 'cp1251' or 'shift_jis'; with lossy = true what is not of it is replaced.",
        )
    name = "latin-1" if counts[list(_UNUSED)].any() else "cp1252"
    return name, [f"byte {broken} is not UTF-8: read as {name}"]


def _first_not_utf8(path: Path) -> int | None:
    decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
    for block in _with_end(_read_blocks(path)):
        held = len(decoder.getstate()[0])
        if not held and block.isascii() and block:
            at += len(block)
            continue
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return at - held + error.start
        at += len(block)
    return None


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks, and an empty one at the end."""
    yield from blocks
    yield b""


# --- shape -----------------------------------------------------------------------------------------------------------


def _read_sample(path: Path, encoding: str, *, lossy: bool) -> tuple[str, bool]:
    """The start of the text, and whether it is all of it."""
    with Utf8Stream(path, encoding, lossy=lossy) as stream:
        pieces, size = [], 0
        while size < SAMPLE and (piece := stream.read(SAMPLE)):
            pieces.append(piece)
            size += len(piece)
        whole = not stream.read(1)
    return b"".join(pieces).decode("utf-8", "ignore"), whole


def _split_lines(text: str, count: int) -> tuple[str, str]:
    at = 0
    for _ in range(count):
        line_end = re.compile(r"\r\n|\r|\n").search(text, at)
        at = line_end.end() if line_end else len(text)
    blank = re.match(r"(?:[ \t]*(?:\r\n|\r|\n))*", text[at:])
    at += blank.end() if blank else 0
    return text[at:], text[:at]


def _parse_records(text: str, delimiter: str, quote: str, whole: bool, limit: int = 2000) -> list[list[str]]:
    """The first records without blank lines; the last record of a sample may be cut, and is left out."""
    options: dict[str, Any] = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    records: list[list[str]] = []
    old = csv.field_size_limit(SAMPLE * 2)
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **options):
            if row:
                records.append(row)
            if len(records) > limit:
                return records
    except csv.Error:
        pass
    finally:
        csv.field_size_limit(old)
    return records if whole or len(records) < 2 else records[:-1]


def _guess_delimiter(text: str, path: Path, reading: Reading, whole: bool) -> str:
    """The character that splits every record into the same number of fields, at least two; of several, the one with most fields."""
    quote = '"' if reading.quote is None else reading.quote
    usual = "\t" if ".tsv" in path.name.lower() else ","
    best, best_rank = usual, (0, 0, 0)
    for mark in DELIMITERS:
        rows = _parse_records(text, mark, quote, whole, limit=500)
        widths = [len(r) for r in rows]
        if max(widths) < 2:
            continue
        body = widths[1:] or widths
        even = len(set(body)) == 1 and body[0] - widths[0] in (0, 1)
        rank = (2 if even else 0 if widths[0] < 2 else 1, widths[0] if even else 0, int(mark == usual))
        if rank > best_rank:
            best, best_rank = mark, rank
    return best


def _first_record(text: str, delimiter: str, quote: str) -> str:
    """The text of the first record with its line end: quoted fields may hold line ends."""
    at, inside, fresh = 0, False, True
    while at < len(text):
        char = text[at]
        if inside:
            if char == quote:
                if text[at + 1 : at + 2] == quote:
                    at += 1
                else:
                    inside = False
        elif quote and char == quote and fresh:
            inside = True
        elif char in "\r\n":
            return text[: at + 2] if text[at : at + 2] == "\r\n" else text[: at + 1]
        fresh = char == delimiter
        at += 1
    return text


_SEP = re.compile(r'"?sep=([^\r\n])"?\r?\n', re.IGNORECASE)
_DECLARE_HEADER = "Declare header = false if it is a row, or header = true if they are names."
_NUMERIC = re.compile(r"[-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?")


def _has_header(path: Path, first: list[str], rest: list[list[str]], reading: Reading) -> bool:
    """Whether the first record names the columns. A first record that holds only numbers is refused, not guessed."""
    if reading.header is not None:
        return reading.header
    cells = [c.strip() for c in first]
    named = [c for c in cells if c]
    counted = named == [str(i) for i in range(len(named))]  # pandas writes these for columns without names
    if not rest or not named or (counted and (len(named) > 1 or not cells[0])):
        return True
    if all(_NUMERIC.fullmatch(c) for c in named):
        raise _unreadable(
            path,
            "the first line holds numbers: names of columns, or the first row?",
            value=", ".join(cells[:5]),
            next_step=_DECLARE_HEADER,
        )
    values = _value_like_cells(cells, rest)
    if values:
        raise _unreadable(
            path,
            "the first line holds values like those below it: names of columns, or the first row?",
            value=", ".join(values[:5]),
            next_step=_DECLARE_HEADER,
        )
    return True


def _value_like_cells(first: list[str], rest: list[list[str]]) -> list[str]:
    """The cells of the first record that are numbers or dates like all cells below them, unless they may be names."""
    below = [[r[i].strip() for r in rest if i < len(r)] for i in range(len(first))]
    filled = [[c for c in column if c and c not in NULL_WORDS] for column in below]
    dated, numbers = [], []
    for cell, column in zip(first, filled, strict=True):
        if cell and column and dates.candidates(cell, []) and all(dates.candidates(c, []) for c in column):
            dated.append(cell)
        elif column and _NUMERIC.fullmatch(cell) and all(_NUMERIC.fullmatch(c) for c in column):
            numbers.append(cell)
    return dated + ([] if _may_be_names(numbers) else numbers)


def _may_be_names(cells: list[str]) -> bool:
    """Whether numbers may be names: years, or whole numbers in equal steps."""
    if not all(c.isascii() and c.isdigit() for c in cells):
        return False
    numbers = [int(c) for c in cells]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    years = len(numbers) > 1 and all(1000 <= n < 3000 for n in numbers) and (min(steps) > 0 or max(steps) < 0)
    return years or (len(steps) == 1 and min(steps) > 0 and (len(numbers) > 2 or numbers[0] == 0))


def _check_short_header(path: Path, first: list[str], rest: list[list[str]], reading: Reading) -> None:
    """Refuse a header with one name less than the rows have cells, unless it is the first column that has no name."""
    if reading.columns is None and all(not r[-1].strip() for r in rest):
        raise _unreadable(
            path,
            "each row ends with a delimiter that the header does not have: the first or the last column has no name",
            value=", ".join(first[:5]),
            next_step="Name all of them: columns = ['...', ...], one more than the header has.",
        )
    if reading.header or len(first) > 1:
        return
    below = [[c.strip() for c in column if c.strip()] for column in zip(*rest[1:], strict=True)]
    typed = any(column and all(_NUMERIC.fullmatch(c) for c in column) for column in below)
    if first[0].startswith("#") or (typed and not any(_NUMERIC.fullmatch(c.strip()) for c in rest[0])):
        raise _unreadable(
            path,
            "the first line may be a title above the names of the columns",
            value=first[0][:60],
            next_step="Declare skip_lines = 1 if it is, or header = true if it is the name of a column.",
        )


def _column_names(names: list[str], reading: Reading, path: Path, renamed: dict[str, str]) -> list[str]:
    if reading.columns is not None:
        if len(reading.columns) != len(names):
            raise _unreadable(
                path,
                "as many names are needed as there are columns",
                value=f"{len(reading.columns)} names, {len(names)} columns",
            )
        return list(reading.columns)
    taken = set(names)
    result = []
    for number, name in enumerate(names):
        if not name:
            name = free_name("index" if number == 0 else f"column_{number + 1}", taken)  # noqa: PLW2901
            taken.add(name)
            renamed[name] = "unnamed in the file"
        result.append(name)
    return result


def _quoted_columns(text: str, delimiter: str, quote: str, width: int) -> list[bool]:
    """For each column whether every cell that could be text is quoted, as R writes them."""
    d, q = re.escape(delimiter), re.escape(quote)
    cell = re.compile(rf"({q}(?:[^{q}]|{q}{q})*{q}|[^{d}\r\n]*)({d}|\r\n|\r|\n|\Z)")
    plain, quoted, column, at = (
        [False] * width,
        [False] * width,
        0,
        len(_first_record(text, delimiter, quote)),
    )
    words = {"", *NULL_WORDS}
    while at < len(text):
        match = cell.match(text, at)
        if match is None or (match.end() == at):
            break
        at = match.end()
        if column < width:
            if match[1].startswith(quote):
                quoted[column] = True
            elif match[1] not in words:
                plain[column] = True
        column = column + 1 if match[2] == delimiter else 0
    return [q and not p for q, p in zip(quoted, plain, strict=True)]


def _unreadable(path: Path, message: str, *, value: object = None, next_step: str = "") -> InvalidInput:
    return InvalidInput(
        message, value=path.name if value is None else value, place=str(path), next_step=next_step
    )
