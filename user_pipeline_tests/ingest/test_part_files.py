"""What a raw day is made of: the part files, or one new file where rows of them do not count or they are many."""

from datetime import date

from user_pipeline.engines.duckdb import Engine
from user_pipeline.ingest.part_files import commit_raw_days, raw_day
from user_pipeline.lake.transfer import new_path, put
from user_pipeline_tests.ingest.reading import FIRST, ingest, manifest_of, rows
from user_pipeline_tests.platform import Platform, view

GOOD = view("2017-04-01T10:00:00")


def materialize(platform: Platform) -> bool:
    """Whether the day was written anew."""
    result = platform.materialize("2017-04-01", select="raw_page_views", ingest=False)
    [event] = result.get_asset_materialization_events()
    return bool(event.materialization.metadata["rewritten"].value)


def part_files(platform: Platform) -> list[str]:
    return [part.file.path for part in manifest_of(platform).parts([FIRST])[FIRST].parts]


def registered(platform: Platform) -> list[str]:
    return [file.path for file in platform.lake.staging.partitions("raw_page_views")[FIRST]]


def test_part_files_whose_rows_all_count_are_the_day_itself(platform: Platform) -> None:
    for key in "ab":
        platform.put_views(f"PageViews/{key}", [GOOD])
        ingest(platform)
    before = platform.lake_files("raw")
    assert not materialize(platform)
    assert registered(platform) == part_files(platform) == before


def test_a_day_with_rows_that_do_not_count_is_written_anew_once(platform: Platform) -> None:
    for key in "ab":
        platform.put_views(f"PageViews/{key}", [GOOD])
    ingest(platform)
    platform.put_views("PageViews/a", [GOOD, GOOD])
    ingest(platform)
    assert materialize(platform)
    [file] = registered(platform)
    assert part_files(platform) == [file]
    assert len(rows(platform)) == 3
    assert not materialize(platform)
    assert registered(platform) == [file]


def test_a_day_of_many_part_files_is_written_anew(platform: Platform) -> None:
    for number in range(Engine.most_files + 1):
        assert number == 0 or not materialize(platform)
        platform.put_views(f"PageViews/{number}", [GOOD])
        ingest(platform)
    assert materialize(platform)
    assert len(registered(platform)) == 1
    assert len(rows(platform)) == Engine.most_files + 1


def test_an_object_of_many_days_brings_each_of_them_its_file(platform: Platform) -> None:
    days = [f"2017-04-{day:02}" for day in range(1, 31)]
    for key in "ab":
        platform.put_views(f"PageViews/{key}", [view(f"{day}T10:00:00", f"/{key}") for day in reversed(days)])
    ingest(platform)
    for day in days:
        [part] = manifest_of(platform).parts([date.fromisoformat(day)])[date.fromisoformat(day)].parts
        assert part.file.path.startswith(f"raw/page_views/date={day}/")
        assert part.file.rows == 2
    assert platform.materialize(days[0], days[-1], select="raw_page_views", ingest=False).success
    assert len(rows(platform, day=date.fromisoformat(days[16]))) == 2


def test_a_day_without_rows_has_a_file_with_its_columns(platform: Platform) -> None:
    assert not materialize(platform)
    with platform.engine() as engine:
        [file] = platform.lake.fetch(engine, platform.lake.staging, "raw_page_views", [FIRST])[FIRST]
        assert engine.read([file]).collect_schema().names() == [
            "ts", "url", "environment", "user_id", "source_object", "source_line", "rescued",
        ]  # fmt: skip


def test_a_day_that_changed_while_it_was_written_anew_is_older_than_the_change(platform: Platform) -> None:
    for key in "ab":
        platform.put_views(f"PageViews/{key}", [GOOD])
    ingest(platform)
    platform.put_views("PageViews/a", [GOOD, GOOD])
    ingest(platform)
    manifest = manifest_of(platform)
    with platform.engine() as engine:
        written = raw_day(manifest, engine, FIRST, manifest.parts([FIRST])[FIRST])
        assert written.written is not None
        stored = put(platform.storage, new_path("raw/page_views", FIRST), written.written, written.rows)
        platform.put_views("PageViews/b", [GOOD, GOOD])
        ingest(platform)
        commit_raw_days(manifest, {FIRST: written}, {FIRST: stored}, "run")
    assert registered(platform) == [stored.path]
    assert stored.path not in part_files(platform)
    assert platform.lake.staging.versions("raw_page_views")[FIRST] < manifest.changes()[FIRST]
    assert len(rows(platform)) == 4
    # Both objects were read again one by one since, and every row of their part files counts.
    assert not materialize(platform)
    assert platform.lake.staging.versions("raw_page_views")[FIRST] > manifest.changes()[FIRST]
    assert part_files(platform) == registered(platform)
