"""Objects that are still being written are left alone until they have not changed for a while."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from user_pipeline_tests.ingest.reading import NOW, Read, ingest
from user_pipeline_tests.platform import Platform, view

GOOD = view("2017-04-01T10:00:00")
TEN_MINUTES = timedelta(minutes=10)


def put(platform: Platform, key: str, written: datetime, views: int = 1) -> None:
    platform.put_views(key, [GOOD] * views)
    os.utime(platform.root / "source" / key, (written.timestamp(), written.timestamp()))


def look(platform: Platform, now: datetime = NOW, settle: timedelta = TEN_MINUTES) -> tuple[dict[str, int], int]:
    """The rows of what was read, and how many objects were left to settle."""
    read: Read = ingest(platform, now=now, settle=settle)
    return {entry.key: entry.rows for entry in read.entries}, read.ingested.settling


def test_by_default_an_object_is_read_at_once(platform: Platform) -> None:
    put(platform, "PageViews/a", NOW)
    assert look(platform, settle=timedelta()) == ({"PageViews/a": 1}, 0)


def test_an_object_is_left_alone_until_it_has_not_changed_for_so_long(platform: Platform) -> None:
    put(platform, "PageViews/new", NOW - timedelta(minutes=9))
    put(platform, "PageViews/old", NOW - timedelta(minutes=10))
    assert look(platform) == ({"PageViews/old": 1}, 1)
    assert look(platform, NOW + timedelta(seconds=59)) == ({}, 1)
    assert look(platform, NOW + timedelta(seconds=60)) == ({"PageViews/new": 1}, 0)
    assert look(platform, NOW + timedelta(days=1)) == ({}, 0)


def test_what_was_read_stays_until_what_changed_has_settled(platform: Platform) -> None:
    put(platform, "PageViews/a", NOW - timedelta(hours=1))
    assert look(platform) == ({"PageViews/a": 1}, 0)
    put(platform, "PageViews/a", NOW, views=2)
    assert look(platform) == ({}, 1)
    put(platform, "PageViews/a", NOW + timedelta(minutes=5), views=3)
    assert look(platform, NOW + timedelta(minutes=10)) == ({}, 1)
    assert look(platform, NOW + timedelta(minutes=15)) == ({"PageViews/a": 3}, 0)


def test_an_object_of_a_clock_that_is_ahead_does_not_wait_for_ever(platform: Platform) -> None:
    put(platform, "PageViews/little", NOW + timedelta(minutes=9))
    put(platform, "PageViews/far", NOW + timedelta(days=4000))
    assert look(platform) == ({"PageViews/far": 1}, 1)
    assert look(platform, NOW + timedelta(minutes=19)) == ({"PageViews/little": 1}, 0)


def test_an_object_that_is_none_is_told_of_at_once(platform: Platform) -> None:
    (platform.root / "source/PageViews").mkdir()
    (platform.root / "source/PageViews/link").symlink_to("/etc/passwd")
    read = ingest(platform, settle=TEN_MINUTES)
    assert [entry.key for entry in read.broken] == ["PageViews/link"]


@pytest.mark.parametrize("seconds", ["0", "86400"])
def test_the_setting_reaches_the_runs(platform: Platform, monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    put(platform, "PageViews/a", datetime.now(UTC))
    monkeypatch.setenv("USER_PIPELINE_SETTLE_SECONDS", seconds)
    from user_pipeline import settings

    settings.current.cache_clear()
    result = platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    metadata = result.asset_materializations_for_node("ingested_page_views")[0].metadata
    assert metadata["objects_left_to_settle"].value == int(seconds != "0")
    assert metadata["objects_read"].value == int(seconds == "0")
