"""CSV and TSV files as tables of texts: encoding, separator, quotes.

Nothing is guessed from what a value looks like: every column is a column of texts, `007`, `NA`
and `1.0` among them. What the file is written with is taken where only one reading is possible,
and has to be named where several are.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from fusetune.errors import DataError, RecipeError

SEPARATORS = {".csv": (",", ";", "\t"), ".tsv": ("\t", ",", ";")}
"""Which separators are tried, the usual one of each extension first."""

MARKS = (  # the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
EXCEL = re.compile(r'"?sep=(.)"?\r?\n')  # a first line by which Excel is told the separator
KEY = "task.options.csv"
AROUND = 20  # bytes that are shown on either side of one that cannot be read

Rows = list[list[str]]


@dataclass(frozen=True, slots=True)
class CsvOptions:
    """How CSV and TSV files are written, where they do not say it themselves.

    Attributes:
        separator: Between columns, one character, or "tab".
        encoding: As Python calls it, "cp1252".
        quoted: Whether `"` around a field are no part of it.

    Raises:
        RecipeError: If the separator is longer, or there is no such encoding.
    """

    separator: str | None = None
    encoding: str | None = None
    quoted: bool | None = None

    def __post_init__(self) -> None:
        if self.separator in ("tab", "\\t"):
            object.__setattr__(self, "separator", "\t")
        if self.separator is not None and (
            len(self.separator) != 1 or self.separator in '"\r\n\ufeff'
        ):
            raise RecipeError(
                f"{KEY}.separator is one character, or tab; got {self.separator!r}."
            )
        try:
            b"a".decode(self.encoding or "utf-8")  # empty bytes have every encoding
        except UnicodeError:
            pass  # it is one, in which a letter has more bytes
        except (LookupError, ValueError) as error:
            raise RecipeError(
                f"{KEY}.encoding is the name of no encoding; got {self.encoding!r}.",
                "Usual ones are utf-8, utf-16, cp1252 (Windows) and mac-roman.",
            ) from error

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> CsvOptions:
        """The options of a recipe.

        Raises:
            RecipeError: If a key is unknown or a value is of another type.
        """
        given = dict(options or {})
        known = [field.name for field in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise RecipeError(f"{KEY} takes {', '.join(known)}; got {name!r}.")
            if name == "quoted" and value in ("true", "false"):
                given[name] = value == "true"
            elif not isinstance(value, bool if name == "quoted" else str):
                wanted = "true or false" if name == "quoted" else "a text"
                raise RecipeError(f"{KEY}.{name} is {wanted}; got {value!r}.")
        return cls(**given)


def read_delimited(path: Path, columns: Sequence[str], options: CsvOptions) -> pa.Table:
    """The rows of a CSV or TSV file; every column that stands there once, as texts.

    Args:
        path: Its extension is one of `SEPARATORS`.
        columns: Those that are used.
        options: What the recipe says of the file.

    Raises:
        DataError: If the file is not written in one way throughout, in several at once, or has
            one of `columns` twice.
    """
    text = decoded(path, options.encoding)
    separator = options.separator
    if named := EXCEL.match(text):
        text, separator = text[named.end() :], separator or named[1]
    separator = separator or _separator(text, SEPARATORS[path.suffix], columns)
    quoted = options.quoted
    if quoted is None:
        quoted = path.suffix == ".csv" or _is_quoted(path, text, separator)
    header, *rows = _rows(text, separator, quoted) or [[]]
    counts = Counter(header)
    for name in columns:
        if counts[name] > 1:
            raise DataError(f"{path} has the column {name!r} {counts[name]} times.")
    values = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    once = {name: values[i] for i, name in enumerate(header) if counts[name] == 1}
    return pa.table({name: pa.array(column, pa.string()) for name, column in once.items()})


def decoded(path: Path, encoding: str | None = None) -> str:
    """The text of a file, without the mark at its start.

    Args:
        path: The file.
        encoding: As the recipe names it; by default what its mark says, else UTF-8.

    Raises:
        DataError: If it has another encoding.
    """
    content = path.read_bytes()
    mark = next((name for sign, name in MARKS if content.startswith(sign)), None)
    if mark and encoding and codecs.lookup(encoding).name[:6] != codecs.lookup(mark).name[:6]:
        raise DataError(
            f"{path} begins with the mark of {mark.removesuffix('-sig')}, but {KEY}.encoding "
            f"is {encoding}."
        )
    if not mark and not encoding and b"\0" in content.partition(b"\n")[0]:
        named = _advice("utf-16-be" if content.startswith(b"\0") else "utf-16-le")
        raise DataError(
            f"{path} cannot be read: it begins with bytes of zero, as UTF-16 without a mark.",
            f"Save it as UTF-8{', or ' + named if path.suffix in SEPARATORS else ''}.",
        )
    name = mark or encoding or "utf-8"
    try:
        return content.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        first = max(content.rfind(b"\n", 0, error.start) + 1, error.start - AROUND)
        near, *_ = content[first : error.start + AROUND].splitlines()
        shown = near.decode("cp1252", "replace")
        windows = f"; if {shown!r} is right, {_advice('cp1252')}, that of Windows"
        raise DataError(
            f"{path} cannot be read: it is not {name.upper().removesuffix('-SIG')}, see byte "
            f"0x{content[error.start]:02x} in line {line}.",
            f"Save it as UTF-8{windows if path.suffix in SEPARATORS else ''}.",
        ) from error


def _advice(encoding: str) -> str:
    return f"name its encoding: {KEY}: {{encoding: {encoding}}}"


def _separator(text: str, candidates: Sequence[str], columns: Sequence[str]) -> str:
    """The separator under which the header has the columns, else the only one in it."""
    headers = {}
    for separator in candidates:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            headers[separator] = next(reader, [])
        except csv.Error:
            headers[separator] = []
    fitting = [s for s, header in headers.items() if columns and set(columns) <= set(header)]
    several = [s for s, header in headers.items() if len(header) > 1]
    return [*fitting, *several, candidates[0]][0]


def _is_quoted(path: Path, text: str, separator: str) -> bool:
    """Whether the quotation marks of a TSV file are signs around fields, or letters.

    csv and pandas write marks around a field where it has a tab, a line break or a mark, or
    around all. GLUE's files know no quoting: `"Open`, he said, is a text.

    Raises:
        DataError: If it can be both.
    """
    if '"' not in text:
        return True
    try:
        quoted = _rows(text, separator, True)
    except ValueError:
        return False
    try:
        plain = _rows(text, separator, False)
    except ValueError:
        return True
    if quoted == plain:
        return True
    if len(quoted) == len(plain):
        pairs = [
            (bare, field)
            for rows in zip(plain, quoted, strict=True)
            for bare, field in zip(*rows, strict=True)
            if bare.startswith('"')
        ]
        if all(bare.startswith('"') for bare in plain[0]):
            return True
        if all('"' in field or separator in field for _, field in pairs):
            return True
        if not all(set(field) & set('",;') for _, field in pairs):
            return False  # nobody would have put marks around such a field
    raise DataError(
        f'{path}: the signs " around fields may be letters of the texts, or not.',
        f"Say which: {KEY}: {{quoted: true}} takes them away, false keeps them.",
    )


def _rows(text: str, separator: str, quoted: bool) -> Rows:
    """All lines that are not empty, the header first, each with as many fields."""
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the module's 128 kB
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    rows: Rows = []
    line = 0
    try:
        for row in reader:
            if row and rows and len(row) != len(rows[0]):
                more = f"; is the separator another one? {KEY}: {{separator: …}} names it"
                raise ValueError(
                    f"line {reader.line_num} does not have the columns of the header: expected "
                    f"{len(rows[0])} columns, got {len(row)}{more if len(rows[0]) == 1 else ''}"
                )
            if row:
                rows.append(row)
            line = reader.line_num
    except csv.Error as error:
        if "end of data" in str(error):
            raise ValueError(
                f'the sign " that begins a field in line {line + 1} or below is not closed'
            ) from error
        raise ValueError(
            f'in line {reader.line_num} the sign " stands inside of a field that begins with '
            "it; there it has to be doubled"
        ) from error
    return rows
