import json
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
import openpyxl
import pandas as pd
import pytest

from user_pipeline.defs.fake_users import assets as fake_users
from user_pipeline.defs.fake_users.assets import FakeUsersConfig, fake_users_archive
from user_pipeline.io_managers.files import FilesIOManager
from user_pipeline.io_managers.partitioned import File, Partitioned
from user_pipeline_tests.io_managers.lakes import bucket_lake, file_resources, stored

fake_users_assets = [asset for asset in vars(fake_users).values() if isinstance(asset, dg.AssetsDefinition)]

DAY = "2017-04-02"
DAYS = ["2017-04-01", "2017-04-02", "2017-04-03"]
RANGE = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}
FILES = {
    "users_raw.zip",
    "users_extracted.csv",
    "users_cleaned.csv",
    "users_cleaned.xlsx",
    "users.db",
    "salary_distribution.png",
    "users_report.txt",
}
RAW_HEADER = "id,first_name,last_name,email,city,salary"


@pytest.fixture(params=["directory", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "lake")
        return
    with bucket_lake(monkeypatch) as url:
        yield url


def run(
    lake: str, day: str | None = DAY, *, report: str | None = None, select: Any = None, **users: Any
) -> dg.ExecuteInProcessResult:
    config = {"fake_users_archive": {"config": users}} if users else {}
    if report:
        config["fake_users_report"] = {"config": {"report_format": report}}
    which: dict[str, Any] = {"partition_key": day} if day else {"tags": RANGE}
    with TemporaryDirectory() as scratch, file_resources(lake, Path(scratch)) as resources:
        return dg.materialize(
            fake_users_assets, resources=resources, run_config={"ops": config}, selection=select, **which
        )


def day_files(lake: str, day: str = DAY) -> dict[str, bytes]:
    prefix = f"fake_users/date={day}/"
    return {key.removeprefix(prefix): data for key, data in stored(lake).items() if key.startswith(prefix)}


def frame(content: bytes) -> pd.DataFrame:
    return pd.read_csv(BytesIO(content), keep_default_na=False, dtype=str)


def version(result: dg.ExecuteInProcessResult, asset: str) -> str:
    (event,) = (event for event in result.get_asset_materialization_events() if event.asset_key == dg.AssetKey(asset))
    tags = event.materialization.tags
    assert tags is not None
    return tags["dagster/data_version"]


def metadata(result: dg.ExecuteInProcessResult, asset: str, day: str = DAY) -> dict[str, Any]:
    (event,) = (
        event
        for event in result.get_asset_materialization_events()
        if event.partition == day and event.asset_key == dg.AssetKey(asset)
    )
    return {name: value.value for name, value in event.materialization.metadata.items()}


def unstamped(content: bytes) -> bytes:
    return re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", b"<time>", content)


def test_a_day_has_every_file_and_they_agree(lake: str) -> None:
    run(lake, num_users=200)
    files = day_files(lake)
    assert set(files) == FILES
    with zipfile.ZipFile(BytesIO(files["users_raw.zip"])) as archive:
        assert archive.namelist() == ["users_raw.csv"]
        assert archive.read("users_raw.csv") == files["users_extracted.csv"]
    raw, cleaned = frame(files["users_extracted.csv"]), frame(files["users_cleaned.csv"])
    assert ",".join(raw.columns) == RAW_HEADER
    assert ",".join(cleaned.columns) == RAW_HEADER + ",processed_at"
    assert raw["id"].tolist() == [str(number) for number in range(1, 201)]
    expected = raw[(raw["last_name"] != "") & (raw["email"] != "")].reset_index(drop=True)
    pd.testing.assert_frame_equal(cleaned.drop(columns="processed_at"), expected)

    sheet = openpyxl.load_workbook(BytesIO(files["users_cleaned.xlsx"])).active
    assert sheet is not None
    header, *rows = sheet.iter_rows(values_only=True)
    assert list(header) == list(cleaned.columns)
    typed = cleaned.astype({"id": int, "salary": float})
    assert rows == list(typed.itertuples(index=False, name=None))
    connection = sqlite3.connect(":memory:")
    connection.deserialize(files["users.db"])
    with closing(connection):
        assert connection.execute("SELECT * FROM users ORDER BY id").fetchall() == rows

    assert files["salary_distribution.png"].startswith(b"\x89PNG")
    lines = files["users_report.txt"].decode().splitlines()
    assert lines[0] == "User Data Processing Report"
    assert lines[1] == f"Generated on: {cleaned['processed_at'][0]}"
    assert lines[3:6] == [
        "Total Raw Users: 200",
        f"Total Cleaned Users: {len(cleaned)}",
        f"Users Removed: {200 - len(cleaned)}",
    ]
    assert lines[6] == f"Average Salary: ${cleaned['salary'].astype(float).mean():.2f}"


def test_a_range_has_the_files_of_its_days_and_doing_it_again_changes_only_the_time(lake: str) -> None:
    run(lake, DAY)
    alone = stored(lake)
    result = run(lake, None)
    again = stored(lake)
    assert set(again) == {f"fake_users/date={day}/{file}" for day in DAYS for file in FILES}
    for key, content in alone.items():
        if not key.endswith((".xlsx", ".db")):
            assert unstamped(again[key]) == unstamped(content)
    assert len(list(result.get_asset_materialization_events())) == len(DAYS) * len(fake_users_assets)
    for day in DAYS:
        assert metadata(result, "fake_users_archive", day)["seed"] == int(day.replace("-", ""))
        assert f"date={day}/users_cleaned.csv" in str(metadata(result, "fake_users_cleaned", day)["path"])


def test_the_assets_compute_and_the_io_manager_stores_what_it_is_given(tmp_path: Path) -> None:
    lake = str(tmp_path / "lake")
    run(lake)
    made: dict[str, Any] = {}

    class Seen(FilesIOManager):
        def handle_output(self, context: dg.OutputContext, obj: Partitioned[File]) -> None:
            made[context.asset_key.to_user_string()] = {day: file.path.read_bytes() for day, file in obj.items()}

    with file_resources(lake, tmp_path / "scratch") as resources:
        manager = resources["files_io_manager"]
        seen = Seen(lake=manager.lake, engine=manager.engine)
        dg.materialize(fake_users_assets, resources={**resources, "files_io_manager": seen}, partition_key=DAY)
    files = {path.name: path.read_bytes() for path in (tmp_path / f"lake/fake_users/date={DAY}").iterdir()}
    # Computed anew from what the first run left, and not stored.
    assert made["fake_users_archive"] == {DAY: files["users_raw.zip"]}
    assert made["fake_users_extracted"] == {DAY: files["users_extracted.csv"]}
    assert made["fake_users_salary_chart"] == {DAY: files["salary_distribution.png"]}
    assert unstamped(made["fake_users_report"][DAY]) == unstamped(files["users_report.txt"])
    assert len(made) == len(fake_users_assets)


def test_with_the_time_unchanged_every_byte_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime

    monkeypatch.setattr("user_pipeline.defs.fake_users.assets._started", lambda _: datetime(2017, 4, 3, tzinfo=UTC))
    run(str(tmp_path))
    first = day_files(str(tmp_path))
    run(str(tmp_path))
    assert day_files(str(tmp_path)) == first


def test_all_steps_of_a_run_share_one_time(tmp_path: Path) -> None:
    run(str(tmp_path), None)
    stamps = {
        stamp
        for content in stored(str(tmp_path)).values()
        for stamp in re.findall(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", content)
    }
    assert len(stamps) == 1


def test_the_ui_shows_the_counts_the_report_and_the_picture(tmp_path: Path) -> None:
    result = run(str(tmp_path), num_users=1_000)
    cleaned = metadata(result, "fake_users_cleaned")
    assert (cleaned["missing_last_name"], cleaned["missing_email"], cleaned["invalid_email"]) == (100, 150, 0)
    assert cleaned["removed_users"] == 250 - cleaned["both"]
    assert cleaned["dagster/partition_row_count"] == 750 + cleaned["both"]
    report = metadata(result, "fake_users_report")
    assert report["total_raw_users"] == 1_000
    assert report["total_cleaned_users"] == cleaned["dagster/partition_row_count"]
    assert 30_000 < report["average_salary"] < 120_000
    assert "    Total Raw Users: 1000\n" in report["report"]
    assert "(data:image/png;base64,iVBOR" in report["report"]
    assert "(data:image/png;base64,iVBOR" in metadata(result, "fake_users_salary_chart")["chart"]


def test_an_archive_put_there_by_hand_is_cleaned_and_counted(tmp_path: Path) -> None:
    run(str(tmp_path))
    rows = [
        "1,Ann,NA,ann@example.com,Bern,1.50",
        "2,Bob,Lee,bob@,Bern,2",
        '3,"C,id"," ",cid,Bern,3',
        "4,Dee,Doe,,Bern,4",
    ]
    with zipfile.ZipFile(tmp_path / f"fake_users/date={DAY}/users_raw.zip", "w") as archive:
        archive.writestr("users_raw.csv", "\n".join([RAW_HEADER, *rows]))
    result = run(str(tmp_path), select=[asset for asset in fake_users_assets if asset is not fake_users_archive])
    cleaned = metadata(result, "fake_users_cleaned")
    assert [cleaned[name] for name in ("missing_last_name", "missing_email", "invalid_email", "both")] == [
        1,
        1,
        2,
        1,
    ]
    assert frame(day_files(str(tmp_path))["users_cleaned.csv"])["last_name"].tolist() == ["NA"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["other.csv"], "holds no users_raw.csv"),
        (["users_raw.csv", "../x"], "leads out"),
        (["/x"], "absolute path"),
    ],
)
def test_a_bad_archive_fails_the_step_and_says_which_it_is(names: list[str], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / f"fake_users/date={DAY}/users_raw.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    with pytest.raises(dg.Failure) as failure:
        run(str(tmp_path), select=["fake_users_extracted"])
    assert failure.value.description is not None
    assert failure.value.description.startswith(f"fake_users_extracted of {DAY}: ")
    assert str(path) in failure.value.description
    assert complaint in failure.value.description
    assert not failure.value.allow_retries


def test_a_day_without_clean_users_is_a_success(tmp_path: Path) -> None:
    result = run(str(tmp_path), missing_email_share=1, num_users=5)
    files = day_files(str(tmp_path))
    assert set(files) == FILES
    assert b"Average Salary: n/a\nTop 3 Cities: {}\n" in files["users_report.txt"]
    assert frame(files["users_cleaned.csv"]).empty
    assert "average_salary" not in metadata(result, "fake_users_report")
    run(str(tmp_path), report="json", select=["fake_users_report"])
    assert json.loads(day_files(str(tmp_path))["users_report.json"])["stats"]["average_salary"] is None


def test_the_report_is_there_in_one_format_at_a_time(tmp_path: Path) -> None:
    run(str(tmp_path))
    text = day_files(str(tmp_path))["users_report.txt"].decode().splitlines()
    run(str(tmp_path), report="json", select=["fake_users_report"])
    files = day_files(str(tmp_path))
    assert "users_report.txt" not in files
    assert json.loads(files["users_report.json"])["report"][2:] == text[2:]
    run(str(tmp_path), report="txt", select=["fake_users_report"])
    assert set(day_files(str(tmp_path))) == FILES


def test_a_seed_of_ones_own_gives_the_same_users_on_every_day(tmp_path: Path) -> None:
    run(str(tmp_path), None, seed=1, select=["fake_users_archive"])
    assert len(set(stored(str(tmp_path)).values())) == 1
    run(str(tmp_path), None, select=["fake_users_archive"])
    assert len(set(stored(str(tmp_path)).values())) == 3


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("num_users", 0, "greater than or equal to 1"),
        ("num_users", -5, "greater than or equal to 1"),
        ("missing_last_name_share", -0.1, "greater than or equal to 0"),
        ("missing_email_share", 1.1, "less than or equal to 1"),
        ("missing_email_share", float("nan"), "less than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_config_that_cannot_be_used_is_refused_by_name_and_value(
    field: str, value: float, right: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"FakeUsersConfig\n{field}\n.*{right}.*input_value={value}"):
        run(str(tmp_path), DAY, report=None, select=None, **{field: value})
    assert stored(str(tmp_path)) == {}


def test_an_unknown_report_format_is_refused_with_the_two_known_ones(tmp_path: Path) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"'txt', 'json'.* got csv"):
        run(str(tmp_path), report="csv")


