"""What is kept over all days, made from what :mod:`user_pipeline.reconcile.days` has worked out of each."""

from datetime import date

from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.recommendations.history import History, Window, in_codes, number
from user_pipeline.recommendations.snapshot import Choices, write_recommendations
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
_RECOMMENDATIONS = Shape(("user_id", "email", "recommended_url", "rank"), ("user_id", "rank"), ("user_id", "rank"))
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


def page_recommendations(work: Recompute) -> Comparison:
    """The recommendations of the day that is served, learned anew from the daily aggregates.

    Those of earlier days are as their runs made them, from what there was then.
    """
    comparison = Comparison("page_recommendations")
    work.empty("kept.page_recommendations", _RECOMMENDATIONS)
    work.load(work.lake.analytics.database, comparison.table, _RECOMMENDATIONS)
    if day := _served(work):
        if not (choices := _choices(work, day)):
            comparison.differences.append(Difference(NO_SNAPSHOT, day, work.number("actual")))
            return comparison
        anew = work.engine.new_scratch(comparison.table) / "anew.parquet"
        write_recommendations(_history(work, Window(day, choices.window_days), choices.eligibility), anew, choices)
        work.keep(
            comparison.table, f"select {', '.join(_RECOMMENDATIONS.columns)} from read_parquet({literal(str(anew))})"
        )
        anew.unlink()
    comparison.differences += work.compare(_RECOMMENDATIONS, "kept.page_recommendations", day, comparison)
    return comparison


def _choices(work: Recompute, day: date) -> Choices | None:
    """What the snapshot of the day was made with; None if it is gone or does not say."""
    [path] = [file.path for file in work.lake.analytics.partitions("page_recommendations", [day]).get(day, [])] or [""]
    try:
        with work.file(path) as file:
            return Choices.of(file)
    except (LakeError, KeyError):
        return None


def _served(work: Recompute) -> date | None:
    """The day the table is as of; None if there is none yet."""
    with work.lake.analytics.database.transaction() as transaction:
        return served_day(transaction) if exists(transaction, "page_recommendations_day") else None


def _history(work: Recompute, window: Window, eligibility: Eligibility) -> History:
    pairs = "select user_id, url from kept.user_page_views_daily where "
    # One of its own: the numbers are in temporary tables, users among them.
    with work.connection.cursor() as connection:
        viewed = connection.sql(f"{pairs} day >= '{window.first}' and day < '{window.end}'")
        number(connection, viewed, eligibility)
        before = connection.sql(f"{pairs} day < '{window.first}'")
        return in_codes(connection, before, connection.sql("select user_id, email from kept.users"))


def _whole(work: Recompute, table: str) -> Comparison:
    comparison = Comparison(table)
    work.load(work.lake.analytics.database, table, _WHOLE[table])
    comparison.differences += work.compare(_WHOLE[table], f"kept.{table}", None, comparison)
    return comparison
