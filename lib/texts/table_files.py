"""Tables of strings from the files that people have: CSV dialects, JSON lines, parquet, in any encoding.

Nothing is taken for missing but what is not there: a cell that reads ``NA`` or ``null`` is that string.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import charset_normalizer
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lib.base.files import cause

OPENERS = {
    "": lambda path: path.open("rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    # The package zstandard reads a file that was cut off without a word; pyarrow raises.
    ".zst": lambda path: pa.input_stream(str(path), compression="zstd"),
}
PICKLE = "a pickle, which can run any code when it is read; write the table as parquet"
EXCEL = "an Excel workbook; save the sheet as CSV UTF-8"
ARCHIVE = "an archive; unpack it and give the file inside"
NOT_READ = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt", ".pth"), PICKLE),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb"), EXCEL),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), ARCHIVE),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file; write the table as parquet"),
}
MAGIC = {  # the first bytes of what is no text, whatever its name says
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV UTF-8",
    b"\xd0\xcf\x11\xe0": EXCEL,
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), PICKLE),
    b"\x1f\x8b": "compressed by gzip; put .gz behind its name",
    b"BZh91AY": "compressed by bzip2; put .bz2 behind its name",
    b"\xfd7zXZ": "compressed by xz; put .xz behind its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; put .zst behind its name",
    b"PAR1": "parquet; let its name end with .parquet",
    b"%PDF": "a PDF; write its texts as CSV",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file; run git lfs pull",
}
BOMS = {  # The mark of UTF-16 is the beginning of that of UTF-32, which therefore stands first.
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LIKELY = [  # Of all that it knows, charset-normalizer takes Icelandic Macintosh for a few lines of German.
    ["utf_8"],
    ["cp1252"],
    ["cp1250", "cp1251", "cp1253", "cp1254", "cp1256", "koi8_r", "gb18030", "big5", "cp932", "cp949"],
]
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
QUOTES = {  # what to say -> how csv reads quotation marks; the first way that takes the whole file is the file's
    "": {"strict": True},
    "a backslash stands before quotation marks within texts": {"strict": True, "escapechar": "\\"},
    "quotation marks do not pair, and are read as characters": {"quoting": csv.QUOTE_NONE},
    "quotation marks within quoted texts are not doubled, and some of them are lost": {},
}
SPACED = {
    "spaces stand before quotation marks, and those behind a delimiter are left out": {
        "strict": True,
        "skipinitialspace": True,
    }
}
DAMAGE = (OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError, csv.Error, pa.ArrowException)
END = "\0the end of the file\0"
SAMPLE = 500  # lines from which a delimiter or an encoding is told
BATCH = 50_000  # rows at a time that are Python's strings; those before are held as UTF-8


class Refused(ValueError):
    """What is wrong with a file, in one sentence that leaves its name to the caller."""


class Table(NamedTuple):
    """A file's columns.

    Attributes:
        names: of all columns, in the order of the file.
        rows: the columns that were wanted, by position, less those of lists and objects; a missing cell is NaN. The
            index is the line on which a row begins, from 1; in parquet and a JSON array it is the row.
        header_line: where the names stand, if they stand in a row.
        said: sentences on what was found.
    """

    names: list[str]
    rows: pd.DataFrame
    said: list[str]
    header_line: int | None = None


class _File(NamedTuple):
    path: Path
    suffix: str
    compression: str
    encoding: str = ""

    def binary(self) -> Any:
        """The decompressed bytes."""
        return OPENERS[self.compression](self.path)

    def text(self) -> io.TextIOWrapper:
        """The characters, with the file's own ends of lines."""
        return io.TextIOWrapper(self.binary(), self.encoding, newline="")


Wanted = Callable[[list[str]], set[int]]  # from the names of the columns to the positions of those to read


