"""Old runs are forgotten, and nothing that an asset's history needs is."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from user_pipeline.defs.automation.run_retention import delete_old_runs, delete_runs, prune_events
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres


@dg.op
def idle() -> None:
    pass


@dg.job
def idle_job() -> None:
    idle()


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def thing(context: dg.AssetExecutionContext) -> None:
    if context.partition_key == "b":
        raise ValueError(context.partition_key)


@pytest.fixture
def instance(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    postgres.create_database("retention")
    storage = f"storage: {{postgres: {{postgres_url: '{postgres.url('retention')}'}}}}\n"
    (tmp_path / "dagster.yaml").write_text(storage + "telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as opened:
        opened.wipe()
        yield opened


def test_only_ended_runs_that_did_nothing_to_an_asset_go(instance: dg.DagsterInstance) -> None:
    looked = idle_job.execute_in_process(instance=instance).run_id
    made = dg.materialize([thing], partition_key="a", instance=instance).run_id
    failed = dg.materialize([thing], partition_key="b", instance=instance, raise_on_error=False).run_id
    waiting = instance.create_run_for_job(idle_job).run_id
    now = datetime.now(UTC)

    assert delete_runs(instance, now - timedelta(days=1)) == 0
    assert set(instance.get_run_ids()) == {looked, made, failed, waiting}
    assert delete_runs(instance, now + timedelta(seconds=1)) == 2
    assert set(instance.get_run_ids()) == {made, waiting}
    assert instance.get_materialized_partitions(thing.key) == {"a"}
    assert not instance.all_logs(looked)
    assert instance.all_logs(made)


@dg.asset
def reading() -> None:
    pass


def test_of_runs_of_an_asset_without_partitions_the_latest_stays(instance: dg.DagsterInstance) -> None:
    runs = [dg.materialize([reading], instance=instance).run_id for _ in range(3)]
    both = dg.materialize([reading, thing], partition_key="a", instance=instance).run_id
    latest = dg.materialize([reading], instance=instance).run_id
    assert delete_runs(instance, datetime.now(UTC) + timedelta(seconds=1)) == len(runs)
    assert set(instance.get_run_ids()) == {both, latest}
    event = instance.get_latest_materialization_event(reading.key)
    assert event is not None
    assert event.run_id == latest


def test_the_job_deletes_what_is_older_than_it_is_told(instance: dg.DagsterInstance) -> None:
    kept = idle_job.execute_in_process(instance=instance).run_id
    result = delete_old_runs.execute_in_process(instance=instance)
    assert set(instance.get_run_ids()) == {kept, result.run_id}
    everything = {"ops": {"delete_runs_without_assets": {"config": {"days": 0}}}}
    assert not delete_old_runs.execute_in_process(
        instance=instance, run_config=everything, raise_on_error=False
    ).success
    assert kept in instance.get_run_ids()


@dg.asset_check(asset=thing, partitions_def=thing.partitions_def)
def thing_is_good() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def test_of_old_runs_only_what_is_about_assets_stays(instance: dg.DagsterInstance) -> None:
    good = dg.materialize([thing, thing_is_good], partition_key="a", instance=instance).run_id
    failed = dg.materialize([thing], partition_key="b", instance=instance, raise_on_error=False).run_id
    waiting = instance.create_run_for_job(idle_job).run_id
    now = datetime.now(UTC)

    def kinds(run_id: str) -> list[dg.DagsterEventType | None]:
        return [entry.dagster_event.event_type if entry.dagster_event else None for entry in instance.all_logs(run_id)]

    before = {run_id: kinds(run_id) for run_id in (good, failed, waiting)}
    assert prune_events(instance, now - timedelta(days=1)) == 0
    assert {run_id: kinds(run_id) for run_id in before} == before
    pruned = prune_events(instance, now + timedelta(seconds=1))
    assert kinds(good) == [
        dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    ]
    assert dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED in kinds(failed)
    assert dg.DagsterEventType.STEP_FAILURE not in kinds(failed)
    assert kinds(waiting) == before[waiting]
    assert pruned == sum(map(len, before.values())) - sum(len(kinds(run_id)) for run_id in before)
    # What Dagster knows of the asset is what it knew.
    assert instance.get_materialized_partitions(thing.key) == {"a"}
    event = instance.get_latest_materialization_event(thing.key)
    assert event is not None
    assert event.run_id == good
    [record] = instance.event_log_storage.get_asset_check_execution_history(thing_is_good.check_key, limit=5)
    assert record.run_id == good
    assert prune_events(instance, now + timedelta(seconds=1)) == 0
