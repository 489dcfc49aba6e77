"""A file of the lake on this machine: the file itself of a directory, a copy of what a bucket has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from user_pipeline.engines.duckdb import Engine
from user_pipeline.lake.files import MissingPartitionError, fetch, fetch_partitions
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests.io_managers.lakes import bucket_lake


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


def test_partitions_come_in_their_order_and_a_missing_one_is_named(settings: Settings) -> None:
    storage = ObjectStorage(settings)
    for day in ("2017-04-01", "2017-04-02"):
        storage.lake.put(f"deep/things/date={day}/things.parquet", day.encode())
    with Engine(settings) as engine:
        files = fetch_partitions(storage, engine, "deep/things", ["2017-04-02", "2017-04-01"])
        assert [file.read_text() for file in files] == ["2017-04-02", "2017-04-01"]
        with pytest.raises(MissingPartitionError) as missing:
            fetch_partitions(storage, engine, "deep/things", ["2017-04-01", "2017-04-03"])
    assert str(missing.value) == (
        f"deep/things has no partition 2017-04-03: {settings.lake.url}/deep/things/date=2017-04-03/things.parquet does "
        "not exist. Materialize it first: dagster asset materialize -m user_pipeline.definitions --select deep/things "
        "--partition 2017-04-03"
    )
