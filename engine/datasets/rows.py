"""Read the rows of JSONL, JSON, CSV and Parquet files one at a time.

A row that cannot be read is yielded with its problem, and the rest of the file is kept. Values are
not interpreted here: engine/datasets/cells.py reads cells.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from engine.api.errors import InvalidInputError, Violation

MAX_LINE = 64 << 20  # characters; longer lines are invalid and never held whole
MAX_DOCUMENT = 512 << 20  # characters of a file that is one JSON value
MAX_TORN_LINES = 200  # of a table's last cell that is cut off
PARQUET_ROWS = 256  # held at a time
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DELIMITERS = (",", ";", "\t", "|")
_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that the encoding does not have
csv.field_size_limit(MAX_LINE)


@dataclass(frozen=True)
class SourceRow:
    """A line of a JSONL file, an element of a JSON file, or a row of a table.

    number: from 1; a table's header is not counted. record: None if `problem` says why there is
    none. torn: the problem is with the end of the file, as a writer leaves it that was stopped.
    position: share of the file that was read so far, in [0, 1].
    """

    file: str
    number: int
    record: dict[str, Any] | None
    problem: str
    position: float
    torn: bool = False


@dataclass(frozen=True)
class TextFormat:
    """How text files are written, if not as detected. delimiter: of a CSV file."""

    encoding: str = ""
    delimiter: str = ""


def known_suffix(name: str) -> bool:
    """Return True if a file of this name can be read: Parquet, or text, compressed or not."""
    stem = Path(name)
    packed = stem.suffix in PACKED
    suffix = stem.with_suffix("").suffix if packed else stem.suffix
    return suffix in SUFFIXES and not (packed and suffix == ".parquet")


def check_file(name: str) -> Violation | None:
    """Return what is wrong with reading a file of this name; None if nothing is."""
    if not known_suffix(name):
        expected = f"{', '.join(SUFFIXES)}, text also with {', '.join(PACKED)}"
        return Violation(name, f"has an unknown format; expected {expected}.")
    if name.endswith(".parquet") and not find_spec("pyarrow"):
        return Violation(".parquet", "needs pyarrow; pip install '.[replay]'.")
    return None


def read_rows(
    file: Path, columns: Collection[str] | None = None, text: TextFormat | None = None
) -> Iterator[SourceRow]:
    """Yield every row of `file` in order.

    columns: the top-level columns to read of a Parquet file; None means all.

    Raises:
        InvalidInputError: the file itself cannot be read.
    """
    if problem := check_file(file.name):
        raise InvalidInputError(problem)
    number = 0
    try:
        if file.suffix == ".parquet":
            rows = _parquet(file, columns)
        else:
            rows = _text_rows(file, text or TextFormat())
        for row in _mark_torn(rows):
            number = row.number
            yield row
    except InvalidInputError as error:
        violations = (Violation(f"{file}, {v.field}", v.description) for v in error.violations)
        raise InvalidInputError(*violations) from None
    except (OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError) as error:
        # Not str() of a UnicodeError: it would quote the text.
        reason = type(error).__name__ if isinstance(error, UnicodeError) else error
        raise InvalidInputError(
            Violation(str(file), f"cannot be read after row {number} ({reason}).")
        ) from error


def undecoded(text: str, encoding: str = "UTF-8") -> str:
    """Say which byte of `text` the file's encoding does not have; "" if there is none."""
    if not (found := _UNDECODED.search(text)):
        return ""
    byte = ord(found[0]) - 0xDC00
    return (
        f"is not {encoding or 'UTF-8'} (byte 0x{byte:02x} at character {found.start() + 1}); if the"
        " file is in another encoding, name it: --encoding cp1252"
    )


