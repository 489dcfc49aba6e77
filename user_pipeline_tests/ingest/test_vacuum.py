"""What is left behind goes, and nothing that counts does."""

from datetime import UTC, date, datetime, timedelta

from user_pipeline.ingest.feeds import PAGE_VIEWS
from user_pipeline.ingest.manifest import Catalog
from user_pipeline.ingest.part_files import Days
from user_pipeline.ingest.reader import read_new_objects
from user_pipeline.ingest.rejects import publish_rejects
from user_pipeline.ingest.vacuum import vacuum
from user_pipeline_tests.platform import Platform, view

GOOD = view("2017-04-01T10:00:00")


def ingest(platform: Platform) -> None:
    with platform.engine() as engine:
        read_new_objects(
            PAGE_VIEWS,
            platform.storage.source,
            platform.storage.lake,
            engine,
            limits=platform.settings.object_limits,
            start_date=date(2017, 4, 1),
            now=datetime(2017, 5, 1, tzinfo=UTC),
            publish_rejects=publish_rejects(platform.staging),
        )


def rows(platform: Platform) -> int:
    with platform.engine() as engine:
        days = Days(
            PAGE_VIEWS,
            Catalog.load(platform.storage.lake, PAGE_VIEWS),
            platform.storage,
            engine,
            [date(2017, 4, 1)],
        )
        return len(days["2017-04-01"].collect("pyarrow"))


def test_batches_that_nothing_refers_to_go_once_they_are_old(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    ingest(platform)
    platform.put_views("PageViews/b", [GOOD, "broken"])
    ingest(platform)
    first = set(platform.lake_files("fragments") + platform.lake_files("rejected"))
    platform.put_views("PageViews/a", [GOOD, GOOD, "broken", "broken"])
    ingest(platform)
    everything = platform.lake_files()
    now = datetime.now(UTC)
    lake = platform.storage.lake
    assert vacuum(lake, PAGE_VIEWS, now).objects == 0
    assert platform.lake_files() == everything
    later = now + timedelta(days=2, minutes=1)
    removed = vacuum(lake, PAGE_VIEWS, later)
    gone = set(everything) - set(platform.lake_files())
    # The first batch: a's rows and a's rejects.
    assert removed.objects == len(gone) == 2
    assert gone < first
    assert removed.size > 0
    assert rows(platform) == 3
    assert vacuum(lake, PAGE_VIEWS, later).objects == 0


def test_an_empty_lake_has_nothing_to_remove(platform: Platform) -> None:
    assert vacuum(platform.storage.lake, PAGE_VIEWS, datetime.now(UTC)).objects == 0
