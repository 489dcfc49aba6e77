import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterInstance
from dagster._core.instance import MayHaveInstanceWeakref
from dagster._core.instance.ref import InstanceRef

from user_pipeline import settings
from user_pipeline.instance.storage import PostgresStorage
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import CHECKOUT

Query = Callable[[str, str], list[tuple[object, ...]]]
DAGSTER_YAML = CHECKOUT / "dagster.yaml"
DEFINITIONS = """
import dagster as dg

@dg.asset(io_manager_key="none")
def greeting() -> None:
    print("hello from the step")

@dg.io_manager
def none():
    class Nothing(dg.IOManager):
        def handle_output(self, context, obj): pass
        def load_input(self, context): pass
    return Nothing()

defs = dg.Definitions(assets=[greeting], resources={"none": none})
"""


def test_a_bare_materialize_keeps_its_run_and_logs_in_the_data_directory(
    place: Path, clean_environment: dict[str, str], query: Query
) -> None:
    shutil.copy(DAGSTER_YAML, place)
    (place / "definitions.py").write_text(DEFINITIONS)
    dagster = Path(sys.executable).with_name("dagster")
    # The step runs in a process of its own, which is told of the instance by reference.
    subprocess.run(
        [dagster, "asset", "materialize", "-f", "definitions.py", "--select", "*"],
        cwd=place,
        env=clean_environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    url = EmbeddedPostgres(place / "data").url("dagster")
    assert query(url, "SELECT status FROM runs") == [("SUCCESS",)]
    assert query(url, "SELECT asset_key FROM asset_keys") == [('["greeting"]',)]
    captured = "".join(path.read_text() for path in place.glob("data/dagster/compute_logs/**/*.out"))
    assert "hello from the step" in captured
    assert not list(place.glob(".tmp_dagster_home_*"))


def test_a_configured_database_is_used_and_nothing_embedded_starts(
    place: Path, server: EmbeddedPostgres, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create_database("configured")
    monkeypatch.chdir(place)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", server.url("configured"))
    settings.current.cache_clear()
    try:
        reference = InstanceRef.from_dir(str(place), config_dir=str(DAGSTER_YAML.parent))
        # What goes to other processes holds neither address nor password.
        assert "configured" not in dg.serialize_value(reference)
        received = dg.deserialize_value(dg.serialize_value(reference), InstanceRef)
        with DagsterInstance.from_ref(received) as instance:
            assert instance.get_runs_count() == 0
            assert not instance.telemetry_enabled
        storage = received.storage
        assert isinstance(storage, PostgresStorage)
        for part in (storage.run_storage_data, storage.event_storage_data, storage.schedule_storage_data):
            assert part is not None
            assert part.rehydrate(as_type=MayHaveInstanceWeakref)
    finally:
        settings.current.cache_clear()
    assert query(server.url("configured"), "SELECT count(*) FROM runs") == [(0,)]
    assert not (place / "data").exists()


def test_processes_that_meet_an_empty_database_at_once_make_its_tables_once(
    server: EmbeddedPostgres, query: Query
) -> None:
    server.create_database("contended")
    code = "import sys; from user_pipeline.instance.storage import PostgresStorage; PostgresStorage(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, server.url("contended")], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    complaints = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0], complaints
    assert "Retrying" not in complaints
    assert query(server.url("contended"), "SELECT count(*) FROM alembic_version") == [(1,)]
