"""Raw: the stored day is what its objects brought, and they brought mostly rows."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.check_results import evaluate_days, result_of, spec
from user_pipeline.engines.duckdb import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.lake import Lake
from user_pipeline.masking import mask_key


def raw_checks(feed: Feed) -> dg.AssetChecksDefinition:
    """The checks of a raw asset."""
    asset = f"raw_{feed.name}"

    @dg.multi_asset_check(
        name=f"{asset}_checks",
        specs=[
            spec(asset, "partition_complete", "The stored day has the rows that all objects brought for it."),
            spec(
                asset,
                "reject_share",
                "Not more than USER_PIPELINE_MAX_REJECT_SHARE of an object's lines are rejected.",
                blocking=False,
            ),
        ],
    )
    def checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[Lake],
        engine: dg.ResourceParam[Engine],
    ) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            manifest = Manifest(feed, lake.staging)
            yield from evaluate_days(
                context,
                lambda days: [
                    partition_complete(manifest, lake, engine, days),
                    reject_share(manifest, days, settings.current().max_reject_share),
                ],
            )

    return checks


def partition_complete(manifest: Manifest, lake: Lake, engine: Engine, days: Sequence[date]) -> dg.AssetCheckResult:
    """Each stored day has as many rows counted in its files, as the manifest says all objects brought for it."""
    asset = f"raw_{manifest.feed.name}"
    expected = manifest.rows(days)
    files = lake.fetch(engine, lake.staging, asset, days)
    stored = {day: engine.count(files[day]) for day in days}
    wrong = [day for day in days if stored[day] != expected[day]]
    return result_of(
        "partition_complete",
        asset,
        [f"{day}: {stored[day]} rows stored, {expected[day]} delivered" for day in wrong],
        rows=sum(stored.values()),
    )


def reject_share(manifest: Manifest, days: Sequence[date], limit: float) -> dg.AssetCheckResult:
    """No object that brought rows for these days, or no row at all, lost more than a share of its lines."""
    entries = list(manifest.with_rejects(days))
    over = [entry for entry in entries if entry.rejects > limit * entry.lines]
    return result_of(
        "reject_share",
        f"raw_{manifest.feed.name}",
        [f"{mask_key(entry.key)}: {entry.rejects} of {entry.lines} lines, {entry.rejected}" for entry in over],
        warn=True,
        limit=limit,
        greatest_share=max((entry.rejects / entry.lines for entry in entries), default=0.0),
    )


raw_user_updates_checks = raw_checks(USER_UPDATES)
raw_page_views_checks = raw_checks(PAGE_VIEWS)
