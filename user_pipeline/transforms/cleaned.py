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
        exactly those columns, ordered by ``ts``.
    """
    return _distinct_production_rows(raw, PAGE_VIEW_COLUMNS).sort("ts")


def clean_user_updates(raw: Frame) -> Frame:
    """Production user updates without duplicates (equal in all of the feed's own columns).

    Args:
        raw: at least ``updated_at`` datetime, ``user_id`` int64, ``email``, ``name`` and ``environment`` string.

    Returns:
        exactly those columns, ordered by ``updated_at``.
    """
    return _distinct_production_rows(raw, USER_UPDATE_COLUMNS).sort("updated_at")


def count_environments(raw: Frame) -> Frame:
    """How many delivered rows there are and how many of them are production.

    Args:
        raw: ``environment`` string.

    Returns:
        one row: ``raw_rows`` int64, ``production_rows`` int64 (null when there is no row).
    """
    return (
        raw.select(is_production=(nw.col("environment") == PRODUCTION).cast(nw.Int64))
        .select(raw_rows=nw.len(), production_rows=nw.col("is_production").sum())
        .with_columns(nw.all().cast(nw.Int64))
    )


def _distinct_production_rows(raw: Frame, columns: tuple[str, ...]) -> Frame:
    # Not by unique(), which numbers the rows of each group and has to sort them; group_by only hashes.
    kept = raw.filter(nw.col("environment") == PRODUCTION).group_by(*columns).agg(nw.len().alias("delivered"))
    return kept.select(*columns)
