"""CSV files as people make them: any separator, encodings of spreadsheets, empty rows, spaces around values.

A file is read if it has one meaning. Otherwise the message says what was seen and what to do.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.base.errors import DataError, nearest
from trainer.base.plural import counted
from trainer.base.spelling import visible

SEPARATORS = (",", ";", "\t", "|")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings that read them."""
GUESSES = ("cp949", "gb18030", "cp932", "cp1252")
"""Encodings of spreadsheets in Korea, China, Japan and the West, for a message."""
SHOWN = 5


@dataclass(frozen=True)
class CsvFile:
    """A file's columns by name. Values have no spaces around them and are in Unicode form NFC."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]
    """The line of each row in the file."""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, column: str) -> list[str]:
        return self.columns[column]

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def place(self, row: int) -> str:
        """`train.csv:2`: the file and line of a row."""
        return f"{self.path.name}:{self.lines[row]}"


def read(path: Path, required: Sequence[str], optional: Sequence[str] = (), raw: Sequence[str] = ()) -> CsvFile:
    """Read a CSV file. Empty rows are left out, and missing values at the end of a row are empty. The values of the
    columns `raw` keep their Unicode form, because they name files.

    Raises DataError if the file is missing, lacks a column of `required`, has one of `required` or `optional` twice, or
    has rows that are longer than the header.
    """
    text, note = _decoded(path)
    lines, separator, first = _without_separator_line(text)
    header_line = next(csv.reader(io.StringIO(lines, newline=None), delimiter=separator or ","), [])
    if not lines.strip():
        raise DataError(f"{path}: not a CSV file: it is empty; it must begin with the columns: {','.join(required)}")
    if not any(field.strip() for field in header_line) and not separator:
        raise DataError(f"{path}:{first}: its first line is empty; it must name the columns: {','.join(required)}")
    separator = separator or _separator(path, lines, required)
    rows = _rows(path, lines, separator, first)
    (at, header), body = rows[0], rows[1:]
    names = _names(path, at, header, required, optional)
    _check_lengths(path, len(header), body)
    body = [(line, row) for line, row in body if any(cell.strip() for cell in row)]
    columns = {
        name: [_cell(row, place, name in raw) for _, row in body]
        for place, name in enumerate(names)
        if name is not None
    }
    return CsvFile(path, columns, [line for line, _ in body], [note] if note else [])


def _cell(row: Sequence[str], place: int, raw: bool) -> str:
    value = row[place] if place < len(row) else ""
    return value.strip() if raw else visible(value)


def _decoded(path: Path) -> tuple[str, str]:
    """The text of a file, and a note if its encoding was recognised by its content. Raises DataError."""
    try:
        if not path.is_file() and path.exists():
            raise DataError(f"{path}: is no regular file")  # reading a pipe would wait without end
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: the file is missing") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    marked = next(((mark, encoding) for mark, encoding in MARKS if content.startswith(mark)), None)
    try:
        if marked:
            return content.decode(marked[1]).removeprefix("\ufeff"), ""
        if b"\0" in content[:2]:  # UTF-16 without a byte order mark: one byte of a letter of the header is 0
            wide = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
            return content.decode(wide), ""
        if b"\0" in content:
            line = content[: content.index(b"\0")].count(b"\n") + 1
            raise DataError(f"{path}:{line}: not a text file: the line has a byte of zero; write the file again")
        return content.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        if marked or b"\0" in content[:2]:
            raise DataError(f"{path}: not a text file in {marked[1] if marked else 'UTF-16'}: {error.reason}") from None
    korean = _korean(content)
    if korean is None:
        raise DataError(_unknown_encoding(path, content))
    return korean, f"{path.name} is not in UTF-8; it was read as CP949 (Korean Windows)"


def _korean(content: bytes) -> str | None:
    """The text if it is CP949: at least nine in ten of its letters beyond ASCII are usual Hangul syllables (those of KS
    X 1001). Chinese and Japanese read as CP949 have others, or are no CP949 at all."""
    try:
        text = content.decode("cp949")
    except UnicodeDecodeError:
        return None
    letters = [c for c in text if not c.isascii() and c.isalpha()]
    hangul = sum("가" <= c <= "힣" and len(c.encode("euc_kr")) == 2 for c in letters)
    return text if letters and hangul >= 0.9 * len(letters) else None


def _unknown_encoding(path: Path, content: bytes) -> str:
    """What the first line that is not ASCII would read in each likely encoding, and how to convert the file."""
    number, line = next((n, line) for n, line in enumerate(content.splitlines(), start=1) if not line.isascii())
    seen = []
    for encoding in GUESSES:
        try:
            seen.append(f"in {encoding.upper()} line {number} is {line.decode(encoding)[:60]!r}")
        except UnicodeDecodeError:
            continue
    kind = f"{'; '.join(seen)}; take the encoding that reads well" if seen else "it may be no text file"
    example = next((guess for guess in GUESSES if any(guess.upper() in said for said in seen)), GUESSES[0]).upper()
    return (
        f"{path}:{number}: not in UTF-8: {kind}, and convert the file: "
        f"iconv -f {example} -t UTF-8 {path.name} > new.csv (in Excel: save as 'CSV UTF-8')"
    )


def _without_separator_line(text: str) -> tuple[str, str | None, int]:
    """The text without Excel's line `sep=;`, its separator, and the number of the next line."""
    start, _, rest = text.partition("\n")
    sign = start.strip().strip('"')
    if sign.lower().startswith("sep=") and len(sign) <= 5:
        return rest, sign[4:] or "\t", 2
    return text, None, 1