def kind(path: Path) -> tuple[str, str]:
    """The suffixes of a file's kind and of its compression; each is empty if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in OPENERS else ""
    return suffixes[-1] if suffixes else "", compression


def read(path: Path, wanted: Wanted, encoding: str = "", by_line: bool = False) -> Table:
    """The table in a file; its kind and its compression are told by the suffixes, all else by its content.

    With ``by_line`` every line that holds something is a text, in the only column, ``text``.

    Raises:
        Refused: a kind that is not read, an encoding that does not fit, a damaged file, or no rows.
    """
    suffix, compression = kind(path)
    if suffix in NOT_READ:
        raise Refused(f"{suffix} is {NOT_READ[suffix]}")
    if suffix not in KINDS:
        raise Refused(f"the suffix {suffix!r} is unknown; allowed are {' '.join(KINDS)}, and .gz .bz2 .xz .zst behind")
    file = _File(path, suffix, compression)
    try:
        with file.binary() as handle:
            head = handle.read(1 << 16)
        what = next((what for magic, what in MAGIC.items() if head.startswith(magic)), "")
        if what and not (head.startswith(b"PAR1") and KINDS[suffix] is _parquet):
            raise Refused(f"it is {what}")
        if KINDS[suffix] is _parquet:
            table = _parquet(file, wanted)
        else:
            encoding, sentence = _encoding(file, head, encoding)
            table = (_lines if by_line else KINDS[suffix])(file._replace(encoding=encoding), wanted)
            table.said.insert(0, sentence)
    except Refused:
        raise
    except DAMAGE as error:
        raise Refused(f"it cannot be read as {suffix}{compression} ({cause(error)})") from error
    if not len(table.rows):
        raise Refused("it holds no rows")
    return table


def _encoding(file: _File, head: bytes, asked: str) -> tuple[str, str]:
    """The encoding that the whole file fits, and how it was found."""
    try:
        "".encode(asked or "utf-8")
        encoding = codecs.lookup(asked or "utf-8").name
    except (LookupError, ValueError) as error:
        raise Refused(f"ENCODING={asked} is unknown; allowed are Python's, such as utf-8, cp1252, utf-16") from error
    mark = next((name for bom, name in BOMS.items() if head.startswith(bom)), "")
    if mark and (not asked or mark.startswith(encoding) or encoding.startswith(mark)):
        encoding = mark
    elif not asked and b"\0" in head[:100]:
        likely = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
        raise Refused(f"it holds zero bytes, which are not of UTF-8; if it is UTF-16, type ENCODING={likely}")
    misfit = _misfit(file, encoding)
    if not misfit:
        is_utf_8 = not encoding.startswith("utf") and not head.isascii() and not _misfit(file, "utf-8")
        how = ", as asked" * bool(asked) + ", though every line is UTF-8 as well" * is_utf_8
        return encoding, f"encoding {encoding}{how}"
    line, why = misfit
    fits = _fitting(file)
    if asked or mark or not fits:
        advice = f"type ENCODING={fits}, which fits" if fits else "name the right one, for example ENCODING=cp1252"
        raise Refused(f"line {line} is not {encoding} ({why}); {advice}")
    return fits, f"encoding {fits}, as line {line} is not UTF-8 ({why}); ENCODING names another one"


def _misfit(file: _File, encoding: str) -> tuple[int, str] | None:
    """The first line that an encoding does not fit, and why."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with file.binary() as handle:
        while True:
            chunk = handle.read(1 << 20)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(encoding, "replace")
                return line + before.count("\n"), f"byte {error.object[error.start]:#04x}"
            except UnicodeError as error:
                return line, cause(error)
            if not chunk:
                return None


def _fitting(file: _File) -> str:
    """An encoding that the file fits: UTF-8, Windows-1252, or the likeliest; none is ``""``."""
    with file.binary() as handle:
        sample = b"".join(itertools.islice((line for line in handle if not line.isascii()), SAMPLE))[: 1 << 16]
    for among in LIKELY:
        best = charset_normalizer.from_bytes(sample, cp_isolation=among).best()
        if best and not _misfit(file, best.encoding):
            return best.encoding.replace("_", "-")
    return ""


