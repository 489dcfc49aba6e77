"""People who are forgotten: gone from all that is stored, kept out of what is delivered, and no one else touched."""

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from user_pipeline import settings
from user_pipeline.cli.main import main
from user_pipeline.ingest.feeds import FEEDS, PAGE_VIEWS, USER_UPDATES
from user_pipeline.ingest.suppression import Suppression
from user_pipeline.lake.registry import ForgottenMeanwhileError, Registry
from user_pipeline.reconcile.forgetting.forget import forget, survey
from user_pipeline_tests.cli.test_lake_commands import lose, run
from user_pipeline_tests.ingest.reading import ingest, manifest_of
from user_pipeline_tests.platform import Platform, update, view

DAYS = ("2017-04-01", "2017-04-02", "2017-04-03")
PERSON, OTHER = 1572, 15720
TABLES = (
    ("staging", "page_views"),
    ("staging", "user_updates"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
    ("analytics", "page_recommendations"),
    ("analytics", "page_recommendations_because"),
    ("analytics", "related_pages"),
    ("analytics", "popular_pages"),
    ("analytics", "recommendation_quality"),
)


def views_of(user: int, day: str, hour: int) -> list[dict[str, Any]]:
    """Each user has some pages that others have, and in the second object a duplicate and one of its own."""
    pages = [f"/{(user + hour + n) % 7}" for n in range(3)]
    return [view(f"{day}T{hour:02}:{n:02}:00", page, user) for n, page in enumerate(pages)]


def deliver(platform: Platform, people: tuple[int, ...]) -> None:
    """What the source holds of some people: two objects a feed, with bad lines that name them and that name nobody."""
    for number, days in enumerate((DAYS[:2], DAYS[1:])):
        lines: list[Any] = ["broken", '{"ts": "2017-04-01T00:00:00"}']
        updates = [",,,\n", '"2017-04-01T00:00:00","1","no e-mail","Ann","production"\n']
        for user in people:
            for day in days:
                lines += views_of(user, day, number)
                updates.append(update(f"{day}T0{number}:00:00", user, f"u{user}.{number}@example.com", f"Name {user}"))
            lines += [
                view("2017-04-02T09:00:00", f"/own/{user}", user, environment="staging", more={"of": user}),
                view("2010-01-01T00:00:00", "/early", user),
                f'{{"ts": "2017-04-01T00:00:00", "user_id": {user}, "url": "/cut',
                json.dumps({"user_id": str(user), "ts": "never", "url": "/x", "environment": "production"}),
            ]
            updates += [
                f'"2017-04-01T00:00:00","{user}","no mail","Name {user}","production"\n',
                f'"2017-04-01T00:00:00","{user}",six,fields,"are","malformed"\n',
            ]
        platform.put_views(f"PageViews/{number}", lines)
        platform.put(f"UserUpdates/{number}", "".join(updates))


def tables(platform: Platform) -> dict[str, list[tuple[Any, ...]]]:
    return {name: platform.table(database, name) for database, name in TABLES}


def left(platform: Platform, *people: int) -> dict[str, int]:
    with platform.engine() as engine:
        return {found.place: found.rows for found in survey(platform.lake, engine, people or (PERSON,)) if found.rows}


def accounts(platform: Platform) -> list[tuple[int, int]]:
    """Lines, and what they became, of each feed."""
    found = []
    for feed in FEEDS:
        manifest = manifest_of(platform, feed)
        assert manifest.unaccounted() == []
        assert all(entry.unaccounted == 0 for entry in manifest.entries())
        account = manifest.account()
        found.append((account["lines"], account["rows"] + account["rejected"] + account["blank"] + account["header"]))
    return found


@pytest.fixture
def delivered(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("USER_PIPELINE_BLOCK_REJECT_SHARE", "1")
    settings.current.cache_clear()
    deliver(platform, (PERSON, OTHER, 2, 3))
    assert platform.materialize(*DAYS[::2], run_config=ALL_DAYS).success
    return platform


ALL_DAYS = {"ops": {"page_recommendations": {"config": {"all_days": True}}}}


def test_the_tables_are_those_of_a_source_without_the_person(delivered: Platform) -> None:
    before = accounts(delivered)
    files = set(delivered.lake_files())
    assert set(left(delivered)) == {
        *(f"{folder}/{feed.name}" for folder in ("raw", "rejected", "cleaned") for feed in FEEDS),
        *("daily/users", "daily/user_page_views", "snapshots/page_recommendations", "exports"),
        *("table users", "table user_page_views", "table page_recommendations", "table rejected_lines"),
        *("table page_views", "table user_updates"),
        *(["table page_recommendations_because"] if left(delivered).get("table page_recommendations_because") else []),
    }
    run("forget", str(PERSON), "--yes")
    assert left(delivered) == {}
    assert run("verify")[-1] == "No differences."
    assert accounts(delivered) == before
    assert all(lines == became for lines, became in before)
    # Nothing of the person is in any file that could be read as text, and old files are gone at once.
    for path in delivered.lake_files():
        content = (delivered.root / "lake" / path).read_bytes()
        assert b"u1572." not in content, path
    assert not [path for path in files & set(delivered.lake_files()) if path.startswith(("raw/user_updates", "daily"))]
    made = tables(delivered)
    rejects = delivered.table("staging", "rejected_lines")
    assert {(reason, line) for *_, reason, line in rejects if reason == "suppressed_user"} == {("suppressed_user", "")}
    assert sum(reason == "suppressed_user" for *_, reason, _ in rejects) == 2 * (2 * 3 + 4) + 2 * (2 + 2)
    assert all(str(OTHER) in line or str(PERSON) not in line for *_, line in rejects)
    shutil.rmtree(delivered.root / "lake")
    shutil.rmtree(delivered.root / "source")
    lose(delivered, "staging", "analytics")
    deliver(delivered, (OTHER, 2, 3))
    assert delivered.materialize(*DAYS[::2], run_config=ALL_DAYS).success
    assert made == tables(delivered)


def test_an_object_that_is_read_again_does_not_bring_them_back(delivered: Platform) -> None:
    run("forget", str(PERSON), "--yes")
    made = tables(delivered)
    assert "0 days changed" in run("reread", "page_views", "--all")[-1]
    for feed in ("page_views", "user_updates"):
        run("reread", feed, "--all")
    assert delivered.materialize(*DAYS[::2], run_config=ALL_DAYS).success
    assert left(delivered) == {}
    assert tables(delivered) == made
    assert all(lines == became for lines, became in accounts(delivered))
    # A late object with nothing but the person, and one with somebody else.
    delivered.put_views("PageViews/late", [view("2017-04-03T10:00:00", "/late", PERSON)])
    delivered.put_views("PageViews/other", [view("2017-04-03T10:00:00", "/late", 2)])
    assert delivered.materialize(DAYS[2], run_config=ALL_DAYS).success
    assert left(delivered) == {}
    entries = {entry.key: entry for entry in manifest_of(delivered).entries()}
    assert entries["PageViews/late"].rejected == {"suppressed_user": 1}
    assert entries["PageViews/other"].rows == 1
    assert run("verify")[-1] == "No differences."


@pytest.mark.parametrize("vacuumed", [False, True])
def test_the_list_comes_back_from_the_lake(delivered: Platform, *, vacuumed: bool) -> None:
    run("forget", str(PERSON), "--yes")
    made, known = tables(delivered), Suppression.of(delivered.lake.staging)
    assert known is not None
    assert PERSON in known
    assert OTHER not in known
    assert PERSON.to_bytes(8, "big") not in known.digests
    if vacuumed:
        run("vacuum")
    lose(delivered, "staging", "analytics")
    run("recover")
    assert Suppression.of(delivered.lake.staging) == known
    assert delivered.materialize(*DAYS[::2], run_config=ALL_DAYS).success
    assert run("verify")[-1] == "No differences."
    assert tables(delivered) == made
    assert left(delivered) == {}


def test_a_dry_run_says_what_there_is_and_changes_nothing(delivered: Platform) -> None:
    before = tables(delivered), delivered.lake_files(), delivered.table("staging", "rejected_lines")
    said = run("forget", str(PERSON), "9")
    assert "table users: 1 rows" in said
    assert "raw/user_updates: 4 rows in 3 files" in said
    assert said[-2:] == [
        "2 of 2 people are not on the suppression list.",
        "Nothing was removed: add --yes to do it.",
    ]
    assert (tables(delivered), delivered.lake_files(), delivered.table("staging", "rejected_lines")) == before
    assert Suppression.of(delivered.lake.staging) is None


def test_everyone_can_be_forgotten_and_somebody_nobody_knows(delivered: Platform, tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("2\n\n3\n")
    run("forget", "--file", str(listed), str(PERSON), str(OTHER), "99", "--yes")
    assert left(delivered, PERSON, OTHER, 2, 3, 99) == {}
    assert {name: len(rows) for name, rows in tables(delivered).items() if rows} == {"recommendation_quality": 2}
    assert run("verify")[-1] == "No differences."
    assert delivered.materialize(*DAYS[::2]).success


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name at least one user id"),
        (["-x"], "No such option"),
        (["1e3"], "USER_ID: '1e3' is no user id, a whole number from 0 to 2^63-1."),
        ([str(2**63)], "is no user id"),
    ],
)
@pytest.mark.usefixtures("platform")
def test_what_is_no_id_is_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["forget", *arguments, "--yes"])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.usefixtures("platform")
def test_a_line_of_a_file_that_is_no_id_is_named(tmp_path: Path) -> None:
    listed = tmp_path / "ids.txt"
    listed.write_text("1\nann@example.com\n")
    result = CliRunner().invoke(main, ["forget", "--file", str(listed), "--yes"])
    assert result.exit_code == 2
    assert "ids.txt, line 2: 'ann@example.com' is no" in " ".join(result.output.split())


