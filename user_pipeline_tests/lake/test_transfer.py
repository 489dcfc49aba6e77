"""A file of the lake on this machine: the file itself of a directory, a copy of what a bucket has."""

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from user_pipeline.lake.lake import Lake
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.registry import MissingPartitionError
from user_pipeline.lake.transfer import LostFileError, fetch, fetch_all, new_path, put
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests.io_managers.lakes import bucket_lake
from user_pipeline_tests.platform import Platform


@pytest.fixture(params=["directory", "bucket"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    environment = {"USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch")}
    if request.param == "directory":
        yield Settings.from_environment({**environment, "USER_PIPELINE_LAKE_URL": str(tmp_path / "lake")})
        return
    with bucket_lake(monkeypatch) as url:
        yield Settings.from_environment({**environment, "USER_PIPELINE_LAKE_URL": url})


def test_a_file_of_a_bucket_is_downloaded_and_one_of_a_directory_is_not(settings: Settings, tmp_path: Path) -> None:
    storage = ObjectStorage(settings)
    content = bytes(range(256)) * 60_000
    storage.lake.put("folder/file", content)
    target = tmp_path / "target"
    file = fetch(storage, "folder/file", target)
    assert file.read_bytes() == content
    assert (file == target) is target.exists() is settings.lake.is_s3


def test_a_missing_file_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(FileNotFoundError):
        fetch(ObjectStorage(settings), "folder/file", target)
    assert not target.exists()


def test_files_come_in_the_order_they_were_asked_for(settings: Settings, tmp_path: Path) -> None:
    storage = ObjectStorage(settings)
    local = tmp_path / "local"
    files = []
    for number in range(30):
        local.write_text(str(number))
        files.append(put(storage, f"deep/things/{number % 3}/{number}.parquet", local, number))
    assert files[11] == LakeFile("deep/things/2/11.parquet", 11, 2)
    target = tmp_path / "target"
    target.mkdir()
    assert [file.read_text() for file in fetch_all(storage, files[::-1], target)] == [*map(str, range(30))][::-1]
    assert len(list(target.iterdir())) == (30 if settings.lake.is_s3 else 0)


def test_a_registered_file_that_is_gone_is_named_with_what_to_do(settings: Settings, tmp_path: Path) -> None:
    storage = ObjectStorage(settings)
    local = tmp_path / "local"
    local.write_text("content")
    kept = put(storage, "things/kept.parquet", local, 1)
    with pytest.raises(LostFileError) as lost:
        fetch_all(storage, [kept, LakeFile("things/gone.parquet", 1, 1)], tmp_path)
    assert str(lost.value) == (
        f"{settings.lake.url}/things/gone.parquet does not exist, but pipeline.lake_files has it: it was deleted. "
        "Restore it, from a backup or an earlier version of the object, and run this again."
    )


def test_no_two_files_of_a_day_have_one_name() -> None:
    paths = [new_path("raw/things", date(2017, 4, 1)) for _ in range(1000)]
    assert len(set(paths)) == 1000
    assert all(re.fullmatch(r"raw/things/date=2017-04-01/\d{8}T\d{6}-[0-9a-f]{12}\.parquet", path) for path in paths)


def test_partitions_come_by_day_and_a_missing_one_is_named(platform: Platform, tmp_path: Path) -> None:
    lake = Lake(platform.storage, platform.databases)
    days = [date(2017, 4, day) for day in (1, 2, 3)]
    local = tmp_path / "local"
    lake.staging.open()
    written: dict[date, list[LakeFile]] = {days[1]: []}
    for name in ("a", "b"):
        local.write_text(name)
        written[days[0]] = [*written.get(days[0], []), put(lake.storage, f"raw/things/{name}.parquet", local, 1)]
    with lake.staging.database.transaction() as transaction:
        lake.staging.commit(transaction, "things", written, "run")
    with platform.engine() as engine:
        files = lake.fetch(engine, lake.staging, "things", [days[1], days[0]])
        assert {day: [file.read_text() for file in there] for day, there in files.items()} == {
            days[1]: [],
            days[0]: ["a", "b"],
        }
        with pytest.raises(MissingPartitionError) as missing:
            lake.fetch(engine, lake.staging, "things", days)
    assert str(missing.value) == (
        "things has no partition 2017-04-03. Materialize it first: "
        "dagster asset materialize -m user_pipeline.definitions --select things --partition 2017-04-03"
    )
