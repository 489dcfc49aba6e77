"""The engine: what it reads is what is there."""

from pathlib import Path

import duckdb

from user_pipeline.engines.duckdb import Engine
from user_pipeline.settings import Settings


def test_a_file_that_is_replaced_at_once_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    with Engine(Settings.from_environment({"USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch")})) as engine:
        connection = engine.connect()
        for number in range(50):
            duckdb.sql(f"select {number} as n").write_parquet(str(file))
            assert connection.read_parquet(str(file)).fetchall() == [(number,)]
            file.unlink()


def test_its_connections_share_most_of_the_limit(tmp_path: Path) -> None:
    environment = {"USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch"), "USER_PIPELINE_MEMORY_LIMIT": "800MB"}
    with Engine(Settings.from_environment(environment)) as engine:
        assert engine.memory_limit == 800_000_000
        for _ in range(2):
            query = "select current_setting('memory_limit')"
            [(limit,)] = engine.connect().execute(query).fetchall()
            # 600 MB, as it says it.
            assert limit == "572.2 MiB"
