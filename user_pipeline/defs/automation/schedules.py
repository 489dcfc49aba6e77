"""The daily schedules: at 00:30 UTC, the day before."""

import dagster as dg

from user_pipeline.defs.automation.jobs import daily_fake_users, daily_log_pipeline

daily_log_pipeline_schedule, daily_fake_users_schedule = (
    dg.build_schedule_from_partitioned_job(
        job,
        hour_of_day=0,
        minute_of_hour=30,
        description="At 00:30 UTC, the day before.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    for job in (daily_log_pipeline, daily_fake_users)
)