def _frame(rows: Iterator[tuple[int, dict]]) -> pd.DataFrame:
    """A table of strings from lines and their cells."""
    frames = [pd.DataFrame(dtype="str")]
    while batch := list(itertools.islice(rows, BATCH)):
        try:
            frames.append(pd.DataFrame([cells for _, cells in batch], [line for line, _ in batch], dtype="str"))
        except UnicodeEncodeError as error:
            lone = re.compile("[\ud800-\udfff]")
            line = next(line for line, cells in batch if lone.search("".join(map(str, cells.values()))))
            raise Refused(f"line {line} holds {error.object[error.start]!a}, which is half of a character") from error
    return pd.concat(frames)


def _parquet(file: _File, wanted: Wanted) -> Table:
    with file.binary() as handle:
        source = pq.ParquetFile(pa.BufferReader(handle.read()))
    schema = source.schema_arrow
    plain = [
        position
        for position in sorted(wanted(schema.names))
        if not (pa.types.is_nested(schema.types[position]) or pa.types.is_binary(schema.types[position]))
    ]
    read = source.read(columns=[schema.names[position] for position in plain])
    columns = {position: read[schema.names[position]].cast(pa.large_string()).to_pandas() for position in plain}
    rows = pd.DataFrame(columns, range(source.metadata.num_rows), dtype="str")
    return Table(schema.names, rows.set_axis(range(1, len(rows) + 1)), [])


def _json(file: _File, wanted: Wanted) -> Table:
    nested: set[str] = set()
    rows = _frame((line, _cells(line, value, nested)) for line, value in _json_values(file))
    names = list(rows.columns)
    rows.columns = range(len(names))
    return Table(names, rows[[i for i in sorted(wanted(names)) if names[i] not in nested]], [])


def _json_values(file: _File) -> Iterator[tuple[int, Any]]:
    with file.text() as handle:
        start = next((line.lstrip()[:1] for line in handle if line.strip()), "")
    with file.text() as handle:
        if start == "[":
            yield from enumerate(json.load(handle), 1)
            return
        for line, text in enumerate(handle, 1):
            if text.strip():
                try:
                    yield line, json.loads(text)
                except ValueError as error:
                    wanted = "wanted is an object on each line, or one array of objects"
                    raise Refused(f"line {line} is not JSON ({error}); {wanted}") from error


def _cells(line: int, value: Any, nested: set[str]) -> dict[str, str | None]:
    """The cells of an object as strings; the keys of lists and objects are added to ``nested``."""
    if not isinstance(value, dict):
        raise Refused(f"line {line} is {json.dumps(value)[:50]}; wanted is an object with a text and a label")
    nested.update(key for key, cell in value.items() if isinstance(cell, dict | list))
    # NaN, which JSON of pandas and Python may hold, is the one value that differs from itself.
    return {key: None if cell is None or cell != cell else str(cell) for key, cell in value.items()}


def _csv(file: _File, wanted: Wanted) -> Table:
    with file.text() as handle:
        lines = list(itertools.islice(handle, SAMPLE))
    excel = re.match(r'"?sep=([^\r\n])', lines[0], re.IGNORECASE) if lines else None
    limit = csv.field_size_limit(2**31 - 1)  # This is a state of the whole process.
    try:
        delimiter = excel[1] if excel else _delimiter(lines, first="\t" if file.suffix == ".tsv" else ",")
        said = [f"columns divided by {DELIMITERS.get(delimiter, repr(delimiter))}{', as it says itself' * bool(excel)}"]
        for sentence, quotes in ((SPACED if _is_spaced(lines, delimiter) else {}) | QUOTES).items():
            options = {"delimiter": delimiter, **quotes}
            try:
                table = _csv_table(_records(file, 1 if excel else 0, options), wanted, options)
                return table._replace(said=[*said, *([sentence] if sentence else []), *table.said])
            except csv.Error as error:
                problem = error
        raise Refused(str(problem)) from problem
    finally:
        csv.field_size_limit(limit)


