"""A code location of assets that do nothing: what Dagster itself takes for a day.

``BENCHMARK_ASSETS`` says how many there are, in a chain.
"""

import os

import dagster as dg

DAILY = dg.DailyPartitionsDefinition(start_date="2017-04-01")


def _nothing(number: int) -> dg.AssetsDefinition:
    @dg.asset(name=f"empty_{number}", partitions_def=DAILY, deps=[f"empty_{number - 1}"] if number else [])
    def empty() -> None:
        """Nothing."""

    return empty


defs = dg.Definitions(
    assets=[_nothing(number) for number in range(int(os.environ["BENCHMARK_ASSETS"]))],
    executor=dg.in_process_executor,
)
