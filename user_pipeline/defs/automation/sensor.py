"""The sensor that finds new objects, has them ingested, and has the days that changed rematerialized."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, date, datetime

import dagster as dg

from user_pipeline import settings
from user_pipeline.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)
from user_pipeline.defs.automation.change_detection import SensorCursor, may_look_again, plan
from user_pipeline.defs.automation.jobs import daily_log_pipeline, ingest_new_objects
from user_pipeline.defs.common import partition_range
from user_pipeline.defs.ingest.data_versions import is_done, latest_versions, raw_key, unreported_days
from user_pipeline.errors import masked
from user_pipeline.ingest.discovery import (
    TICK_SECONDS,
    Listing,
    SlowListingError,
    is_overdue,
    last_listing,
    look_at_announced,
    look_within,
    receive,
)
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.ingest.filter import Filter, read_with
from user_pipeline.ingest.look import Look, Settled
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.lake.registry import Registry
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage

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
    description="Looks into both feed folders. Has new and changed objects ingested, then rematerializes exactly the "
    "days whose rows changed, in as few runs as their ranges allow.",
)
@masked()
def new_logs(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One tick: what is new in the source, and what changed in the manifest since the last tick."""
    current = settings.current()
    storage = ObjectStorage(current)
    with closing(Databases(current)) as databases:
        registry = Registry("staging", databases.staging, storage)
        manifests = [Manifest(feed, registry) for feed in FEEDS]
        lake_id = manifests[0].lake_id
        cursor = SensorCursor.from_json(json.loads(context.cursor or "{}")).since(lake_id)
        now = datetime.now(UTC)
        seen: list[str] = []
        # Before anything else is asked for: what is committed meanwhile is looked at again by the next tick.
        version = manifests[0].version()
        look = list(_look(context.instance, storage, manifests, now, seen))
        changed = {manifest.feed.name: manifest.changes(since=cursor.version) for manifest in manifests}
        observations = [
            observation
            for manifest in manifests
            for observation in unreported_days(context.instance, manifest, list(changed[manifest.feed.name]))
        ]
    rematerialize, waiting = _rematerialize(context.instance, cursor, changed, now, seen)
    context.log.info("%s", "; ".join(seen))
    requests = [*look, *rematerialize]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "; ".join(seen),
        cursor=json.dumps(SensorCursor(lake_id, version, waiting).to_json()),
        asset_events=observations,
    )


def _look(
    instance: dg.DagsterInstance,
    storage: ObjectStorage,
    manifests: Sequence[Manifest],
    now: datetime,
    seen: list[str],
) -> Iterator[dg.RunRequest]:
    """A run that ingests what is new, unless one is going on or has just tried in vain."""
    start_date = settings.current().start_date
    settled = Settled(now, settings.current().settle_time)
    # Tells one set of objects that wait from any other.
    waiting = hashlib.sha256()
    is_wanted = False
    queue = storage.queue
    if queue:
        seen.append(f"{receive(queue, manifests)} objects announced")
    for manifest in manifests:
        feed = manifest.feed
        now_with = read_with(Filter.of(feed, settings.current()))
        listing = last_listing(manifest)
        # With a queue runs list, once a day.
        due = queue is not None and is_overdue(listing, now)
        try:
            with _listing(manifest, storage, listing) as look:
                found = 0
                settling = look.settling(start_date, settled, read_with=now_with)
                for batch in look.unknown(start_date, now, settled, read_with=now_with):
                    found += batch.num_rows
                    for path, etag in zip(batch["path"].to_pylist(), batch["e_tag"].to_pylist(), strict=True):
                        waiting.update(repr((feed.name, path, etag)).encode())
                later = f", {settling} left to settle" if settling else ""
                seen.append(f"{feed.folder}: {look.listed} objects, {found} new or changed{later}")
                is_wanted |= found > 0
        except SlowListingError:
            seen.append(f"{feed.folder}: listing it takes longer than a tick may, so runs do it")
            due = listing is None or not listing.is_slow or now >= listing.next_at
        if due:
            seen.append(f"{feed.folder}: to be listed by a run")
            waiting.update(repr((feed.name, listing and listing.listed_at)).encode())
            is_wanted = True
    if not is_wanted:
        return
    runs = instance.get_run_records(dg.RunsFilter(job_name=ingest_new_objects.name, statuses=_UNFINISHED), limit=1)
    if runs:
        seen.append(f"run {runs[0].dagster_run.run_id} is ingesting")
        return
    digest = waiting.hexdigest()[:16]
    earlier = instance.get_run_records(dg.RunsFilter(tags={_NEW_OBJECTS_TAG: digest}), limit=20)
    ended = [datetime.fromtimestamp(run.end_time or run.update_timestamp.timestamp(), UTC) for run in earlier]
    if may_look_again(ended, now):
        yield dg.RunRequest(
            job_name=ingest_new_objects.name,
            run_key=f"{digest}:{len(earlier)}",
            tags={_NEW_OBJECTS_TAG: digest},
        )
    else:
        seen.append(f"{len(earlier)} runs could not ingest them; trying again later")


def _listing(manifest: Manifest, storage: ObjectStorage, last: Listing | None) -> AbstractContextManager[Look]:
    """The objects of a feed as far as a tick looks at them.

    Raises:
        SlowListingError: there are too many to be listed within a tick.
    """
    if storage.queue:
        return look_at_announced(manifest)
    if last and last.is_slow:
        raise SlowListingError
    return look_within(manifest, storage.source, TICK_SECONDS)


def _rematerialize(
    instance: dg.DagsterInstance,
    cursor: SensorCursor,
    changed: Mapping[str, Mapping[date, int]],
    now: datetime,
    seen: list[str],
) -> tuple[list[dg.RunRequest], dict[str, dict[date, int]]]:
    """Runs for the days that changed since the cursor; also the changes that wait, by feed."""
    start_date = settings.current().start_date
    changes = {}
    done = {}
    for feed in FEEDS:
        all_changes = {**cursor.waiting.get(feed.name, {}), **changed[feed.name]}
        changes[feed.name] = {day: version for day, version in all_changes.items() if day >= start_date}
        materialized = latest_versions(
            instance, raw_key(feed), dg.DagsterEventType.ASSET_MATERIALIZATION, list(changes[feed.name])
        )
        done[feed.name] = {
            day
            for day, version in changes[feed.name].items()
            if is_done(materialized.get(day), cursor.lake_id, version)
        }
    made = plan(
        changes,
        is_done=lambda feed, day, _: day in done[feed],
        in_progress=_in_progress(instance) if any(changes.values()) else [],
        now=now,
        identity=cursor.lake_id,
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


def _in_progress(instance: dg.DagsterInstance) -> list[tuple[date, date]]:
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
