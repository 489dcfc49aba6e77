"""The Dagster instance that every ``dagster.yaml`` here names: private files, and a web server closed to other sites.

Whatever starts a process of Dagster (``dagster dev``, ``dagster asset materialize``, a container, Dagster's Helm chart)
loads the instance first, so what must hold in each of them is done here.
"""

from collections.abc import Mapping
from typing import Any

from dagster import DagsterInstance, Field

from user_pipeline import short_errors
from user_pipeline.dagster_internals import InstanceRef
from user_pipeline.private_files import keep_private

# Before the settings are asked for.
short_errors.install()

# On import: Dagster makes the storages, and with them the embedded Postgres, before it makes the instance.
keep_private()


class Instance(DagsterInstance):
    """Dagster's own instance, whose web server refuses what other web sites ask of it."""

    @classmethod
    def config_schema(cls) -> Mapping[str, Field]:
        """No further keys in ``dagster.yaml``."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Dagster's own for what ``dagster.yaml`` leaves out."""
        return InstanceRef.config_defaults(base_dir)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """What a web server calls, and nothing else, before it begins to serve."""
        from user_pipeline.instance.webserver import guard

        guard()
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)
