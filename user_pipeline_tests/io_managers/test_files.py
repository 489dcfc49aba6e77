from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import obstore
import pytest
from obstore.store import LocalStore

from user_pipeline.defs.partitions import DAILY
from user_pipeline.errors import PermanentError
from user_pipeline.io_managers.files import LakeFiles, stored_as
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline_tests.io_managers.lakes import bucket_lake, file_resources, stored

DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}


@pytest.fixture(params=["directory", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "lake")
        return
    with bucket_lake(monkeypatch) as url:
        yield url


Make = Callable[[str, Path], File]


def content_of(day: str, folder: Path) -> File:
    """A file that holds its day."""
    path = folder / "file.txt"
    path.write_text(day)
    return File(path)


def made(context: dg.AssetExecutionContext, make: Make) -> Partitioned[File]:
    """What an asset gives: the file of each day of the run."""
    files = {}
    for day in context.partition_keys:
        folder = context.resources.engine.new_scratch("test") / day
        folder.mkdir()
        files[day] = make(day, folder)
    return Partitioned(files)


def asset(make: Make = content_of, *names: str) -> dg.AssetsDefinition:
    @dg.asset(
        name="upstream",
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata=stored_as("folder", *names or ("file.txt",)),
        io_manager_key="files_io_manager",
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
    )
    def upstream(context: dg.AssetExecutionContext) -> Partitioned[File]:
        return made(context, make)

    return upstream


def materialize(
    assets: list[Any], lake: str, scratch: Path, days: str | None = None, **kwargs: Any
) -> dg.ExecuteInProcessResult:
    which: dict[str, Any] = {"partition_key": days} if days else {"tags": RANGE}
    with file_resources(lake, scratch) as resources:
        return dg.materialize(assets, resources=resources, **which, **kwargs)


def test_each_day_of_a_range_gets_its_file_and_its_own_metadata(lake: str, tmp_path: Path) -> None:
    def make(day: str, folder: Path) -> File:
        return replace(content_of(day, folder), rows=int(day[-2:]), metadata={"weekday": day[-1]})

    for _ in range(2):
        result = materialize([asset(make)], lake, tmp_path / "scratch")
    assert stored(lake) == {f"folder/date={day}/file.txt": day.encode() for day in DAYS}
    events = {event.partition: event.materialization.metadata for event in result.get_asset_materialization_events()}
    assert list(events) == DAYS
    for day, metadata in events.items():
        assert metadata["path"] == dg.MetadataValue.path(f"{lake}/folder/date={day}/file.txt")
        assert metadata["size_bytes"].value == len("2017-04-01")
        assert metadata["dagster/partition_row_count"].value == int(str(day)[-2:])
        assert metadata["weekday"].value == str(day)[-1]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_file_is_removed_once_it_is_stored_and_one_that_is_not_of_the_run_stays(lake: str, tmp_path: Path) -> None:
    own = tmp_path / "file.txt"
    own.write_text("own")
    left: list[Path] = []

    @dg.asset(deps=["upstream"], required_resource_keys={"engine"})
    def after(context: dg.AssetExecutionContext) -> None:
        left.extend(path for path in context.resources.engine.scratch.rglob("*") if path.is_file())

    materialize([asset(), after], lake, tmp_path / "scratch")
    assert left == []
    materialize([asset(lambda *_: File(own))], lake, tmp_path / "scratch", DAYS[0])
    assert own.read_text() == "own"
    assert stored(lake)[f"folder/date={DAYS[0]}/file.txt"] == b"own"


def test_a_consumer_gets_the_file_of_its_day(lake: str, tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}
    kept: list[Path] = []

    @dg.asset(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def downstream(context: dg.AssetExecutionContext, upstream: LakeFiles) -> None:
        for day in context.partition_keys:
            with upstream.file(day) as file:
                seen[day] = file.read_bytes()
            # What was fetched from a bucket does not pile up.
            kept.extend([file] if file.exists() else [])
            assert upstream.read(day) == seen[day]
            assert upstream.url(day) == f"{lake}/folder/date={day}/file.txt"

    materialize([asset(), downstream], lake, tmp_path / "scratch")
    assert seen == {day: day.encode() for day in DAYS}
    assert kept == ([] if lake.startswith("s3:") else [Path(lake, f"folder/date={day}/file.txt") for day in DAYS])
    # The same in a run of its own, where the upstream asset is only known by its definition.
    seen.clear()
    materialize([asset(), downstream], lake, tmp_path / "scratch", DAYS[1], selection=[downstream])
    assert seen == {DAYS[1]: DAYS[1].encode()}


def test_a_consumer_of_bytes_gets_the_content(lake: str, tmp_path: Path) -> None:
    seen: list[bytes] = []

    @dg.asset(partitions_def=DAILY)
    def downstream(upstream: bytes) -> None:
        seen.append(upstream)

    materialize([asset(), downstream], lake, tmp_path / "scratch", DAYS[0])
    assert seen == [DAYS[0].encode()]


def test_a_missing_file_is_named_with_how_to_make_it_and_not_retried(lake: str, tmp_path: Path) -> None:
    attempts: list[str] = []

    @dg.asset(partitions_def=DAILY, retry_policy=dg.RetryPolicy(max_retries=3))
    def downstream(context: dg.AssetExecutionContext, upstream: LakeFiles) -> None:
        attempts.append(context.partition_key)
        upstream.read(context.partition_key)

    with pytest.raises(dg.Failure) as failure:
        materialize([asset(), downstream], lake, tmp_path / "scratch", DAYS[0], selection=[downstream])
    assert failure.value.description == (
        "upstream has no partition 2017-04-01. Materialize it first: "
        "dagster asset materialize -m user_pipeline.definitions --select upstream --partition 2017-04-01"
    )
    assert attempts == ["2017-04-01"]


def test_a_file_under_another_name_takes_the_place_of_the_old_one(lake: str, tmp_path: Path) -> None:
    def named(name: str) -> Make:
        def make(_: str, folder: Path) -> File:
            (folder / name).write_text(name)
            return File(folder / name)

        return make

    names = ("report.txt", "report.json")
    for name in ("report.txt", "report.json", "report.json", "report.txt"):
        materialize([asset(named(name), *names)], lake, tmp_path / "scratch", DAYS[0])
        assert stored(lake) == {f"folder/date=2017-04-01/{name}": name.encode()}
    with pytest.raises(ValueError, match=r"upstream gave a file other\.txt, not one of report\.txt, report\.json"):
        materialize([asset(named("other.txt"), *names)], lake, tmp_path / "scratch", DAYS[0])
    assert stored(lake) == {f"folder/date=2017-04-01/{name}": name.encode()}


def test_a_failed_day_leaves_the_files_that_were_there(lake: str, tmp_path: Path) -> None:
    def broken(day: str, folder: Path) -> File:
        if day == DAYS[1]:
            raise OSError("disk full")
        return content_of(f"{day} again", folder)

    materialize([asset()], lake, tmp_path / "scratch")
    with pytest.raises(OSError, match="disk full"):
        materialize([asset(broken)], lake, tmp_path / "scratch")
    assert stored(lake) == {f"folder/date={day}/file.txt": day.encode() for day in DAYS}
    assert list((tmp_path / "scratch").iterdir()) == []


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


def test_a_large_file_arrives_whole(lake: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 60_000

    def make(_: str, folder: Path) -> File:
        path = folder / "file.txt"
        path.write_bytes(content)
        return File(path)

    materialize([asset(make)], lake, tmp_path / "scratch", DAYS[0])
    assert stored(lake) == {"folder/date=2017-04-01/file.txt": content}


def test_an_asset_that_does_not_say_where_its_files_go_is_refused(tmp_path: Path) -> None:
    @dg.asset(partitions_def=DAILY, io_manager_key="files_io_manager", dagster_type=PARTITIONED)
    def nowhere() -> Partitioned[File]:
        return Partitioned({})

    with pytest.raises(PermanentError, match="nowhere lacks the metadata of stored_as"):
        materialize([nowhere], str(tmp_path), tmp_path / "scratch", DAYS[0])


def test_other_partitions_than_those_of_the_run_are_refused(tmp_path: Path) -> None:
    @dg.asset(
        partitions_def=DAILY,
        io_manager_key="files_io_manager",
        dagster_type=PARTITIONED,
        metadata=stored_as("folder", "file.txt"),
    )
    def fewer() -> Partitioned[File]:
        return Partitioned({})

    with pytest.raises(ValueError, match=r"fewer gave the partitions .*, not those of the run"):
        materialize([fewer], str(tmp_path), tmp_path / "scratch", DAYS[0])
