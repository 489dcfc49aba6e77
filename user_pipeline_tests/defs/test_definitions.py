"""What the code location holds, entry by entry, and that loading it is quick and touches nothing."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from user_pipeline.definitions import defs
from user_pipeline.defs.partitions import DAILY
from user_pipeline_tests import CHECKOUT


@dataclass(frozen=True)
class Expected:
    """An asset as the catalog shows it."""

    group: str
    kinds: frozenset[str]
    io_manager: str
    columns: tuple[str, ...]
    parents: frozenset[str] = frozenset()
    blocking_checks: frozenset[str] = frozenset()
    warning_checks: frozenset[str] = frozenset()


def expect(
    group: str,
    kinds: str,
    io_manager: str,
    columns: str,
    *,
    parents: str = "",
    blocking_checks: str = "",
    warning_checks: str = "",
) -> Expected:
    """Everything as words, so that an asset is a few lines below."""
    sets = [frozenset(words.split()) for words in (kinds, parents, blocking_checks, warning_checks)]
    return Expected(group, sets[0], io_manager, tuple(columns.split()), *sets[1:])


# A new asset is a new entry here; a new group whose assets the daily job does not run is one in NOT_DAILY.
ASSETS = {
    "ingested_user_updates": expect(
        "ingest",
        "s3 csv parquet",
        "io_manager",
        "",
        blocking_checks="every_line_accounted",
        warning_checks="no_broken_objects schema_drift",
    ),
    "ingested_page_views": expect(
        "ingest",
        "s3 json parquet",
        "io_manager",
        "",
        blocking_checks="every_line_accounted",
        warning_checks="no_broken_objects schema_drift",
    ),
    "raw_user_updates": expect(
        "raw",
        "s3 csv parquet",
        "raw_io_manager",
        "updated_at user_id email name environment source_object source_line rescued",
        parents="source_user_updates ingested_user_updates",
        blocking_checks="partition_complete reject_share_of_day",
        warning_checks="reject_share volume",
    ),
    "raw_page_views": expect(
        "raw",
        "s3 json parquet",
        "raw_io_manager",
        "ts url environment user_id source_object source_line rescued",
        parents="source_page_views ingested_page_views",
        blocking_checks="partition_complete reject_share_of_day",
        warning_checks="reject_share volume",
    ),
    "user_updates": expect(
        "cleaned",
        "postgres table parquet",
        "cleaned_io_manager",
        "updated_at user_id email name environment",
        parents="raw_user_updates",
        blocking_checks="every_row_accounted only_production no_duplicates",
    ),
    "page_views": expect(
        "cleaned",
        "postgres table parquet",
        "cleaned_io_manager",
        "ts url environment user_id",
        parents="raw_page_views",
        blocking_checks="every_row_accounted only_production no_duplicates",
    ),
    "users": expect(
        "marts",
        "postgres table parquet",
        "marts_io_manager",
        "user_id email name updated_at",
        parents="user_updates",
        blocking_checks="unique_key latest_email",
    ),
    "user_page_views": expect(
        "marts",
        "postgres table parquet",
        "marts_io_manager",
        "user_id email url count last_viewed",
        parents="page_views users",
        blocking_checks="unique_key latest_email",
    ),
    "page_recommendations": expect(
        "marts",
        "postgres table parquet",
        "snapshots_io_manager",
        "user_id email recommended_url rank",
        parents="users user_page_views",
        blocking_checks="ranks unseen unique_pages safe_pages reasons eligible_users latest_email",
    ),
    "related_pages": expect(
        "marts",
        "postgres table parquet",
        "snapshots_io_manager",
        "url related_url rank score",
        parents="users user_page_views",
        blocking_checks="ranks other_pages safe_pages",
    ),
    "popular_pages": expect(
        "marts",
        "postgres table parquet",
        "snapshots_io_manager",
        "url rank viewers first_viewers",
        parents="users user_page_views",
        blocking_checks="ranks most_viewed safe_pages",
    ),
    "recommendation_parameters": expect(
        "marts",
        "postgres table parquet",
        "snapshots_io_manager",
        "rank is_chosen chosen_by personal regularisation long_range direction trend days users recall_at_3 gain "
        "standard_error",
        parents="users user_page_views",
    ),
    "recommendation_quality": expect(
        "marts",
        "postgres table parquet",
        "quality_io_manager",
        "day users hit_rate hit_rate_low hit_rate_high recall_at_3 ndcg_at_3 popularity_hit_rate trend_hit_rate gain "
        "gain_low gain_high mean_popularity distinct_share coverage fallback_share",
        parents="page_recommendations user_page_views",
        warning_checks="beats_popularity",
    ),
    "page_recommendations_csv": expect(
        "exports", "s3 csv", "csv_io_manager", "user_id email recommended_url rank", parents="page_recommendations"
    ),
    "user_page_views_csv": expect(
        "exports", "s3 csv", "csv_io_manager", "user_id email url count last_viewed", parents="user_page_views"
    ),
    "traffic_report": expect(
        "exports", "s3 html matplotlib", "files_io_manager", "", parents="user_page_views recommendation_quality"
    ),
    "fake_users_archive": expect(
        "fake_users", "python zip", "files_io_manager", "id first_name last_name email city salary"
    ),
    "fake_users_extracted": expect(
        "fake_users",
        "python csv",
        "files_io_manager",
        "id first_name last_name email city salary",
        parents="fake_users_archive",
    ),
    "fake_users_cleaned": expect(
        "fake_users",
        "python csv",
        "files_io_manager",
        "id first_name last_name email city salary processed_at",
        parents="fake_users_extracted",
    ),
    "fake_users_excel": expect(
        "fake_users",
        "python excel",
        "files_io_manager",
        "id first_name last_name email city salary processed_at",
        parents="fake_users_cleaned",
    ),
    "fake_users_sqlite": expect(
        "fake_users",
        "python sqlite",
        "files_io_manager",
        "id first_name last_name email city salary processed_at",
        parents="fake_users_cleaned",
    ),
    "fake_users_salary_chart": expect(
        "fake_users", "python matplotlib", "files_io_manager", "", parents="fake_users_cleaned"
    ),
    "fake_users_report": expect(
        "fake_users",
        "python",
        "files_io_manager",
        "",
        parents="fake_users_extracted fake_users_cleaned fake_users_salary_chart",
    ),
}
YESTERDAY = "yesterday"
SOURCES = {"source_user_updates": {"s3", "csv"}, "source_page_views": {"s3", "json"}}
FAKE_USERS = "fake_users"
NOT_DAILY: Sequence[str] = (FAKE_USERS,)

GRAPH = defs.resolve_asset_graph()


def names(keys: object) -> set[str]:
    assert isinstance(keys, set | frozenset)
    return {key.to_user_string() for key in keys}


def test_the_location_loads_and_holds_these_assets() -> None:
    dg.Definitions.validate_loadable(defs)
    assert names(GRAPH.get_all_asset_keys()) == {*ASSETS, *SOURCES, YESTERDAY}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_external_and_has_the_days_of_all_others(name: str) -> None:
    node = GRAPH.get(dg.AssetKey(name))
    assert (node.is_external, node.group_name, set(node.kinds)) == (True, "source", SOURCES[name])
    assert (node.partitions_def, node.owners) == (DAILY, ["team:data-platform"])
    assert node.description


def test_yesterday_is_external_and_its_check_is_all_of_a_job() -> None:
    node = GRAPH.get(dg.AssetKey(YESTERDAY))
    assert (node.is_external, node.group_name, node.partitions_def) == (True, "marts", None)
    assert not node.parent_keys
    assert node.description
    [check] = [check for check in GRAPH.asset_check_nodes if check.key.asset_key == node.key]
    assert (check.key.name, check.blocking, bool(check.description)) == ("partitions_are_there", True, True)
    assert set(defs.resolve_job_def("overdue_day").asset_layer.asset_graph.asset_check_keys) == {check.key}


@pytest.mark.parametrize("name", ASSETS)
def test_an_asset_is_described_as_it_should_be(name: str) -> None:
    key = dg.AssetKey(name)
    node = GRAPH.get(key)
    # A picture and a report have no columns.
    schema = node.metadata.get("dagster/column_schema", dg.TableSchema(columns=[]))
    assert isinstance(schema, dg.TableSchema)
    checks = [check for check in GRAPH.asset_check_nodes if check.key.asset_key == key]
    assert (
        Expected(
            group=node.group_name,
            kinds=frozenset(node.kinds or ()),
            io_manager=defs.resolve_assets_def(key).get_io_manager_key_for_asset_key(key),
            columns=tuple(column.name for column in schema.columns),
            parents=frozenset(names(set(node.parent_keys))),
            blocking_checks=frozenset(check.key.name for check in checks if check.blocking),
            warning_checks=frozenset(check.key.name for check in checks if not check.blocking),
        )
        == ASSETS[name]
    )
    assert node.description
    assert all(column.description and column.type for column in schema.columns)
    assert all(check.description for check in checks)


@pytest.mark.parametrize("name", ASSETS)
def test_all_assets_share_days_owners_and_retries_and_run_ranges_at_once(name: str) -> None:
    key = dg.AssetKey(name)
    node = GRAPH.get(key)
    # What was read has no day: an object may bring rows of any.
    partitions = None if node.group_name == "ingest" else DAILY
    assert node.partitions_def == partitions
    assert node.backfill_policy == dg.BackfillPolicy.single_run()
    assert node.owners == ["team:data-platform"]
    assert node.code_version
    policy = defs.resolve_assets_def(key).op.retry_policy
    if node.group_name == FAKE_USERS:
        # What fails there, run config above all, fails the same way twice.
        assert policy is None
    else:
        assert policy is not None
        assert policy.max_retries > 0
        assert policy.backoff == dg.Backoff.EXPONENTIAL
    for check in GRAPH.asset_check_nodes:
        assert check.partitions_def == GRAPH.get(check.key.asset_key).partitions_def


@pytest.mark.parametrize("name", [*ASSETS, *SOURCES, YESTERDAY])
def test_an_asset_leads_to_its_code_and_its_page(name: str) -> None:
    node = GRAPH.get(dg.AssetKey(name))
    entry = node.metadata["dagster/code_references"]
    assert isinstance(entry, dg.CodeReferencesMetadataValue)
    found = {}
    for reference in entry.code_references:
        assert isinstance(reference, dg.LocalFileCodeReference)
        path = Path(reference.file_path)
        assert path.is_file()
        assert path == CHECKOUT / (reference.label or "")
        found[path.suffix] = (path, reference.line_number or 0)
    # Nobody here makes a source, or yesterday.
    assert set(found) == ({".md"} if name not in ASSETS else {".py", ".md"})
    if ".py" in found and found[".py"][1] != 1:
        path, line = found[".py"]
        assert f"def {name}(" in "".join(path.read_text().splitlines(keepends=True)[line - 1 :][:60])


def test_each_field_of_run_config_is_described() -> None:
    for name in ASSETS:
        schema = defs.resolve_assets_def(dg.AssetKey(name)).op.config_schema.as_field().config_type
        for field, of in getattr(schema, "fields", {}).items():
            assert of.description, (name, field)


def test_days_are_utc_from_the_start_date_on() -> None:
    assert DAILY.get_first_partition_key() == "2017-04-01"
    assert DAILY.timezone == "UTC"


def test_the_daily_job_runs_all_assets_and_their_checks() -> None:
    layer = defs.resolve_job_def("daily_log_pipeline").asset_layer
    daily = {name for name, asset in ASSETS.items() if asset.group not in NOT_DAILY}
    assert names(set(layer.executable_asset_keys)) == daily
    assert set(layer.asset_graph.asset_check_keys) == {
        check.key for check in GRAPH.asset_check_nodes if check.key.asset_key.to_user_string() in daily
    }


@pytest.mark.parametrize(
    ("tick", "partition"),
    [
        (datetime(2017, 4, 2, 0, 30, tzinfo=UTC), "2017-04-01"),
        (datetime(2024, 3, 1, 0, 30, tzinfo=UTC), "2024-02-29"),
        (datetime(2025, 1, 1, 0, 30, tzinfo=UTC), "2024-12-31"),
    ],
)
@pytest.mark.parametrize("job", ["daily_log_pipeline", "daily_fake_users"])
def test_half_an_hour_after_midnight_a_schedule_asks_for_the_day_before(
    tick: datetime, partition: str, job: str
) -> None:
    schedule = defs.resolve_schedule_def(f"{job}_schedule")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 0 * * *", "UTC")
    assert schedule.job_name == job
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    context = dg.build_schedule_context(scheduled_execution_time=tick, repository_def=defs.get_repository_def())
    requests = schedule.evaluate_tick(context).run_requests
    assert [request.partition_key for request in requests or ()] == [partition]


def fresh(code: str, directory: Path, *options: str) -> list[str]:
    """What a fresh interpreter prints, with no setting at all."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=directory,
    )
    assert "Warning" not in done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["definitions", "cli.create_tables", "defs.raw.checks", "defs.fake_users.assets"])
