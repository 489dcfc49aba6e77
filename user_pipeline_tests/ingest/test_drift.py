"""A feed that changes: further keys and columns are kept, told of once, and change no table."""

import json
from typing import Any

import dagster as dg
import pytest

from user_pipeline.ingest.drift import MOST_FURTHER_FIELDS, tell_new
from user_pipeline.ingest.entries import FurtherField
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.reconcile.full_refresh import recover
from user_pipeline.reconcile.verify import verify
from user_pipeline_tests.ingest.reading import FIRST, ingest, manifest_of, rows
from user_pipeline_tests.platform import Platform, update, view

GOOD = view("2017-04-01T10:00:00")
UPDATE = '"2017-04-01T10:00:00","7","a@x.org","Ann","production"'


def told(platform: Platform, feed: Feed = PAGE_VIEWS, run_id: str = "a run") -> list[FurtherField]:
    manifest = manifest_of(platform, feed)
    with manifest.registry.database.transaction() as transaction:
        return tell_new(transaction, feed, run_id)


def rescued(platform: Platform, feed: Feed = PAGE_VIEWS) -> list[Any]:
    return [row["rescued"] and json.loads(row["rescued"]) for row in rows(platform, feed)]


def put_updates(platform: Platform, key: str, *lines: str) -> None:
    platform.put(f"UserUpdates/{key}", "".join(line + "\n" for line in lines))


def rejected(platform: Platform, feed: Feed) -> dict[str, int]:
    return manifest_of(platform, feed).reasons()


def test_further_keys_are_kept_as_they_are(platform: Platform) -> None:
    more = {
        "referrer": "https://é.example/?a=1",
        "nested": {"ts": [1, None, 1.5]},
        "nothing": None,
        "": "\0",
        "TS": "x",
    }
    platform.put_views("PageViews/a", [GOOD, {**GOOD, **more}, json.dumps({**GOOD, "n": 1}, separators=(",", ":"))])
    ingest(platform)
    assert rescued(platform) == [None, more, {"n": 1}]
    assert [field.name for field in told(platform)] == ["", "TS", "n", "nested", "nothing", "referrer"]


def test_a_key_with_a_nul_is_named_without_it(platform: Platform) -> None:
    platform.put_views("PageViews/a", [{**GOOD, "a\0b": 1}, {**GOOD, "user_id": 8, "a\0b": 2}])
    ingest(platform)
    assert rescued(platform) == [{"a\0b": 1}, {"a\0b": 2}]
    assert told(platform) == [FurtherField("a\\x00b", 2, "PageViews/a", 1)]


def test_keys_in_another_order_and_white_space_are_no_further_ones(platform: Platform) -> None:
    platform.put_views("PageViews/a", [json.dumps(GOOD, indent=None, sort_keys=True, separators=(" , ", " : "))])
    ingest(platform)
    assert rescued(platform) == [None]
    assert told(platform) == []


def test_what_is_rejected_tells_of_no_key(platform: Platform) -> None:
    platform.put_views("PageViews/a", [{"more": 1}, {**GOOD, "ts": "never", "other": 1}])
    ingest(platform)
    assert told(platform) == []


def test_further_columns_of_a_whole_object_are_kept(platform: Platform) -> None:
    put_updates(platform, "a", f'{UPDATE},gold,"x ""y"", z"', f"{UPDATE},,", UPDATE)
    ingest(platform, USER_UPDATES)
    assert rescued(platform, USER_UPDATES) == [{"6": "gold", "7": 'x "y", z'}, {"6": "", "7": ""}]
    assert rejected(platform, USER_UPDATES) == {"malformed": 1}
    assert told(platform, USER_UPDATES) == [
        FurtherField("6", 2, "UserUpdates/a", 1),
        FurtherField("7", 2, "UserUpdates/a", 1),
    ]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("updated_at,user_id,email,name,environment,Plan, Since ", ["Plan", "Since"]),
        ("updated_at,user_id,email,name,environment,plan,plan", ["6", "7"]),
        ("updated_at,user_id,email,name,environment,plan,", ["6", "7"]),
        ("Updated_At,user_id,email,name,environment,7,6", ["7", "6"]),
    ],
)
def test_a_header_names_further_columns(platform: Platform, header: str, names: list[str]) -> None:
    put_updates(platform, "a", header, f"{UPDATE},gold,2016", UPDATE, UPDATE)
    ingest(platform, USER_UPDATES)
    assert rescued(platform, USER_UPDATES) == [dict(zip(names, ("gold", "2016"), strict=True))]
    assert rejected(platform, USER_UPDATES) == {"malformed": 2}


def test_a_comma_in_a_name_never_shifts_a_field(platform: Platform) -> None:
    stray = '"2017-04-01T10:00:00","7","a@x.org",Bob, Ann,"production"'
    put_updates(platform, "few", UPDATE, stray, stray, UPDATE)
    put_updates(platform, "other", UPDATE)
    ingest(platform, USER_UPDATES)
    assert rescued(platform, USER_UPDATES) == [None, None, None]
    assert rejected(platform, USER_UPDATES) == {"malformed": 2}
    assert told(platform, USER_UPDATES) == []


