"""The registry of files, its logs, and which lake a database belongs to."""

import json
import shutil
from datetime import date

import pytest

from user_pipeline.lake.identity import FORMAT, FormatError, OtherLakeError
from user_pipeline.lake.lake import Lake, UnknownAssetError
from user_pipeline.lake.log import logs, read_log
from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.registry import LostRegistryError, MissingPartitionError, Registry
from user_pipeline_tests.platform import Platform

_MONDAY, _TUESDAY = date(2017, 4, 3), date(2017, 4, 4)
_A, _B, _C = (LakeFile(f"t/{name}.parquet", rows, 10 * rows) for name, rows in (("a", 1), ("b", 2), ("c", 3)))


@pytest.fixture
def registry(platform: Platform) -> Registry:
    return _registry(platform)


def _registry(platform: Platform) -> Registry:
    opened = Registry("staging", platform.staging, platform.storage)
    opened.open()
    return opened


def _commit(registry: Registry, partitions: dict[date, list[LakeFile]], asset: str = "t") -> int:
    with registry.database.transaction() as transaction:
        return registry.commit(transaction, asset, partitions, "run")


def test_a_partition_has_the_files_of_its_last_commit(registry: Registry) -> None:
    first = _commit(registry, {_MONDAY: [_A, _B], _TUESDAY: [_C]})
    second = _commit(registry, {_MONDAY: [_B]})

    assert registry.partitions("t") == {_MONDAY: [_B], _TUESDAY: [_C]}
    assert registry.versions("t") == {_MONDAY: second, _TUESDAY: first}
    assert second > first


def test_a_partition_without_files_is_there_and_one_never_written_is_not(registry: Registry) -> None:
    _commit(registry, {_MONDAY: []})

    assert registry.files("t", [_MONDAY]) == {_MONDAY: []}
    with pytest.raises(MissingPartitionError, match="t has no partition 2017-04-04"):
        registry.files("t", [_MONDAY, _TUESDAY])


def test_what_was_replaced_keeps_its_row_and_the_moment(platform: Platform, registry: Registry) -> None:
    _commit(registry, {_MONDAY: [_A]})
    _commit(registry, {_MONDAY: [_B]})
    _commit(registry, {_MONDAY: [_B]})

    assert platform.rows("staging", "select path, superseded_at is null from pipeline.lake_files order by path") == [
        ("t/a.parquet", False),
        ("t/b.parquet", True),
    ]


def test_a_file_that_comes_back_counts_again(registry: Registry) -> None:
    for there in ([_A], [_B], [_A]):
        _commit(registry, {_MONDAY: there})

    assert registry.partitions("t") == {_MONDAY: [_A]}


def test_a_transaction_that_fails_registers_nothing_and_leaves_a_log_at_most(registry: Registry) -> None:
    _commit(registry, {_MONDAY: [_A]})

    def fails() -> None:
        with registry.database.transaction() as transaction:
            registry.commit(transaction, "t", {_MONDAY: [_B]}, "run")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert registry.partitions("t") == {_MONDAY: [_A]}
    assert _commit(registry, {_MONDAY: [_C]}) == 3


def test_each_commit_has_a_log_of_what_it_wrote(platform: Platform, registry: Registry) -> None:
    version = _commit(registry, {_MONDAY: [_A], _TUESDAY: []})

    [log] = logs(platform.storage, "staging")
    assert list(read_log(platform.storage, log)) == [
        {"format": FORMAT, "database": "staging", "version": version, "asset": "t", "run_id": "run"},
        {
            "kind": "partition",
            "asset": "t",
            "day": "2017-04-03",
            "version": version,
            "files": [{"path": "t/a.parquet", "rows": 1, "size": 10}],
        },
        {"kind": "partition", "asset": "t", "day": "2017-04-04", "version": version, "files": []},
    ]


def test_two_databases_of_one_lake_note_the_same_lake(platform: Platform) -> None:
    lake = Lake(platform.storage, platform.databases)
    lake.staging.open()
    lake.analytics.open()

    noted = "select lake_id, format from pipeline.lake"
    assert platform.rows("staging", noted) == platform.rows("analytics", noted)


def test_a_database_of_another_lake_is_refused(platform: Platform, registry: Registry) -> None:
    _commit(registry, {_MONDAY: [_A]})
    shutil.rmtree(platform.root / "lake")

    with pytest.raises(OtherLakeError, match="belongs to another lake"):
        _registry(platform)


@pytest.mark.parametrize(("found", "advice"), [(FORMAT + 1, "newer version"), (FORMAT - 1, "older version")])
def test_a_lake_of_another_format_is_refused(platform: Platform, found: int, advice: str) -> None:
    (platform.root / "lake").mkdir()
    content = json.dumps({"lake_id": "x", "format": found})
    (platform.root / "lake" / "format.json").write_text(content)

    with pytest.raises(FormatError, match=advice):
        _registry(platform)
    assert (platform.root / "lake" / "format.json").read_text() == content


def test_a_format_that_cannot_be_read_is_refused(platform: Platform) -> None:
    (platform.root / "lake").mkdir()
    (platform.root / "lake" / "format.json").write_text("nonsense")

    with pytest.raises(FormatError, match="nonsense"):
        _registry(platform)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("found", [FORMAT + 1, FORMAT - 1])
def test_a_database_of_another_format_is_refused(platform: Platform, found: int) -> None:
    with platform.staging.transaction() as transaction:
        transaction.execute(f"update pipeline.lake set format = {found}")

    with pytest.raises(FormatError, match=f"STAGING_URL has format {found}"):
        _registry(platform)


def test_a_new_database_for_a_lake_with_history_is_refused(platform: Platform, registry: Registry) -> None:
    _commit(registry, {_MONDAY: [_A]})
    with platform.staging.transaction() as transaction:
        transaction.execute("drop schema pipeline cascade")

    with pytest.raises(LostRegistryError, match="user-pipeline recover"):
        _registry(platform)


def test_urls_of_an_asset_by_day(platform: Platform, registry: Registry) -> None:
    _commit(registry, {_MONDAY: [_A], _TUESDAY: [_B, _C]})
    lake = Lake(platform.storage, platform.databases)

    root = platform.settings.lake.url
    assert lake.urls("t") == [f"{root}/t/{name}.parquet" for name in "abc"]
    assert lake.urls("t", first=_TUESDAY) == [f"{root}/t/{name}.parquet" for name in "bc"]
    assert lake.urls("t", last=_MONDAY) == [f"{root}/t/a.parquet"]
    with pytest.raises(UnknownAssetError, match=r"'nothing'.*are t"):
        lake.urls("nothing")
