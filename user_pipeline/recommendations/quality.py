"""How good the recommendations of the day before turned out to be."""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING

import narwhals as nw

from user_pipeline.recommendations.history import new_page_views
from user_pipeline.transforms.quality import hits, spread, with_intervals

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.transforms import Frame

_NUMBERS = (
    "hit_rate",
    "hit_rate_low",
    "hit_rate_high",
    "recall_at_3",
    "ndcg_at_3",
    "popularity_hit_rate",
    "trend_hit_rate",
    "gain",
    "gain_low",
    "gain_high",
    "mean_popularity",
    "distinct_share",
    "coverage",
    "fallback_share",
)


def measure(day: date, engine: "Engine", lake: "Lake") -> dict[str, int | float | None] | None:
    """The quality of the recommendations of the day before, ``users`` and shares; None if there are none."""
    before = day - timedelta(days=1)
    if not lake.analytics.partitions("page_recommendations", [before]):
        return None
    files = lake.fetch(engine, lake.analytics, "page_recommendations", [before])[before]
    if not files:  # past its retention
        return None
    recommended = engine.read(files)
    new = engine.read([new_page_views(lake, engine, day)])
    measured: dict[str, int | float | None] = {}
    for part in (hits(recommended, new), spread(recommended)):
        measured |= part.collect("pyarrow").to_native().to_pylist()[0]
    return with_intervals(measured)


def quality_row(day: date, measured: Mapping[str, int | float | None] | None) -> "Frame":
    """The row of a day in ``recommendation_quality``, or no row.

    Args:
        day: the day.
        measured: what :func:`measure` gives.
    """
    import pyarrow as pa

    columns = [("day", pa.date32()), ("users", pa.int64()), *((name, pa.float64()) for name in _NUMBERS)]
    rows = [] if measured is None else [{"day": day, **measured}]
    frame: Frame = nw.from_native(pa.Table.from_pylist(rows, schema=pa.schema(columns))).lazy()
    return frame
