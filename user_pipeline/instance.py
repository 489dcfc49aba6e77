"""The Dagster instance that every ``dagster.yaml`` here names: its processes write private files.

Whatever starts a process of Dagster (``dagster dev``, ``dagster asset materialize``, a container, Dagster's Helm chart)
loads the instance first, so what must hold in each of them is done here.
"""

from collections.abc import Mapping
from typing import Any

from dagster import DagsterInstance, Field
from dagster._core.instance.ref import InstanceRef

from user_pipeline.private import keep_private

# On import: Dagster makes the storages, and with them the embedded Postgres, before it makes the instance.
keep_private()


class Instance(DagsterInstance):
    """Dagster's own instance."""

    @classmethod
    def config_schema(cls) -> Mapping[str, Field]:
        """No further keys in ``dagster.yaml``."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Dagster's own for what ``dagster.yaml`` leaves out."""
        return InstanceRef.config_defaults(base_dir)
