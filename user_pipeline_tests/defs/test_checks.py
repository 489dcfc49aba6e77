"""The asset checks: quiet while all is well, and each loud, naming the offender, for a fault that is really there."""

import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
import duckdb
import pytest

from user_pipeline.definitions import defs
from user_pipeline.defs.ingest.checks import every_line_accounted
from user_pipeline.defs.raw.checks import partition_complete
from user_pipeline.defs.recommendations import checks as recommendations
from user_pipeline.defs.recommendations.checks import check_lists, check_recommendations
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.recommendations.eligibility import Eligibility
from user_pipeline.resources.postgres import literal
from user_pipeline_tests.ingest.reading import manifest_of
from user_pipeline_tests.platform import UNDRAWN, Platform, update, view

DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
INGESTED = ("ingested_user_updates", "ingested_page_views")


@pytest.fixture
def full(platform: Platform) -> Platform:
    """Three days of both feeds: duplicates, another environment, and a broken line in a hundred."""
    platform.put(
        "UserUpdates/a.csv",
        "".join(
            update(f"{day}T0{hour}:00:00", user, f"u{user}h{hour}@x.org", environment=environment)
            for day in DAYS
            for hour in (1, 1, 2)
            for user in (1, 2)
            for environment in ("production", "staging")
        ),
    )
    for day in DAYS:
        lines: list[Any] = [view(f"{day}T0{hour}:00:00", f"/{hour}", hour % 4) for hour in range(9)]
        platform.put_views(f"PageViews/{day}.json", [*lines, *lines, view(f"{day}T00:00:00", environment="test")] * 2)
    platform.put_views("PageViews/late.json", [*(view(f"{DAYS[0]}T00:00:00", f"/{n}") for n in range(99)), "broken"])
    return platform


def run(
    platform: Platform, first: str, last: str | None = None, select: str | Sequence[str] = UNDRAWN
) -> dg.ExecuteInProcessResult:
    return platform.materialize(first, last, select=select, raise_on_error=False)


def evaluations(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str], dg.AssetCheckEvaluation]:
    return {
        (evaluation.asset_key.to_user_string(), evaluation.check_name): evaluation
        for evaluation in result.get_asset_check_evaluations()
    }


def check_alone(asset: str, first: str = DAYS[0], last: str | None = None) -> dict[str, Any]:
    """What the checks of an asset say about what is stored, through Dagster."""
    return {name: evaluation for (_, name), evaluation in evaluations(run_checks(asset, first, last)).items()}


def run_checks(asset: str, first: str, last: str | None = None) -> dg.ExecuteInProcessResult:
    from user_pipeline.definitions import defs

    selection = dg.AssetSelection.checks_for_assets(asset)
    job = dg.define_asset_job("checks_alone", selection=selection)
    resolved = dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("checks_alone")
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
    # Dagster takes no single partition key for a job of checks alone, but a range of one.
    return resolved.execute_in_process(tags=tags, raise_on_error=False)


def executed(result: dg.ExecuteInProcessResult) -> set[str]:
    """The assets that were materialized."""
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}


def sql(platform: Platform, database: str, *statements: str) -> None:
    with getattr(platform, database).transaction() as transaction:
        for statement in statements:
            transaction.execute(statement)


def claim_more_lines(platform: Platform, feed: Feed, more: int, keys: str = "%") -> None:
    """Have the manifest say that objects had more lines."""
    changed = f"update pipeline.ingested_objects set lines = lines + {more} where feed = '{feed.name}'"
    sql(platform, "staging", f"{changed} and key like '{keys}'")


def rewrite(platform: Platform, asset: str, day: str, query: str) -> None:
    """Replace a stored day by a query of its rows."""
    file = platform.lake_file(asset, day)
    with duckdb.connect() as connection:
        table = connection.execute(
            query.format(f"read_parquet({literal(str(file))}, hive_partitioning=false)")
        ).to_arrow_table()
        connection.from_arrow(table).write_parquet(str(file))