def test_loading_prints_no_warning(module: str, tmp_path: Path) -> None:
    assert fresh(f"import user_pipeline.{module}", tmp_path, "-W", "default") == []


def test_what_else_is_not_stable_in_dagster_is_still_said(tmp_path: Path) -> None:
    code = """
import warnings
import user_pipeline.defs.raw.checks
import dagster as dg
with warnings.catch_warnings(record=True) as caught:
    dg.UrlCodeReference(url="https://example.com/")
print(*{warning.category.__name__.removesuffix("Warning") for warning in caught})
"""
    assert fresh(code, tmp_path, "-W", "default") == ["Beta"]


def test_loading_imports_no_heavy_library(tmp_path: Path) -> None:
    show = "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    added = set(fresh("import user_pipeline.definitions" + show, tmp_path)) - set(
        fresh("import dagster" + show, tmp_path)
    )
    third_party = {name for name in added if name not in sys.stdlib_module_names and not name.startswith("_")}
    # Transforms are written against narwhals, which is small, and settings against pydantic-settings, which brings
    # dotenv; everything else is imported where it is used.
    assert third_party == {"user_pipeline", "narwhals", "pydantic_settings", "dotenv"}


def test_loading_connects_to_nothing_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = """
import sys
seen = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.fork", "os.posix_spawn"):
        seen.append(event + repr(arguments).replace(" ", ""))
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        if not str(arguments[0]).split(".pyc")[0].count("__pycache__"):
            seen.append("write" + repr(arguments).replace(" ", ""))
import dagster
sys.dont_write_bytecode = True
sys.addaudithook(watch)
from user_pipeline.definitions import defs
defs.get_repository_def()
print(*seen)
"""
    assert fresh(code, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
