"""Tables beside a programme: articles and stores from CSV or Parquet.

Not for tables written in the programme itself (`check.py` reads those) nor for what they mean. Called by `check.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROWS_MAX = 1_000_000
TEXT_BYTES_MAX = 128


class TableError(Exception):
    """A file that is no such table; the text says what is wrong and where."""


class Table(NamedTuple):
    """Columns of a file, as texts. `numbers`: of each row its line (CSV) or its number from 1; `columns`: key -> those that make it."""

    numbers: Sequence[int]
    columns: dict[str, list[list[str]]]


def read_table(path: Path, columns: dict[str, list[str]], must: str, rows_max: int) -> Table:
    """A CSV (`.csv`) or Parquet (`.parquet`) file, at most rows_max + 1 rows of it.

    columns: key -> names of the columns that make it; absent ones are left out, but `must` has to be there. TableError.
    """
    try:
        return _read_parquet(path, columns, must, rows_max) if path.suffix == ".parquet" else _read_csv(path, columns, must, rows_max)
    except OSError as error:
        raise TableError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _present(path: Path, columns: dict[str, list[str]], there: list[str], must: str) -> dict[str, list[str]]:
    found = {key: names for key, names in columns.items() if all(name in there for name in names)}
    if must not in found:
        raise TableError(f"{path.name} has no column {', '.join(columns[must])}; it has {', '.join(there)}")
    return found


def _read_csv(path: Path, columns: dict[str, list[str]], must: str, rows_max: int) -> Table:
    numbers, rows = [], []
    with path.open(newline="", encoding="utf-8") as lines:
        try:
            reader = csv.reader(lines)
            header = next(reader, [])
            found = _present(path, columns, header, must)
            for row in islice(reader, rows_max + 1):
                if len(row) != len(header):
                    raise TableError(f"{path.name}:{reader.line_num}: must have {len(header)} columns, has {len(row)}")
                numbers.append(reader.line_num)
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(f"{path.name}: no CSV in UTF-8: {error}") from None
    turned = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in header]
    return Table(numbers, {key: [turned[header.index(name)] for name in names] for key, names in found.items()})


def _read_parquet(path: Path, columns: dict[str, list[str]], must: str, rows_max: int) -> Table:
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
    table = table.slice(0, rows_max + 1)
    texts = {name: ["" if value is None else str(value) for value in table[name].to_pylist()] for name in table.column_names}
    return Table(range(1, table.num_rows + 1), {key: [texts[name] for name in names] for key, names in found.items()})
