"""SQL over Arrow tables."""

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def query(sql: str, parameters: Mapping[str, Any] | None = None, **tables: "pa.Table") -> "pa.Table":
    """The result of a query.

    Args:
        sql: names the tables by their keywords.
        parameters: values of its ``$name``.
        tables: what it is about.
    """
    with _database(os.getpid()).cursor() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return connection.execute(sql, parameters).to_arrow_table()


@functools.lru_cache(maxsize=1)
def _database(process: int) -> "duckdb.DuckDBPyConnection":
    """An empty database, opened once: that takes longer than most queries. One of a parent process has no threads."""
    import duckdb

    del process  # tells a forked process from its parent
    return duckdb.connect()
