"""A SQLite database with one typed table."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from user_pipeline.fake_users import tables
from user_pipeline.fake_users.columns import Column

_SQLITE_TYPES = {"integer": "INTEGER", "text": "TEXT", "decimal(12,2)": "REAL"}


def write(table: pa.Table, path: Path, *, name: str, columns: Sequence[Column]) -> None:
    """Make a database that holds ``table``, its first column the primary key.

    Args:
        table: the rows.
        path: the file to make. It is written without a journal, so nobody may use it before it is done.
        name: name of the table.
        columns: its columns, in the order of ``table``.
    """
    definitions = [f'"{column.name}" {_SQLITE_TYPES[column.type]} NOT NULL' for column in columns]
    definitions[0] = definitions[0].replace(" NOT NULL", " PRIMARY KEY")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(f'CREATE TABLE "{name}" ({", ".join(definitions)})')
        insert = f'INSERT INTO "{name}" VALUES ({", ".join("?" * len(columns))})'
        connection.executemany(insert, tables.rows(table))
        connection.execute("COMMIT")