@pytest.mark.parametrize("last", [None, DAYS[2]])
def test_every_check_passes_while_all_is_well(full: Platform, last: str | None) -> None:
    result = run(full, DAYS[0], last)
    assert result.success
    found = evaluations(result)
    every = {(key.asset_key.to_user_string(), key.name) for made in defs.asset_checks or () for key in made.check_keys}
    # A run of a day has no say in whether yesterday is there.
    assert set(found) == every - {("yesterday", "partitions_are_there")}
    assert [name for name, evaluation in found.items() if not evaluation.passed] == []
    numbers = {name: entry.value for name, entry in found["page_views", "every_row_accounted"].metadata.items()}
    days = 3 if last else 1
    assert numbers == {
        "raw": 38 * days + 99,
        "cleaned": 9 * days + 99,
        "duplicates": 27 * days,
        "other_environments": 2 * days,
        "problems": 0,
    }


def test_an_object_whose_lines_do_not_add_up_is_named(full: Platform) -> None:
    run(full, DAYS[0], DAYS[2])
    claim_more_lines(full, PAGE_VIEWS, 2, "%/late%")
    claim_more_lines(full, USER_UPDATES, 2)
    result = every_line_accounted(manifest_of(full))
    assert (result.passed, result.description) == (False, "PageViews/late.json: 2 of 102 lines")
    found = check_alone("ingested_user_updates")["every_line_accounted"]
    assert (found.passed, found.description) == (False, "UserUpdates/a.csv: 2 of 38 lines")
    assert (found.severity, found.blocking) == (dg.AssetCheckSeverity.ERROR, True)


@pytest.mark.parametrize("last", [0, 1])
def test_each_day_of_a_range_has_a_result_of_its_own_though_it_be_one_day(full: Platform, last: int) -> None:
    assert full.materialize(DAYS[0], DAYS[last], select=["*users"], checks=False).success
    found = run_checks("users", DAYS[0], DAYS[last]).get_asset_check_evaluations()
    assert {(each.check_name, each.partition) for each in found if each.partition} == {
        (name, day) for name in ("unique_key", "latest_email") for day in DAYS[: last + 1]
    }


@pytest.mark.parametrize(
    ("query", "stored"),
    [
        ("select * from {} limit 5", 5),
        ("select * from {0} union all select * from {0}", 76),
        ("select * from {} limit 0", 0),
    ],
)
def test_a_stored_day_that_lacks_rows_or_has_too_many_is_named(full: Platform, query: str, stored: int) -> None:
    run(full, DAYS[0], DAYS[2], "group:raw")
    rewrite(full, "raw_page_views", DAYS[1], query)
    found = check_alone("raw_page_views", DAYS[0], DAYS[2])
    complete = found["partition_complete"]
    assert (complete.passed, complete.description) == (False, f"2017-04-02: {stored} rows stored, 38 delivered")
    assert [name for name, evaluation in found.items() if not evaluation.passed] == ["partition_complete"]
    assert check_alone("raw_page_views", DAYS[0])["partition_complete"].passed


