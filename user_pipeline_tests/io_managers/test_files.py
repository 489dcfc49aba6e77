from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import obstore
import pytest
from obstore.store import LocalStore

from user_pipeline import settings
from user_pipeline.defs.partitions import DAILY
from user_pipeline.errors import PermanentError
from user_pipeline.io_managers.files import Day, File, FilePerDay, FilesIOManager, LakeFiles, stored_as
from user_pipeline_tests.io_managers.lakes import bucket_lake, stored

DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("USER_PIPELINE_SCRATCH_DIR", str(tmp_path / "scratch"))
    settings.current.cache_clear()
    yield tmp_path / "scratch"
    settings.current.cache_clear()


@pytest.fixture(params=["directory", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "lake")
        return
    with bucket_lake(monkeypatch) as url:
        yield url


def asset(make: Any, *names: str, retry_policy: dg.RetryPolicy | None = None) -> dg.AssetsDefinition:
    @dg.asset(
        name="upstream",
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata=stored_as("folder", *names or ("file.txt",)),
        io_manager_key="files",
        retry_policy=retry_policy,
    )
    def upstream() -> FilePerDay:
        return FilePerDay(make)

    return upstream


def materialize(assets: list[Any], lake: str, days: str | None = None, **kwargs: Any) -> dg.ExecuteInProcessResult:
    which: dict[str, Any] = {"partition_key": days} if days else {"tags": RANGE}
    return dg.materialize(assets, resources={"files": FilesIOManager(lake_url=lake)}, **which, **kwargs)


def test_each_day_of_a_range_gets_its_file_and_its_own_metadata(lake: str, scratch: Path) -> None:
    def make(day: Day) -> File:
        path = day.scratch / "any name"
        path.write_text(day.key)
        return File(path, rows=int(day.key[-2:]), metadata={"weekday": day.key[-1]})

    for _ in range(2):
        result = materialize([asset(make)], lake)
    assert stored(lake) == {f"folder/date={day}/file.txt": day.encode() for day in DAYS}
    events = {event.partition: event.materialization.metadata for event in result.get_asset_materialization_events()}
    assert list(events) == DAYS
    for day, metadata in events.items():
        assert metadata["path"] == dg.MetadataValue.path(f"{lake}/folder/date={day}/file.txt")
        assert metadata["size_bytes"].value == len("2017-04-01")
        assert metadata["dagster/partition_row_count"].value == int(str(day)[-2:])
        assert metadata["weekday"].value == str(day)[-1]
    assert list(scratch.iterdir()) == []


def test_a_day_is_stored_and_forgotten_before_the_next_is_made(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    scratches: list[Path] = []

    def make(day: Day) -> File:
        assert not any(directory.exists() for directory in scratches)
        assert [path.name for path in lake.rglob("file.txt")] == ["file.txt"] * len(scratches)
        scratches.append(day.scratch)
        return File(b"content")

    materialize([asset(make)], str(lake))
    assert len(scratches) == 3


def test_a_consumer_gets_the_file_of_its_day(lake: str) -> None:
    seen: dict[str, bytes] = {}

    @dg.asset(
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata=stored_as("folder", "b"),
        io_manager_key="files",
    )
    def downstream(upstream: LakeFiles) -> FilePerDay:
        def make(day: Day) -> File:
            seen[day.key] = upstream.path(day).read_bytes()
            assert upstream.read(day.key) == seen[day.key]
            assert upstream.url(day.key) == f"{lake}/folder/date={day.key}/file.txt"
            return File(b"")

        return FilePerDay(make)

    upstream = asset(lambda day: File(day.key.encode()))
    materialize([upstream, downstream], lake)
    assert seen == {day: day.encode() for day in DAYS}
    # The same in a run of its own, where the upstream asset is only known by its definition.
    seen.clear()
    materialize([upstream, downstream], lake, DAYS[1], selection=[downstream])
    assert seen == {DAYS[1]: DAYS[1].encode()}


def test_a_consumer_of_bytes_gets_the_content(lake: str) -> None:
    seen: list[bytes] = []

    @dg.asset(partitions_def=DAILY)
    def downstream(upstream: bytes) -> None:
        seen.append(upstream)

    materialize([asset(lambda _: File(b"content")), downstream], lake, DAYS[0])
    assert seen == [b"content"]


def test_a_missing_file_is_named_with_how_to_make_it_and_not_retried(lake: str) -> None:
    attempts: list[str] = []

    @dg.asset(
        partitions_def=DAILY,
        metadata=stored_as("folder", "b"),
        io_manager_key="files",
        retry_policy=dg.RetryPolicy(max_retries=3),
    )
    def downstream(upstream: LakeFiles) -> FilePerDay:
        def make(day: Day) -> File:
            attempts.append(day.key)
            return File(upstream.path(day))

        return FilePerDay(make)

    with pytest.raises(dg.Failure) as failure:
        materialize([asset(None), downstream], lake, DAYS[0], selection=[downstream])
    assert failure.value.description == (
        f"upstream has no file for 2017-04-01: {lake}/folder/date=2017-04-01/file.txt does not exist. "
        "Make it with: dagster asset materialize -m user_pipeline.definitions "
        "--select upstream --partition 2017-04-01"
    )
    assert attempts == ["2017-04-01"]


def test_a_permanent_error_fails_the_step_in_its_own_words_and_is_not_retried(tmp_path: Path) -> None:
    attempts: list[str] = []

    def make(day: Day) -> File:
        attempts.append(day.key)
        raise PermanentError("The archive is bad.")

    with pytest.raises(dg.Failure) as failure:
        materialize([asset(make, retry_policy=dg.RetryPolicy(max_retries=3))], str(tmp_path), DAYS[0])
    assert failure.value.description == "upstream of 2017-04-01: The archive is bad."
    assert len(attempts) == 1


def test_a_file_under_another_name_takes_the_place_of_the_old_one(lake: str) -> None:
    for name in ("report.txt", "report.json", "report.json", "report.txt"):
        content = File(name.encode(), name=name)
        materialize([asset(lambda _, file=content: file, "report.txt", "report.json")], lake, DAYS[0])
        assert stored(lake) == {f"folder/date=2017-04-01/{name}": name.encode()}


def test_a_failed_day_leaves_the_file_that_was_there(lake: str) -> None:
    def broken(day: Day) -> File:
        (day.scratch / "half").write_text("half")
        raise OSError("disk full")

    materialize([asset(lambda _: File(b"whole"))], lake, DAYS[0])
    with pytest.raises(OSError, match="disk full"):
        materialize([asset(broken)], lake, DAYS[0])
    assert stored(lake) == {"folder/date=2017-04-01/file.txt": b"whole"}


def test_a_reader_of_a_directory_never_meets_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "users.db"
    target.write_bytes(b"old")

    def parts() -> Iterator[bytes]:
        for _ in range(20):
            assert target.read_bytes() == b"old"
            yield bytes(1_000_000)

    obstore.put(LocalStore(tmp_path), "users.db", parts())
    assert target.stat().st_size == 20_000_000
    assert list(tmp_path.iterdir()) == [target]


def test_a_large_file_arrives_whole(lake: str) -> None:
    content = bytes(range(256)) * 60_000

    def make(day: Day) -> File:
        path = day.scratch / "large"
        path.write_bytes(content)
        return File(path)

    materialize([asset(make)], lake, DAYS[0])
    assert stored(lake) == {"folder/date=2017-04-01/file.txt": content}


def test_an_asset_that_does_not_say_where_its_files_go_is_refused(tmp_path: Path) -> None:
    @dg.asset(partitions_def=DAILY, io_manager_key="files")
    def nowhere() -> FilePerDay:
        return FilePerDay(lambda _: File(b""))

    with pytest.raises(PermanentError, match="nowhere lacks the metadata of stored_as"):
        materialize([nowhere], str(tmp_path), DAYS[0])


def test_without_an_address_the_lake_of_the_settings_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_PIPELINE_LAKE_URL", str(tmp_path / "from settings"))
    settings.current.cache_clear()
    materialize([asset(lambda _: File(b"content"))], "", DAYS[0])
    assert (tmp_path / "from settings/folder/date=2017-04-01/file.txt").read_bytes() == b"content"