def _mark_torn(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """Mark a problem with the last row of a file as torn."""
    last: SourceRow | None = None
    for row in rows:
        if last is not None:
            yield last
        last = row
    if last is not None:
        yield replace(last, torn=True) if last.problem else last


# --- text ------------------------------------------------------------------------------------


class _Unpacked(io.RawIOBase):
    """The content of a compressed file. If the file is cut off, what there is of it; `cut` then
    says so."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self.cut = ""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = cast(Any, self._packed).read1(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            self.cut = f"the file is cut off or damaged here ({error})"
            return 0
        except OSError as error:  # bz2 says "Invalid data stream", gzip "CRC check failed"
            if error.errno is not None:
                raise
            self.cut = f"the file is cut off or damaged here ({error})"
            return 0
        buffer[: len(data)] = data
        return len(data)


def _text_rows(file: Path, form: TextFormat) -> Iterator[SourceRow]:
    size = max(1, file.stat().st_size)
    name, number = str(file), 0
    with file.open("rb") as raw:
        unpacked = None
        binary: BinaryIO = raw
        stem = file
        if file.suffix in PACKED:
            unpacked = _Unpacked(cast(Any, PACKED[file.suffix])(raw))
            binary = cast(BinaryIO, io.BufferedReader(unpacked, 1 << 16))
            stem = file.with_suffix("")
        start = binary.peek(4)[:4] if isinstance(binary, io.BufferedReader) else b""
        encoding = _encoding(start, form.encoding)
        wide = encoding.startswith(("utf-16", "utf-32"))
        is_table = stem.suffix in (".csv", ".tsv")
        text = io.TextIOWrapper(
            binary,
            encoding,
            errors="replace" if wide else "surrogateescape",
            newline="" if is_table else "\n",
        )
        delimiter = form.delimiter or ("\t" if stem.suffix == ".tsv" else "")
        rows = _csv(text, delimiter) if is_table else _json(text)
        for number, record, problem in rows:
            yield SourceRow(name, number, record, problem, min(1.0, raw.tell() / size))
        if unpacked is not None and unpacked.cut:
            if number == 0:
                raise EOFError(unpacked.cut)
            yield SourceRow(name, number + 1, None, unpacked.cut, 1.0)


def _encoding(start: bytes, wanted: str) -> str:
    """Return the encoding to read with: the wanted one, else by the byte order mark, else UTF-8.

    Raises InvalidInputError if Python does not know the wanted one.
    """
    if wanted:
        try:
            return codecs.lookup(wanted).name
        except (LookupError, ValueError):
            raise InvalidInputError(
                Violation("--encoding", f"is {wanted!r}; expected one such as utf-8 or cp1252.")
            ) from None
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if start.startswith(mark):
            return encoding
    if len(start) >= 2 and (start[0] == 0) != (start[1] == 0):  # no text begins with NUL
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    return "utf-8"


Parsed = tuple[int, dict[str, Any] | None, str]  # (number, record, problem)


def _json(text: io.TextIOWrapper) -> Iterator[Parsed]:
    """Read JSON lines, or a file that is one JSON value or several over many lines."""
    number, first = 0, True
    while line := text.readline(MAX_LINE):
        number += 1
        whole = len(line) < MAX_LINE or line.endswith("\n")
        if first and line.strip():
            first = False
            stripped = line.lstrip("\ufeff \t\r\n")
            if stripped.startswith("[") or (stripped.startswith("{") and _continues(line)):
                yield from _documents(line + text.read(MAX_DOCUMENT))
                return
        while len(line) == MAX_LINE and not line.endswith("\n"):
            line = text.readline(MAX_LINE)
        if not whole:
            yield number, None, f"is longer than {MAX_LINE} characters"
        elif line.strip():
            for record, problem in _parse(line):
                yield number, record, problem


def _continues(line: str) -> bool:
    """Return True if a line is the beginning of a JSON value that is written over several lines:
    it ends after a bracket or a comma."""
    return line.rstrip()[-1:] in ("{", "[", ",") and line.endswith("\n")


def _parse(line: str) -> list[tuple[dict[str, Any] | None, str]]:
    try:
        value = json.loads(line.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        return [(None, f"not valid JSON ({type(error).__name__})")]
    return _records(value)


# What a page of an API has in addition to its list of records.
_PAGE_KEYS = {
    "meta",
    "object",
    "has_more",
    "pagination",
    "page",
    "next",
    "cursor",
    "total",
    "error",
}
_LIST_KEYS = ("data", "rows", "items", "results", "traces", "observations", "logs", "requests")


def _records(value: Any) -> list[tuple[dict[str, Any] | None, str]]:
    """Return (record, problem) of a JSON value: one, or those of an API's page of records."""
    if not isinstance(value, dict):
        return [(None, f"is a JSON {type(value).__name__}, expected an object")]
    for key in _LIST_KEYS:
        listed = value.get(key)
        if not isinstance(listed, list) or set(value) - _PAGE_KEYS - {key}:
            continue
        if all(isinstance(record, dict) for record in listed):
            return [(record, "") for record in listed]
    return [(value, "")]


def _documents(text: str) -> Iterator[Parsed]:
    """Read the values of a file one after the other, and those of a list one by one.

    Raises InvalidInputError if the file is too large to be held.
    """
    if len(text) > MAX_DOCUMENT:
        raise InvalidInputError(
            Violation("row 1", f"is a JSON value of over {MAX_DOCUMENT} characters; write JSONL.")
        )
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,\[\]\ufeff]*")
    at, number = space.match(text).end(), 0  # type: ignore[union-attr]
    while at < len(text):
        number += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield number, None, f"not valid JSON ({type(error).__name__})"
            return
        for record, problem in _records(value):
            yield number, record, problem
        at = space.match(text, at).end()  # type: ignore[union-attr]


