"""The one daily partitions definition that every asset shares."""

import dagster as dg

from user_pipeline import settings

DAILY = dg.DailyPartitionsDefinition(
    start_date=settings.current().start_date.isoformat(), timezone="UTC", fmt="%Y-%m-%d"
)
