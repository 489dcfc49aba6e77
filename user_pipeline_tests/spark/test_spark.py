"""The same assets on a Spark cluster: equal tables, and what goes wrong is said."""

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyspark
import pytest

from user_pipeline import settings
from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.cli.spark_cluster import Cluster, Shape, cluster, free_port
from user_pipeline.engines import open_engine
from user_pipeline.engines.spark import SparkEngine
from user_pipeline.engines.spark_errors import (
    ExecutorError,
    SparkRefusedError,
    SparkTaskError,
    SparkUnavailableError,
    SparkVersionError,
)
from user_pipeline.engines.spark_session import connect
from user_pipeline.ingest import reader
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.settings import Settings
from user_pipeline_tests.ingest.reading import ingest
from user_pipeline_tests.platform import Platform, view
from user_pipeline_tests.s3 import s3_endpoint
from user_pipeline_tests.spark.conftest import CREDENTIALS, ENVIRONMENT, use
from user_pipeline_tests.spark.work import die_once, double, executor_of, fail, refuse
from user_pipeline_tests.test_oracle import DAYS, Pipeline

ALL = ("group:ingest", "group:raw", "group:cleaned", "group:marts", "group:exports")
TABLES = {
    "staging": ("user_updates", "page_views", "rejected_lines"),
    "analytics": ("users", "user_page_views", "page_recommendations", "related_pages", "popular_pages"),
}
IN_THE_LAKE = ("raw_user_updates", "raw_page_views", "user_updates", "page_views", "users", "user_page_views")
SNAPSHOTS = ("page_recommendations", "related_pages", "popular_pages", "recommendation_parameters")
FIRST, LAST = "2017-04-01", "2017-04-02"


def everything(platform: Platform) -> dict[str, Any]:
    """What the platform holds: tables, the rows of the lake's files as hashes, and the accounts of ingest."""
    found: dict[str, Any] = {
        name: platform.table(database, name) for database, names in TABLES.items() for name in names
    }
    for asset in (*IN_THE_LAKE, *SNAPSHOTS):
        for day in (FIRST, LAST):
            files = platform.lake.urls(asset, date.fromisoformat(day), date.fromisoformat(day))
            if not files:
                assert asset in SNAPSHOTS  # of a range, the last day alone has them
                continue
            rows = duckdb.sql(f"select t::text as row from read_parquet({files}, hive_partitioning = false) t")
            digest = rows.aggregate("count(*), bit_xor(hash(row)), sum(hash(row)::hugeint)").fetchall()
            found[f"{asset} {day}"] = digest
    found["days"] = platform.rows(
        "staging", "select o.key, d.day, d.rows, d.digest from pipeline.ingested_days d "
        "join pipeline.ingested_objects o using (feed, object_id) order by 1, 2"
    )  # fmt: skip
    found["objects"] = platform.rows(
        "staging", "select key, lines, blank, header, rows, rejects, error from pipeline.ingested_objects order by 1"
    )
    for table in ("user_page_views", "page_recommendations"):
        found[f"{table}.csv"] = (platform.root / f"lake/exports/{table}/date={LAST}/{table}.csv").read_bytes()
    return found


def deliver(platform: Platform) -> None:
    """Two days of sample logs, and an object that cannot be read."""
    for key, content in SampleLogs(days=2, users=40, views_per_day=300).objects():
        platform.put(key, content)
    platform.put("PageViews/broken.gz", b"\x1f\x8b\x08\x00broken")


@contextlib.contextmanager
def a_platform(postgres: EmbeddedPostgres, root: Path, patch: pytest.MonkeyPatch, **more: str) -> Iterator[Platform]:
    with Platform.create(postgres, root, **more) as made:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


