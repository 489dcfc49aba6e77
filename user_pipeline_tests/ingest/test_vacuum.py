"""What is left behind goes, and nothing that counts does."""

import os
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.vacuum import Removed, vacuum
from user_pipeline.lake.log import logs, read_log
from user_pipeline.lake.registry import LostRegistryError
from user_pipeline_tests.ingest.reading import ingest, manifest_of, rows
from user_pipeline_tests.platform import Platform, view

GOOD = view("2017-04-01T10:00:00")
LATER = timedelta(days=2, minutes=1)


def clean(platform: Platform, after: timedelta = timedelta()) -> Removed:
    return vacuum(platform.lake, datetime.now(UTC) + after)


def files(platform: Platform) -> set[str]:
    """Files of the lake with rows."""
    return {path for path in platform.lake_files() if path.startswith(("raw/", "rejected/"))}


def test_files_that_nothing_refers_to_go_once_they_are_old(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    ingest(platform)
    platform.put_views("PageViews/b", [GOOD, "broken"])
    ingest(platform)
    first = files(platform)
    platform.put_views("PageViews/a", [GOOD, GOOD, "broken", "broken"])
    ingest(platform)
    everything = files(platform)
    assert clean(platform).files == 0
    assert files(platform) == everything
    removed = clean(platform, LATER)
    gone = everything - files(platform)
    # Of the first batch: a's rows and a's rejects.
    assert removed.files == len(gone) == 2
    assert gone < first
    assert removed.size > 0
    assert len(rows(platform)) == 3
    assert clean(platform, LATER).files == 0


def test_a_file_that_was_replaced_just_now_stays_however_old_it_is(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    ingest(platform)
    old = files(platform)
    platform.put_views("PageViews/a", [GOOD, GOOD])
    ingest(platform)
    # As if it had been written long ago, and replaced a minute before the vacuum.
    long_ago = (datetime.now(UTC) - timedelta(days=30)).timestamp()
    for path in old:
        os.utime(platform.root / "lake" / path, (long_ago, long_ago))
    assert clean(platform, timedelta(days=1)).files == 0
    assert clean(platform, LATER).files == len(old) == 2


def test_what_a_raw_day_is_made_of_stays_though_ingest_needs_it_no_more(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    [pinned] = platform.lake.urls("raw_page_views")
    platform.put_views("PageViews/a", [GOOD, GOOD])
    ingest(platform)
    assert clean(platform, LATER).files == 0
    assert Path(pinned).is_file()
    platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    assert platform.lake.urls("raw_page_views") != [pinned]
    assert clean(platform, timedelta(hours=47)).files == 0
    assert clean(platform, LATER).files > 0
    assert not Path(pinned).exists()
    assert len(rows(platform)) == 2


def test_other_files_of_the_lake_stay(platform: Platform) -> None:
    others = ["exports/t/date=2017-04-01/t.csv", "fake_users/date=2017-04-01/users.db", "note.txt"]
    for path in others:
        platform.storage.lake.put(path, b"x")
    stray = "raw/page_views/date=2017-04-01/20170401T000000-0123456789ab.parquet"
    platform.storage.lake.put(stray, b"x")
    assert clean(platform, LATER).files == 1
    assert set(others) <= set(platform.lake_files())
    assert stray not in platform.lake_files()


def test_an_empty_lake_has_nothing_to_remove(platform: Platform) -> None:
    assert clean(platform) == Removed(0, 0, 0)


def test_a_database_that_lost_its_registry_keeps_everything_in_the_lake(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    ingest(platform)
    before = platform.lake_files()
    with platform.staging.transaction() as transaction:
        transaction.execute("drop schema pipeline cascade")
    with pytest.raises(LostRegistryError, match="user-pipeline recover"):
        clean(platform, LATER)
    assert platform.lake_files() == before


def test_the_logs_become_one_that_tells_all_that_counts(platform: Platform) -> None:
    for number in range(3):
        platform.put_views("PageViews/a", [GOOD] * (number + 1))
        ingest(platform)
    platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    before = logs(platform.storage, "staging")
    assert clean(platform).logs == len(before) == 4
    [checkpoint] = logs(platform.storage, "staging")
    header, *lines = read_log(platform.storage, checkpoint)
    assert (header["asset"], header["version"]) == ("checkpoint", before[-1].version + 1)
    told = {line["kind"]: line for line in lines}
    assert set(told) == {"partition", "object"}
    assert told["object"]["object"]["key"] == "PageViews/a"
    assert [on_day["rows"] for on_day in told["object"]["days"]] == [3]
    assert told["partition"]["asset"] == "raw_page_views"
    # Nothing has happened since: there is nothing to fold.
    assert clean(platform).logs == 0
    assert logs(platform.storage, "staging") == [checkpoint]


def recovered(platform: Platform) -> tuple[list[tuple[Any, ...]], ...]:
    """What the manifest and the registry hold, whatever the moment."""
    return (
        platform.rows("staging", "select * from pipeline.ingested_objects order by feed, object_id"),
        platform.rows("staging", "select * from pipeline.ingested_days order by feed, object_id, day"),
        platform.rows("staging", "select * from pipeline.lake_partitions order by 1, 2"),
        platform.rows(
            "staging",
            "select asset, day, path, rows, size from pipeline.lake_files where superseded_at is null order by 1, 2, 3",
        ),
        platform.rows("staging", "select * from rejected_lines order by 1, 2, 3"),
    )


def recover(platform: Platform) -> None:
    """Lose the staging database, and fill it again."""
    from user_pipeline.reconcile.full_refresh import recover as fill

    with platform.staging.transaction() as transaction:
        transaction.execute("drop schema public, pipeline cascade")
        transaction.execute("create schema public")
    with platform.engine() as engine:
        fill(platform.lake, engine)


class History:
    """What happens to a platform, and what each object has brought."""

    def __init__(self, platform: Platform, draw: Random) -> None:
        self._platform = platform
        self._draw = draw
        self.brought: dict[str, list[str]] = {}

    def step(self) -> None:
        steps = [self.deliver, self.delete, self.break_off, self.materialize, self.vacuum]
        self._draw.choices(steps, [6, 2, 1, 2, 1])[0]()

    def deliver(self) -> None:
        days = [f"2017-04-0{self._draw.randrange(1, 4)}" for _ in range(self._draw.randrange(5))]
        lines = [view(f"{day}T10:00:00", f"/{self._draw.randrange(3)}") for day in days]
        self._bring(days, lambda key: self._platform.put_views(key, [*lines, *["broken"] * self._draw.randrange(2)]))

    def break_off(self) -> None:
        self._bring([], lambda key: self._platform.put(key, b"\x1f\x8b\x08"))

    def _bring(self, days: list[str], put: Callable[[str], None]) -> None:
        key = f"PageViews/{self._draw.randrange(6)}"
        put(key)
        self.brought[key] = days
        ingest(self._platform)

    def delete(self) -> None:
        """It keeps what it brought."""
        source = self._platform.root / "source/PageViews"
        if source.is_dir() and (there := sorted(source.iterdir())):
            self._draw.choice(there).unlink()
        ingest(self._platform)

    def materialize(self) -> None:
        assert self._platform.materialize(
            "2017-04-01", "2017-04-03", select="raw_page_views", ingest=False
        ).success  # with its checks

    def vacuum(self) -> None:
        clean(self._platform, LATER)

    def rows(self) -> dict[date, int]:
        counts = Counter(day for days in self.brought.values() for day in days)
        return {date(2017, 4, n): counts[f"2017-04-0{n}"] for n in (1, 2, 3)}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_manifest_is_what_the_objects_bring_and_what_the_logs_tell(
    platform: Platform, seed: int
) -> None:
    """Objects come, change, break, are deleted; days are pinned, rewritten and vacuumed; the database is lost."""
    history = History(platform, Random(seed))  # noqa: S311 - test data
    manifest = manifest_of(platform)
    for _ in range(25):
        history.step()
        assert manifest.rows(list(history.rows())) == history.rows()
        assert manifest.unaccounted() == []
    for day in history.rows():
        found = Counter(row["source_object"] for row in rows(platform, day=day))
        assert found == {key: n for key, days in history.brought.items() if (n := days.count(str(day)))}
    before = recovered(platform)
    recover(platform)
    assert recovered(platform) == before
    assert ingest(platform).entries == []
    history.materialize()
    partitions = platform.lake.staging.partitions("raw_page_views")
    assert {day: sum(file.rows for file in there) for day, there in partitions.items()} == history.rows()


def test_a_log_of_a_commit_that_never_was_does_no_harm(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are complete, so what it tells is as true as any other state."""
    from adbc_driver_manager.dbapi import Connection

    platform.put_views("PageViews/a", [GOOD])
    ingest(platform)
    platform.put_views("PageViews/a", [GOOD, GOOD])
    with monkeypatch.context() as patch:
        commit = Connection.commit

        def killed(self: Connection) -> None:
            if len(logs(platform.storage, "staging")) == 2:
                raise KeyboardInterrupt
            commit(self)

        patch.setattr(Connection, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(platform)
    assert len(logs(platform.storage, "staging")) == 2
    assert len(rows(platform)) == 1
    recover(platform)
    assert len(rows(platform)) == 2
    assert ingest(platform).entries == []


def test_a_database_that_was_restored_from_a_backup_goes_on_above_all_logs(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    ingest(platform)
    for number in range(3):
        platform.put_views("PageViews/b", [GOOD] * (number + 1))
        ingest(platform)
    # As it was after the first commit: of b it knows nothing.
    with platform.staging.transaction() as transaction:
        for table in ("ingested_objects", "ingested_days", "lake_commits"):
            transaction.execute(f"delete from pipeline.{table} where version > 1")
        transaction.fetch("select setval('pipeline.lake_commits_version_seq', 1)")
    assert clean(platform).logs == 4
    [checkpoint] = logs(platform.storage, "staging")
    assert checkpoint.version == 5
    recover(platform)
    assert len(rows(platform)) == 1
    [read] = ingest(platform).entries
    assert (read.key, read.rows) == ("PageViews/b", 3)


def test_opening_a_manifest_twice_makes_its_tables_once(platform: Platform) -> None:
    for _ in range(2):
        assert Manifest(manifest_of(platform).feed, platform.lake.staging).version() == 0
