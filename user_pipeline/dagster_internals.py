"""Every name of Dagster that is not in its public API, each with its reason and the public way it waits for.

No other module imports a private name of Dagster. ``user_pipeline_tests/test_dagster_internals.py`` checks what is used
of each of them, so that an upgrade which changes one fails there, with a sentence, and not in a run.
"""

from typing import TYPE_CHECKING

# The schema of a custom instance or storage without keys. Waits for a public base class of both.
from dagster._config.config_schema import UserConfigSchema

# How a day's data version is kept in an event, to find the latest ones with one query. Waits for a public query of the
# data versions of many partitions; DagsterInstance has one of a single partition.
from dagster._core.definitions.data_version import DATA_VERSION_TAG

# To tell a failed check, and Dagster's own words around an error, from the error itself in an alert. Waits for their
# export.
from dagster._core.errors import (
    DagsterAssetCheckFailedError,
    DagsterExecutionStepExecutionError,
    DagsterUserCodeUnreachableError,
)

# The evaluations of a check for one partition, to tell what is news in an alert. Waits for a query of DagsterInstance.
from dagster._core.event_api import PartitionKeyFilter

# A class for `instance_class` of dagster.yaml, Dagster's documented way to put code in front of every process, needs
# the defaults that the plain instance has. Waits for a default implementation in DagsterInstance.
from dagster._core.instance.ref import InstanceRef

# What a run launcher answers to run monitoring. Custom run launchers are documented; these types are not exported.
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

# The same: only evaluations that have ended are asked for.
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

# The tags of a run that say its partition or range, and what becomes of a failed run. They are documented as strings.
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
)

# To ask the code server whether it still has a run. Waits for run monitoring of the default launcher
# (supports_check_run_worker_health is false there).
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

# The same, and how a custom storage is named to other processes. Waits for a public base class for storages.
from dagster._serdes import ConfigurableClassData, deserialize_value

if TYPE_CHECKING:
    # Dagster's own local log files, in another directory. Waits for a configuration key that may be left to a program.
    from dagster._core.storage.local_compute_log_manager import (
        LocalComputeLogManager,
    )


def __getattr__(name: str) -> "type[LocalComputeLogManager]":
    """Import on demand: this one imports a file watcher, which most processes do not need."""
    if name == "LocalComputeLogManager":
        from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

        return LocalComputeLogManager
    raise AttributeError(name)


EVENT_LOG_CONSUMER_CURSOR = "EVENT_LOG_CONSUMER_CURSOR-"
"""With the type of the event, the key under which the daemon keeps the number of the last event it read. Waits for a
way to have a failure read again."""

RETRY_FAILED_MESSAGE = "Failed to retry run"
"""How the daemon begins its report about a run whose retry it could not request. Waits for a tag or an event type."""

LEGACY_STORAGE_MODULE = "dagster._core.storage.legacy_storage"
"""Dagster's wrappers that hand a custom storage's three parts to other processes. Waits for a storage that is handed on
whole."""

__all__ = [
    "ASSET_PARTITION_RANGE_END_TAG",
    "ASSET_PARTITION_RANGE_START_TAG",
    "AUTO_RETRY_RUN_ID_TAG",
    "DATA_VERSION_TAG",
    "EVENT_LOG_CONSUMER_CURSOR",
    "LEGACY_STORAGE_MODULE",
    "PARENT_RUN_ID_TAG",
    "PARTITION_NAME_TAG",
    "RETRY_FAILED_MESSAGE",
    "WILL_RETRY_TAG",
    "AssetCheckExecutionRecordStatus",
    "CanCancelExecutionRequest",
    "CanCancelExecutionResult",
    "CheckRunHealthResult",
    "ConfigurableClassData",
    "DagsterAssetCheckFailedError",
    "DagsterExecutionStepExecutionError",
    "DagsterUserCodeUnreachableError",
    "DefaultRunLauncher",
    "InstanceRef",
    "LocalComputeLogManager",
    "PartitionKeyFilter",
    "UserConfigSchema",
    "WorkerStatus",
    "deserialize_value",
]
