"""How good a day's recommendations were, by what users viewed the day after."""

import math
from collections.abc import Mapping

import narwhals as nw

from user_pipeline.transforms import Frame

_RANKS = 3
# The discount of a hit at each rank, and the largest possible sum with 1, 2 and 3 new pages.
_DISCOUNTS = tuple(1 / math.log2(1 + rank) for rank in range(1, _RANKS + 1))
_IDEAL = tuple(sum(_DISCOUNTS[:n]) for n in range(1, _RANKS + 1))
_CHOICES = {"": "recommended_url", "popularity_": "popular_url", "trend_": "trending_url"}
BASELINES = ("popularity", "trend")
# 95 % of a normal distribution is within this many standard deviations.
_Z = 1.959964


def hits(recommended: Frame, new_views: Frame) -> Frame:
    """Compare recommendations with the pages that users viewed for the first time.

    Args:
        recommended: ``user_id``, ``rank``, ``recommended_url``, ``popular_url``, ``trending_url``; of one day.
        new_views: ``user_id``, ``url``, each pair once: pages users viewed on the day after and never before.

    Returns:
        One row about the users who were recommended something and viewed something new: ``users`` their number,
        ``hit_rate`` the share who viewed a recommended page, ``recall_at_3`` the mean of hits / min(3, new pages),
        ``ndcg_at_3`` the same with a hit counting less at a worse rank. With the prefixes ``popularity_`` and
        ``trend_`` the same had the most popular or the most discovered unseen pages been recommended;
        ``wins_over_popularity`` and ``losses_to_popularity``, and those of ``trend``, are how many users had a hit of
        one alone. Means of no users are null.
    """
    new = new_views.join(recommended.select("user_id").unique(), on="user_id", how="semi")
    found = new.with_columns(hit=nw.lit(1))
    by_user = new.group_by("user_id").agg(new=nw.len())
    for prefix, column in _CHOICES.items():
        counts = (
            recommended.select("user_id", column, discount=_by_number("rank", _DISCOUNTS))
            .join(found, left_on=["user_id", column], right_on=["user_id", "url"], how="inner")
            .group_by("user_id")
            .agg(nw.col("hit").sum().alias(f"{prefix}hits"), nw.col("discount").sum().alias(f"{prefix}gained"))
        )
        by_user = by_user.join(counts, on="user_id", how="left")
    counted = [f"{prefix}{name}" for prefix in _CHOICES for name in ("hits", "gained")]
    by_user = by_user.with_columns(nw.col(*counted).fill_null(0)).with_columns(
        possible=nw.when(nw.col("new") > _RANKS).then(nw.lit(_RANKS)).otherwise(nw.col("new")),
        is_hit=nw.col("hits") > 0,
    )
    means = [nw.col("user_id").count().alias("users")]
    for prefix in _CHOICES:
        is_hit = nw.col(f"{prefix}hits") > 0
        means += [
            is_hit.cast(nw.Float64).mean().alias(f"{prefix}hit_rate"),
            (nw.col(f"{prefix}hits") / nw.col("possible")).mean().alias(f"{prefix}recall_at_3"),
            (nw.col(f"{prefix}gained") / _by_number("possible", _IDEAL)).mean().alias(f"{prefix}ndcg_at_3"),
        ]
        if prefix:
            name = prefix.removesuffix("_")
            means += [
                (nw.col("is_hit") & ~is_hit).cast(nw.Int64).sum().cast(nw.Int64).alias(f"wins_over_{name}"),
                (~nw.col("is_hit") & is_hit).cast(nw.Int64).sum().cast(nw.Int64).alias(f"losses_to_{name}"),
            ]
    return by_user.select(*means)


def _by_number(column: str, values: tuple[float, ...]) -> nw.Expr:
    """The value for 1, 2, 3 in a column."""
    first, second, third = values
    number = nw.col(column)
    others = nw.when(number == _RANKS - 1).then(nw.lit(second)).otherwise(nw.lit(third))
    return nw.when(number == 1).then(nw.lit(first)).otherwise(others)


def spread(recommended: Frame) -> Frame:
    """How varied the recommendations of a day are.

    Args:
        recommended: ``user_id``, ``rank``, ``recommended_url``, ``is_fallback``, ``viewers``, ``active``,
            ``candidates``.

    Returns:
        One row: ``coverage`` the share of pages that could be recommended and were, to someone; ``distinct_share`` how
        many different pages there are, as a share of all recommendations; ``mean_popularity`` the share of active users
        who have viewed a recommended page, in the mean; ``fallback_share`` the share of users served by popularity
        alone. Of no recommendations all are null.
    """
    pages = recommended.select(
        coverage=nw.col("recommended_url").n_unique() / nw.col("candidates").max(),
        distinct_share=nw.col("recommended_url").n_unique() / nw.col("rank").count(),
        mean_popularity=nw.col("viewers").mean() / nw.col("active").max(),
    )
    first = recommended.filter(nw.col("rank") == 1).select(fallback_share=nw.col("is_fallback").cast(nw.Float64).mean())
    return pages.join(first, how="cross")


def with_intervals(measured: Mapping[str, float | None]) -> dict[str, float | None]:
    """Add 95 % confidence intervals to the measures of :func:`hits`.

    Returns:
        ``hit_rate_low`` and ``hit_rate_high`` (Wilson 1927); ``gain``, the hit rate less that of the better of the
        baselines, with ``gain_low`` and ``gain_high``, of the difference of paired shares (Bonett & Price, "Adjusted
        Wald confidence interval for a difference of binomial proportions based on paired data", JEBS 2012). Both are
        valid for few users, too. All are null without users.
    """
    users, rate = measured["users"] or 0, measured["hit_rate"]
    if not users or rate is None:
        names = ("hit_rate_low", "hit_rate_high", "gain", "gain_low", "gain_high")
        return {**measured, **dict.fromkeys(names)}
    middle = (rate + _Z**2 / (2 * users)) / (1 + _Z**2 / users)
    half = _Z / (1 + _Z**2 / users) * math.sqrt(rate * (1 - rate) / users + _Z**2 / (4 * users**2))
    best = max(BASELINES, key=lambda name: measured[f"{name}_hit_rate"] or 0)
    wins, losses = ((measured[name] or 0) + 1 for name in (f"wins_over_{best}", f"losses_to_{best}"))
    difference = (wins - losses) / (users + 2)
    error = _Z * math.sqrt(((wins + losses) / (users + 2) - difference**2) / (users + 2))
    return {
        **measured,
        "hit_rate_low": max(0.0, middle - half),
        "hit_rate_high": min(1.0, middle + half),
        "gain": rate - (measured[f"{best}_hit_rate"] or 0),
        "gain_low": max(-1.0, difference - error),
        "gain_high": min(1.0, difference + error),
    }
