"""The traffic report: a day to look at, one HTML file."""

import base64
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.common import daily_asset
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.io_managers.files import stored_as
from user_pipeline.io_managers.metadata import timed
from user_pipeline.io_managers.partitioned import PARTITIONED, File, Partitioned
from user_pipeline.lake.lake import Lake

if TYPE_CHECKING:
    from user_pipeline.traffic_report.report import Report

FILE = "traffic_report.html"


@daily_asset(
    code_version="1",
    group_name="exports",
    kinds={"s3", "html", "matplotlib"},
    io_manager_key="files_io_manager",
    dagster_type=PARTITIONED,
    deps=["user_page_views", "recommendation_quality"],
    metadata=stored_as("exports/traffic_report", FILE),
)
def traffic_report(
    context: dg.AssetExecutionContext, engine: dg.ResourceParam[Engine], lake: dg.ResourceParam[Lake]
) -> Partitioned[File]:
    """The day on one page to open or send: visits beside the days before, pages, where lines went, recommendations."""
    from user_pipeline.traffic_report.collect import collect

    files: dict[str, File] = {}
    with never_retried():
        taken: dict[str, Any] = {}
        with timed(taken, "computing"):
            reports = list(
                collect(
                    lake,
                    engine,
                    [date.fromisoformat(day) for day in context.partition_keys],
                    made_at=datetime.now(UTC),
                    min_viewers=settings.current().recommendation_min_viewers,
                )
            )
        folder = engine.new_scratch("traffic_report")
        for report in reports:
            files[report.day.isoformat()] = _file(report, folder / report.day.isoformat(), taken)
    # The other days of a report decide, too, and what had arrived of them: each run makes something else.
    context.set_data_version(context.asset_key, dg.DataVersion(context.run.run_id))
    return Partitioned(files)


def _file(report: "Report", folder: Path, taken: dict[str, Any]) -> File:
    from user_pipeline.traffic_report.charts import as_png
    from user_pipeline.traffic_report.page import render

    folder.mkdir()
    path = folder / FILE
    path.write_text(render(report), encoding="utf-8")
    picture = base64.b64encode(as_png(report)).decode()
    chart = dg.MetadataValue.md(f"![The last fourteen days](data:image/png;base64,{picture})")
    return File(path, metadata={"chart": chart, **_numbers(report), **taken})


def _numbers(report: "Report") -> dict[str, Any]:
    """The headline numbers, each plotted over the days by the UI; of nobody some do not exist."""
    today, back, quality = report.today, report.back_after_a_day.share, report.recommendations
    numbers = {
        "views": today.views,
        "users": today.users,
        "new_users": today.new_users,
        "pages": today.pages,
        "new_pages": today.new_pages,
        "came_back_share": back,
        "rejected_lines": sum(feed.rejected_lines for feed in report.feeds),
        "duplicate_rows": sum(feed.duplicates for feed in report.feeds),
        "hit_rate": quality and quality.hit_rate,
    }
    return {name: number for name, number in numbers.items() if number is not None}