def test_who_has_read_of_the_person_before_commits_nothing_of_it(delivered: Platform) -> None:
    lake = delivered.lake
    for registry in (lake.staging, lake.analytics):
        registry.open()
    with delivered.engine() as engine:
        forget(delivered.lake, engine, [PERSON])
    for registry in (lake.staging, lake.analytics):
        with pytest.raises(ForgottenMeanwhileError, match="read and made again"):
            commit_nothing(registry)
        # Whoever reads again commits.
        commit_nothing(registry)


def commit_nothing(registry: Registry) -> None:
    with registry.database.transaction() as transaction:
        registry.commit(transaction, "of_a_test", {date(2017, 4, 1): []}, "of a test")


def test_a_run_that_is_overtaken_begins_again(delivered: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregates of a day are computed, then the person is forgotten, then they are to be committed."""
    from user_pipeline.io_managers.lake import LakeIOManager

    original = LakeIOManager.put_new
    overtaken: list[str] = []

    def store(self: LakeIOManager, folder: str, *arguments: Any) -> Any:
        if not overtaken:
            overtaken.append(folder)
            with delivered.engine() as engine:
                forget(delivered.lake, engine, [PERSON])
        return original(self, folder, *arguments)

    monkeypatch.setattr(LakeIOManager, "put_new", store)
    monkeypatch.setattr("dagster.RetryPolicy.calculate_delay", lambda self, attempt_num: 0.01)  # noqa: ARG005
    result = delivered.materialize(DAYS[1], select="user_page_views", checks=False)
    assert result.success
    assert overtaken == ["daily/user_page_views"]
    # What the first attempt had stored was never registered; it goes with the next call.
    assert set(left(delivered)) <= {"daily/user_page_views"}
    with delivered.engine() as engine:
        forget(delivered.lake, engine, [PERSON])
    assert left(delivered) == {}
    assert run("verify")[-1] == "No differences."


def test_lines_of_other_widths_and_ids_in_other_places_are_told_apart(platform: Platform) -> None:
    platform.put_views(
        "PageViews/a",
        [
            '{"user_id": 7, "ts": NaN}',
            '{"url": "\\"user_id\\": 7", "user_id": 8}',
            '{"user_id": "07", "ts": "x", "url": "/", "environment": "production"}',
            '{"other": {"user_id": 70}}',
        ],
    )
    ingest(platform)
    with platform.engine() as engine:
        forget(platform.lake, engine, [7])
    suppressed = "select source_line from rejected_lines where reason = 'suppressed_user' order by 1"
    assert platform.rows("staging", suppressed) == [(1,), (3,)]
    assert manifest_of(platform, PAGE_VIEWS).account()["lines"] == 4
    platform.put("UserUpdates/a", '"x,7","8"\n"2017-04-01T00:00:00", 7 ,"one"\nx,7\n7,x\n')
    ingest(platform, USER_UPDATES)
    suppressed = "select source_line from rejected_lines where feed = 'user_updates' and reason = 'suppressed_user'"
    assert platform.rows("staging", f"{suppressed} order by 1") == [(2,), (3,)]
