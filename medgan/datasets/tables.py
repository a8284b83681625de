"""Reading and writing the small text files of a data set, JSON and CSV, that come from strangers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgan.errors import Note, Refused
from medgan.storage import write_text

#: No description of a data set is larger; a bomb is.
MAX_BYTES = 64 * 2**20
#: No description of a data set nests deeper.
MAX_DEPTH = 64

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object: bounded size and depth, no duplicate keys, no NaN, nothing that asks to be run.

    Raises:
        Refused: `FILE_MISSING`, `LIMIT`, `TAB_EMPTY`, `TAB_ENCODING`, `TAB_BAD_JSON` or `CFG_UNSAFE`.
    """
    text = _read_text(path)
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = token.group()[0]
        depth += (mark in "[{") - (mark in "]}")
        if depth > MAX_DEPTH:
            raise Refused("TAB_BAD_JSON", path, f"it nests deeper than {MAX_DEPTH} levels", "Check where it came from")
    try:
        data = parse_json(text)
    except ValueError as error:
        raise Refused("TAB_BAD_JSON", path, f"it is not valid JSON ({error})", "Correct the file") from None
    if not isinstance(data, dict):
        raise Refused("TAB_BAD_JSON", path, "its top level is not an object", "Correct the file")
    _refuse_expressions(data, path)
    return data


def parse_json(text: str) -> Any:
    """JSON in which no object has a key twice and no number is NaN or infinite.

    Raises:
        ValueError: Where it is none.
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def read_table(path: Path, *, required: Sequence[str]) -> tuple[list[str], list[dict[str, str]], list[Note]]:
    """Reads a CSV with a header: its columns, its rows, and notes on its dialect.

    A byte order mark, CRLF line ends, and semicolons or tabs between cells are taken with a `TAB_DIALECT` note.
    A cell that was escaped by `write_table` comes back as it was.

    Args:
        path: The table.
        required: Columns that must be there.

    Raises:
        Refused: `TAB_EMPTY`, `TAB_ENCODING`, `TAB_COLUMNS`, `TAB_DIALECT`, `LIMIT` or `FILE_MISSING`.
    """
    text = _read_text(path)
    header = text.split("\n", 1)[0]
    separator = next((s for s in (",", ";", "\t") if s in header), ",")
    odd = [what for what, found in (
        ("a byte order mark", path.read_bytes()[:3] == b"\xef\xbb\xbf"),
        ("CRLF line ends", "\r\n" in text),
        (f"{separator!r} between cells", separator != ","),
    ) if found]
    notes = [Note("TAB_DIALECT", str(path), f"it was read with {', '.join(odd)}")] if odd else []
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if line]
    except csv.Error as error:
        raise Refused("TAB_DIALECT", path, f"it is not a table ({error})", "Save it as comma-separated UTF-8") from None
    if not lines:
        raise Refused("TAB_EMPTY", path, "it has no rows", "Write a header and a row for each case")
    columns = [name.strip().lower() for name in lines[0]]
    missing = [name for name in required if name not in columns]
    if missing:
        raise Refused("TAB_COLUMNS", path, f"the first row {lines[0]} is not a header with {', '.join(missing)}",
                      f"Begin the table with a header such as {','.join(required)}")
    if len(set(columns)) != len(columns) or "" in columns:
        raise Refused("TAB_COLUMNS", path, "two columns have the same name, or one has none", "Name each column once")
    if len(lines) == 1:
        raise Refused("TAB_EMPTY", path, "it has a header and no rows", "Write a row for each case")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise Refused("TAB_COLUMNS", f"{path} row {number}",
                          f"it has {len(line)} cells where the header has {len(columns)}", "Correct the row")
        rows.append({name: _unescape(cell.strip()) for name, cell in zip(columns, line, strict=True)})
    return columns, rows, notes


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a CSV atomically; cells that a spreadsheet would run as a formula are escaped by an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_escape(name) for name in columns])
    for row in rows:
        writer.writerow([_escape(_text(row.get(name, ""))) for name in columns])
    write_text(path, buffer.getvalue())


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise Refused("FILE_MISSING", path, "there is no such file", "Check the path")
    if path.stat().st_size > MAX_BYTES:
        raise Refused("LIMIT", path, f"it is larger than {MAX_BYTES} bytes", "Check where it came from")
    data = path.read_bytes()
    if not data.strip():
        raise Refused("TAB_EMPTY", path, "it has no content", "Check where it came from")
    try:
        if data[:2] in _UTF16:
            raise ValueError("it is UTF-16")
        return data.decode("utf-8-sig")
    except ValueError as error:
        raise Refused("TAB_ENCODING", path, f"it is not UTF-8 ({error})", "Save it as UTF-8") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _refuse_expressions(value: Any, path: Path) -> None:
    """MONAI bundles evaluate `$...` and build whatever `_target_` names; a data set has no use for either."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "_target_" or key.startswith("$"):
                raise Refused("CFG_UNSAFE", path, f"the key {key!r} asks for code to be run", "Remove it")
            _refuse_expressions(inner, path)
    elif isinstance(value, list):
        for inner in value:
            _refuse_expressions(inner, path)
    elif isinstance(value, str) and value.startswith("$"):
        raise Refused("CFG_UNSAFE", path, f"the value {value[:60]!r} asks for code to be run", "Remove it")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _escape(cell: str) -> str:
    # An apostrophe before an already escaped cell too, so that reading gives back exactly what was written.
    dangerous = cell.lstrip("'").startswith(_FORMULA) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if dangerous else cell


def _unescape(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell
