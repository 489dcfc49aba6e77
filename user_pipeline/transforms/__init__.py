"""Pure functions on lazy frames: no Dagster, no input or output, no clock.

They take and give :data:`Frame`: the same function runs on DuckDB, Polars, pandas, PyArrow and PySpark.
"""

from typing import Any, TypeAlias

import narwhals as nw

Frame: TypeAlias = nw.LazyFrame[Any]
"""A lazy frame of whichever library."""
