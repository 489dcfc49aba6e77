"""The aggregates of a day, what replacing them changes, and what several of them add up to."""

import narwhals as nw

from user_pipeline.transforms import Frame


def latest_updates(user_updates: Frame) -> Frame:
    """The latest update of each user, of a day or of all days.

    Latest is the greatest ``updated_at``; ties go to the greatest ``email``, then ``name`` (by code point), so
    the result does not depend on the order of rows.

    Args:
        user_updates: ``updated_at`` datetime, ``user_id`` int64, ``email`` string, ``name`` string; updates, or the
            latest ones of some days.

    Returns:
        ``user_id``, ``email``, ``name``, ``updated_at``, a row a user, in the order of users.
    """
    return (
        user_updates.select("user_id", "email", "name", "updated_at")
        .unique(subset=["user_id"], keep="last", order_by=["updated_at", "email", "name"])
        .sort("user_id")
    )


def daily_page_views(page_views: Frame) -> Frame:
    """How often each user viewed each page on a day, and when last.

    Args:
        page_views: of one day: ``ts`` datetime, ``url`` string, ``user_id`` int64; each event once.

    Returns:
        ``user_id``, ``url``, ``count`` int64, ``last_viewed`` datetime; in the order of user and url, in which they are
        added to an index fastest.
    """
    return (
        page_views.group_by("user_id", "url")
        .agg(count=nw.len(), last_viewed=nw.col("ts").max())
        # Not inside the aggregation: pandas and PyArrow take only plain ones.
        .with_columns(nw.col("count").cast(nw.Int64))
        .sort("user_id", "url")
    )


def users_without_update(old: Frame, new: Frame) -> Frame:
    """The users with an update in the old aggregates of some days and none in the new ones.

    Args:
        old: ``user_id``, the aggregates that the days had.
        new: ``user_id``, the aggregates that they have now.

    Returns:
        ``user_id``, each once.
    """
    had = old.group_by("user_id").agg(nw.len().alias("days")).select("user_id")
    return had.join(new.select("user_id"), on="user_id", how="anti")


def add_up_page_views(daily: Frame) -> Frame:
    """How often each user viewed each page over several days, and when last.

    Args:
        daily: ``user_id`` int64, ``url`` string, ``count`` int64, ``last_viewed`` datetime; a pair once a day.

    Returns:
        ``user_id``, ``url``, ``count`` int64, ``last_viewed``.
    """
    return (
        daily.group_by("user_id", "url")
        .agg(nw.col("count").sum(), nw.col("last_viewed").max())
        # Engines widen a sum.
        .with_columns(nw.col("count").cast(nw.Int64))
    )


def last_views(daily: Frame) -> Frame:
    """When each user viewed each page last, in some days.

    Args:
        daily: ``user_id``, ``url``, ``last_viewed``; a pair once a day.

    Returns:
        ``user_id``, ``url``, ``last_viewed``, each pair once.
    """
    return daily.group_by("user_id", "url").agg(nw.col("last_viewed").max())


def changed_page_views(new: Frame, old: Frame) -> Frame:
    """What replacing the aggregates of some days changes for pairs of user and page.

    Args:
        new: ``user_id``, ``url``, ``count``, ``last_viewed`` of the days as they are now; a pair once a day.
        old: the same of the days as they were before.

    Returns:
        the pairs that change: ``user_id``, ``url``, ``count`` int64 (by how much), ``last_viewed`` (of now; null where
        there is no view any more), ``old_last_viewed`` (of before; null where there was none).
    """
    nothing = nw.lit(None).cast(nw.Datetime("us"))
    arriving = new.select("user_id", "url", nw.col("count").cast(nw.Int64), "last_viewed", old_last_viewed=nothing)
    leaving = old.select(
        "user_id",
        "url",
        (-nw.col("count")).cast(nw.Int64),
        old_last_viewed=nw.col("last_viewed"),
        last_viewed=nothing,
    ).select("user_id", "url", "count", "last_viewed", "old_last_viewed")
    changes = (
        nw.concat([arriving, leaving])
        .group_by("user_id", "url")
        .agg(nw.col("count").sum(), nw.col("last_viewed").max(), nw.col("old_last_viewed").max())
        .with_columns(nw.col("count").cast(nw.Int64))
    )
    same = (nw.col("count") == 0) & (nw.col("last_viewed") == nw.col("old_last_viewed")).fill_null(value=False)
    return changes.filter(~same)


def with_emails(page_views: Frame, users: Frame) -> Frame:
    """Page views with their users' e-mail addresses.

    Args:
        page_views: ``user_id``, ``url``, ``count``, ``last_viewed``.
        users: ``user_id``, ``email``; a user once.

    Returns:
        ``user_id``, ``email`` (null for a user who is not known), ``url``, ``count``, ``last_viewed``.
    """
    return page_views.join(users.select("user_id", "email"), on="user_id", how="left").select(
        "user_id", "email", "url", "count", "last_viewed"
    )
