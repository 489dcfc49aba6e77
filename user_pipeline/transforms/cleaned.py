"""From delivered rows to facts: production only, each event once."""

import narwhals as nw

from user_pipeline.transforms import Frame

PRODUCTION = "production"
PAGE_VIEW_COLUMNS = ("ts", "url", "environment", "user_id")
USER_UPDATE_COLUMNS = ("updated_at", "user_id", "email", "name", "environment")


def clean_page_views(raw: Frame) -> Frame:
    """Production page views without duplicates (equal in all of the feed's own columns).

    Args:
        raw: at least ``ts`` datetime, ``url`` string, ``environment`` string, ``user_id`` int64.

    Returns:
        exactly those columns.
    """
    return _distinct_production_rows(raw, PAGE_VIEW_COLUMNS)


def clean_user_updates(raw: Frame) -> Frame:
    """Production user updates without duplicates (equal in all of the feed's own columns).

    Args:
        raw: at least ``updated_at`` datetime, ``user_id`` int64, ``email``, ``name`` and ``environment`` string.

    Returns:
        exactly those columns.
    """
    return _distinct_production_rows(raw, USER_UPDATE_COLUMNS)


def count_by_environment(raw: Frame, event_time: str) -> Frame:
    """How many delivered rows of each day are production and how many are not.

    Args:
        raw: ``environment`` string and the event time.
        event_time: the datetime column that decides the day.

    Returns:
        ``day`` datetime (its midnight), ``raw_rows`` int64, ``production_rows`` int64.
    """
    return (
        raw.with_columns(
            day=nw.col(event_time).dt.truncate("1d"),
            is_production=(nw.col("environment") == PRODUCTION).cast(nw.Int64),
        )
        .group_by("day")
        .agg(raw_rows=nw.len(), production_rows=nw.col("is_production").sum())
        # Not inside the aggregation: pandas and PyArrow take only plain ones.
        .with_columns(nw.col("raw_rows", "production_rows").cast(nw.Int64))
    )


def count_by_day(rows: Frame, event_time: str) -> Frame:
    """How many rows each day has.

    Args:
        rows: any rows with the event time.
        event_time: the datetime column that decides the day.

    Returns:
        ``day`` datetime (its midnight), ``rows`` int64.
    """
    return rows.with_columns(day=nw.col(event_time).dt.truncate("1d")).group_by("day").agg(rows=nw.len().cast(nw.Int64))


def _distinct_production_rows(raw: Frame, columns: tuple[str, ...]) -> Frame:
    return raw.filter(nw.col("environment") == PRODUCTION).select(*columns).unique()
