"""`user-pipeline verify`: quiet on a sound platform, and every kind of damage found, named, and repaired as it says."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from user_pipeline.cli.main import main
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests.defs.test_checks import rewrite, sql
from user_pipeline_tests.platform import LOG_PIPELINE, Platform, update, view

DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
MATERIALIZE = (
    "dagster asset materialize -m user_pipeline.definitions "
    "--select 'group:ingest or group:raw or group:cleaned or group:marts or group:exports' "
)
TABLES = (
    "raw_user_updates", "files of user_updates", "user_updates", "files of users",
    "raw_page_views", "files of page_views", "page_views", "files of user_page_views",
    "rejected_lines", "users", "user_page_views", "page_recommendations", "related_pages", "popular_pages",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Three days of both feeds, materialized; every test leaves it sound."""
    with (
        Platform.create(postgres, tmp_path_factory.mktemp("sound")) as platform,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in platform.environment.items():
            patch.setenv(name, value)
        deliver(platform)
        assert platform.materialize(DAYS[0], DAYS[2]).success
        yield platform


def deliver(platform: Platform) -> None:
    platform.put(
        "UserUpdates/a.csv",
        "".join(
            update(f"{day}T0{hour}:00:00", user, f"secret{user}h{hour}@x.org", f"Secret {user}", environment)
            for day in DAYS
            for hour in (1, 1, 2)
            for user in (1, 2)
            for environment in ("production", "staging")
        )
        + update(f"{DAYS[0]}T00:00:00", 1, "secret and no e-mail"),
    )
    for day in DAYS:
        lines: list[Any] = [view(f"{day}T0{hour}:00:00", f"/{hour}", hour % 4) for hour in range(9)]
        platform.put_views(f"PageViews/{day}.json", [*lines, *lines, view(f"{day}T00:00:00", environment="test"), "no"])
    platform.put_views("PageViews/late.json", [view(f"{DAYS[0]}T00:00:00", f"/{n}") for n in range(20)])


@pytest.fixture
def sound(made: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@contextlib.contextmanager
def damaged(platform: Platform, database: str, statements: str) -> Iterator[None]:
    """Run statements, and undo afterwards what they did to tables, without the seconds of a repair."""
    tables = [name for name in TABLES if " " not in name and re.search(rf"\b{name}\b", statements)]
    if statements.startswith("drop table"):
        sql(platform, database, *(f"alter table {name} rename to kept_{name}" for name in tables))
        yield
        sql(platform, database, *(f"alter table kept_{name} rename to {name}" for name in tables))
        return
    sql(platform, database, *(f"create table kept_{name} as table {name}" for name in tables))
    sql(platform, database, *statements.split("; "))
    yield
    for name in tables:
        sql(platform, database, f"delete from {name}", f"insert into {name} table kept_{name}")
        sql(platform, database, f"drop table kept_{name}")


def verify(*options: str) -> Result:
    result = CliRunner().invoke(main, ["verify", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "secret" not in result.output.lower(), "people's names and addresses are not for a terminal"
    return result


def findings(output: str) -> dict[str, list[str]]:
    """By table that differs, its lines without the days and examples: ``missing: 3 rows``."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in output.partition("\n\n")[0].splitlines():
        if not line.startswith(" "):
            table = line.partition(":")[0]
        elif re.match(r"  \S", line) and not line.startswith("  not materialized, and"):
            found.setdefault(table, []).append(line.strip())
    return found


def commands(output: str) -> list[str]:
    return [line.strip() for line in output.partition("Repair with:\n")[2].splitlines()]


def repair(platform: Platform, output: str) -> None:
    """Do what it says, in its order; Dagster's command as what it does, without its seconds of start-up."""
    for command in commands(output):
        if command == "user-pipeline rebuild":
            assert CliRunner().invoke(main, ["rebuild"]).exit_code == 0
        else:
            parsed = re.fullmatch(
                r"dagster asset materialize -m user_pipeline.definitions --select '(.*)' "
                r"--partition(?:-range)? (\S{10})(?:\.\.\.(\S{10}))?",
                command,
            )
            assert parsed, command
            assert platform.materialize(parsed[2], parsed[3], select=parsed[1]).success
    result = verify()
    assert (result.exit_code, findings(result.output)) == (0, {}), result.output


def test_a_sound_platform_has_no_differences(sound: Platform) -> None:
    result = verify()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.partition(":")[0] for line in lines[: len(TABLES)]] == list(TABLES)
    assert lines[0] == "raw_user_updates: 3 days, 36 rows: equal"
    assert lines[4:7] == [
        "raw_page_views: 3 days, 77 rows: equal",
        "files of page_views: 3 days, 47 rows: equal",
        "page_views: 3 days, 47 rows: equal",
    ]
    assert lines[8:10] == ["rejected_lines: 4 rows: equal", "users: 2 rows: equal"]
    assert lines[-1] == "No differences."
    assert sound.lake_files("verify") == []


STAGING: list[tuple[str, str, dict[str, list[str]]]] = [
    (
        "a view that nobody delivered",
        "insert into page_views values ('2017-04-02 05:00:00', '/x', 'production', 1)",
        {"page_views": ["2017-04-02 extra: 1 rows"]},
    ),
    (
        "a view too few",
        "delete from page_views where ts = '2017-04-02 03:00:00'",
        {"page_views": ["2017-04-02 missing: 1 rows"]},
    ),
    (
        "all views of a day",
        "delete from page_views where ts::date = '2017-04-02'",
        {"page_views": ["2017-04-02 missing: 9 rows"]},
    ),
    (
        "a view that counts twice",
        "insert into page_views select * from page_views where ts = '2017-04-03 03:00:00'",
        {"page_views": ["2017-04-03 extra: 1 rows"]},
    ),
    (
        "another name",
        "update user_updates set name = 'Secretly' where updated_at = '2017-04-01 01:00:00' and user_id = 1",
        {"user_updates": ["2017-04-01 missing: 1 rows", "2017-04-01 extra: 1 rows"]},
    ),
    (
        "the whole table of updates",
        "drop table user_updates",
        {"user_updates": [f"{day} missing: 4 rows" for day in DAYS]},
    ),
    (
        "a rejected line changed, one lost, one made up",
        (
            "update rejected_lines set reason = 'invalid_email' where source_object = 'PageViews/2017-04-01.json'; "
            "delete from rejected_lines where source_object = 'PageViews/2017-04-02.json'; "
            "insert into rejected_lines values ('page_views', 'PageViews/late.json', 1, 'malformed', 'secret')"
        ),
        {"rejected_lines": ["missing: 1 rows", "extra: 1 rows", "different: 1 rows"]},
    ),
    ("all rejected lines", "drop table rejected_lines", {"rejected_lines": ["missing: 4 rows"]}),
]
ANALYTICS: list[tuple[str, str, dict[str, list[str]]]] = [
    (
        "an e-mail",
        "update user_page_views set email = 'secret@x.org' where user_id = 1 and url = '/1'",
        {"user_page_views": ["different: 1 rows"]},
    ),
    (
        "no e-mail",
        "update user_page_views set email = null where user_id = 2",
        {"user_page_views": ["different: 2 rows"]},
    ),
    (
        "a count and a last view",
        "update user_page_views set count = count + 1, last_viewed = '2017-04-01' where user_id = 3",
        {"user_page_views": ["different: 2 rows"]},
    ),
    (
        "pairs lost and made up",
        (
            "delete from user_page_views where url = '/1'; "
            "insert into user_page_views values (9, null, '/9', 1, '2017-04-01')"
        ),
        {"user_page_views": ["missing: 1 rows", "extra: 1 rows"]},
    ),
    (
        "a name, which no other table shows",
        "update users set name = 'Secretly' where user_id = 2",
        {"users": ["different: 1 rows"]},
    ),
    (
        "the table of users",
        "drop table users",
        {"users": ["missing: 2 rows"]},
    ),
    (
        "a recommendation changed, one lost, one made up",
        (
            "update page_recommendations set email = 'secret@x.org' where user_id = 3 and rank = 1; "
            "delete from page_recommendations where user_id = 2 and rank = 3; "
            "insert into page_recommendations values (9, null, '/9', 1)"
        ),
        {"page_recommendations": [f"2017-04-03 {kind}: 1 rows" for kind in ("missing", "extra", "different")]},
    ),
    (
        "a related page made up",
        "insert into related_pages values ('/nine', '/1', 1, 0.5)",
        {"related_pages": ["2017-04-03 extra: 1 rows"]},
    ),
    (
        "a popular page with other numbers",
        "update popular_pages set viewers = 77 where rank = 1",
        {"popular_pages": ["2017-04-03 different: 1 rows"]},
    ),
    (
        "everything",
        "drop table users, user_page_views",
        {"users": ["missing: 2 rows"], "user_page_views": ["missing: 27 rows"]},
    ),
]


CASES = [
    pytest.param(database, *case[1:], id=case[0])
    for database, cases in (("staging", STAGING), ("analytics", ANALYTICS))
    for case in cases
]


@pytest.mark.parametrize(("database", "statements", "expected"), CASES)
def test_damage_to_a_table_is_found_and_named(
    sound: Platform, database: str, statements: str, expected: dict[str, list[str]]
) -> None:
    with damaged(sound, database, statements):
        result = verify()
        assert (result.exit_code, findings(result.output)) == (1, expected), result.output
        assert commands(result.output)


FILES = [
    (
        "user_page_views",
        DAYS[0],
        "select * replace (if(url = '/2' and user_id = 2, 7, count) as count) from {}",
        ["different: 1 rows"],
    ),
    ("user_page_views", DAYS[1], "from {} where url <> '/3'", ["missing: 1 rows"]),
    ("user_page_views", DAYS[2], "from {0} union all select * replace ('/9' as url) from {0}", ["extra: 9 rows"]),
    (
        "users",
        DAYS[2],
        "select * replace (if(user_id = 1, 'secret@x.org', email) as email) from {}",
        ["different: 1 rows"],
    ),
    ("user_updates", DAYS[1], "from {} limit 3", ["missing: 1 rows"]),
    ("page_views", DAYS[1], "from {0} union all from {0}", ["extra: 9 rows"]),
]


@pytest.mark.parametrize(("asset", "day", "query", "found"), FILES)
def test_damage_to_a_file_of_the_lake_is_found_and_repaired(
    sound: Platform, asset: str, day: str, query: str, found: list[str]
) -> None:
    rewrite(sound, asset, day, query)
    result = verify()
    expected = {f"files of {asset}": [f"{day} {kind}" for kind in found]}
    assert (result.exit_code, findings(result.output)) == (1, expected), result.output
    repair(sound, result.output)


@pytest.mark.parametrize("dropped", [False, True])
def test_damage_everywhere_is_repaired_by_the_commands_it_prints(sound: Platform, *, dropped: bool) -> None:
    for database, cases in (("staging", STAGING), ("analytics", ANALYTICS)):
        for _, statements, _found in cases:
            # Another day would stay, and be in the way of the tests that follow.
            if "2017-04-05" not in statements and ("drop table" in statements) == dropped:
                sql(sound, database, *statements.replace("drop table", "drop table if exists").split("; "))
    result = verify()
    assert set(findings(result.output)) == (
        {"user_updates", "rejected_lines", "users", "user_page_views"}
        if dropped
        else {name for name in TABLES if not name.startswith(("raw_", "files"))}
    )
    repair(sound, result.output)


def test_a_day_that_is_not_in_the_lake_is_to_be_materialized(sound: Platform) -> None:
    sql(sound, "staging", "insert into page_views values ('2017-04-05 01:00:00', '/x', 'production', 1)")
    result = verify()
    assert findings(result.output) == {"page_views": ["2017-04-05 not materialized: 1 rows"]}
    assert commands(result.output) == [MATERIALIZE + "--partition 2017-04-05"]
    sql(sound, "staging", "delete from page_views where ts::date = '2017-04-05'")


def test_columns_that_differ_are_named_by_key(sound: Platform) -> None:
    sql(sound, "analytics", "update user_page_views set email = null, count = 9 where user_id = 2 and url = '/2'")
    result = verify()
    assert "    user_id=2 url=/2: email, count\n" in result.output
    repair(sound, result.output)


def test_no_more_rows_are_named_than_can_be_read(sound: Platform) -> None:
    sql(sound, "analytics", "update user_page_views set count = count + 1")
    result = verify()
    assert findings(result.output) == {"user_page_views": ["different: 27 rows"]}
    assert result.output.count("    user_id=") == 5
    assert "    …\n" in result.output
    repair(sound, result.output)


OF_RAW = f"f.asset = 'raw_page_views' and f.superseded_at is null and f.day = '{DAYS[1]}'"
OF_NEXT = f"o.asset = 'raw_page_views' and o.superseded_at is null and o.day = '{DAYS[2]}'"
NEXT = f"pipeline.lake_files o where {OF_NEXT}"
REGISTERED = {
    "no file": (f"delete from pipeline.lake_files f where {OF_RAW}", ["missing"]),
    "the file of another day": (
        f"update pipeline.lake_files f set path = o.path from {NEXT} and {OF_RAW}",
        ["missing", "extra"],
    ),
    "one more file": (
        (
            f"insert into pipeline.lake_files select o.asset, date '{DAYS[1]}', path, rows, size, version from {NEXT} "
            "on conflict (asset, day, path) do update set superseded_at = null"
        ),
        ["extra"],
    ),
}


@pytest.mark.parametrize("what", REGISTERED)
def test_a_raw_day_that_is_not_made_of_what_was_delivered_is_found_and_repaired(sound: Platform, what: str) -> None:
    statement, found = REGISTERED[what]
    sql(sound, "staging", statement)
    result = verify()
    expected = [f"{DAYS[1]} {kind}: 19 rows" for kind in found]
    assert (result.exit_code, findings(result.output)) == (1, {"raw_page_views": expected}), result.output
    repair(sound, result.output)


LOST = {
    "rows are missing": ("from {} where source_object <> 'PageViews/2017-04-02.json'", "lost: 19 rows", "0 of 19 rows"),
    "rows are there twice": ("from {0} union all from {0}", "lost: 19 rows", "38 of 19 rows"),
    "rows are others": ("select * replace ('/z' as url) from {}", "lost: 19 rows", "other rows"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_part_file_that_has_other_rows_is_found(sound: Platform, what: str) -> None:
    query, found, example = LOST[what]
    file = sound.lake_file("raw_page_views", DAYS[1])
    kept = file.read_bytes()
    rewrite(sound, "raw_page_views", DAYS[1], query)
    result = verify()
    assert result.exit_code == 1
    assert findings(result.output)["raw_page_views"] == [f"{DAYS[1]} {found}"]
    assert f"    PageViews/{DAYS[1]}.json: {example}\n" in result.output
    assert commands(result.output)[0].startswith("# Restore the part files from a backup of the lake")
    file.unlink()
    gone = verify()
    assert gone.exit_code == 1
    assert f"{file} is missing, though the manifest or the registry of files counts on it" in gone.output
    file.write_bytes(kept)
    assert verify().exit_code == 0


def test_digests_of_another_version_of_the_engine_are_not_compared(sound: Platform) -> None:
    sql(sound, "staging", "update pipeline.ingested_days set digest = '0.0.1:' || digest")
    assert verify().exit_code == 0
    sql(sound, "staging", "update pipeline.ingested_days set digest = substr(digest, 7)")
    assert verify().exit_code == 0


def test_a_day_whose_input_changed_is_stale_until_it_is_rematerialized(sound: Platform) -> None:
    source = sound.root / "source"
    kept = shutil.copytree(source, sound.root / "kept")
    sound.put_views("PageViews/later.json", [view(f"{DAYS[0]}T01:30:00", "/new"), view(f"{DAYS[1]}T01:30:00", "/new")])
    sound.put_views(f"PageViews/{DAYS[2]}.json", [view(f"{DAYS[2]}T00:30:00", "/corrected")])
    assert verify().exit_code == 0  # nobody has read them yet
    assert sound.materialize(DAYS[0]).success
    result = verify()
    assert findings(result.output) == {"raw_page_views": ["2017-04-02 stale: 1 rows", "2017-04-03 stale: 19 rows"]}
    assert "    PageViews/later.json\n" in result.output
    assert f"    PageViews/{DAYS[2]}.json\n" in result.output
    assert commands(result.output)[-1].endswith("--partition-range 2017-04-02...2017-04-03")
    repair(sound, result.output)
    shutil.rmtree(source)
    kept.rename(source)
    (source / "PageViews/later.json").write_text("")
    assert sound.materialize(DAYS[0], DAYS[2]).success
    assert verify().exit_code == 0


def test_recommendations_whose_snapshot_is_gone_are_to_be_made_again(sound: Platform) -> None:
    sound.lake_file("page_recommendations", DAYS[2]).unlink()
    result = verify()
    assert findings(result.output) == {"page_recommendations": [f"{DAYS[2]} no snapshot: 9 rows"]}
    assert commands(result.output) == [MATERIALIZE + f"--partition {DAYS[2]}"]
    repair(sound, result.output)


def test_a_manifest_that_claims_more_rows_is_found(sound: Platform) -> None:
    claim = (
        "update pipeline.ingested_days d set rows = d.rows + {} from pipeline.ingested_objects o "
        "where o.key = 'PageViews/late.json' and d.object_id = o.object_id"
    )
    sql(sound, "staging", claim.format(2))
    assert findings(verify().output) == {"raw_page_views": ["2017-04-01 lost: 2 rows"]}
    sql(sound, "staging", claim.format(-2))
    assert verify().exit_code == 0


def test_a_range_is_compared_alone(sound: Platform) -> None:
    sql(sound, "staging", "delete from page_views where ts = '2017-04-02 03:00:00'")
    assert verify("--from", DAYS[2]).exit_code == 0
    assert verify("--to", DAYS[0]).exit_code == 0
    result = verify("--from", DAYS[1], "--to", DAYS[1])
    assert findings(result.output) == {"page_views": ["2017-04-02 missing: 1 rows"]}
    assert "raw_page_views: 1 days" in result.output
    assert "\nusers:" not in result.output
    repair(sound, result.output)


@pytest.mark.parametrize(
    "options", [("--from", "yesterday"), ("--from", DAYS[1], "--to", DAYS[0]), ("--days", "3"), ("now",)]
)
def test_wrong_usage_is_told_apart_from_differences(options: tuple[str, ...]) -> None:
    assert verify(*options).exit_code == 2


def test_rebuild_says_what_it_put_right(sound: Platform) -> None:
    sql(sound, "analytics", "update user_page_views set count = 9 where user_id = 2", "update users set name = ''")
    assert CliRunner().invoke(main, ["rebuild"]).output.splitlines() == [
        f"rejected_lines: 4 lines from {sound.root}/lake",
        "users: 2 rows put right",
        "user_page_views: 2 rows put right",
    ]
    again = CliRunner().invoke(main, ["rebuild"]).output
    assert again.endswith("users: 0 rows put right\nuser_page_views: 0 rows put right\n")


# On platforms of their own, after which the shared one is gone: these come last.


@pytest.fixture
def other(platform: Platform) -> Platform:
    deliver(platform)
    return platform


def test_an_empty_platform_has_no_differences(platform: Platform) -> None:
    result = verify()
    assert (result.exit_code, findings(result.output)) == (0, {})
    assert platform.materialize(DAYS[0]).success
    assert "raw_page_views: 1 days, 0 rows: equal" in verify().output


def test_days_of_which_only_some_assets_are_materialized_are_named_and_no_difference(other: Platform) -> None:
    assert other.materialize(DAYS[0], select=LOG_PIPELINE).success
    assert other.materialize(DAYS[1], select=["raw_page_views", "page_views"]).success
    assert other.materialize(DAYS[2], select=["raw_user_updates"]).success
    result = verify()
    assert (result.exit_code, findings(result.output)) == (0, {}), result.output
    absent = dict(
        re.findall(r"^([\w ]+): .*\n  not materialized, and not compared: (.*)$", result.output, re.MULTILINE)
    )
    assert absent == {
        "raw_user_updates": DAYS[1],
        "files of user_updates": DAYS[2],
        "files of users": DAYS[2],
        "raw_page_views": DAYS[2],
        "files of user_page_views": DAYS[1],
    }
    sql(other, "analytics", "update user_page_views set count = count + 1 where user_id = 2")
    assert verify().exit_code == 1


def test_it_goes_by_the_lake_on_s3_too(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from user_pipeline_tests.s3 import s3_endpoint

    with (
        s3_endpoint(monkeypatch, "lake") as endpoint,
        Platform.create(postgres, tmp_path / "s3", USER_PIPELINE_LAKE_URL="s3://lake/below") as platform,
    ):
        for name, value in platform.environment.items():
            monkeypatch.setenv(name, value)
        deliver(platform)
        assert platform.materialize(DAYS[0], DAYS[2]).success
        result = verify()
        assert (result.exit_code, findings(result.output)) == (0, {}), result.output
        assert "raw_page_views: 3 days, 77 rows: equal" in result.output
        sql(platform, "analytics", "update user_page_views set count = count + 1 where user_id = 2")
        platform.put_views("PageViews/later.json", [view(f"{DAYS[1]}T01:30:00", "/new"), "no"])
        assert platform.materialize(DAYS[0], select=["raw_page_views"], checks=False).success
        sql(platform, "staging", "delete from rejected_lines")
        result = verify()
        assert findings(result.output) == {
            "raw_page_views": ["2017-04-02 stale: 1 rows"],
            "rejected_lines": ["missing: 5 rows"],
            "user_page_views": ["different: 2 rows"],
        }
        repair(platform, result.output)
        assert [feed.name for feed in FEEDS if not any(feed.name in key for key in endpoint.keys("lake"))] == []
        assert list((platform.root / "scratch").iterdir()) == []
