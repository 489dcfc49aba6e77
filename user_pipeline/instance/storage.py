"""Dagster's own records on a laptop: in Postgres, the embedded one unless ``DAGSTER_POSTGRES_URL`` is set.

``dagster.yaml`` names these classes. Neither has any configuration, so what Dagster hands to code servers
and run workers holds no address and no password: each process reads the settings itself.
"""

import json
from collections.abc import Mapping
from typing import Any, Self

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import retry_pg_connection_fn
from sqlalchemy import NullPool, create_engine, text

from user_pipeline import settings
from user_pipeline.dagster_internals import (
    LEGACY_STORAGE_MODULE,
    ConfigurableClassData,
    LocalComputeLogManager,
    UserConfigSchema,
)
from user_pipeline.resources.embedded_postgres import database_url

_TABLES_LOCK = 0x75705F6461677374  # "up_dagst": any number that no one else of this database locks on


class PostgresStorage(DagsterPostgresStorage):
    """Runs, events and schedules in the database that the setting ``DAGSTER_POSTGRES_URL`` resolves to."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        # Dagster creates its tables one by one when it finds none. Two processes that do so at once (the
        # web server and the daemon of a first `dagster dev`) trip over each other's half.
        engine = create_engine(postgres_url, poolclass=NullPool)
        with retry_pg_connection_fn(engine.connect) as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLES_LOCK})
            super().__init__(postgres_url, inst_data=inst_data)
        # Dagster opens a connection for each event it writes, which costs more than the event. One is kept, and
        # asked whether it still answers before it is used again.
        pooled = create_engine(
            postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=-1, pool_pre_ping=True
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = pooled  # noqa: SLF001 - no parameter gets there

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure in ``dagster.yaml``."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - the interface's
    ) -> Self:
        """Start the embedded server if it is needed, and connect."""
        return cls(database_url(settings.current().dagster), inst_data)

    # The inherited three describe dagster_postgres classes with this one's configuration, which is empty
    # and would not bring them back to life. Dagster's own wrappers for custom storages do.

    @property
    def run_storage_data(self) -> ConfigurableClassData | None:
        """How another process gets the run storage."""
        return self._part("LegacyRunStorage")

    @property
    def event_storage_data(self) -> ConfigurableClassData | None:
        """How another process gets the event log storage."""
        return self._part("LegacyEventLogStorage")

    @property
    def schedule_storage_data(self) -> ConfigurableClassData | None:
        """How another process gets the schedule storage."""
        return self._part("LegacyScheduleStorage")

    def _part(self, wrapper: str) -> ConfigurableClassData | None:
        whole = self.inst_data
        if whole is None:
            return None
        configuration = {
            "module_name": whole.module_name,
            "class_name": whole.class_name,
            "config_yaml": whole.config_yaml,
        }
        # JSON is YAML, too.
        return ConfigurableClassData(LEGACY_STORAGE_MODULE, wrapper, json.dumps(configuration))


class DataDirComputeLogManager(LocalComputeLogManager):
    """What steps print, kept beside everything else that is embedded.

    Dagster's default is the instance's directory, which without ``DAGSTER_HOME`` is a temporary one: runs
    would outlive their logs.
    """

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure in ``dagster.yaml``."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - the interface's
    ) -> Self:
        """Keep the logs under ``USER_PIPELINE_DATA_DIR``."""
        return cls(str(settings.current().data_dir / "dagster" / "compute_logs"), inst_data=inst_data)
