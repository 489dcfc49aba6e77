"""Compare tables over all days, with what :mod:`user_pipeline.reconcile.days` has computed of each day."""

from collections.abc import Iterator
from datetime import date

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.recommendations.codes import History, in_codes, number
from user_pipeline.recommendations.day import Snapshot, write_tables
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.snapshot import Choices
from user_pipeline.recommendations.window import Window
from user_pipeline.reconcile.comparing import NO_SNAPSHOT, Comparison, Difference, LakeError, Recompute, Shape
from user_pipeline.reconcile.full_refresh import rejects_files
from user_pipeline.resources.postgres import literal
from user_pipeline.warehouse.snapshots import served_day
from user_pipeline.warehouse.tables import exists

_WHOLE = {
    "users": Shape(("user_id", "email", "name", "updated_at"), ("user_id",), ("user_id",)),
    "user_page_views": Shape(
        ("user_id", "email", "url", "count", "last_viewed"), ("user_id", "url"), ("user_id", "url")
    ),
}
_SNAPSHOTS = {
    "page_recommendations": Shape(
        ("user_id", "email", "recommended_url", "rank"), ("user_id", "rank"), ("user_id", "rank")
    ),
    "related_pages": Shape(("url", "related_url", "rank", "score"), ("url", "rank"), ("url", "rank")),
    "popular_pages": Shape(("url", "rank", "viewers", "first_viewers"), ("rank",), ("rank",)),
}
_REJECTS = Shape(
    ("feed", "source_object", "source_line", "reason", "line"),
    ("source_object", "source_line"),
    ("feed", "source_object", "source_line"),
)


def rejected_lines(work: Recompute) -> Comparison:
    """The table of rejected lines against the rejects in the lake."""
    work.empty("kept.rejects", _REJECTS)
    for feed in (USER_UPDATES, PAGE_VIEWS):
        for path, keys in rejects_files(Manifest(feed, work.lake.staging)).items():
            with work.file(path) as file:
                work.connection.execute(
                    "insert into kept.rejects select $feed, source_object, source_line, reason, line "
                    "from read_parquet($file, hive_partitioning = false) where list_contains($keys, source_object)",
                    {"feed": feed.name, "file": str(file), "keys": keys},
                )
    comparison = Comparison("rejected_lines")
    work.load(work.lake.staging.database, "rejected_lines", _REJECTS)
    comparison.differences += work.compare(_REJECTS, "kept.rejects", None, comparison)
    return comparison


def users(work: Recompute) -> Comparison:
    """The latest update of each user, over all days."""
    work.empty("kept.users", _WHOLE["users"])
    work.keep(
        "users",
        "select user_id, email, name, updated_at from kept.users_daily "
        "qualify row_number() over (partition by user_id order by updated_at desc, email desc, name desc) = 1",
    )
    return _whole(work, "users")


def user_page_views(work: Recompute) -> Comparison:
    """All views of each user and page, with the e-mail addresses of :func:`users`, which goes first."""
    work.empty("kept.user_page_views", _WHOLE["user_page_views"])
    work.keep(
        "user_page_views",
        "select user_id, email, url, count, last_viewed from "
        "(select user_id, url, sum(count)::bigint as count, max(last_viewed) as last_viewed "
        "from kept.user_page_views_daily group by all) left join kept.users using (user_id)",
    )
    return _whole(work, "user_page_views")


def recommendations(work: Recompute) -> Iterator[Comparison]:
    """Recommendations, related and popular pages of the day that the tables show, learned again from daily aggregates.

    Those of earlier days are not compared: their runs made them from what there was then.
    """
    made: dict[tuple[date, Choices], dict[str, Snapshot]] = {}
    for table, shape in _SNAPSHOTS.items():
        comparison = Comparison(table)
        work.empty(f"kept.{table}", shape)
        work.load(work.lake.analytics.database, table, shape)
        if day := _served(work, table):
            if not (choices := _choices(work, table, day)):
                comparison.differences.append(Difference(NO_SNAPSHOT, day, work.number("actual")))
                yield comparison
                continue
            # Tables made in one run have the same choices, and are learned once.
            if (day, choices) not in made:
                history = _history(work, Window(day, choices.window_days), choices.eligibility)
                folder = work.engine.new_scratch("snapshots")
                made[day, choices] = write_tables(history, day, choices, folder, tables=list(_SNAPSHOTS), choice=None)
            file = made[day, choices][table].path
            work.keep(table, f"select {', '.join(shape.columns)} from read_parquet({literal(str(file))})")
        comparison.differences += work.compare(shape, f"kept.{table}", day, comparison)
        yield comparison


def _choices(work: Recompute, table: str, day: date) -> Choices | None:
    """What the snapshot of the day was made with; None if it is gone or does not say."""
    files = work.lake.analytics.partitions(table, [day]).get(day, [])
    if not files:
        return None
    try:
        with work.file(files[0].path) as file:
            return Choices.of(file)
    except (LakeError, KeyError):
        return None


def _served(work: Recompute, table: str) -> date | None:
    """The day the table is as of; None if there is none yet."""
    with work.lake.analytics.database.transaction() as transaction:
        return served_day(transaction, table) if exists(transaction, f"{table}_day") else None


def _history(work: Recompute, window: Window, eligibility: Eligibility) -> History:
    pairs = "select user_id, url, last_viewed from kept.user_page_views_daily where "
    # A connection of its own for the temporary tables of number(), one of which is called users.
    with work.connection.cursor() as connection:
        viewed = connection.sql(f"{pairs} day >= '{window.first}' and day < '{window.end}'")
        number(connection, viewed, eligibility)
        before = connection.sql(f"{pairs} day < '{window.first}'")
        return in_codes(connection, before, connection.sql("select user_id, email from kept.users"), window)


def _whole(work: Recompute, table: str) -> Comparison:
    comparison = Comparison(table)
    work.load(work.lake.analytics.database, table, _WHOLE[table])
    comparison.differences += work.compare(_WHOLE[table], f"kept.{table}", None, comparison)
    return comparison
