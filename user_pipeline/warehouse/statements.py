"""The statements of a table: ``sql/<table>.sql``, one file a table.

A line ``-- name: <name>`` begins a statement; comments and the statement follow.
"""

import functools
import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@functools.cache
def statements(table: str) -> Mapping[str, str]:
    """The statements of a table, by name."""
    text = files("user_pipeline.warehouse").joinpath(f"sql/{table}.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))