def _lines(file: _File, wanted: Wanted) -> Table:
    with file.text() as handle:
        rows = _frame((line, {0: text.rstrip("\r\n")}) for line, text in enumerate(handle, 1) if text.strip())
    return Table(["text"], rows, ["a text a line, commas and all; TEXT names a column"])


def _delimiter(lines: list[str], first: str) -> str:
    """The character that divides the first line, and as many of the others as can be into as many columns.

    csv.Sniffer counts the characters of all lines, and now and then takes one that texts hold for the delimiter.
    """

    def regularity(delimiter: str) -> tuple[bool, bool, float, bool]:
        widths = [len(record) for record in csv.reader(lines, delimiter=delimiter) if record]
        widths = widths[: -1 if len(lines) == SAMPLE else None]  # The last record of a sample may be half of one.
        share = sum(width == widths[0] for width in widths) / max(1, len(widths))
        return bool(widths) and widths[0] > 1, share == 1, share, delimiter == first

    return max(DELIMITERS, key=regularity)


def _is_spaced(lines: list[str], delimiter: str) -> bool:
    """Whether a cell begins with spaces and a quotation mark; those within quoted texts are doubled, or end a cell."""
    cell = re.compile(rf'{re.escape(delimiter)} +"[^"\r\n{re.escape(delimiter)}]')
    return any(cell.search(line) for line in lines)


def _records(file: _File, skipped: int, options: dict) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV with the line on which each begins, without empty lines."""
    with file.text() as handle:
        reader = csv.reader(itertools.chain(itertools.islice(handle, skipped, None), [END]), **options)
        line = 1 + skipped
        for record in reader:
            if record == [END]:
                return
            if record and record[-1].endswith(END):
                raise csv.Error(f"the quotation mark that opens in line {line} is not closed")
            if len(record) > 1 or "".join(record).strip():
                yield line, record
            line = reader.line_num + skipped + 1


def _csv_table(records: Iterator[tuple[int, list[str]]], wanted: Wanted, options: dict) -> Table:
    header_line, names = next(records, (1, []))
    exact, width = options.get("quoting") == csv.QUOTE_NONE, len(names)
    positions = sorted(wanted(names))
    nameless = range(max((position for position, name in enumerate(names) if name.strip()), default=0) + 1, width)
    beyond = []

    def rows() -> Iterator[tuple[int, dict[int, str]]]:
        for line, record in records:
            if any(record[width:]) or (exact and len(record) != width):
                raise csv.Error(
                    f"line {line} has {len(record)} columns where the first one has {width}; a text that holds "
                    f"{options['delimiter']!r} stands in quotation marks"
                )
            if any(record[position] for position in nameless if position < len(record)):
                beyond.append(line)
            yield line, {position: record[position] for position in positions if position < len(record)}

    frame = _frame(rows())
    said = [f"{len(beyond)} rows go on in columns without a name, from line {beyond[0]} on"] if beyond else []
    return Table(names, frame.reindex(columns=positions).astype("str"), said, header_line)


KINDS = dict.fromkeys((".csv", ".tsv", ".txt"), _csv) | dict.fromkeys((".jsonl", ".ndjson", ".json"), _json)
KINDS |= dict.fromkeys((".parquet", ".pq"), _parquet)


def stem(path: Path) -> str | None:
    """A file's name without the suffixes that say its kind and compression; None of a kind that is known not to be a
    table (such as ``notes.md``). What is a table that cannot be read (``NOT_READ``) has a stem: reading it says why."""
    name = path.name
    compression = next((end for end in OPENERS if end and name.lower().endswith(end)), "")
    name = name[: len(name) - len(compression)]
    suffix = next((end for end in (*KINDS, *NOT_READ) if name.lower().endswith(end)), None)
    return None if suffix is None else name[: len(name) - len(suffix)]