def _separator(path: Path, text: str, required: Sequence[str]) -> str:
    """The separator with which the header has all `required` columns. Raises DataError."""
    headers = {}
    for separator in SEPARATORS:
        line = next(csv.reader(io.StringIO(text, newline=None), delimiter=separator), [])
        headers[separator] = [visible(name).lower() for name in line]
    fitting = [s for s, names in headers.items() if all(column.lower() in names for column in required)]
    if fitting:
        return max(fitting, key=lambda separator: len(headers[separator]))
    return max(SEPARATORS, key=lambda separator: len(headers[separator]))


def _rows(path: Path, text: str, separator: str, first: int) -> list[tuple[int, list[str]]]:
    """The rows, each with the number of its first line. Raises DataError."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # a column may hold the whole text of a page
    for strict in (True, False):  # not strict: quotation marks inside fields
        reader = csv.reader(io.StringIO(text, newline=None), delimiter=separator, strict=strict)
        rows: list[tuple[int, list[str]]] = []
        start = first
        try:
            for row in reader:
                rows.append((start, row))
                start = first + reader.line_num
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(f"{path}:{start}: not a CSV file: a quotation mark is not closed") from None
            if strict:
                continue
            raise DataError(f"{path}:{start}: not a CSV file: {error}") from None
        return rows
    raise AssertionError("unreachable")


def _names(
    path: Path, line: int, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> list[str | None]:
    """The name of each column: the known one if only the case of letters differs; None for columns without name.
    Raises DataError if one of `required` is missing, or a known one is there twice."""
    seen = [visible(name) for name in header]
    known = {column.lower(): column for column in (*required, *optional) if column not in seen}
    names = [known.get(name.lower(), name) for name in seen]
    for column in required:
        if column not in names:
            shown = "the line has no known separator" if len(names) == 1 else f"columns: {', '.join(seen)}"
            raise DataError(
                f"{path}:{line}: no column '{column}'; {nearest(column, filter(None, names))} ({shown}); "
                f"the first line must be: {','.join(required)}"
            )
    twice = [name for name, count in Counter(names).items() if name in (*required, *optional) and count > 1]
    if twice:
        raise DataError(f"{path}:{line}: column '{twice[0]}' occurs twice; remove or rename one")
    return [name or None for name in names]


def _check_lengths(path: Path, length: int, rows: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Raises DataError if a row has more values than the header. Empty values at its end do not count."""
    longer = [(line, row) for line, row in rows if any(cell.strip() for cell in row[length:])]
    if not longer:
        return
    lines = [f"{path}:{line}: {len(row)} values, but the header has {length}" for line, row in longer[:SHOWN]]
    if len(longer) > SHOWN:
        lines.append(f"… and {counted(len(longer) - SHOWN, 'more line')}")
    lines.append('write a value that contains a separator in quotation marks: "a, b.jpg"')
    raise DataError("\n".join(lines))