def test_an_object_with_too_many_rejects_is_named_and_stops_nothing(full: Platform) -> None:
    full.put_views("PageViews/bad.json", [*[view(f"{DAYS[0]}T00:00:00")] * 9, "broken", "{}"])
    full.put_views("PageViews/all bad.json", ["broken"])
    full.put_views("PageViews/other day.json", [view(f"{DAYS[2]}T00:00:00"), "broken"])
    full.put_views("PageViews/all bad, delivered another day.json", ["broken"])
    delivered = datetime(2017, 4, 2, 5, tzinfo=UTC).timestamp()
    os.utime(full.root / "source/PageViews/all bad.json", (delivered, delivered))
    result = run(full, DAYS[0])
    assert result.success
    share = evaluations(result)["raw_page_views", "reject_share"]
    assert (share.passed, share.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert sorted(str(share.description).split("; ")) == [
        "PageViews/all bad.json: 1 of 1 lines, {'malformed': 1}",
        "PageViews/bad.json: 2 of 11 lines, {'invalid_timestamp': 1, 'malformed': 1}",
    ]
    assert "user_page_views_csv" in executed(result)


def test_an_object_that_could_not_be_read_is_named_until_it_changes(full: Platform) -> None:
    full.put_views("PageViews/cut.json.gz", [view(f"{DAYS[0]}T00:00:00", f"/cut{n}") for n in range(500)])
    whole = (full.root / "source/PageViews/cut.json.gz").read_bytes()
    full.put("PageViews/cut.json.gz", whole[:-30])
    first = run(full, DAYS[0])
    assert not first.success
    again = run(full, DAYS[0])
    assert again.success
    broken = evaluations(again)["ingested_page_views", "no_broken_objects"]
    assert (broken.passed, broken.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(broken.description).startswith("PageViews/cut.json.gz: ")
    assert "user_page_views_csv" in executed(again)
    full.put("PageViews/cut.json.gz", whole)
    assert evaluations(run(full, DAYS[0]))["ingested_page_views", "no_broken_objects"].passed


def test_a_cleaned_day_that_lost_rows_is_named(full: Platform) -> None:
    run(full, DAYS[0], DAYS[2])
    sql(
        full,
        "staging",
        "delete from page_views where ts = '2017-04-02 03:00:00'",
        "delete from user_updates where updated_at::date = '2017-04-03'",
    )
    views = check_alone("page_views", DAYS[0], DAYS[2])["every_row_accounted"]
    assert (views.passed, views.description) == (
        False,
        "2017-04-02: 38 raw, 8 cleaned, 27 duplicates, 2 other environments",
    )
    updates = check_alone("user_updates", DAYS[2])["every_row_accounted"]
    assert (updates.passed, updates.description) == (
        False,
        "2017-04-03: 12 raw, 0 cleaned, 2 duplicates, 6 other environments",
    )
    assert check_alone("page_views", DAYS[0])["every_row_accounted"].passed


@pytest.mark.parametrize(
    "change",
    [
        "update page_views set user_id = user_id + 1 where ts = '2017-04-02 03:00:00'",
        "update page_views set ts = ts + interval '1 microsecond' where ts = '2017-04-02 03:00:00'",
        "update page_views set url = url || '/' where ts = '2017-04-02 03:00:00'",
        # Two rows swap their pages, of another length each.
        (
            "with ranked as (select ctid, row_number() over (order by length(url), ts) as n, "
            "count(*) over () as all_rows, url from page_views where ts::date = '2017-04-02') "
            "update page_views v set url = other.url from ranked r join ranked other on other.n = r.all_rows + 1 - r.n "
            "where v.ctid = r.ctid and r.n in (1, r.all_rows)"
        ),
    ],
)
def test_a_cleaned_day_of_other_rows_than_those_delivered_is_named(full: Platform, change: str) -> None:
    full.put_views("PageViews/long.json", [view(f"{DAYS[1]}T05:00:00", "/a-page-with-a-long-name")])
    run(full, DAYS[0], DAYS[1], "group:raw or group:cleaned")
    sql(full, "staging", change)
    found = check_alone("page_views", DAYS[0], DAYS[1])
    views = found["every_row_accounted"]
    assert (views.passed, views.description) == (
        False,
        "2017-04-02: the 10 rows in Postgres are not those of the lake",
    )
    assert found["no_duplicates"].passed


def test_a_row_that_stands_twice_in_the_place_of_another_is_named(full: Platform) -> None:
    run(full, DAYS[0], DAYS[1], "group:raw or group:cleaned")
    sql(
        full,
        "staging",
        "update page_views set ts = '2017-04-02 03:00:00', url = t.url, user_id = t.user_id from "
        "(select * from page_views where ts = '2017-04-02 03:00:00') t where page_views.ts = "
        "(select max(ts) from page_views where ts::date = '2017-04-02')",
    )
    found = check_alone("page_views", DAYS[0], DAYS[1])
    assert found["no_duplicates"].description == "2017-04-02: 1 rows too many"
    assert not found["every_row_accounted"].passed


def test_a_row_of_another_environment_is_named(full: Platform) -> None:
    run(full, DAYS[0], DAYS[1], "group:raw or group:cleaned")
    sql(full, "staging", "update page_views set environment = 'staging' where ts = '2017-04-02 03:00:00'")
    sql(full, "staging", "update user_updates set environment = null where updated_at = '2017-04-01 01:00:00'")
    views = check_alone("page_views", DAYS[0], DAYS[1])["only_production"]
    assert (views.passed, views.description) == (False, "staging: 1 rows")
    updates = check_alone("user_updates", DAYS[0])["only_production"]
    assert (updates.passed, updates.description) == (False, "None: 2 rows")
    assert check_alone("page_views", DAYS[0])["only_production"].passed


def test_a_day_with_duplicates_is_named(full: Platform) -> None:
    run(full, DAYS[0], DAYS[1], "group:raw or group:cleaned")
    for _ in range(2):
        sql(full, "staging", "insert into page_views select * from page_views where ts = '2017-04-02 03:00:00' limit 1")
    sql(full, "staging", "insert into user_updates select * from user_updates")
    views = check_alone("page_views", DAYS[0], DAYS[1])["no_duplicates"]
    assert (views.passed, views.description) == (False, "2017-04-02: 2 rows too many")
    updates = check_alone("user_updates", DAYS[0], DAYS[1])["no_duplicates"]
    assert (updates.passed, updates.description) == (
        False,
        "2017-04-01: 4 rows too many; 2017-04-02: 4 rows too many",
    )


def test_a_key_that_stands_twice_is_named(full: Platform) -> None:
    run(full, DAYS[0])
    sql(
        full,
        "analytics",
        "drop index user_page_views_key",
        "insert into user_page_views select * from user_page_views where url = '/3'",
        "alter table users drop constraint users_pkey",
        "insert into users select * from users where user_id = 2",
    )
    views = check_alone("user_page_views", DAYS[0])["unique_key"]
    assert (views.passed, views.description) == (False, "(1, '/3'): 2 rows; (3, '/3'): 2 rows")
    users = check_alone("users", DAYS[0])["unique_key"]
    assert (users.passed, users.description) == (False, "(2,): 2 rows")


@pytest.mark.parametrize(
    ("fault", "asset", "offender"),
    [
        ("update users set email = 'old@x.org' where user_id = 2", "users", "user 2"),
        ("update users set updated_at = updated_at - interval '1 hour' where user_id = 1", "users", "user 1"),
        ("delete from users where user_id = 2", "users", "user 2"),
        ("update user_page_views set email = 'old@x.org' where user_id = 1", "user_page_views", "user 1"),
        ("update user_page_views set email = null where user_id = 2", "user_page_views", "user 2"),
        ("update user_page_views set email = 'who@x.org' where user_id = 3", "user_page_views", "user 3"),
    ],
)
def test_a_user_with_an_old_e_mail_is_named(platform: Platform, fault: str, asset: str, offender: str) -> None:
    platform.put("UserUpdates/a", "".join(update(f"{DAYS[0]}T0{n}:00:00", n % 2 + 1, f"{n}@x.org") for n in range(4)))
    platform.put_views("PageViews/a", [view(f"{DAYS[0]}T00:00:00", user_id=user) for user in (1, 2, 3)])
    assert run(platform, DAYS[0]).success
    sql(platform, "analytics", fault)
    found = check_alone(asset, DAYS[0])["latest_email"]
    assert (found.passed, found.description) == (False, offender)


def test_a_later_update_of_another_day_is_no_fault(full: Platform) -> None:
    run(full, DAYS[2])
    result = run(full, DAYS[0])
    assert result.success
    assert all(evaluation.passed for evaluation in evaluations(result).values())


def test_many_offenders_are_counted_and_the_first_named(full: Platform) -> None:
    for number in range(30):
        full.put_views(f"PageViews/bad{number:02}", [view(f"{DAYS[0]}T00:00:00"), "broken"])
    run(full, DAYS[0], select="raw_page_views")
    found = check_alone("raw_page_views", DAYS[0])["reject_share"]
    assert str(found.description).endswith("; and 10 more")
    assert found.metadata["problems"].value == 30


@pytest.mark.parametrize("last", [None, DAYS[1]])
def test_a_blocking_check_of_raw_stops_what_comes_after_and_only_that(full: Platform, last: str | None) -> None:
    run(full, DAYS[0], DAYS[1])
    before = full.table("analytics", "user_page_views")
    claim_more_lines(full, PAGE_VIEWS, 1)
    full.put("UserUpdates/b", update(f"{DAYS[0]}T09:00:00", 2, "new@x.org"))
    result = run(full, DAYS[0], last)
    assert not result.success
    found = evaluations(result)
    assert not found["ingested_page_views", "every_line_accounted"].passed
    assert executed(result) == {*INGESTED, "raw_user_updates", "user_updates", "users"}
    assert [row[0] for row in before] == [row[0] for row in full.table("analytics", "user_page_views")]


@pytest.mark.parametrize(
    ("database", "spoilt", "failed", "done"),
    [
        (
            "staging",
            "new.environment := 'staging'",
            ("user_updates", "only_production"),
            {*INGESTED, "raw_page_views", "raw_user_updates", "page_views", "user_updates"},
        ),
        (
            "analytics",
            "new.email := 'old@x.org'",
            ("users", "latest_email"),
            {*INGESTED, "raw_page_views", "raw_user_updates", "page_views", "user_updates", "users"},
        ),
        (
            "analytics",
            "new.email := 'old@x.org'",
            ("user_page_views", "latest_email"),
            {*INGESTED, "raw_page_views", "raw_user_updates", "page_views", "user_updates", "users", "user_page_views"},
        ),
    ],
)
def test_a_fault_made_by_the_run_itself_stops_what_comes_after(
    full: Platform, database: str, spoilt: str, failed: tuple[str, str], done: set[str]
) -> None:
    run(full, DAYS[1])
    sql(
        full,
        database,
        f"create function spoil() returns trigger language plpgsql as $$ begin {spoilt}; return new; end $$",
        f"create trigger spoil before insert or update on {failed[0]} for each row execute function spoil()",
    )
    result = run(full, DAYS[2])
    assert not result.success
    assert next(name for name, evaluation in evaluations(result).items() if not evaluation.passed) == failed
    assert executed(result) == done


def test_the_manifest_of_one_feed_says_nothing_of_the_other(full: Platform) -> None:
    run(full, DAYS[0], select="group:raw")
    claim_more_lines(full, USER_UPDATES, 1)
    assert check_alone("ingested_page_views")["every_line_accounted"].passed
    assert not check_alone("ingested_user_updates")["every_line_accounted"].passed
    with full.engine() as engine:
        assert partition_complete(manifest_of(full), full.lake, engine, [date(2017, 4, 1)]).passed


@pytest.mark.parametrize(
    ("fault", "rule", "offender"),
    [
        ("update page_recommendations set rank = 3 where user_id = 3 and rank = 2", "ranks", "user 3: ranks 1, 3, 3"),
        ("delete from page_recommendations where user_id = 2 and rank = 2", "ranks", "user 2: ranks 1, 3"),
        ("update page_recommendations set recommended_url = '/3' where user_id = 3 and rank = 2", "unseen", "/3 was"),
        (
            "update page_recommendations set recommended_url = '/50' where user_id = 3 and rank < 3",
            "unique_pages",
            "user 3: /50 2 times",
        ),
        (
            "update page_recommendations set recommended_url = '/t?token=x' where user_id = 3 and rank = 2",
            "safe_pages",
            "user 3: /t?token=x may not be shown",
        ),
        ("delete from page_recommendations where user_id = 2", "eligible_users", "user 2: 0 rows, 97 unseen pages"),
        (
            "delete from page_recommendations where user_id = 2 and rank = 3",
            "eligible_users",
            "user 2: 2 rows, 97 unseen pages",
        ),
        (
            "insert into page_recommendations values (7, null, '/a', 1)",
            "eligible_users",
            "user 7: 1 rows, though not active",
        ),
        ("update page_recommendations set email = 'old@x.org' where user_id = 3", "latest_email", "user 3: another"),
        ("update page_recommendations set email = null where user_id = 2", "latest_email", "user 2: another"),
    ],
)
def test_recommendations_that_break_a_rule_are_named(full: Platform, fault: str, rule: str, offender: str) -> None:
    assert run(full, DAYS[0], DAYS[1]).success
    assert all(evaluation.passed for evaluation in check_alone("page_recommendations", DAYS[0], DAYS[1]).values())
    sql(full, "analytics", "alter table page_recommendations drop constraint page_recommendations_pkey", fault)
    found = check_alone("page_recommendations", DAYS[1])[rule]
    assert not found.passed
    assert str(found.description).startswith(f"{DAYS[1]}: ")
    assert offender in str(found.description)
    assert (found.severity, found.blocking) == (dg.AssetCheckSeverity.ERROR, True)
    # The table is that of the second day: the first is looked up in its snapshot, and has none.
    assert check_alone("page_recommendations", DAYS[0])[rule].passed


@pytest.mark.parametrize(
    ("asset", "fault", "rule", "offender"),
    [
        (
            "page_recommendations",
            (
                "insert into page_recommendations_because values (3, 1, '/4') "
                "on conflict (user_id, rank) do update set because_url = '/4'"
            ),
            "reasons",
            "user 3: /4 was not viewed",
        ),
        (
            "page_recommendations",
            (
                "insert into page_recommendations_because values (3, 1, '/t?token=x') "
                "on conflict (user_id, rank) do update set because_url = '/t?token=x'"
            ),
            "safe_pages",
            "user 3: /t?token=x may not be shown",
        ),
        ("related_pages", "delete from related_pages where rank = 1", "ranks", ": ranks 2, 3"),
        ("related_pages", "update related_pages set related_url = url", "other_pages", " times"),
        ("related_pages", "update related_pages set related_url = '/t?token=x'", "safe_pages", "/t?token=x may not be"),
        ("popular_pages", "delete from popular_pages where rank = 2", "ranks", "ranks 1 to "),
        ("popular_pages", "update popular_pages set viewers = 99 where rank = 2", "most_viewed", ": 99 viewers, not "),
        ("popular_pages", "update popular_pages set url = '/t?token=x' where rank = 2", "safe_pages", "/t?token=x may"),
    ],
)
def test_what_is_made_with_recommendations_has_rules_too(
    full: Platform, asset: str, fault: str, rule: str, offender: str
) -> None:
    full.put_views("PageViews/both.json", [view(f"{DAYS[1]}T05:00:00", f"/both{n}", n % 4) for n in range(40)])
    full.put_views("PageViews/most.json", [view(f"{DAYS[1]}T06:00:00", "/most", user) for user in range(4)])
    assert run(full, DAYS[0], DAYS[1]).success
    assert all(evaluation.passed for evaluation in check_alone(asset, DAYS[0], DAYS[1]).values())
    sql(full, "analytics", fault)
    found = check_alone(asset, DAYS[1])[rule]
    assert not found.passed
    assert offender in str(found.description)
    assert (found.severity, found.blocking) == (dg.AssetCheckSeverity.ERROR, True)
    assert check_alone(asset, DAYS[0])[rule].passed


def test_recommendations_of_an_older_day_are_looked_up_in_its_snapshot(full: Platform) -> None:
    asset = "page_recommendations"
    assert run(full, DAYS[0], DAYS[1]).success
    assert run(full, DAYS[0], select=asset).success
    rewrite(full, asset, DAYS[0], "select * replace ('/3' as recommended_url) from {} where user_id = 3")
    found = check_alone(asset, DAYS[0])
    assert {name for name, evaluation in found.items() if not evaluation.passed} == {
        "unseen",
        "unique_pages",
        "eligible_users",
    }
    assert all(evaluation.passed for evaluation in check_alone(asset, DAYS[1]).values())


def test_a_day_whose_snapshot_is_past_its_retention_has_nothing_to_check(platform: Platform) -> None:
    day = date.fromisoformat(DAYS[0])
    registry = platform.lake.analytics
    registry.open()
    with registry.database.transaction() as transaction:
        for table in ("page_recommendations", "related_pages"):
            registry.commit(transaction, table, {day: []}, "a run")
    eligibility = Eligibility(min_viewers=3)
    with platform.engine() as engine:
        results = [
            *check_recommendations(platform.lake, engine, [day], 90, eligibility),
            *check_lists(platform.lake, engine, "related_pages", [day], window_days=90, eligibility=eligibility),
        ]
    assert all(result.passed and result.metadata["days"].value == 0 for result in results)


def test_a_materialization_that_was_reported_by_hand_counts_as_computed() -> None:
    day = date.fromisoformat(DAYS[0])
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("page_recommendations", partition=DAYS[0]))
        assert recommendations._is_computed(instance, "page_recommendations", day)


def test_views_that_another_run_brings_meanwhile_do_not_fail_this_one(
    full: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = check_recommendations
    with dg.DagsterInstance.ephemeral() as instance:

        def overtaken(*arguments: Any) -> list[dg.AssetCheckResult]:
            monkeypatch.setattr(recommendations, "check_recommendations", check)
            if others:
                assert full.materialize(DAYS[0], instance=instance).success
            sql(
                full,
                "analytics",
                "update page_recommendations set recommended_url = '/3' where user_id = 3 and rank = 2",
            )
            return check(*arguments)

        for others in (True, False):
            monkeypatch.setattr(recommendations, "check_recommendations", overtaken)
            result = full.materialize(DAYS[1], instance=instance, raise_on_error=False)
            found = evaluations(result)["page_recommendations", "unseen"]
            assert not found.passed
            assert (found.severity == dg.AssetCheckSeverity.WARN) is others
            assert result.success is others


def test_recommendations_that_break_a_rule_are_not_exported(full: Platform) -> None:
    run(full, DAYS[0])
    exported = full.lake_files("exports/page_recommendations")
    full.put_views("PageViews/more.json", [view(f"{DAYS[1]}T05:00:00", f"/more{n}", n % 4) for n in range(40)])
    sql(
        full,
        "analytics",
        "create function spoil() returns trigger language plpgsql as $$ begin new.recommended_url := '/3'; "
        "return new; end $$",
        "create trigger spoil before insert on page_recommendations for each row execute function spoil()",
    )
    result = run(full, DAYS[1])
    assert not result.success
    failed = {name for name, evaluation in evaluations(result).items() if not evaluation.passed}
    assert failed == {("page_recommendations", "unseen"), ("page_recommendations", "unique_pages")}
    assert "user_page_views_csv" in executed(result)
    assert not {"page_recommendations_csv", "recommendation_quality"} & executed(result)
    assert full.lake_files("exports/page_recommendations") == exported


def test_recommendations_worse_than_a_simple_baseline_beyond_chance_give_a_warning(full: Platform) -> None:
    users = range(100, 130)
    for n, day in enumerate(DAYS[:2]):
        full.put_views(f"PageViews/{n}.json", [view(f"{day}T05:00:00", "/in" if n else "/0", user) for user in users])
    assert run(full, DAYS[0]).success
    asset = "page_recommendations"
    rewrite(full, asset, DAYS[0], "select * replace ('/in' as trending_url) from {}")
    result = run(full, DAYS[1])
    assert result.success
    found = evaluations(result)["recommendation_quality", "beats_popularity"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(found.description).startswith(
        f"{DAYS[1]}: hit rate 0.0000, of the most popular pages 0.0000, of the most"
    )
    assert check_alone("recommendation_quality", DAYS[0])["beats_popularity"].passed


def test_one_user_who_missed_a_popular_page_is_no_more_than_chance(full: Platform) -> None:
    assert run(full, DAYS[0]).success
    full.put_views("PageViews/new.json", [view(f"{DAYS[1]}T05:00:00", "/popular", 3)])
    rewrite(full, "page_recommendations", DAYS[0], "select * replace ('/popular' as popular_url) from {}")
    assert evaluations(run(full, DAYS[1]))["recommendation_quality", "beats_popularity"].passed
