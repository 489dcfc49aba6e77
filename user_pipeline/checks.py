"""Asset checks: what must hold for the days just materialized, looked up in what was stored.

Each check has a function of its own that takes stores and databases and gives an
:class:`~dagster.AssetCheckResult`; the checks of one asset run as one op.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline import settings
from user_pipeline.accounting import account_days, between
from user_pipeline.errors import never_retried
from user_pipeline.ingest.catalog import Catalog
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.io_managers.lake import MissingPartitionError, fetch_partitions
from user_pipeline.masking import mask_emails
from user_pipeline.partitions import DAILY
from user_pipeline.recommendation_rules import RULES, broken_rules
from user_pipeline.recommendations import Window
from user_pipeline.resources.engine import Engine
from user_pipeline.resources.object_store import ObjectStorage
from user_pipeline.resources.postgres import Databases, Postgres, Transaction, literal, quote
from user_pipeline.transforms.cleaned import PRODUCTION

if TYPE_CHECKING:
    import duckdb

_NAMED = 20
"""How many offenders a result names."""


def _evaluate(
    context: dg.AssetCheckExecutionContext, evaluate: Callable[[Sequence[date]], list[dg.AssetCheckResult]]
) -> list[dg.AssetCheckResult]:
    """Evaluate checks for the days of the run, and tell Dagster the result of each single day.

    A result stands for one partition or for none, so after a run of several days Dagster would show each of them
    as skipped. The days are looked at one by one only if they do not all pass together.
    """
    days = [date.fromisoformat(key) for key in context.partition_keys]
    results = evaluate(days)
    if len(days) > 1:
        all_pass = all(result.passed for result in results)
        for day in days:
            for result in results if all_pass else evaluate([day]):
                # Known since _result made it.
                assert result.asset_key is not None  # noqa: S101 - as above
                assert result.check_name is not None  # noqa: S101 - as above
                context.op_execution_context.log_event(  # taken, though its annotation leaves evaluations out
                    dg.AssetCheckEvaluation(  # type: ignore[arg-type]
                        asset_key=result.asset_key,
                        check_name=result.check_name,
                        passed=result.passed,
                        severity=result.severity,
                        description=result.description,
                        metadata={"problems": result.metadata["problems"]},
                        partition=day.isoformat(),
                    )
                )
    return results


def _spec(asset: str, name: str, description: str, *, blocking: bool = True) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=asset, description=description, blocking=blocking, partitions_def=DAILY)


def _raw_checks(feed: Feed) -> dg.AssetChecksDefinition:
    asset = f"raw_{feed.name}"

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            _spec(
                asset,
                "every_line_accounted",
                "For every object: lines = rows + rejected + blank + header lines.",
            ),
            _spec(asset, "partition_complete", "The stored day has the rows that all objects brought for it."),
            _spec(
                asset,
                "reject_share",
                "Not more than USER_PIPELINE_MAX_REJECT_SHARE of an object's lines are rejected.",
                blocking=False,
            ),
            _spec(asset, "no_broken_objects", "Every object could be fetched, and read to its end.", blocking=False),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        storage: dg.ResourceParam[ObjectStorage],
        engine: dg.ResourceParam[Engine],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            catalog = Catalog.load(storage.lake, feed)
            yield from _evaluate(
                context,
                lambda days: [
                    every_line_accounted(catalog),
                    partition_complete(catalog, storage, engine, days),
                    reject_share(catalog, days, settings.current().max_reject_share),
                    no_broken_objects(catalog),
                ],
            )

    return checks


def every_line_accounted(catalog: Catalog) -> dg.AssetCheckResult:
    """Every object: the lines that were cut are the rows, rejects, blank and header lines that were stored."""
    account = catalog.account()
    return _result(
        "every_line_accounted",
        f"raw_{catalog.feed.name}",
        [f"{entry.key}: {entry.unaccounted} of {entry.lines} lines" for entry in catalog.unaccounted()],
        objects=account["objects"],
        lines=account["lines"],
        rows=account["rows"],
        rejected=account["rejected"],
        blank=account["blank"],
        header=account["header"],
    )


def partition_complete(
    catalog: Catalog, storage: ObjectStorage, engine: Engine, days: Sequence[date]
) -> dg.AssetCheckResult:
    """Each stored day has as many rows as the catalog says all objects brought for it."""
    asset = f"raw_{catalog.feed.name}"
    expected = catalog.rows(days)
    stored = {}
    with engine.connect() as connection:
        for day in days:
            [file] = fetch_partitions(storage, engine, asset, [day.isoformat()])
            stored[day] = _count(connection.read_parquet(str(file)))
    wrong = [day for day in days if stored[day] != expected[day]]
    return _result(
        "partition_complete",
        asset,
        [f"{day}: {stored[day]} rows stored, {expected[day]} delivered" for day in wrong],
        rows=sum(stored.values()),
    )


def reject_share(catalog: Catalog, days: Sequence[date], limit: float) -> dg.AssetCheckResult:
    """No object that brought rows for these days, or no row at all, lost more than a share of its lines."""
    entries = catalog.with_rejects(days)
    over = [entry for entry in entries if entry.rejects > limit * entry.lines]
    return _result(
        "reject_share",
        f"raw_{catalog.feed.name}",
        [f"{entry.key}: {entry.rejects} of {entry.lines} lines, {entry.rejected}" for entry in over],
        warn=True,
        limit=limit,
        greatest_share=max((entry.rejects / entry.lines for entry in entries), default=0.0),
    )


def no_broken_objects(catalog: Catalog) -> dg.AssetCheckResult:
    """No object waits for a whole copy of itself, or for the store to give it."""
    entries = catalog.unread()
    return _result(
        "no_broken_objects",
        f"raw_{catalog.feed.name}",
        [f"{entry.key}: {entry.error}" for entry in entries if entry.error]
        + [
            f"{entry.key}: not fetched in {entry.failure.attempts} attempts, next one after "
            f"{entry.failure.retry_at:%Y-%m-%d %H:%M} UTC: {entry.failure.error}"
            for entry in entries
            if entry.failure
        ],
        warn=True,
    )


def _cleaned_checks(feed: Feed) -> dg.AssetChecksDefinition:
    asset = feed.name

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            _spec(
                asset,
                "every_row_accounted",
                "For every day: raw rows = cleaned rows + duplicates + rows of other environments.",
            ),
            _spec(asset, "only_production", "Every row is of the production environment."),
            _spec(asset, "no_duplicates", "No two rows are equal in all columns."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        storage: dg.ResourceParam[ObjectStorage],
        engine: dg.ResourceParam[Engine],
        databases: dg.ResourceParam[Databases],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from _evaluate(
                context,
                lambda days: [
                    every_row_accounted(feed, storage, engine, databases.staging, days),
                    only_production(feed, databases.staging, days),
                    no_duplicates(feed, databases.staging, days),
                ],
            )

    return checks


def every_row_accounted(
    feed: Feed, storage: ObjectStorage, engine: Engine, staging: Postgres, days: Sequence[date]
) -> dg.AssetCheckResult:
    """Each day: raw rows = cleaned rows + duplicates + other environments, counted in what is stored."""
    accounts = account_days(feed, storage, engine, staging, days)
    return _result(
        "every_row_accounted",
        feed.name,
        [
            f"{a.day}: {a.raw} raw, {a.cleaned} cleaned, {a.duplicates} duplicates, "
            f"{a.other_environments} other environments"
            for a in accounts
            if not a.balances
        ],
        raw=sum(a.raw for a in accounts),
        cleaned=sum(a.cleaned for a in accounts),
        duplicates=sum(a.duplicates for a in accounts),
        other_environments=sum(a.other_environments for a in accounts),
    )


def only_production(feed: Feed, staging: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """No row of the days is of another environment."""
    rows = _rows(
        staging,
        f"select environment, count(*) from {_slice(feed, days)} "
        f"where environment is distinct from '{PRODUCTION}' group by 1 order by 1",
    )
    return _result("only_production", feed.name, [f"{environment}: {count} rows" for environment, count in rows])


def no_duplicates(feed: Feed, staging: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """No two rows of the days are equal in all of the feed's columns."""
    columns = ", ".join(feed.columns)
    # The event time comes first: its index has the rows nearly sorted, and grouping them by hash costs far more.
    rows = _rows(
        staging,
        f"select {feed.event_time}::date, count(*) from (select {feed.event_time}, row_number() over "
        f"(partition by {columns}) as n from {_slice(feed, days)}) d where n > 1 group by 1 order by 1",
    )
    return _result("no_duplicates", feed.name, [f"{day}: {count} rows too many" for day, count in rows])


