"""Fake users: generate, extract, clean, then a workbook, a database, a chart and a report.

Each asset makes the files of the run's days; the IO manager stores them. What does the work is in
:mod:`user_pipeline.fake_users`, imported where it is used so that the code location loads fast.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
from pydantic import Field

from user_pipeline.defs.common import column_schema, daily_asset
from user_pipeline.engines.base import Engine
from user_pipeline.errors import PermanentError
from user_pipeline.fake_users.columns import CLEANED, RAW, Column
from user_pipeline.io_managers.files import LakeFiles, stored_as
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, preview
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.fake_users.report import Summary

RAW_CSV = "users_raw.csv"
_SHOWN_CITIES = 50


class FakeUsersConfig(dg.Config):
    """Which users to generate."""

    num_users: int = Field(default=100, ge=1, description="How many users, 1 or more.")
    missing_last_name_share: float = Field(
        default=0.10, ge=0, le=1, description="Share of users without a last name, 0 to 1."
    )
    missing_email_share: float = Field(
        default=0.15, ge=0, le=1, description="Share of users without an e-mail address, 0 to 1."
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        description="Decides which users: the same seed, the same users. Left out: the partition's date "
        "(20170402 for 2017-04-02).",
    )


class ReportConfig(dg.Config):
    """How to write the report."""

    report_format: Literal["txt", "json"] = Field(
        default="txt", description="txt for users_report.txt, json for users_report.json."
    )


def _asset(
    *files: str, code_version: str, kinds: set[str], columns: Sequence[Column] = ()
) -> Callable[[Callable[..., Partitioned[File]]], dg.AssetsDefinition]:
    schema = column_schema(*columns) if columns else {}
    return daily_asset(
        code_version=code_version,
        group_name="fake_users",
        dagster_type=PARTITIONED,
        required_resource_keys={"engine"},
        io_manager_key="files_io_manager",
        # The client of the object store retries by itself. Other errors, such as of run config, would come again.
        retry_policy=None,
        kinds=kinds,
        metadata={**stored_as("fake_users", *files), **schema},
    )


@_asset("users_raw.zip", code_version="1", kinds={"python", "zip"}, columns=RAW)
def fake_users_archive(context: dg.AssetExecutionContext, config: FakeUsersConfig) -> Partitioned[File]:
    """The day's made-up users, some without last name or e-mail address: users_raw.csv in a zip archive."""
    from user_pipeline.fake_users import archive, csvfile
    from user_pipeline.fake_users.generate import generate

    # It has no inputs: its content depends on the config, so another config is another version.
    versions = context.assets_def.code_versions_by_key.values()
    context.set_data_version(
        context.asset_key, dg.DataVersion(":".join([*filter(None, versions), config.model_dump_json()]))
    )

    def make(day: str, folder: Path) -> File:
        seed = int(day.replace("-", "")) if config.seed is None else config.seed
        users = generate(config.num_users, config.missing_last_name_share, config.missing_email_share, seed)
        path = folder / "users_raw.zip"
        archive.pack(path, RAW_CSV, partial(csvfile.write, users))
        return File(path, rows=users.num_rows, metadata={"seed": seed, **_preview(users)})

    return _each_day(context, make)


@_asset("users_extracted.csv", code_version="1", kinds={"python", "csv"}, columns=RAW)
def fake_users_extracted(context: dg.AssetExecutionContext, fake_users_archive: LakeFiles) -> Partitioned[File]:
    """The CSV taken out of the day's archive, unchanged, after the archive passed its safety checks."""
    from user_pipeline.fake_users import archive, csvfile

    def make(day: str, folder: Path) -> File:
        path = folder / "users_extracted.csv"
        with fake_users_archive.file(day) as packed:
            archive.unpack(packed, RAW_CSV, path, name=fake_users_archive.url(day))
        users = csvfile.read(path, RAW)
        return File(path, rows=users.num_rows, metadata=_preview(users))

    return _each_day(context, make)


@_asset("users_cleaned.csv", code_version="1", kinds={"python", "csv"}, columns=CLEANED)
def fake_users_cleaned(context: dg.AssetExecutionContext, fake_users_extracted: LakeFiles) -> Partitioned[File]:
    """The users with a last name and a well-formed e-mail address, and when they were processed."""
    from user_pipeline.fake_users import csvfile
    from user_pipeline.fake_users.clean import clean

    started = _started(context)

    def make(day: str, folder: Path) -> File:
        users, removed = clean(_read(fake_users_extracted, day, RAW), started)
        path = folder / "users_cleaned.csv"
        with path.open("wb") as stream:
            csvfile.write(users, stream)
        return File(
            path, rows=users.num_rows, metadata={"removed_users": removed.total, **asdict(removed), **_preview(users)}
        )

    return _each_day(context, make)


@_asset("users_cleaned.xlsx", code_version="1", kinds={"python", "excel"}, columns=CLEANED)
def fake_users_excel(context: dg.AssetExecutionContext, fake_users_cleaned: LakeFiles) -> Partitioned[File]:
    """The cleaned users as an Excel workbook; beyond 1,048,575 users it goes on to further sheets."""
    from user_pipeline.fake_users import workbook

    def make(day: str, folder: Path) -> File:
        users = _read(fake_users_cleaned, day, CLEANED)
        path = folder / "users_cleaned.xlsx"
        sheets = workbook.write(users, path, title="users")
        return File(path, rows=users.num_rows, metadata={"sheets": sheets, **_preview(users)})

    return _each_day(context, make)


