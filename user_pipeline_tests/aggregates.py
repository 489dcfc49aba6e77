"""Daily aggregates brought into the marts without Dagster."""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import narwhals as nw
import pyarrow as pa

from user_pipeline.lake.transfer import new_path, put
from user_pipeline.transforms.marts import daily_page_views, latest_updates
from user_pipeline.warehouse.incremental import Merge
from user_pipeline_tests.platform import Platform

_SCHEMAS = {
    "user_page_views": pa.schema(
        [("ts", pa.timestamp("us")), ("url", pa.string()), ("environment", pa.string()), ("user_id", pa.int64())]
    ),
    "users": pa.schema(
        [
            ("updated_at", pa.timestamp("us")),
            ("user_id", pa.int64()),
            ("email", pa.string()),
            ("name", pa.string()),
            ("environment", pa.string()),
        ]
    ),
}
_TRANSFORMS = {"user_page_views": daily_page_views, "users": latest_updates}


def bring(platform: Platform, table: str, days: Mapping[date, Iterable[Any]]) -> None:
    """Replace some days in a row by the aggregates of cleaned rows (named tuples), in one transaction."""
    lake = platform.lake
    lake.analytics.open()
    with platform.engine() as engine, lake.analytics.database.transaction() as transaction:
        local, stored = {}, {}
        for day, rows in days.items():
            dicts = [row._asdict() for row in rows]
            frame = nw.from_native(pa.Table.from_pylist(dicts, schema=_SCHEMAS[table])).lazy()
            local[day] = engine.new_scratch(table) / "rows.parquet"
            count = engine.write(_TRANSFORMS[table](frame), local[day])
            stored[day] = [put(platform.storage, new_path(f"daily/{table}", day), local[day], count)]
        Merge(transaction, engine, platform.storage).apply(table, {day: [file] for day, file in local.items()})
        lake.analytics.commit(transaction, table, stored, "test")