def _csv(text: io.TextIOWrapper, delimiter: str) -> Iterator[Parsed]:
    """Read a table with a header; every cell is text, an empty one "".

    Raises InvalidInputError if a column is named twice.
    """
    head = text.readline(MAX_LINE)
    if excel := re.fullmatch("sep=(.)[\r\n]+", head, re.IGNORECASE):
        delimiter, head = delimiter or excel[1], text.readline(MAX_LINE)
    delimiter = delimiter or max(DELIMITERS, key=lambda d: len(_header(head, d)))
    names = _header(head, delimiter)
    if twice := sorted({n for n in names if n and names.count(n) > 1}):
        raise InvalidInputError(Violation("header", f"names columns twice: {', '.join(twice)}."))
    cells = csv.reader(text, delimiter=delimiter, strict=True)
    number = 0
    while True:
        before = cells.line_num
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            lines = cells.line_num - before
            if lines > MAX_TORN_LINES:  # no writer that was stopped, but a quote too many
                problem = (
                    f"opens a quote that is not closed, so {lines} lines are not rows; fix it."
                )
                raise InvalidInputError(Violation(f"row {number}", problem)) from None
            yield number, None, f"is not valid CSV ({error}): a quote is not closed or not doubled"
            continue
        if not any(row):
            continue
        number += 1
        if len(row) < len(names):
            yield number, None, f"has {len(row)} of {len(names)} cells"
        elif any(row[len(names) :]):
            problem = f"has {len(row)} cells, the header {len(names)}; quote cells with separators"
            yield number, None, problem
        else:
            yield number, dict(zip(names, row, strict=False)), ""


def _header(line: str, delimiter: str) -> list[str]:
    try:
        names = next(csv.reader([line.lstrip("\ufeff")], delimiter=delimiter), [])
    except csv.Error:
        return []
    return [name.strip() for name in names]


# --- Parquet ---------------------------------------------------------------------------------


def _parquet(file: Path, columns: Collection[str] | None) -> Iterator[SourceRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file) as table:
            total = max(1, table.metadata.num_rows)
            kept = [n for n in table.schema_arrow.names if columns is None or n in columns]
            for batch in table.iter_batches(PARQUET_ROWS, columns=kept, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield SourceRow(str(file), number, record, "", number / total)
    except (ArrowException, ValueError) as error:
        raise EOFError(f"{type(error).__name__}: {error}") from error
