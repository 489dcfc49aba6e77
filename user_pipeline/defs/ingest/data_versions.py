"""Report the data versions of the source's days, so that Dagster shows a day whose input changed as Unsynced.

Each feed is an external asset with a partition a day. A day's data version is the version of the commit in which its
rows last changed, behind the id of the lake: ``<id>:<number>``. The same goes for the raw asset: its version is the
newest one of the days it was materialized with.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date

import dagster as dg

from user_pipeline.dagster_internals import DATA_VERSION_TAG
from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.manifest import Manifest


def source_key(feed: Feed) -> dg.AssetKey:
    """The external asset that stands for a feed's folder."""
    return dg.AssetKey(f"source_{feed.name}")


def ingested_key(feed: Feed) -> dg.AssetKey:
    """The asset that reads a feed's objects."""
    return dg.AssetKey(f"ingested_{feed.name}")


def raw_key(feed: Feed) -> dg.AssetKey:
    """The asset that holds a feed's rows as delivered."""
    return dg.AssetKey(f"raw_{feed.name}")


def data_version(lake_id: str, changes: Iterable[int]) -> str:
    """The data version of days that last changed in these commits; no change for days without rows."""
    return f"{lake_id}:{max(changes, default=0)}"


def unreported_days(
    instance: dg.DagsterInstance, manifest: Manifest, days: Sequence[date]
) -> Iterator[dg.AssetObservation]:
    """The changes of some days that were not reported to Dagster yet."""
    changes = manifest.changes(days=days)
    rows = manifest.rows(list(changes))
    key = source_key(manifest.feed)
    observed = latest_versions(instance, key, dg.DagsterEventType.ASSET_OBSERVATION, list(changes))
    for day, version in changes.items():
        current = data_version(manifest.lake_id, [version])
        if observed.get(day) != current:
            yield dg.AssetObservation(
                key,
                partition=day.isoformat(),
                tags={DATA_VERSION_TAG: current},
                metadata={"rows": rows[day]},
            )


def latest_versions(
    instance: dg.DagsterInstance, key: dg.AssetKey, kind: dg.DagsterEventType, days: Sequence[date]
) -> Mapping[date, str]:
    """The data versions of the latest events of some days; of those days that have one."""
    if not days:
        return {}
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key, kind, [DATA_VERSION_TAG], asset_partitions=[day.isoformat() for day in days]
    )
    return {date.fromisoformat(day): found[DATA_VERSION_TAG] for day, found in tags.items()}


def is_done(materialized: str | None, lake_id: str, change: int) -> bool:
    """Whether a raw partition of some data version has the rows of a change."""
    of_lake, _, version = (materialized or "").partition(":")
    return of_lake == lake_id and version.isdigit() and int(version) >= change
