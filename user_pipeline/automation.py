"""What runs by itself."""

import dagster as dg

log_pipeline = dg.define_asset_job(
    "daily_log_pipeline",
    selection=dg.AssetSelection.groups("raw", "cleaned", "marts", "exports"),
    description="Brings one day (or a range of days) of both feeds into the tables and exports.",
)
fake_users = dg.define_asset_job(
    "daily_fake_users",
    selection=dg.AssetSelection.groups("fake_users"),
    description="Makes up, cleans and reports on the fake users of one day (or a range of days).",
)

JOBS = [log_pipeline, fake_users]
SCHEDULES = [
    dg.build_schedule_from_partitioned_job(
        job,
        hour_of_day=0,
        minute_of_hour=30,
        description="At 00:30 UTC, the day before.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    for job in JOBS
]