def test_objects_of_one_batch_have_columns_of_their_own(platform: Platform) -> None:
    put_updates(platform, "a", f"{UPDATE},gold")
    put_updates(platform, "b", UPDATE)
    put_updates(platform, "c", f"{UPDATE},1,2", f'{UPDATE},"line\nend",2', f"{UPDATE},1,2")
    ingest(platform, USER_UPDATES)
    assert rescued(platform, USER_UPDATES) == [
        {"6": "gold"}, None, {"6": "1", "7": "2"}, {"6": "line\nend", "7": "2"}, {"6": "1", "7": "2"},
    ]  # fmt: skip
    assert rejected(platform, USER_UPDATES) == {}


def test_a_field_is_told_of_by_one_run_and_its_retries(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, {**GOOD, "b": 1}])
    ingest(platform)
    first = [FurtherField("b", 1, "PageViews/a", 2)]
    assert told(platform, run_id="one") == told(platform, run_id="one") == first
    assert told(platform, run_id="two") == []
    platform.put_views("PageViews/b", [{**GOOD, "b": 1, "c": 2}])
    ingest(platform)
    assert told(platform, run_id="two") == [FurtherField("c", 1, "PageViews/b", 1)]
    assert told(platform, USER_UPDATES) == []


def test_the_names_that_are_kept_have_an_end(platform: Platform) -> None:
    for name in "ab":
        platform.put_views(f"PageViews/{name}", [{**GOOD, f"{name}{n}": 1} for n in range(MOST_FURTHER_FIELDS - 1)])
        ingest(platform)
    assert MOST_FURTHER_FIELDS - 1 <= len(told(platform)) < 2 * MOST_FURTHER_FIELDS
    platform.put_views("PageViews/c", [{**GOOD, "c" * 10_000: 1}])
    ingest(platform)
    assert told(platform, run_id="later") == []
    assert len(rows(platform)) == 2 * MOST_FURTHER_FIELDS - 1


def test_an_object_whose_further_keys_change_changes_its_day_and_no_table(platform: Platform) -> None:
    platform.put_views("PageViews/a", [{**GOOD, "b": 1}, {**GOOD, "b": 2}, GOOD])
    assert platform.materialize("2017-04-01").success
    before = [platform.table("staging", "page_views"), platform.table("analytics", "user_page_views")]
    assert [len(table) for table in before] == [1, 1]
    version = manifest_of(platform).version()
    platform.put_views("PageViews/a", [{**GOOD, "b": 1}, {**GOOD, "b": 3}, GOOD])
    ingest(platform)
    assert list(manifest_of(platform).changes(version)) == [FIRST]
    assert platform.materialize("2017-04-01").success
    assert [platform.table("staging", "page_views"), platform.table("analytics", "user_page_views")] == before
    with platform.engine() as engine:
        assert [found.differences for found in verify(platform.lake, engine) if found.differences] == []


def test_the_check_names_what_is_new(platform: Platform) -> None:
    put_updates(platform, "a", "updated_at,user_id,email,name,environment,plan", f"{UPDATE},gold")
    platform.put_views("PageViews/mail a@x.org", [GOOD, {**GOOD, "ann@x.org": 1}])

    def run() -> dict[str, dg.AssetCheckEvaluation]:
        result = platform.materialize("2017-04-01", select="group:raw")
        assert result.success
        return {
            each.asset_key.to_user_string(): each
            for each in result.get_asset_check_evaluations()
            if each.check_name == "schema_drift"
        }

    found = run()
    assert {name: (each.passed, each.severity) for name, each in found.items()} == dict.fromkeys(
        ("ingested_user_updates", "ingested_page_views"), (False, dg.AssetCheckSeverity.WARN)
    )
    assert found["ingested_user_updates"].description == "new column plan: 1 lines, first in UserUpdates/a, line 2"
    assert found["ingested_page_views"].description == "new key ***: 1 lines, first in PageViews/mail ***, line 2"
    assert all(each.passed for each in run().values())


def test_what_was_told_of_is_not_told_of_again_after_a_recovery(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, {**GOOD, "b": 1}])
    platform.put("UserUpdates/a", update("2017-04-01T09:00:00", 1, "a@x.org") + "\n")
    assert platform.materialize("2017-04-01").success
    for database in (platform.staging, platform.analytics):
        with database.transaction() as transaction:
            transaction.execute("drop schema pipeline cascade")
            transaction.execute("drop schema public cascade")
            transaction.execute("create schema public")
    with platform.engine() as engine:
        recover(platform.lake, engine)
    assert told(platform) == []
    kept = manifest_of(platform).fetch(
        "select feed, name, lines, source_object, source_line from pipeline.further_fields"
    )
    assert kept == [("page_views", "b", 1, "PageViews/a", 2)]
