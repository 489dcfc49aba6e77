"""The same assets on a Spark cluster: equal tables, and what goes wrong is said."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyspark
import pytest

from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.cli.spark_cluster import Cluster, free_port
from user_pipeline.engines import open_engine
from user_pipeline.engines.spark import SparkEngine
from user_pipeline.engines.spark_errors import (
    ExecutorError,
    ExecutorPackagesError,
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
from user_pipeline_tests.platform import UNDRAWN, Platform, view
from user_pipeline_tests.s3 import s3_endpoint
from user_pipeline_tests.spark.conftest import CREDENTIALS, ENVIRONMENT, use, with_token
from user_pipeline_tests.spark.work import DoneTwice, KillsOnce, double, fail, kill_worker_once, refuse
from user_pipeline_tests.test_oracle import DAYS, Pipeline

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
            assert platform.materialize(FIRST, LAST, select=UNDRAWN).success
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


def test_executors_reach_a_bucket_with_credentials_of_their_own_and_read_through_a_filter(
    postgres: EmbeddedPostgres, running: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = {"USER_PIPELINE_SOURCE_URL": "s3://source/logs", "USER_PIPELINE_LAKE_URL": "s3://lake/some/prefix"}
    where["USER_PIPELINE_PAGE_VIEWS_FILTER"] = "sed s./before./after."
    with s3_endpoint(monkeypatch, "source", "lake") as endpoint:
        assert {name: os.environ[name] for name in CREDENTIALS} == CREDENTIALS
        with a_platform(postgres, tmp_path, monkeypatch, **where) as platform:
            use(running.remote, monkeypatch)
            lines = '{"ts": "2017-04-01T10:00:00", "url": "/before", "environment": "production", "user_id": 7}\n'
            endpoint.client.put_object(Bucket="source", Key="logs/PageViews/a", Body=lines.encode() * 2)
            assert platform.materialize(FIRST, select=("raw_page_views", "page_views", "user_page_views")).success
            assert platform.table("analytics", "user_page_views") == [(7, None, "/after", 1, datetime(2017, 4, 1, 10))]
        assert [key for key in endpoint.keys("lake") if key.startswith("some/prefix/daily/user_page_views/")]


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


def test_executors_of_another_version_are_refused(engine: SparkEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from user_pipeline.engines import executors

    mine = executors.Versions.here()
    monkeypatch.setattr(executors, "_versions", lambda: executors.Versions(mine.python, "1.0.0", mine.pyarrow, "abc"))
    with pytest.raises(
        ExecutorError, match=re.escape(f"the executors have duckdb {mine.duckdb} where the run has 1.0.0")
    ):
        list(engine.each(double, [1]))


def test_executors_without_the_package_are_told_of(engine: SparkEngine, tmp_path: Path) -> None:
    # A Python that has Spark and Arrow, and nothing of this project.
    python = tmp_path / "lacking" / "bin" / "python"
    subprocess.run([ENVIRONMENT / "bin/python", "-m", "venv", "--without-pip", python.parents[1]], check=True)
    [theirs] = ENVIRONMENT.glob("lib/python3*/site-packages")
    [packages] = python.parents[1].glob("lib/python3*/site-packages")
    (packages / "theirs.pth").write_text(f"{theirs}\n")
    engine._session.conf.set("spark.sql.execution.pyspark.python", str(python))
    with pytest.raises(
        ExecutorPackagesError, match=r"there is no user_pipeline\. They need .* docs/spark\.md says how"
    ):
        list(engine.each(double, [1]))


def test_tasks_that_are_lost_or_done_twice_change_nothing(
    platform: Platform, spark: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spark
    monkeypatch.setattr(reader, "_BATCH_OBJECTS", 8)
    marker = {name: tmp_path / name for name in ("ingest", "twice", "aggregate")}
    each, make = SparkEngine.each, SparkEngine.make

    def faulty_each(self: SparkEngine, work: Any, items: Any) -> Iterator[Any]:
        # In ingest an executor dies once, and another task is done a second time beside the first.
        lost = KillsOnce(DoneTwice(work, str(marker["twice"])), str(marker["ingest"]))
        return each(self, lost, items)

    def faulty_make(self: SparkEngine, frame: Any, file: Path, put: Any = None) -> Any:
        # Another one dies when a file of the daily aggregate was stored.
        is_aggregate = "user_page_views" in repr(put)
        return make(self, frame, file, KillsOnce(put, str(marker["aggregate"])) if is_aggregate else put)

    views = [view(f"2017-04-01T10:00:{n % 60:02}", f"/{n % 7}", n % 5) for n in range(80)]
    for number in range(4):
        platform.put_views(f"PageViews/{number}", [*views[20 * number : 20 * number + 20], "{broken"])
    monkeypatch.setattr(SparkEngine, "each", faulty_each)
    monkeypatch.setattr(SparkEngine, "make", faulty_make)
    assert platform.materialize(FIRST, select=("raw_page_views", "page_views", "user_page_views")).success
    assert all(path.exists() for path in [*marker.values(), tmp_path / "twice-again"])
    assert platform.rows("staging", "select count(*), count(distinct source_object) from rejected_lines") == [(4, 4)]
    assert platform.rows("staging", "select sum(rows)::int, sum(rejects)::int from pipeline.ingested_objects") == [
        (80, 4)
    ]
    found = platform.table("analytics", "user_page_views")
    assert {(user, url, count) for user, _, url, count, _ in found} == {
        (user, f"/{page}", sum(n % 5 == user and n % 7 == page for n in range(80)))
        for user in range(5)
        for page in range(7)
    }


def settings_with(remote: str) -> Settings:
    return Settings.from_environment({"USER_PIPELINE_ENGINE": "spark", "USER_PIPELINE_SPARK_REMOTE": remote})


def test_a_server_of_another_version_is_refused(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyspark, "__version__", "3.5.9")
    with pytest.raises(
        SparkVersionError, match=r"USER_PIPELINE_SPARK_REMOTE: the server is Spark .* pyspark-client 3.5.9"
    ):
        connect(settings_with(running.remote))


def test_status_asks_the_server_and_shows_no_token(running: Cluster) -> None:
    with open_engine(settings_with(f"{running.remote};user_id=ann")) as engine:
        engine.probe()
        setting, what = engine.service
    assert (setting, what.startswith("Spark at localhost:")) == ("USER_PIPELINE_SPARK_REMOTE", True)
    assert "ann" not in what
    with open_engine(settings_with(f"sc://127.0.0.1:{free_port()}/;token=secret")) as engine:
        with pytest.raises(SparkUnavailableError):
            engine.probe()
        assert "secret" not in engine.service[1]


def test_nobody_at_the_address_is_told_of() -> None:
    with pytest.raises(SparkUnavailableError, match=r"USER_PIPELINE_SPARK_REMOTE: .*127.0.0.1:\d+ cannot be reached"):
        connect(settings_with(f"sc://127.0.0.1:{free_port()}"))


def test_a_wrong_token_is_refused_and_not_shown(running: Cluster) -> None:
    from pyspark.sql.connect.session import SparkSession

    # With the right one all other tests run.
    with pytest.raises(SparkRefusedError, match=r"USER_PIPELINE_SPARK_REMOTE: .* refuses the run") as refused:
        connect(settings_with(with_token(running.remote, "the-wrong-token")))
    assert "token=…" in str(refused.value)
    assert "wrong-token" not in str(refused.value)
    # A later session does not ask the server that refused this one.
    assert SparkSession.getActiveSession() is None


# The last ones, because they take a worker and then the server away.
def test_a_worker_that_is_gone_is_made_up_for(engine: SparkEngine, tmp_path: Path) -> None:
    items = [(str(tmp_path / "died"), number) for number in range(4)]
    assert list(engine.each(kill_worker_once, items)) == [0, 1, 2, 3]
    assert (tmp_path / "died").exists()


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
