"""What runs by itself."""

import dagster as dg

LOG_PIPELINE = dg.AssetSelection.groups("raw", "cleaned", "marts", "exports")

daily_job = dg.define_asset_job(
    "daily_log_pipeline",
    selection=LOG_PIPELINE,
    description="Brings one day (or a range of days) of both feeds into the tables and exports.",
)

daily_schedule = dg.build_schedule_from_partitioned_job(
    daily_job,
    name="daily_log_pipeline_schedule",
    hour_of_day=0,
    minute_of_hour=30,
    description="At 00:30 UTC, the day before. Events that arrive later belong to their own day and repair it.",
)
