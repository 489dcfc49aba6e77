"""The resources of the code location: one of each in a run, whoever asks for it."""

from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg
import narwhals as nw
import pyarrow as pa
import pytest

from user_pipeline.definitions import defs
from user_pipeline.defs.common import file_of
from user_pipeline.defs.partitions import DAILY
from user_pipeline.defs.resources import RESOURCES
from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.exports import CsvIOManager
from user_pipeline.io_managers.files import FilesIOManager, stored_as
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.io_managers.raw import RawIOManager
from user_pipeline.io_managers.snapshots import SnapshotIOManager
from user_pipeline.io_managers.tables import DailyTableIOManager, IncrementalIOManager
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline_tests.platform import Platform

DAY = "2017-04-01"
IO_MANAGERS = [key for key in RESOURCES if key.endswith("io_manager")]


def held(resources: Any, name: str) -> list[Any]:
    """What the IO managers have of a resource."""
    managers = [getattr(resources, key) for key in IO_MANAGERS]
    for manager in managers:
        assert manager.lake.staging.database is resources.databases.staging
        assert manager.lake.analytics.database is resources.databases.analytics
    of = {"engine": managers, "lake": managers, "storage": [manager.lake for manager in managers], "databases": []}
    return [getattr(owner, name) for owner in of[name]]


def test_a_run_has_one_engine_one_storage_and_one_pair_of_databases(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    for kind in (Engine, ObjectStorage, Databases, Lake):

        def noting(self: Any, *given: Any, plain: Any = kind.__init__) -> None:
            made.append(self)
            plain(self, *given)

        monkeypatch.setattr(kind, "__init__", noting)
    seen: dict[str, set[Any]] = {"engine": set(), "storage": set(), "databases": set(), "lake": set()}

    def note(resources: Any) -> None:
        for name in seen:
            seen[name] |= {getattr(resources, name), *held(resources, name)}

    everything = set(RESOURCES)

    @dg.asset(
        partitions_def=DAILY,
        io_manager_key="cleaned_io_manager",
        required_resource_keys=everything,
        dagster_type=PARTITIONED,
        metadata={"partition_expr": "ts"},
    )
    def page_views(context: dg.AssetExecutionContext) -> Partitioned[File]:
        note(context.resources)
        row = {"ts": [datetime.fromisoformat(DAY)], "url": ["/"], "environment": ["production"], "user_id": [1]}
        rows = nw.from_native(pa.table(row)).lazy()
        return Partitioned({DAY: file_of(context.resources.engine, rows, DAY)})

    @dg.asset(
        partitions_def=DAILY,
        io_manager_key="files_io_manager",
        required_resource_keys=everything,
        dagster_type=PARTITIONED,
        metadata=stored_as("folder", "file"),
        deps=[page_views],
    )
    def whole_file(context: dg.AssetExecutionContext) -> Partitioned[File]:
        note(context.resources)
        path = context.resources.engine.new_scratch("file") / "file"
        path.write_text("content")
        return Partitioned({context.partition_key: File(path)})

    @dg.asset_check(asset=whole_file, required_resource_keys=everything)
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        note(context.resources)
        return dg.AssetCheckResult(passed=True)

    run = dg.Definitions(
        assets=[page_views, whole_file], asset_checks=[check], resources=RESOURCES, executor=dg.in_process_executor
    )
    assert run.resolve_implicit_global_asset_job_def().execute_in_process(partition_key=DAY).success
    assert [len(objects) for objects in seen.values()] == [1, 1, 1, 1]
    assert {type(one) for one in made} == {Engine, ObjectStorage, Databases, Lake}
    assert len(made) == 4
    assert list((platform.root / "scratch").iterdir()) == []
    assert platform.lake_files("folder") == [f"folder/date={DAY}/file"]
    stored = platform.lake_file("page_views", DAY)
    assert platform.lake_files("cleaned") == [str(stored.relative_to(platform.root / "lake"))]


def test_the_settings_are_those_of_the_time_a_run_begins(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from user_pipeline import settings

    monkeypatch.setenv("USER_PIPELINE_LAKE_URL", str(tmp_path / "another"))
    settings.current.cache_clear()
    platform.materialize(DAY, select="fake_users_archive")
    assert platform.lake_files() == []
    assert (tmp_path / f"another/fake_users/date={DAY}/users_raw.zip").is_file()


def test_the_code_location_gives_these_resources() -> None:
    given = defs.get_repository_def().get_top_level_resources()
    assert set(RESOURCES) <= set(given)
    assert {key: (type(RESOURCES[key]), getattr(RESOURCES[key], "database", None)) for key in IO_MANAGERS} == {
        "raw_io_manager": (RawIOManager, "staging"),
        "cleaned_io_manager": (DailyTableIOManager, "staging"),
        "marts_io_manager": (IncrementalIOManager, "analytics"),
        "snapshots_io_manager": (SnapshotIOManager, None),
        "quality_io_manager": (DailyTableIOManager, "analytics"),
        "csv_io_manager": (CsvIOManager, None),
        "files_io_manager": (FilesIOManager, None),
    }
    assert all(isinstance(RESOURCES[key], dg.ConfigurableIOManagerFactory) for key in IO_MANAGERS)
    assert all(given[key].description for key in RESOURCES)