def test_both_engines_give_the_same_hash_for_hash(
    postgres: EmbeddedPostgres, running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tasks of a few objects, as large logs have them.
    monkeypatch.setattr(reader, "_BATCH_OBJECTS", 40)
    found = []
    for engine in (None, running.remote):
        with a_platform(postgres, tmp_path / ((engine and "spark") or "duckdb"), monkeypatch) as platform:
            use(engine, monkeypatch)
            deliver(platform)
            # The broken object is told of, and everything else is read.
            assert not platform.materialize(FIRST, select=("raw_page_views",), raise_on_error=False).success
            assert platform.materialize(FIRST, LAST, select=ALL).success
            found.append(everything(platform))
    on_duckdb, on_spark = found
    assert on_duckdb["user_page_views"]
    assert any(error for *_, error in on_duckdb["objects"])
    for name, there in on_duckdb.items():
        assert on_spark[name] == there, name


def test_a_history_on_either_engine_gives_the_full_recompute(
    postgres: EmbeddedPostgres, running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Random(5)  # noqa: S311 - test data
    machine = Pipeline()
    Pipeline.postgres = postgres
    use(None, monkeypatch)
    machine.start()
    try:
        # Objects change, so days lose what was the latest, and it is looked for in the days before.
        for engine, key, first, days in ((running.remote, "a", 2, 2), (None, "b", 0, 4), (running.remote, "a", 3, 1)):
            use(engine, monkeypatch)
            machine.deliver_views(key, draw)
            machine.deliver_updates("a", draw)
            machine.materialize_everything(DAYS[first], days)
            machine.tables_equal_a_recompute()
            # What executors were told to look for is gone with the merge.
            assert not machine.platform.lake_files("daily/shared")
    finally:
        machine.teardown()


def test_source_and_lake_in_a_bucket_are_reached_by_executors_with_credentials_of_their_own(
    postgres: EmbeddedPostgres, running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"USER_PIPELINE_SOURCE_URL": "s3://source/logs", "USER_PIPELINE_LAKE_URL": "s3://lake/some/prefix"}
    with s3_endpoint(monkeypatch, "source", "lake") as endpoint:
        assert {name: os.environ[name] for name in CREDENTIALS} == CREDENTIALS
        with a_platform(postgres, tmp_path, monkeypatch, **where) as platform:
            use(running.remote, monkeypatch)
            lines = '{"ts": "2017-04-01T10:00:00", "url": "/a", "environment": "production", "user_id": 7}\n'
            endpoint.client.put_object(Bucket="source", Key="logs/PageViews/a", Body=lines.encode() * 2)
            assert platform.materialize(FIRST, select=("raw_page_views", "page_views", "user_page_views")).success
            assert platform.table("analytics", "user_page_views") == [(7, None, "/a", 1, datetime(2017, 4, 1, 10))]
        assert [key for key in endpoint.keys("lake") if key.startswith("some/prefix/daily/user_page_views/")]


def test_objects_go_through_a_filter_on_executors(
    platform: Platform, spark: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spark
    monkeypatch.setenv("USER_PIPELINE_PAGE_VIEWS_FILTER", "sed s./before./after.")
    settings.current.cache_clear()
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00", "/before")])
    assert platform.materialize(FIRST, select=("raw_page_views", "page_views", "user_page_views")).success
    assert [url for _, _, url, *_ in platform.table("analytics", "user_page_views")] == ["/after"]


@pytest.fixture
def engine(spark: Cluster, tmp_path: Path) -> Iterator[SparkEngine]:
    variables = {"USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": spark.remote}
    with SparkEngine(
        Settings.from_environment({**variables, "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch")})
    ) as opened:
        yield opened


def test_each_item_is_worked_on_and_results_come_in_order(engine: SparkEngine) -> None:
    assert list(engine.each(double, range(5))) == [0, 2, 4, 6, 8]
    assert list(engine.each(double, [])) == []


def test_what_a_person_has_to_change_is_told_at_once_and_without_values(engine: SparkEngine) -> None:
    with pytest.raises(ExecutorError, match=r"on a Spark executor: \*\*\* and key cannot be used"):
        list(engine.each(refuse, ["key"]))


def test_a_task_that_fails_again_and_again_is_told_of_without_values(engine: SparkEngine) -> None:
    with pytest.raises(SparkTaskError, match=r"failed each time that it was tried: OSError: the value of \*\*\* is 7"):
        list(engine.each(fail, [7]))


def test_an_executor_that_is_killed_is_made_up_for(engine: SparkEngine, tmp_path: Path) -> None:
    marker = str(tmp_path / "died")
    assert list(engine.each(die_once, [(marker, 1), (marker, 2)])) == [1, 2]
    assert Path(marker).exists()


def test_executors_of_another_version_are_refused(engine: SparkEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.engines import executors

    mine = executors.Versions.here()
    monkeypatch.setattr(executors, "_versions", lambda: executors.Versions(mine.python, "1.0.0", mine.pyarrow, "abc"))
    with pytest.raises(
        ExecutorError, match=re.escape(f"the executors have duckdb {mine.duckdb} where the run has 1.0.0")
    ):
        list(engine.each(double, [1]))


def test_an_executor_killed_in_ingest_changes_nothing(
    platform: Platform, spark: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_BATCH_OBJECTS", 8)
    for number in range(4):
        platform.put_views(f"PageViews/{number}", [view("2017-04-01T10:00:00", f"/{number}", n) for n in range(20)])
    resolved = Settings.from_environment(
        {**platform.environment, "USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": spark.remote}
    )
    with SparkEngine(resolved) as opened:
        # The session, and so the executors, are there; one of them dies while objects are read.
        [victim] = opened.each(executor_of, [1])
        os.kill(victim, signal.SIGKILL)
        monkeypatch.setattr(Platform, "engine", lambda _: contextlib.nullcontext(opened))
        read = ingest(platform)
    assert sum(entry.rows for entry in read.entries) == 80
    assert not platform.rows("staging", "select from rejected_lines")


def settings_with(remote: str) -> Settings:
    return Settings.from_environment({"USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": remote})


def test_a_server_of_another_version_is_refused(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspark, "__version__", "3.5.9")
    with pytest.raises(
        SparkVersionError, match=r"USER_PIPELINE_SPARK_REMOTE: the server is Spark .* pyspark-client 3.5.9"
    ):
        connect(settings_with(running.remote))


def test_status_asks_the_server_and_shows_no_token(running: Cluster) -> None:
    with open_engine(settings_with(f"{running.remote}/;user_id=ann")) as engine:
        engine.probe()
        setting, what = engine.service
    assert (setting, what.startswith("Spark at 127.0.0.1:")) == ("USER_PIPELINE_SPARK_REMOTE", True)
    assert "ann" not in what
    with open_engine(settings_with(f"sc://127.0.0.1:{free_port()}/;token=secret")) as engine:
        with pytest.raises(SparkUnavailableError):
            engine.probe()
        assert "secret" not in engine.service[1]


def test_nobody_at_the_address_is_told_of() -> None:
    with pytest.raises(SparkUnavailableError, match=r"USER_PIPELINE_SPARK_REMOTE: .*127.0.0.1:\d+ cannot be reached"):
        connect(settings_with(f"sc://127.0.0.1:{free_port()}"))


def test_a_wrong_token_is_refused_and_not_shown() -> None:
    conf = ["spark.master=local[1]", "spark.connect.authenticate.token=the-right-token"]
    with cluster(ENVIRONMENT, Shape(workers=0), conf=conf) as guarded:
        address = guarded.remote.replace("127.0.0.1", "localhost")
        connect(settings_with(f"{address}/;token=the-right-token;use_ssl=false")).stop()
        with pytest.raises(SparkRefusedError, match=r"USER_PIPELINE_SPARK_REMOTE: .* refuses the run") as refused:
            connect(settings_with(f"{address}/;token=the-wrong-token;use_ssl=false"))
    assert "token=…" in str(refused.value)
    assert "wrong-token" not in str(refused.value)


# The last one, because it takes the server away.
def test_a_server_that_is_gone_is_told_of_and_nothing_is_half_done(
    platform: Platform, running: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    resolved = Settings.from_environment(
        {**platform.environment, "USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": running.remote}
    )
    with SparkEngine(resolved) as opened:
        assert list(opened.each(double, [1])) == [2]
        guard = running.guards["connect"]
        assert guard.stdin
        guard.stdin.close()
        guard.wait(30)
        monkeypatch.setattr(Platform, "engine", lambda _: contextlib.nullcontext(opened))
        with pytest.raises(
            SparkUnavailableError, match="USER_PIPELINE_SPARK_REMOTE: the Spark Connect server does not"
        ):
            ingest(platform)
    assert platform.rows("staging", "select from pipeline.ingested_objects") == []
    monkeypatch.undo()
    for name, value in platform.environment.items():
        monkeypatch.setenv(name, value)
    assert [entry.rows for entry in ingest(platform).entries] == [1]