@_asset("users.db", code_version="1", kinds={"python", "sqlite"}, columns=CLEANED)
def fake_users_sqlite(context: dg.AssetExecutionContext, fake_users_cleaned: LakeFiles) -> Partitioned[File]:
    """The cleaned users as table `users` of a SQLite database."""
    from user_pipeline.fake_users import database

    def make(day: str, folder: Path) -> File:
        users = _read(fake_users_cleaned, day, CLEANED)
        path = folder / "users.db"
        database.write(users, path, name="users", columns=CLEANED)
        return File(path, rows=users.num_rows, metadata=_preview(users))

    return _each_day(context, make)


@_asset("salary_distribution.png", code_version="1", kinds={"python", "matplotlib"})
def fake_users_salary_chart(context: dg.AssetExecutionContext, fake_users_cleaned: LakeFiles) -> Partitioned[File]:
    """How the salaries of the cleaned users are distributed: a histogram."""
    from user_pipeline.fake_users import chart

    def make(day: str, folder: Path) -> File:
        users = _read(fake_users_cleaned, day, CLEANED, only=["salary"])
        picture = chart.salary_histogram(users["salary"], title=f"Salaries of the fake users of {day}")
        path = folder / "salary_distribution.png"
        path.write_bytes(picture)
        return File(path, metadata={"chart": dg.MetadataValue.md(_image(picture))})

    return _each_day(context, make)


@_asset("users_report.txt", "users_report.json", code_version="1", kinds={"python"})
def fake_users_report(
    context: dg.AssetExecutionContext,
    config: ReportConfig,
    fake_users_extracted: LakeFiles,
    fake_users_cleaned: LakeFiles,
    fake_users_salary_chart: LakeFiles,
) -> Partitioned[File]:
    """The day in a few lines, as text or JSON: users before and after cleaning, salaries, top cities."""
    from user_pipeline.fake_users import report

    started = _started(context)

    def make(day: str, folder: Path) -> File:
        raw = _read(fake_users_extracted, day, RAW, only=["id"])
        cleaned = _read(fake_users_cleaned, day, CLEANED, only=["city", "salary"])
        summary = report.summarize(raw.num_rows, cleaned)
        write = report.as_json if config.report_format == "json" else report.as_text
        shown = _as_code(report.lines(summary, started)) + _image(fake_users_salary_chart.read(day))
        path = folder / f"users_report.{config.report_format}"
        path.write_bytes(write(summary, started))
        return File(path, metadata={"report": dg.MetadataValue.md(shown), **_numbers(summary)})

    return _each_day(context, make)


def _each_day(context: dg.AssetExecutionContext, make: Callable[[str, Path], File]) -> Partitioned[File]:
    """The files of the run's days.

    Args:
        context: of the asset.
        make: makes the file of a day, in an empty folder.
    """
    engine: Engine = context.resources.engine
    scratch = engine.new_scratch(context.asset_key.path[-1])
    files = {}
    for day in context.partition_keys:
        folder = scratch / day
        folder.mkdir()
        try:
            files[day] = make(day, folder)
        except PermanentError as error:
            asset = context.asset_key.to_user_string()
            raise dg.Failure(f"{asset} of {day}: {error}", allow_retries=False) from error
    return Partitioned(files)


def _read(files: LakeFiles, day: str, columns: Sequence[Column], only: Sequence[str] | None = None) -> "pa.Table":
    """The users of a day's CSV file."""
    from user_pipeline.fake_users import csvfile

    with files.file(day) as file:
        return csvfile.read(file, columns, only=only)


def _started(context: dg.AssetExecutionContext) -> datetime:
    """The one time of the run, the same in each of its steps and when a step is tried again."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    if record is None:
        raise dg.Failure(f"Run {context.run.run_id} is not in the run storage.")
    return datetime.fromtimestamp(record.start_time or record.create_timestamp.timestamp(), UTC)


def _numbers(summary: "Summary") -> dict[str, Any]:
    """The numbers of the report, each plotted over the days by the UI; without users some do not exist."""
    numbers = {
        "total_raw_users": summary.raw_users,
        "total_cleaned_users": summary.cleaned_users,
        "removed_users": summary.removed_users,
        "average_salary": summary.average_salary,
        "median_salary": summary.median_salary,
        "salary_standard_deviation": summary.salary_deviation,
    }
    known = {name: number for name, number in numbers.items() if number is not None}
    if not summary.cities:
        return known
    cities = [dg.TableRecord(asdict(city)) for city in summary.cities[:_SHOWN_CITIES]]
    return {**known, "cities": dg.MetadataValue.table(cities)}


def _preview(users: "pa.Table") -> dict[str, Any]:
    return preview(users.column_names, users.slice(0, PREVIEW_ROWS).to_pylist())


def _as_code(lines: Sequence[str]) -> str:
    """Markdown that shows ``lines`` as they are, whatever is in them."""
    return "".join(f"    {line}\n" for line in lines) + "\n"


def _image(png: bytes) -> str:
    """Markdown that holds the picture itself, so that the UI shows it wherever the lake is."""
    return f"![Salary distribution](data:image/png;base64,{base64.b64encode(png).decode()})"