def _mart_checks(asset: str, key: tuple[str, ...]) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            _spec(asset, "unique_key", f"({', '.join(key)}) identifies a row."),
            _spec(asset, "latest_email", "No e-mail is older than the user's latest update."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext, databases: dg.ResourceParam[Databases]
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from _evaluate(
                context,
                lambda days: [unique_key(asset, key, databases.analytics, days), latest_email(asset, databases, days)],
            )

    return checks


def unique_key(asset: str, key: tuple[str, ...], analytics: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """The key identifies each row of the users that these days say something about.

    Where the table's unique index is there, Postgres has seen to it; rows are counted only where it is not.
    """
    columns = ", ".join(quote(column) for column in key)
    with analytics.transaction() as transaction:
        guarded = transaction.fetch(_UNIQUE_INDEX.format(table=literal(f"public.{quote(asset)}"), index=_KEYS[asset]))
        rows = (
            []
            if guarded
            else transaction.fetch(
                f"select {columns}, count(*) from public.{quote(asset)} where user_id in "
                f"(select user_id from public.{quote(asset + '_daily')} where {between('day', days)}) "
                f"group by {columns} having count(*) > 1 order by {columns} limit {_NAMED}",
            )
        )
    return _result("unique_key", asset, [f"{row[:-1]}: {row[-1]} rows" for row in rows])


_KEYS = {"users": "USING btree (user_id)", "user_page_views": 'USING btree (user_id, url_key(url) COLLATE "C")'}
"""The end of the definition of the index that makes a table's key unique."""

_UNIQUE_INDEX = """
select 1 from pg_index where indrelid = to_regclass({table}) and indisunique and indisvalid and indislive
  and replace(pg_get_indexdef(indexrelid), 'public.', '') like '%{index}'
"""


def latest_email(asset: str, databases: Databases, days: Sequence[date]) -> dg.AssetCheckResult:
    """No user of these days has an e-mail other than that of an update at least as late as those of the days.

    In user_page_views that is looked up for the pairs of the days, and for all pairs of those users for whom the
    days brought another e-mail than the days before them.
    """
    updates = _slice(USER_UPDATES, days)
    latest = (
        "select distinct on (user_id) user_id, email, updated_at from "
        f'{updates} order by user_id, updated_at desc, email collate "C" desc'
    )
    with databases.staging.query(latest) as reader, databases.analytics.transaction() as transaction:
        transaction.load("latest", reader)
        transaction.execute("analyze latest")
        rows = transaction.fetch(
            """
            select l.user_id from latest l left join public.users u using (user_id)
            where u.user_id is null or u.updated_at < l.updated_at
              or (u.updated_at = l.updated_at and u.email is distinct from l.email)
            """
            if asset == "users"
            else f"""
            {_stale_pairs(transaction, days)}
            union
            select v.user_id from latest l
            left join lateral (
              select email from public.users_daily b
              where b.user_id = l.user_id and b.day < '{min(days)}' order by day desc limit 1
            ) before on true
            join public.user_page_views v on v.user_id = l.user_id
            join public.users u on u.user_id = l.user_id
            where before.email is distinct from l.email and v.email is distinct from u.email
            """
        )
    return _result("latest_email", asset, [f"user {user}" for (user,) in sorted(rows)])


def _stale_pairs(transaction: Transaction, days: Sequence[date]) -> str:
    """The query for users with another e-mail in one of the pairs of these days than in users.

    Looking up each pair takes as long as the days are large, reading the table as long as it is: whichever is less.
    """
    of_days = f"select user_id from public.user_page_views_daily where {between('day', days)}"
    [(pairs, rows)] = transaction.fetch(
        f"select (select count(*) from ({of_days}) d), "
        "(select reltuples::bigint from pg_class where oid = 'public.user_page_views'::regclass)"
    )
    # A row in the order of the table costs about an eighth of one by the index.
    if 8 * pairs > rows:
        return f"""
            select user_id from (
              -- Found before anyone asks whose they are: there are none as long as nothing is wrong.
              select distinct v.user_id from public.user_page_views v
              left join public.users u on u.user_id = v.user_id
              where v.email is distinct from u.email offset 0
            ) stale
            where user_id in ({of_days})
        """
    return f"""
        select v.user_id from public.user_page_views_daily d
        join public.user_page_views v on v.user_id = d.user_id and {_URL_KEY.format("v")} = {_URL_KEY.format("d")}
        left join public.users u on u.user_id = v.user_id
        where {between("day", days)} and v.email is distinct from u.email
    """


_URL_KEY = 'public.url_key({}.url) collate "C"'


def _recommendation_checks() -> list[dg.AssetChecksDefinition]:
    asset, quality = "page_recommendations", "recommendation_quality"

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            _spec(asset, "ranks", "The ranks of each user are 1, 2, 3 without a gap, each once."),
            _spec(asset, "unseen", "No user has viewed a recommended page on any day so far."),
            _spec(asset, "unique_pages", "No page is recommended to a user twice."),
            _spec(
                asset,
                "eligible_users",
                "Who viewed a page in the window has min(3, unseen pages) rows, no one else any.",
            ),
            _spec(asset, "latest_email", "The e-mails of the table are those of users."),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        storage: dg.ResourceParam[ObjectStorage],
        engine: dg.ResourceParam[Engine],
        databases: dg.ResourceParam[Databases],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from _evaluate(
                context,
                lambda days: _excused(
                    context,
                    check_recommendations(
                        storage,
                        engine,
                        databases.analytics,
                        [day for day in days if _is_computed(context.instance, day)],
                        settings.current().recommendation_days,
                    ),
                ),
            )

    @dg.multi_asset_check(
        name=f"{quality}_checks",
        specs=[
            _spec(
                quality,
                "beats_popularity",
                "The recommendations hit at least as often as the most popular pages would have.",
                blocking=False,
            )
        ],
    )
    def quality_checks(
        context: dg.AssetCheckExecutionContext, databases: dg.ResourceParam[Databases]
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            yield from _evaluate(context, lambda days: [beats_popularity(databases.analytics, days)])

    return [checks, quality_checks]


def check_recommendations(
    storage: ObjectStorage, engine: Engine, analytics: Postgres, days: Sequence[date], window_days: int
) -> list[dg.AssetCheckResult]:
    """The rules of recommendations, for each of the days that has some: the table's, or else those of the snapshot."""
    problems: dict[str, list[str]] = {name: [] for name in RULES}
    checked = 0
    for day in days:
        try:
            [file] = fetch_partitions(storage, engine, "page_recommendations", [day.isoformat()])
        except MissingPartitionError:
            continue
        checked += 1
        with analytics.transaction() as transaction:
            transaction.execute("set transaction isolation level repeatable read")
            for name, found in broken_rules(transaction, file, Window(day, window_days)).items():
                problems[name] += [f"{day}: {offender}" for offender in found]
    return [_result(name, "page_recommendations", found, days=checked) for name, found in problems.items()]


def _excused(context: dg.AssetCheckExecutionContext, results: list[dg.AssetCheckResult]) -> list[dg.AssetCheckResult]:
    """The results, failures as warnings if another run changed the views meanwhile.

    What was recommended then is compared with views that came after it, and the other run, which computes the
    newest day anew, is the one to answer for it.
    """
    if all(result.passed for result in results) or not _another_run_since(context):
        return results
    return [result if result.passed else result._replace(severity=dg.AssetCheckSeverity.WARN) for result in results]


def _another_run_since(context: dg.AssetCheckExecutionContext) -> bool:
    """Whether another run has brought views in since this one began."""
    own = context.op_execution_context.run_id
    record = context.instance.get_run_record_by_id(own)
    if record is None or record.start_time is None:
        return False
    since = dg.AssetRecordsFilter(dg.AssetKey("user_page_views"), after_timestamp=record.start_time)
    # A range has an event for each of its days.
    events = context.instance.fetch_materializations(since, limit=len(context.partition_keys) + 1_000).records
    return any(event.run_id != own for event in events)


def _is_computed(instance: dg.DagsterInstance, day: date) -> bool:
    """Whether the latest run of a day computed its recommendations.

    A range computes those of its last day. What earlier runs left of the others need not fit the views of today.
    """
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("page_recommendations"), asset_partitions=[day.isoformat()]), limit=1
    ).records
    materialization = records[0].asset_materialization if records else None
    return materialization is None or materialization.metadata["computed"].value is True


def beats_popularity(analytics: Postgres, days: Sequence[date]) -> dg.AssetCheckResult:
    """On no day did the most popular unseen pages hit more often than what was recommended."""
    rows = _rows(
        analytics,
        "select day, hit_rate, popularity_hit_rate, users from public.recommendation_quality "
        f"where {between('day', days)} order by day",
    )
    return _result(
        "beats_popularity",
        "recommendation_quality",
        [
            f"{day}: hit rate {rate:.4f}, of the most popular pages {baseline:.4f}, {users} users"
            for day, rate, baseline, users in rows
            if users and rate < baseline
        ],
        warn=True,
        measured_days=len(rows),
    )


def _slice(feed: Feed, days: Sequence[date]) -> str:
    return f"(select * from public.{quote(feed.name)} where {between(feed.event_time, days)}) s"


def _rows(database: Postgres, sql: str) -> list[tuple[Any, ...]]:
    with database.transaction() as transaction:
        return transaction.fetch(sql)


def _count(relation: "duckdb.DuckDBPyRelation") -> int:
    return int(relation.aggregate("count(*)").fetchall()[0][0])


def _result(
    name: str,
    asset: str,
    problems: list[str],
    *,
    warn: bool = False,
    **numbers: float,
) -> dg.AssetCheckResult:
    shown = [*problems[:_NAMED], *([f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else [])]
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=name,
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
        # Urls and object names may hold addresses.
        description=mask_emails("; ".join(shown)) or None,
        metadata={**numbers, "problems": len(problems)},
    )


CHECKS = [
    _raw_checks(USER_UPDATES),
    _raw_checks(PAGE_VIEWS),
    _cleaned_checks(USER_UPDATES),
    _cleaned_checks(PAGE_VIEWS),
    _mart_checks("users", ("user_id",)),
    _mart_checks("user_page_views", ("user_id", "url")),
    *_recommendation_checks(),
]
