"""Raw: the stored day has the rows that its objects brought, and few of their lines were rejected."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg

from user_pipeline import settings
from user_pipeline.defs.check_results import evaluate_days, result_of, spec
from user_pipeline.engines.base import Engine
from user_pipeline.errors import never_retried
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.intake import accept, newly_read, volumes
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
            spec(
                asset,
                "reject_share_of_day",
                "Not more than USER_PIPELINE_BLOCK_REJECT_SHARE of the lines newly read for the day are rejected.",
            ),
            spec(
                asset,
                "volume",
                "The day has rows, and from half to twice as many as the fourteen days before it at the median.",
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
                    reject_share_of_day(manifest, days, settings.current().block_reject_share),
                    volume(manifest, days),
                ],
            )

    return checks


def partition_complete(manifest: Manifest, lake: Lake, engine: Engine, days: Sequence[date]) -> dg.AssetCheckResult:
    """Each stored day has as many rows in its files as the manifest has for the day, of all objects."""
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
    """No object of these days lost more than a share of its lines.

    An object that brought no row at all counts for the day it was written on, and for the day before.
    """
    entries = list(manifest.with_rejects(days))
    over = [entry for entry in entries if entry.faulty > limit * entry.lines]
    return result_of(
        "reject_share",
        f"raw_{manifest.feed.name}",
        [f"{mask_key(entry.key)}: {entry.faulty} of {entry.lines} lines, {entry.rejected}" for entry in over],
        warn=True,
        limit=limit,
        greatest_share=max((entry.faulty / entry.lines for entry in entries), default=0.0),
    )


def reject_share_of_day(manifest: Manifest, days: Sequence[date], limit: float) -> dg.AssetCheckResult:
    """Of the lines that were read for each day since it passed last, not more than a share were rejected.

    What passes is accepted: these rejects do not block the day again.
    """
    read = newly_read(manifest, days)
    over = [intake for intake in read if intake.rejected > limit * intake.lines]
    accept(manifest, {intake.day: intake.as_of for intake in read if intake not in over})
    return result_of(
        "reject_share_of_day",
        f"raw_{manifest.feed.name}",
        [
            f"{intake.day}: {intake.rejected} of {intake.lines} newly read lines were rejected, "
            f"{intake.worst[1]} of them in {mask_key(intake.worst[0])}"
            for intake in over
        ],
        limit=limit,
        greatest_share=max((intake.rejected / intake.lines for intake in read if intake.lines), default=0.0),
    )


def volume(manifest: Manifest, days: Sequence[date]) -> dg.AssetCheckResult:
    """Each day has from half to twice as many rows as the days before it; in a feed's first week it passes."""
    problems = [found.problem for found in volumes(manifest, days)]
    return result_of(
        "volume", f"raw_{manifest.feed.name}", [problem for problem in problems if problem is not None], warn=True
    )


raw_user_updates_checks = raw_checks(USER_UPDATES)
raw_page_views_checks = raw_checks(PAGE_VIEWS)
