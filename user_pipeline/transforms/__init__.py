"""Pure functions on lazy frames: no Dagster, no input or output, no clock.

They take and give :data:`Frame`: the same function runs on DuckDB, Polars, pandas, PyArrow and PySpark.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import narwhals as nw

if TYPE_CHECKING:
    Frame: TypeAlias = nw.LazyFrame[Any]
else:
    # Dagster takes a class for an annotation, not a parametrized one.
    Frame = nw.LazyFrame
