"""How good a day's recommendations were, by what users viewed the day after."""

import narwhals as nw

from user_pipeline.transforms import Frame


def hits(recommended: Frame, new_views: Frame) -> Frame:
    """Recommendations against the pages users viewed for the first time.

    Args:
        recommended: ``user_id``, ``rank``, ``recommended_url``, ``popular_url``, by which day's end it may be.
        new_views: ``user_id``, ``url``, each pair once: pages users viewed on the day after and never before.

    Returns:
        One row about the users who were recommended something and viewed something new: ``users`` their number,
        ``hit_rate`` the share who viewed a recommended page, ``recall_at_3`` the mean of hits / min(3, new pages),
        ``popularity_hit_rate`` and ``popularity_recall_at_3`` the same had the most popular unseen pages been
        recommended. Means of no users are null.
    """
    new = new_views.join(recommended.select("user_id").unique(), on="user_id", how="semi")
    found = new.with_columns(hit=nw.lit(1))
    by_user = new.group_by("user_id").agg(new=nw.len())
    for name, column in (("hits", "recommended_url"), ("popular_hits", "popular_url")):
        counts = (
            recommended.select("user_id", column)
            .join(found, left_on=["user_id", column], right_on=["user_id", "url"], how="inner")
            .group_by("user_id")
            .agg(nw.col("hit").sum().alias(name))
        )
        by_user = by_user.join(counts, on="user_id", how="left")
    possible = nw.when(nw.col("new") > _RANKS).then(nw.lit(_RANKS)).otherwise(nw.col("new"))
    return (
        by_user.with_columns(nw.col("hits", "popular_hits").fill_null(0))
        .with_columns(
            is_hit=(nw.col("hits") > 0).cast(nw.Float64),
            recall=nw.col("hits") / possible,
            is_popular_hit=(nw.col("popular_hits") > 0).cast(nw.Float64),
            popular_recall=nw.col("popular_hits") / possible,
        )
        .select(
            users=nw.col("user_id").count(),
            hit_rate=nw.col("is_hit").mean(),
            recall_at_3=nw.col("recall").mean(),
            popularity_hit_rate=nw.col("is_popular_hit").mean(),
            popularity_recall_at_3=nw.col("popular_recall").mean(),
        )
    )


def spread(recommended: Frame) -> Frame:
    """What a day's recommendations are made of.

    Args:
        recommended: ``user_id``, ``rank``, ``recommended_url``, ``is_fallback``, ``candidates``.

    Returns:
        One row: ``coverage`` the share of pages that could be recommended and were, to someone;
        ``fallback_share`` the share of users served by popularity alone. Of no recommendations both are null.
    """
    pages = recommended.select(
        coverage=nw.col("recommended_url").n_unique() / nw.col("candidates").max(),
    )
    first = recommended.filter(nw.col("rank") == 1).select(fallback_share=nw.col("is_fallback").cast(nw.Float64).mean())
    return pages.join(first, how="cross")


_RANKS = 3
