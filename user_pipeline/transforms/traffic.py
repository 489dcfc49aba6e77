"""What the traffic report counts: days, who and what is new, who came back, which pages are viewed most or rise."""

from datetime import date, datetime

import narwhals as nw

from user_pipeline.transforms import Frame


def with_day(daily: Frame) -> Frame:
    """Daily aggregates with the day each of them is of.

    Args:
        daily: ``user_id``, ``url``, ``count``, ``last_viewed``; a pair once a day.

    Returns:
        ``user_id``, ``url``, ``count`` int64, ``day`` datetime at midnight: what the other functions here take.
    """
    # An aggregate of a day was last viewed on that day. Some engines truncate to a time with a zone.
    day = nw.col("last_viewed").dt.truncate("1d").cast(nw.Datetime("us"))
    return daily.select("user_id", "url", nw.col("count").cast(nw.Int64), day=day)


def daily_traffic(views: Frame) -> Frame:
    """How much was viewed on each day.

    Returns:
        ``day``, ``views``, ``users``, ``pages`` int64 (users and pages are different ones); a row for each day with
        views, in their order.
    """
    return (
        views.group_by("day")
        .agg(views=nw.col("count").sum(), users=nw.col("user_id").n_unique(), pages=nw.col("url").n_unique())
        .with_columns(nw.col("views", "users", "pages").cast(nw.Int64))
        .sort("day")
    )


def arrivals(views: Frame, totals: Frame, key: str) -> Frame:
    """How many users, or pages, were seen for the first time ever on each day.

    What was never seen before the first of these days has all of its views since then; so the total of all days tells
    who was there before, and no earlier day has to be read.

    Args:
        views: of all days since some day, the latest one included.
        totals: the key and ``total``, the views of all days there ever were.
        key: ``user_id`` or ``url``.

    Returns:
        ``day``, ``new`` int64; a row for each day with any, in their order.
    """
    since = views.group_by(key).agg(nw.col("day").min(), seen=nw.col("count").sum())
    return (
        since.join(totals, on=key, how="inner")
        .filter(nw.col("seen") == nw.col("total"))
        .group_by("day")
        .agg(new=nw.len())
        .with_columns(nw.col("new").cast(nw.Int64))
        .sort("day")
    )


def came_back(views: Frame, day: date, since: date) -> Frame:
    """How many of the users of the days before a day came back on it.

    Args:
        views: of these days.
        day: the day.
        since: the first of the days before it.

    Returns:
        one row: ``before`` int64, the users from ``since`` to the day before ``day``; ``back`` int64, how many of them
        viewed something on ``day``.
    """
    there = views.filter(nw.col("day") == _midnight(day)).group_by("user_id").agg(here=nw.len())
    before = views.filter(nw.col("day") >= _midnight(since), nw.col("day") < _midnight(day)).select("user_id").unique()
    return (
        before.join(there, on="user_id", how="left")
        .select(before=nw.len(), back=nw.col("here").count())
        .with_columns(nw.all().cast(nw.Int64))
    )


def pages_of_day(views: Frame, day: date, days_before: int, min_viewers: int) -> Frame:
    """The pages of a day beside what is usual for them.

    Args:
        views: of the day and of days before it.
        day: the day.
        days_before: how many days before it ``views`` has; may be 0.
        min_viewers: a page that fewer users viewed on the day is left out: its url may be a person's alone.

    Returns:
        ``url``, ``views``, ``viewers`` int64; ``usual`` float64, views a day in the days before, in the mean; ``rise``
        float64, how far the views are above that, in standard deviations of a count that is usually so large. Both are
        0 without days before.
    """
    of_day = (
        views.filter(nw.col("day") == _midnight(day))
        .group_by("url")
        # A pair is there once a day.
        .agg(views=nw.col("count").sum(), viewers=nw.len())
        .filter(nw.col("viewers") >= min_viewers)
    )
    earlier = views.filter(nw.col("day") < _midnight(day)).group_by("url").agg(earlier=nw.col("count").sum())
    usual = nw.col("earlier").fill_null(0).cast(nw.Float64) / max(days_before, 1)
    # The variance of a count is its mean; the one added keeps a page that was not there before from being infinitely
    # far above.
    rise = (nw.col("views").cast(nw.Float64) - nw.col("usual")) / (nw.col("usual") + 1) ** 0.5
    return (
        of_day.join(earlier, on="url", how="left")
        .with_columns(usual=usual)
        .with_columns(rise=rise if days_before else nw.lit(0.0))
        .select("url", nw.col("views", "viewers").cast(nw.Int64), "usual", "rise")
    )


def top(pages: Frame, by: str, number: int) -> Frame:
    """The first pages by a column, ties in the order of urls."""
    return pages.sort(by, "url", descending=[True, False]).head(number)


def count_rescued(raw: Frame) -> Frame:
    """How many delivered rows have keys or fields beyond the feed's columns: one row, ``rows`` int64."""
    return raw.select(rows=nw.col("rescued").count()).with_columns(nw.col("rows").cast(nw.Int64))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day)  # noqa: DTZ001 - frames hold UTC without a zone
