"""What one day contributes to the tables people query."""

import narwhals as nw

from user_pipeline.transforms import Frame


def latest_updates(user_updates: Frame) -> Frame:
    """The latest update of each user on each day.

    Latest is the greatest ``updated_at``; ties go to the greatest ``email``, then ``name`` (by code point), so
    the result does not depend on the order of rows.

    Args:
        user_updates: ``updated_at`` datetime, ``user_id`` int64, ``email`` string, ``name`` string.

    Returns:
        ``day`` datetime (its midnight), ``user_id``, ``email``, ``name``, ``updated_at``.
    """
    return (
        user_updates.with_columns(day=nw.col("updated_at").dt.truncate("1d"))
        .unique(subset=["day", "user_id"], keep="last", order_by=["updated_at", "email", "name"])
        .select("day", "user_id", "email", "name", "updated_at")
    )


def daily_page_views(page_views: Frame) -> Frame:
    """How often each user viewed each page on each day, and when last.

    Args:
        page_views: ``ts`` datetime, ``url`` string, ``user_id`` int64; each event once.

    Returns:
        ``day`` datetime (its midnight), ``user_id``, ``url``, ``count`` int64, ``last_viewed`` datetime; in the order
        of day, user and url, in which an index is quickest to take them.
    """
    return (
        page_views.with_columns(day=nw.col("ts").dt.truncate("1d"))
        .group_by("day", "user_id", "url")
        .agg(count=nw.len(), last_viewed=nw.col("ts").max())
        # Not inside the aggregation: pandas and PyArrow take only plain ones.
        .with_columns(nw.col("count").cast(nw.Int64))
        .sort("day", "user_id", "url")
    )


def add_up_page_views(contributions: Frame) -> Frame:
    """How often each user viewed each page on all of some days, and when last.

    Args:
        contributions: ``user_id`` int64, ``url`` string, ``count`` int64, ``last_viewed`` datetime; a pair once a
            day.

    Returns:
        ``user_id``, ``url``, ``count`` int64, ``last_viewed``, in the order of user and url.
    """
    return (
        contributions.group_by("user_id", "url")
        .agg(nw.col("count").sum(), nw.col("last_viewed").max())
        # Engines widen a sum.
        .with_columns(nw.col("count").cast(nw.Int64))
        .sort("user_id", "url")
    )
