"""The sensor that finds new objects, has them ingested, and has the days that changed rematerialized."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import dagster as dg

from user_pipeline import settings
from user_pipeline.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from user_pipeline.defs.automation.change_detection import Position, may_look_again, plan
from user_pipeline.defs.automation.jobs import daily_log_pipeline, ingest_new_objects
from user_pipeline.defs.common import partition_range
from user_pipeline.defs.ingest.data_versions import is_done, latest_versions, raw_key, unreported_days
from user_pipeline.errors import masked
from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.manifest import Catalog
from user_pipeline.resources.storage import ObjectStorage

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_CALLS = 10
"""So many runs are requested at once; what else changed waits for the next tick."""
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NEW_OBJECTS_TAG = "user_pipeline/new_objects"


@dg.sensor(
    jobs=[ingest_new_objects, daily_log_pipeline],
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks into both feed folders. Has new and changed objects cataloged, then redoes exactly the days "
    "whose rows changed, in as few runs as their ranges allow.",
)
@masked()
def new_logs(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One tick: what is new in the source, and what changed in the catalog since the last tick."""
    storage = ObjectStorage(settings.current())
    catalogs = {feed: Catalog.load(storage.lake, feed) for feed in FEEDS}
    cursor = json.loads(context.cursor or "{}")
    positions = {
        feed: Position.from_json(cursor.get(feed.name, {})).since(catalog.id) for feed, catalog in catalogs.items()
    }
    now = datetime.now(UTC)
    seen: list[str] = []
    look = list(_look(context.instance, storage, catalogs, now, seen))
    redo, waiting = _redo(context.instance, catalogs, positions, now, seen)
    after = {
        feed.name: Position(catalog.id, catalog.version, waiting[feed.name]).to_json()
        for feed, catalog in catalogs.items()
    }
    context.log.info("%s", "; ".join(seen))
    requests = [*look, *redo]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "; ".join(seen),
        cursor=json.dumps(after),
        asset_events=[
            observation
            for feed, catalog in catalogs.items()
            for observation in unreported_days(
                context.instance, catalog, list(catalog.changes(since=positions[feed].version))
            )
        ],
    )


def _look(
    instance: dg.DagsterInstance,
    storage: ObjectStorage,
    catalogs: dict[Feed, Catalog],
    now: datetime,
    seen: list[str],
) -> Iterator[dg.RunRequest]:
    """A run that catalogs what is new, unless one is going on or has just tried in vain."""
    start_date = settings.current().start_date
    unknown = {}
    for feed, catalog in catalogs.items():
        listing = storage.source.list(feed.folder)
        unknown[feed] = catalog.unknown(listing, start_date, now)
        seen.append(f"{feed.folder}: {listing.num_rows} objects, {unknown[feed].num_rows} new or changed")
    if not any(table.num_rows for table in unknown.values()):
        return
    runs = instance.get_run_records(dg.RunsFilter(job_name=ingest_new_objects.name, statuses=_UNFINISHED), limit=1)
    if runs:
        seen.append(f"run {runs[0].dagster_run.run_id} is cataloging")
        return
    digest = _digest(unknown)
    earlier = instance.get_run_records(dg.RunsFilter(tags={_NEW_OBJECTS_TAG: digest}), limit=20)
    ended = [datetime.fromtimestamp(run.end_time or run.update_timestamp.timestamp(), UTC) for run in earlier]
    if may_look_again(ended, now):
        yield dg.RunRequest(
            job_name=ingest_new_objects.name,
            run_key=f"{digest}:{len(earlier)}",
            tags={_NEW_OBJECTS_TAG: digest},
        )
    else:
        seen.append(f"{len(earlier)} runs could not catalog them; trying again later")


def _digest(unknown: "dict[Feed, pa.Table]") -> str:
    """Tells one set of objects that wait from any other."""
    digest = hashlib.sha256()
    for feed, table in unknown.items():
        for batch in table.select(["path", "e_tag"]).to_batches(max_chunksize=1000):
            digest.update(repr((feed.name, batch.to_pydict())).encode())
    return digest.hexdigest()[:16]


def _redo(
    instance: dg.DagsterInstance,
    catalogs: dict[Feed, Catalog],
    positions: dict[Feed, Position],
    now: datetime,
    seen: list[str],
) -> tuple[list[dg.RunRequest], dict[str, dict[date, int]]]:
    """Runs for the days that changed; also the changes that wait, by feed."""
    start_date = settings.current().start_date
    changes = {}
    done = {}
    for feed, catalog in catalogs.items():
        position = positions[feed]
        changed = {**position.waiting, **catalog.changes(since=position.version)}
        changes[feed.name] = {day: version for day, version in changed.items() if day >= start_date}
        materialized = latest_versions(
            instance, raw_key(feed), dg.DagsterEventType.ASSET_MATERIALIZATION, list(changes[feed.name])
        )
        done[feed.name] = {
            day for day, version in changes[feed.name].items() if is_done(materialized.get(day), catalog, version)
        }
    made = plan(
        changes,
        is_done=lambda feed, day, _: day in done[feed],
        busy=_busy(instance) if any(changes.values()) else [],
        now=now,
        identity=" ".join(catalog.id for catalog in catalogs.values()),
        most=_MOST_CALLS,
    )
    waiting = {feed: dict(days) for feed, days in made.waiting.items()}
    days = len(set().union(*changes.values()))
    left = len(set().union(*waiting.values()))
    seen.append(f"{days} days changed, {len(made.calls)} runs requested, {left} days wait")
    return [_request(call.first, call.last, call.key) for call in made.calls], waiting


def _request(first: date, last: date, key: str) -> dg.RunRequest:
    if first == last:
        return dg.RunRequest(job_name=daily_log_pipeline.name, run_key=key, partition_key=first.isoformat())
    return dg.RunRequest(
        job_name=daily_log_pipeline.name,
        run_key=key,
        tags={
            ASSET_PARTITION_RANGE_START_TAG: first.isoformat(),
            ASSET_PARTITION_RANGE_END_TAG: last.isoformat(),
        },
    )


def _busy(instance: dg.DagsterInstance) -> list[tuple[date, date]]:
    """The days of all runs of raw assets that have not ended."""
    raw = {raw_key(feed) for feed in FEEDS}
    ranges = []
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        if run.asset_selection is None and run.job_name != daily_log_pipeline.name:
            continue
        if run.asset_selection is not None and not raw & run.asset_selection:
            continue
        first, last = partition_range(run.tags)
        if first and last:
            ranges.append((date.fromisoformat(first), date.fromisoformat(last)))
    return ranges
