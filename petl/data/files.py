"""Files of rows: what is read is what is there, or the file is refused with the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from petl.backbones.locate import BackboneError, package_path
from petl.tasks import TaskError

FORMATS: Final = ("csv", "tsv", "json", "jsonl", "parquet")
_SEPARATORS: Final = {"csv": (",", "comma"), "tsv": ("\t", "tab")}
_LONGEST: Final = 2**31 - 1  # characters of a field; the csv module's own bound is 131,072
_HALF_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a surrogate pair


def path_of(path: str) -> Path:
    """Return where a task's path lies. Raises TaskError for a package that is not installed."""
    if not path.startswith("package:"):
        return Path(path).expanduser()
    try:
        return package_path(path)
    except BackboneError as error:
        raise TaskError(str(error)) from None


def format_of(file: Path) -> str:
    """Return the ending that says how a file is read, without .gz."""
    return file.name.removesuffix(".gz").rpartition(".")[2].lower()


def read_table(path: str, *, lenient: bool = False) -> pd.DataFrame:
    """Read a csv, tsv, json, jsonl or parquet file; `frame.attrs["notes"]` says what was replaced.

    Values of csv and tsv files are text, only empty ones are missing: "NA" and "None" are words, and
    a label "1" does not become 1.0 because another one is missing. Quotation marks quote a field that begins
    and ends with them, as in RFC 4180; in a tsv where they cannot, and each line has the header's
    fields, they are text, as in GLUE's files.

    Bytes that are not UTF-8 become U+FFFD. `lenient` reads as version 0.1.0 did, which shifted and swallowed rows
    that are refused now.

    Raises TaskError where the file is missing, of another kind, or damaged.
    """
    file = path_of(path)
    if not file.is_file():
        raise TaskError(f"no file at {file}" + (f" (looked up as {path})" if path != str(file) else ""))
    kind = format_of(file)
    if kind not in FORMATS:
        raise TaskError(f"a task's file is csv, tsv, json, jsonl or parquet (.gz allowed); received {file.name}")
    try:
        if lenient and kind != "parquet":
            return _lenient(file, kind)
        if kind == "parquet":
            return pd.read_parquet(file)
        text, notes = _text(file)
        if kind in _SEPARATORS:
            frame = _delimited(file, text, kind)
        elif kind == "jsonl":
            frame = pd.DataFrame(list(_objects(file, text)), dtype=object)
        else:
            frame = _json(file, text)
    except TaskError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{file} cannot be read as {kind}: {error}") from error
    frame.attrs["notes"] = notes
    return frame


def _text(file: Path) -> tuple[str, list[str]]:
    """Return a file's text without its byte order mark, and a note where bytes had to be replaced."""
    content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        lines = [number for number, line in enumerate(content.split(b"\n"), 1) if not _is_utf8(line)]
    count = f"{len(lines):,} lines have" if len(lines) > 1 else "1 line has"
    note = (
        f"{count} bytes that are not UTF-8, read as U+FFFD; the first is line {lines[0]}. Where the file is in "
        "another encoding, convert it: iconv -f latin1 -t utf-8"
    )
    return content.decode("utf-8-sig", errors="replace"), [note]


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _delimited(file: Path, text: str, kind: str) -> pd.DataFrame:
    """Return the rows of a csv or tsv. Raises TaskError with the line where its fields are not the header's."""
    separator, word = _SEPARATORS[kind]
    header, rows, fault = _fields(text, separator, csv.QUOTE_MINIMAL)
    if '"' in text:
        plain_header, plain, plain_fault = _fields(text, separator, csv.QUOTE_NONE)
        if fault and not plain_fault and kind == "tsv":
            header, rows, fault = plain_header, plain, None
        elif not fault and not plain_fault and len(header) > 1 and len(plain) != len(rows):
            line, end = next(
                (start, end) for (start, end, _), other in zip(rows, plain, strict=False) if end != other[1]
            )
            raise TaskError(
                f"{file}, line {line}: the quotation mark may begin a quotation that ends in line {end}, or be a "
                f"part of the text: each line has {len(header)} fields by itself. Quote such a text and double "
                f'the marks inside ("" for each), or save the file as jsonl'
            )
    if fault:
        line, what = fault
        raise TaskError(
            f"{file}, line {line}: {what}. Quote a field that holds a {word}, a line end or a quotation mark, double "
            "the marks inside, and end no row with a separator that the header lacks"
        )
    if not header:
        raise TaskError(f"{file} has no header, which names the columns")
    names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    columns = zip(*(fields for _, _, fields in rows), strict=True) if rows else [()] * len(names)
    data = {index: [value or None for value in column] for index, column in enumerate(columns)}
    frame = pd.DataFrame(data, dtype=object)
    frame.columns = pd.Index(names)
    return frame


_Row = tuple[int, int, list[str]]  # the first line, the last line, the fields


def _fields(text: str, separator: str, quoting: Any) -> tuple[list[str], list[_Row], tuple[int, str] | None]:
    """Return a table's header and rows, and the line and text of its first fault, None for none; blank lines go."""
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    header: list[str] = []
    rows: list[_Row] = []
    line = 1
    try:
        for fields in reader:
            start, line = line, reader.line_num + 1
            if not fields or (len(fields) == 1 and not fields[0].strip()):
                continue
            if not header:
                header = fields
                continue
            if len(fields) != len(header):
                s = "" if len(fields) == 1 else "s"
                return header, rows, (start, f"{len(fields)} field{s} where the header has {len(header)}")
            rows.append((start, line - 1, fields))
    except csv.Error as error:
        return header, rows, (line, f"a quotation does not end with its field ({error})")
    return header, rows, None


def _objects(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a jsonl file. Raises TaskError with the line of what is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskError(f"{file}, line {number}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise TaskError(f"{file}, line {number}: a line holds one object, {{column: value}}; received {line[:60]}")
        if _HALF_PAIR.search(line):
            _require_whole(row, f"{file}, line {number}")
        yield row


def _json(file: Path, text: str) -> pd.DataFrame:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with an object on each line is called .jsonl" if error.msg == "Extra data" else ""
        raise TaskError(f"{file}, line {error.lineno}: no JSON ({error.msg}){hint}") from None
    if _HALF_PAIR.search(text):
        _require_whole(data, str(file))
    by_rows = isinstance(data, list) and all(isinstance(row, dict) for row in data)
    by_columns = isinstance(data, dict) and all(isinstance(column, list | dict) for column in data.values())
    if not (by_rows or by_columns):
        raise TaskError(
            f"{file}: a json file holds a list of rows, [{{column: value}}], or columns, {{column: [values]}}"
        )
    return pd.DataFrame(data, dtype=object)


def _require_whole(value: Any, place: str) -> None:
    """Raise TaskError for a text with half of a surrogate pair, which is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{place}: half of a surrogate pair, {error.object[error.start]!a}, is no character") from None


def _lenient(file: Path, kind: str) -> pd.DataFrame:
    if kind in _SEPARATORS:
        separator, _ = _SEPARATORS[kind]
        return pd.read_csv(
            file, sep=separator, encoding_errors="replace", dtype=str, keep_default_na=False, na_values=[""]
        )
    return pd.read_json(file, lines=kind == "jsonl", encoding_errors="replace", dtype=False)