def test_the_defaults_are_as_documented() -> None:
    config = FakeUsersConfig()
    assert (config.num_users, config.missing_last_name_share, config.missing_email_share) == (100, 0.10, 0.15)
    assert config.seed is None


def test_the_assets_are_described_owned_partitioned_and_grouped_alike() -> None:
    for asset in fake_users_assets:
        (spec,) = asset.specs
        assert spec.group_name == "fake_users"
        assert spec.owners == ["team:data-platform"]
        assert spec.description
        assert spec.partitions_def is not None
        assert asset.backfill_policy == dg.BackfillPolicy.single_run()
        assert asset.get_io_manager_key_for_asset_key(spec.key) == "files_io_manager"


def test_loading_the_assets_imports_nothing_heavy() -> None:
    code = (
        "import sys, user_pipeline.defs.fake_users.assets as _; print({*sys.modules} & "
        "{'pandas', 'matplotlib', 'openpyxl', 'faker', 'pyarrow', 'numpy', 'obstore', 'boto3'})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "set()"


def test_other_users_are_another_version_of_all_that_is_made_of_them(tmp_path: Path) -> None:
    few, again, more = (run(str(tmp_path), num_users=n) for n in (5, 5, 6))
    for asset in ("fake_users_archive", "fake_users_cleaned", "fake_users_report"):
        assert version(few, asset) == version(again, asset)
        assert version(few, asset) != version(more, asset)
