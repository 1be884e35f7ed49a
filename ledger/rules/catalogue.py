"""Tables beside a programme: articles and stores from CSV or Parquet.

Not for tables written in the programme itself (`check.py` reads those) nor for what they mean. Called by `check.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

ROWS_MAX = 1_000_000
TEXT_BYTES_MAX = 128


class TableError(Exception):
    """A file that is no such table; the text says what is wrong and where."""


def read_rows(path: Path, columns: dict[str, list[str]], must: str) -> Iterator[tuple[int, dict[str, list[str]]]]:
    """Rows of a CSV (`.csv`) or Parquet (`.parquet`) file: number of the line (or row), and key -> texts of its columns.

    columns: key -> names of the columns that make it; absent ones are left out, but `must` has to be there. TableError.
    """
    try:
        yield from _read_parquet(path, columns, must) if path.suffix == ".parquet" else _read_csv(path, columns, must)
    except OSError as error:
        raise TableError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _present(path: Path, columns: dict[str, list[str]], there: list[str], must: str) -> dict[str, list[str]]:
    found = {key: names for key, names in columns.items() if all(name in there for name in names)}
    if must not in found:
        raise TableError(f"{path.name} has no column {', '.join(columns[must])}; it has {', '.join(there)}")
    return found


def _read_csv(path: Path, columns: dict[str, list[str]], must: str) -> Iterator[tuple[int, dict[str, list[str]]]]:
    with path.open(newline="", encoding="utf-8") as lines:
        try:
            rows = csv.reader(lines)
            header = next(rows, [])
            found = _present(path, columns, header, must)
            places = {key: [header.index(name) for name in names] for key, names in found.items()}
            for row in rows:
                if len(row) != len(header):
                    raise TableError(f"{path.name}:{rows.line_num}: must have {len(header)} columns, has {len(row)}")
                yield rows.line_num, {key: [row[place] for place in at] for key, at in places.items()}
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(f"{path.name}: no CSV in UTF-8: {error}") from None


def _read_parquet(path: Path, columns: dict[str, list[str]], must: str) -> Iterator[tuple[int, dict[str, list[str]]]]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise TableError(f"{path.name}: reading Parquet needs pyarrow, which is not installed: pip install 'daybook[export]'") from None
    try:
        there = parquet.read_schema(path).names
        found = _present(path, columns, there, must)
        table = parquet.read_table(path, columns=sorted({name for names in found.values() for name in names}))
    except pyarrow.ArrowException as error:
        raise TableError(f"{path.name}: no Parquet file: {error}") from None
    texts = {name: ["" if value is None else str(value) for value in table[name].to_pylist()] for name in table.column_names}
    for i in range(table.num_rows):
        yield i + 1, {key: [texts[name][i] for name in names] for key, names in found.items()}
