"""The jobs that schedules and the sensor start."""

import dagster as dg

daily_log_pipeline = dg.define_asset_job(
    "daily_log_pipeline",
    selection=dg.AssetSelection.groups("ingest", "raw", "cleaned", "marts", "exports"),
    description="Brings one day (or a range of days) of both feeds into the tables and exports.",
)
daily_fake_users = dg.define_asset_job(
    "daily_fake_users",
    selection=dg.AssetSelection.groups("fake_users"),
    description="Generates, cleans and reports on the fake users of one day (or a range of days).",
)
ingest_new_objects = dg.define_asset_job(
    "ingest_new_objects",
    selection=dg.AssetSelection.groups("ingest"),
    description="Reads the objects that are new in the source. The sensor new_logs starts it, and then "
    "daily_log_pipeline for the days that changed.",
)
