"""Ingest: every line of every object is accounted for, and every object could be read."""

from collections.abc import Iterator

import dagster as dg

from user_pipeline.defs.check_results import result_of
from user_pipeline.defs.ingest.data_versions import ingested_key
from user_pipeline.errors import never_retried
from user_pipeline.ingest.drift import tell_new
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.lake import Lake
from user_pipeline.masking import mask_key, shorten


def ingest_checks(feed: Feed) -> dg.AssetChecksDefinition:
    """The checks of the objects of a feed."""
    asset = ingested_key(feed)

    @dg.multi_asset_check(
        name=f"ingested_{feed.name}_checks",
        specs=[
            dg.AssetCheckSpec(
                "every_line_accounted",
                asset=asset,
                description="For every object: lines = rows + rejected + blank + header lines.",
                blocking=True,
            ),
            dg.AssetCheckSpec(
                "no_broken_objects", asset=asset, description="Every object could be fetched, and read to its end."
            ),
            dg.AssetCheckSpec(
                "schema_drift", asset=asset, description="No row has keys or fields that no earlier run has reported."
            ),
        ],
    )
    def checks(context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[Lake]) -> Iterator[dg.AssetCheckResult]:
        with never_retried():
            manifest = Manifest(feed, lake.staging)
            yield every_line_accounted(manifest)
            yield no_broken_objects(manifest)
            yield schema_drift(manifest, context.run.run_id)

    return checks


def every_line_accounted(manifest: Manifest) -> dg.AssetCheckResult:
    """Every object: the lines that were cut are the rows, rejects, blank and header lines that were stored."""
    account = manifest.account()
    return result_of(
        "every_line_accounted",
        f"ingested_{manifest.feed.name}",
        [f"{mask_key(entry.key)}: {entry.unaccounted} of {entry.lines} lines" for entry in manifest.unaccounted()],
        objects=account["objects"],
        lines=account["lines"],
        rows=account["rows"],
        rejected=account["rejected"],
        blank=account["blank"],
        header=account["header"],
    )


def no_broken_objects(manifest: Manifest) -> dg.AssetCheckResult:
    """Every object could be fetched, and read to its end."""
    entries = list(manifest.unread())
    return result_of(
        "no_broken_objects",
        f"ingested_{manifest.feed.name}",
        [f"{mask_key(entry.key)}: {entry.error}" for entry in entries if entry.error]
        + [
            f"{mask_key(entry.key)}: not fetched in {entry.failure.attempts} attempts, next one after "
            f"{entry.failure.retry_at:%Y-%m-%d %H:%M} UTC: {entry.failure.error}"
            for entry in entries
            if entry.failure
        ],
        warn=True,
    )


def schema_drift(manifest: Manifest, run_id: str) -> dg.AssetCheckResult:
    """No row has a key or field that is new in this run; each is reported once.

    Raw keeps them in the column ``rescued``.
    """
    with manifest.registry.database.transaction() as transaction:
        new = tell_new(transaction, manifest.feed, run_id)
    kind = "column" if manifest.feed.quoted_newlines else "key"
    return result_of(
        "schema_drift",
        f"ingested_{manifest.feed.name}",
        [
            f"new {kind} {shorten(field.name, 100)}: {field.lines} lines, first in "
            f"{mask_key(field.source_object)}, line {field.source_line}"
            for field in new
        ],
        warn=True,
    )


ingested_user_updates_checks = ingest_checks(USER_UPDATES)
ingested_page_views_checks = ingest_checks(PAGE_VIEWS)
