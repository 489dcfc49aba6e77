"""Collect what traffic reports say, from files of the lake and one pass over ``user_page_views``.

A report reads the daily aggregates of its own fourteen days. Who and what is new *ever* is told by the totals of
``user_page_views``: see :func:`user_pipeline.transforms.traffic.arrivals`. Files and totals are of one moment, a
repeatable-read transaction. A run of many days reads each file once. A report of a day long past also reads the
aggregates of all days since, as only these tell its totals from today's.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from user_pipeline.engines.parquet import write_parquet
from user_pipeline.ingest.day_account import objects_of_day
from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.partitions import partitions_in
from user_pipeline.lake.registry import MissingPartitionError
from user_pipeline.lake.transfer import fetch_all
from user_pipeline.masking import printable, shorten
from user_pipeline.traffic_report.report import (
    DAYS_COMPARED,
    DAYS_SHOWN,
    RISING_PAGES,
    TOP_PAGES,
    Back,
    FeedAccount,
    Page,
    Quality,
    Report,
    Traffic,
)
from user_pipeline.transforms.cleaned import count_environments
from user_pipeline.transforms.traffic import (
    arrivals,
    came_back,
    count_rescued,
    daily_traffic,
    pages_of_day,
    top,
    with_day,
)
from user_pipeline.warehouse.tables import require_marts

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.transforms import Frame

_VIEWS, _QUALITY = "user_page_views", "recommendation_quality"
_LONGEST_URL, _LONGEST_NAME = 160, 60
_KEYS = {"new_users": "user_id", "new_pages": "url"}


def collect(
    lake: "Lake", engine: "Engine", days: Sequence[date], *, made_at: datetime, min_viewers: int
) -> Iterator[Report]:
    """The reports of some days.

    Args:
        lake: has the files.
        engine: reads them.
        days: which days.
        made_at: what the reports say about when they were made.
        min_viewers: a page that fewer users viewed on a day is not named.

    Raises:
        MissingPartitionError: what a report is made of was never materialized.
    """
    shown = {day: _days_until(day, DAYS_SHOWN) for day in days}
    with _views(lake, engine, min(min(there) for there in shown.values()), days) as (files, totals):
        traffic = _traffic(engine, files, totals)
        quality = _quality(lake, engine, sorted({each for there in shown.values() for each in there}))
        for day in sorted(days):
            known = [each for each in _days_until(day, DAYS_COMPARED + 1) if each in files]
            views = with_day(engine.read([file for each in known for file in files[each]]))
            yesterday, week = day - timedelta(days=1), day - timedelta(days=DAYS_COMPARED)
            pages = pages_of_day(views, day, len(known) - 1, min_viewers)
            yield Report(
                day=day,
                made_at=made_at,
                days={each: traffic.get(each) for each in shown[day]},
                back_after_a_day=Back(**_only(came_back(views, day, yesterday))),
                back_after_a_week=Back(**_only(came_back(views, day, week))),
                top=_pages(top(pages, "views", TOP_PAGES)),
                rising=[page for page in _pages(top(pages, "rise", RISING_PAGES)) if page.views > page.usual]
                if len(known) > 1
                else [],
                min_viewers=min_viewers,
                feeds=[_account(feed, lake, engine, day) for feed in FEEDS],
                quality={each: quality.get(each) for each in shown[day]},
            )


def _days_until(day: date, number: int) -> list[date]:
    return [day - timedelta(days=ago) for ago in range(number - 1, -1, -1)]


@contextmanager
def _views(
    lake: "Lake", engine: "Engine", first: date, wanted: Sequence[date]
) -> Iterator[tuple[dict[date, list[Path]], dict[str, Path]]]:
    """The aggregates of all days since the first, by day, and the totals by user and by page, as local files."""
    scratch = engine.new_scratch("traffic")
    lake.analytics.open()
    try:
        with lake.analytics.database.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            require_marts(transaction)
            since = {day: there for day, there in partitions_in(transaction, _VIEWS).items() if day >= first}
            for day in wanted:
                if day not in since:
                    raise MissingPartitionError(_VIEWS, day)
            totals = {}
            for key in _KEYS.values():
                totals[key] = scratch / f"{key}.parquet"
                query = f"select {key}, sum(count)::bigint as total from public.{_VIEWS} group by {key}"
                write_parquet(transaction.stream(query), totals[key])
        local = iter(fetch_all(lake.storage, [file for there in since.values() for file in there], scratch))
        yield {day: [next(local) for _ in there] for day, there in since.items()}, totals
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _traffic(
    engine: "Engine", files: Mapping[date, Sequence[Path]], totals: Mapping[str, Path]
) -> dict[date, Traffic | None]:
    views = with_day(engine.read([file for there in files.values() for file in there]))
    new = {
        name: {row["day"].date(): row["new"] for row in _rows(arrivals(views, engine.read([totals[key]]), key))}
        for name, key in _KEYS.items()
    }
    counted = {row.pop("day").date(): row for row in _rows(daily_traffic(views))}
    nothing = {"views": 0, "users": 0, "pages": 0}
    return {
        day: Traffic(**counted.get(day, nothing), **{name: there.get(day, 0) for name, there in new.items()})
        for day in files
    }


def _quality(lake: "Lake", engine: "Engine", days: Sequence[date]) -> dict[date, Quality | None]:
    there = lake.analytics.partitions(_QUALITY, days)
    if not there:
        return {}
    files = lake.fetch(engine, lake.analytics, _QUALITY, list(there))
    rows = _rows(engine.read([file for of_day in files.values() for file in of_day]))
    names = Quality.__dataclass_fields__
    return {row["day"]: Quality(**{name: row[name] for name in names}) for row in rows}


def _account(feed: Feed, lake: "Lake", engine: "Engine", day: date) -> FeedAccount:
    read = objects_of_day(Manifest(feed, lake.staging), day)
    files = lake.fetch(engine, lake.staging, f"raw_{feed.name}", [day])[day]
    delivered = production = further = 0
    if files:
        raw = engine.read(files)
        counts = _only(count_environments(raw))
        delivered, production = counts["raw_rows"], counts["production_rows"] or 0
        further = _only(count_rescued(raw))["rows"]
    kept = sum(file.rows for file in lake.staging.files(feed.name, [day])[day])
    return FeedAccount(
        feed=feed.name,
        objects=read.objects,
        lines=read.lines,
        rows=read.rows,
        rejected=read.rejected,
        blank=read.blank + read.header,
        delivered=delivered,
        kept=kept,
        duplicates=production - kept,
        other_environments=delivered - production,
        further=further,
        new_fields=tuple(printable(shorten(name, _LONGEST_NAME)) for name in read.new_fields),
    )


def _pages(frame: "Frame") -> list[Page]:
    return [
        Page(printable(shorten(row["url"], _LONGEST_URL)), row["views"], row["viewers"], row["usual"])
        for row in _rows(frame)
    ]


def _rows(frame: "Frame") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = frame.collect("pyarrow").to_native().to_pylist()
    return rows


def _only(frame: "Frame") -> dict[str, Any]:
    [row] = _rows(frame)
    return row
