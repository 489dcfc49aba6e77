"""Cleaned: production only, every event once, in the staging database."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import dagster as dg

from user_pipeline.defs.common import PERSONAL, column_lineage, column_schema, daily_asset, day_files, file_of
from user_pipeline.engines.base import Engine
from user_pipeline.engines.frames import to_reader
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake
from user_pipeline.transforms import Frame
from user_pipeline.transforms.cleaned import clean_page_views, clean_user_updates, count_environments
from user_pipeline.warehouse.day_files import DayFiles


@daily_asset(
    code_version="1",
    group_name="cleaned",
    kinds={"postgres", "table", "parquet"},
    tags=PERSONAL,
    io_manager_key="cleaned_io_manager",
    dagster_type=PARTITIONED,
    pool="staging_database",
    metadata={
        "partition_expr": "updated_at",
        **column_schema(
            ("updated_at", "timestamp", "When the user was updated, UTC; its date is the partition."),
            ("user_id", "bigint", "The user."),
            ("email", "text", "E-mail address after the update."),
            ("name", "text", "Name after the update."),
            ("environment", "text", "Always production."),
            unique=("updated_at", "user_id", "email", "name", "environment"),
        ),
        **column_lineage(
            **{name: f"raw_user_updates.{name}" for name in ("updated_at", "user_id", "email", "name", "environment")}
        ),
    },
)
def user_updates(
    raw_user_updates: dict[str, Frame], engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """The day's user updates in production, each once."""
    return _cleaned(raw_user_updates, clean_user_updates, engine, day_files(lake, "cleaned/user_updates", "updated_at"))


@daily_asset(
    code_version="1",
    group_name="cleaned",
    kinds={"postgres", "table", "parquet"},
    io_manager_key="cleaned_io_manager",
    dagster_type=PARTITIONED,
    pool="staging_database",
    metadata={
        "partition_expr": "ts",
        **column_schema(
            ("ts", "timestamp", "When the page was viewed, UTC; its date is the partition."),
            ("url", "text", "The page."),
            ("environment", "text", "Always production."),
            ("user_id", "bigint", "Who viewed it."),
            unique=("ts", "url", "environment", "user_id"),
        ),
        **column_lineage(**{name: f"raw_page_views.{name}" for name in ("ts", "url", "environment", "user_id")}),
    },
)
def page_views(
    raw_page_views: dict[str, Frame], engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """The day's page views in production, each once."""
    return _cleaned(raw_page_views, clean_page_views, engine, day_files(lake, "cleaned/page_views", "ts"))


def _cleaned(
    raw: Mapping[str, Frame],
    clean: Callable[[Frame], Frame],
    engine: Engine,
    put: Callable[[str], DayFiles],
) -> Partitioned[File]:
    """Clean each day by itself, as duplicates are of one day; its metadata account for the raw rows."""
    with never_retried():
        return Partitioned({day: _cleaned_day(day, rows, clean, engine, put(day)) for day, rows in raw.items()})


def _cleaned_day(day: str, raw: Frame, clean: Callable[[Frame], Frame], engine: Engine, put: DayFiles) -> File:
    file = file_of(engine, clean(raw), day, put)
    [counts] = to_reader(count_environments(raw)).read_all().to_pylist()
    rows, production, kept = counts["raw_rows"], counts["production_rows"] or 0, file.rows or 0
    accounts = {
        "raw_rows": rows,
        "other_environment_rows": rows - production,
        "duplicate_rows": production - kept,
        "cleaned_rows": kept,
    }
    return replace(file, metadata={**file.metadata, **accounts})
