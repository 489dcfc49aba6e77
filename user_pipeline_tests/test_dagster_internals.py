"""What the package uses of Dagster beyond its public API is as it was when that was written.

After an upgrade these fail first, each with what changed and the modules that use it.
"""

import ast
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import user_pipeline

PACKAGE = Path(user_pipeline.__file__).parent
INTERNALS = PACKAGE / "dagster_internals.py"

TAGS = {
    "DATA_VERSION_TAG": "dagster/data_version",
    "ASSET_PARTITION_RANGE_START_TAG": "dagster/asset_partition_range_start",
    "ASSET_PARTITION_RANGE_END_TAG": "dagster/asset_partition_range_end",
    "PARTITION_NAME_TAG": "dagster/partition",
    "AUTO_RETRY_RUN_ID_TAG": "dagster/auto_retry_run_id",
    "PARENT_RUN_ID_TAG": "dagster/parent_run_id",
    "WILL_RETRY_TAG": "dagster/will_retry",
}


def imports_of(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything a file imports, wherever it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


FILES = {path: imports_of(path) for path in sorted(PACKAGE.rglob("*.py"))}
PRIVATE = {name: module for module, name in FILES[INTERNALS] if module.startswith("dagster._")}
CONSTANTS = ["EVENT_LOG_CONSUMER_CURSOR", "LEGACY_STORAGE_MODULE", "RETRY_FAILED_MESSAGE"]


def users(name: str) -> list[str]:
    """The modules that take a name from dagster_internals."""
    return [
        path.relative_to(PACKAGE).as_posix()
        for path, imports in FILES.items()
        if ("user_pipeline.dagster_internals", name) in imports
    ]


def internal(name: str) -> Any:  # of any type: it is what is looked at
    module = PRIVATE[name]
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        pytest.fail(f"Dagster has no {module}.{name} any more; it is used by {', '.join(users(name))}")


def constant(name: str) -> str:
    """A string that dagster_internals repeats from Dagster's code; read, since importing it may be what fails."""
    for node in ast.parse(INTERNALS.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return str(ast.literal_eval(node.value))
    pytest.fail(f"dagster_internals.py has no {name}")


def takes(function: Any, *arguments: Any, user: str, **options: Any) -> None:
    """It can be called as the package calls it."""
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        pytest.fail(f"{function.__qualname__} takes other parameters now ({error}); user_pipeline/{user} calls it")


def has(thing: Any, *names: str, user: str) -> None:
    for name in names:
        assert hasattr(thing, name), f"{thing} has no {name} any more; user_pipeline/{user} uses it"


def says(thing: Any, *texts: str, user: str) -> None:
    """Its source has these words."""
    source = inspect.getsource(thing)
    for text in texts:
        assert text in source, f"{thing.__name__} no longer has {text!r}; user_pipeline/{user} relies on it"


def test_one_module_imports_what_is_private_in_dagster() -> None:
    found = {
        f"{path.relative_to(PACKAGE)} imports {module}.{name}"
        for path, imports in FILES.items()
        for module, name in imports
        if path != INTERNALS
        and module.partition("_")[0] in ("dagster", "dagster.")
        and any(part.startswith("_") for part in [*module.split("."), *name.split(".")])
    }
    assert found == set()


def test_each_private_name_is_used_and_each_has_a_test() -> None:
    exported = importlib.import_module("user_pipeline.dagster_internals").__all__
    assert set(exported) == {*PRIVATE, *CONSTANTS}
    assert [name for name in exported if not users(name)] == []
    tests = Path(__file__).read_text()
    assert [name for name in exported if tests.count(f'"{name}"') < 1] == []


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_there(name: str) -> None:
    assert internal(name) is not None


@pytest.mark.parametrize("name", TAGS)
def test_a_tag_is_the_string_that_is_stored(name: str) -> None:
    assert internal(name) == TAGS[name], f"{name} is {internal(name)!r} now; {', '.join(users(name))} look for it"


@pytest.mark.parametrize("name", ["DagsterAssetCheckFailedError", "DagsterExecutionStepExecutionError"])
def test_an_error_is_known_by_the_name_of_its_class(name: str) -> None:
    assert internal(name).__name__ == name, f"it is called {internal(name).__name__} now; {users(name)} compare names"
    assert issubclass(internal(name), Exception)


def test_a_code_server_that_does_not_answer_raises_this() -> None:
    error = internal("DagsterUserCodeUnreachableError")
    client = importlib.import_module("dagster._grpc.client")
    says(client, error.__name__, user="instance/run_launcher.py")


def test_the_schema_of_a_class_without_keys_is_an_empty_mapping() -> None:
    schema = internal("UserConfigSchema")
    mapping = [kind for kind in schema.__args__ if getattr(kind, "__origin__", None) is Mapping]
    assert mapping, f"UserConfigSchema is {schema} now; user_pipeline/instance/storage.py gives an empty mapping"


def test_an_instance_has_these_defaults_and_hooks() -> None:
    user = "instance/__init__.py"
    takes(internal("InstanceRef").config_defaults, "/somewhere", user=user)
    takes(dg.DagsterInstance.optimize_for_webserver, None, 1, 1, 1, user=user)
    says(importlib.import_module("dagster_webserver.cli"), "instance.optimize_for_webserver(", user=user)
    instance_ref = inspect.getmodule(internal("InstanceRef"))
    says(instance_ref, "config_defaults(base_dir)", "config_schema", user=user)


def test_a_run_launcher_can_be_asked_for_the_code_server_of_a_run() -> None:
    user = "instance/run_launcher.py"
    launcher = internal("DefaultRunLauncher")
    has(launcher, "supports_check_run_worker_health", user=user)
    takes(launcher.check_run_worker_health, None, None, user=user)
    has(launcher, "_get_grpc_client_for_termination", user=user)
    takes(launcher._get_grpc_client_for_termination, None, "a run", user=user)
    has(internal("WorkerStatus"), "RUNNING", "NOT_FOUND", user=user)
    takes(internal("CheckRunHealthResult"), internal("WorkerStatus").RUNNING, "a reason", user=user)


def test_a_code_server_says_whether_it_has_a_run() -> None:
    user = "instance/run_launcher.py"
    request = internal("CanCancelExecutionRequest")(run_id="a run")
    assert request.run_id == "a run"
    result = internal("CanCancelExecutionResult")
    answer = importlib.import_module("dagster._serdes").serialize_value(result(can_cancel=True))
    read = internal("deserialize_value")(answer, result)
    assert read.can_cancel is True, f"the answer is {read} now; user_pipeline/{user} reads it"
    client = importlib.import_module("dagster._grpc.client").DagsterGrpcClient
    has(client, "can_cancel_execution", user=user)


def test_the_storage_of_postgres_has_three_parts_with_an_engine_each() -> None:
    user = "instance/storage.py"
    storage = importlib.import_module("dagster_postgres").DagsterPostgresStorage
    takes(storage, "postgresql://", inst_data=None, user=user)
    parts = {"run_storage": "RunStorage", "event_log_storage": "EventLogStorage", "schedule_storage": "ScheduleStorage"}
    for part, name in parts.items():
        says(storage, f"self._{part} = Postgres{name}(", user=user)
        kind = getattr(importlib.import_module("dagster_postgres"), f"Postgres{name}")
        says(kind, "self._engine = ", "create_pg_connection(self._engine)", user=user)


def test_the_parts_of_a_storage_are_handed_to_other_processes_by_wrappers() -> None:
    user = "instance/storage.py"
    data = internal("ConfigurableClassData")("a_module", "AClass", "{}")
    assert (data.module_name, data.class_name, data.config_yaml) == ("a_module", "AClass", "{}")
    wrappers = importlib.import_module(constant("LEGACY_STORAGE_MODULE"))
    for name in ("LegacyRunStorage", "LegacyEventLogStorage", "LegacyScheduleStorage"):
        has(wrappers, name, user=user)
        keys = set(getattr(wrappers, name).config_type())
        assert keys == {"module_name", "class_name", "config_yaml"}, (
            f"{name} takes {keys} now; user_pipeline/{user} gives it module_name, class_name and config_yaml"
        )
    storage = importlib.import_module("dagster_postgres").DagsterPostgresStorage
    has(storage, "run_storage_data", "event_storage_data", "schedule_storage_data", user=user)


def test_the_local_log_files_can_be_elsewhere(tmp_path: Path) -> None:
    manager = internal("LocalComputeLogManager")
    takes(manager, str(tmp_path), inst_data=None, user="instance/storage.py")
    takes(manager.from_config_value, None, {}, user="instance/storage.py")


def test_the_daemon_keeps_its_cursor_under_this_key_and_reports_in_these_words() -> None:
    user = "defs/automation/retries.py"
    consumer = importlib.import_module("dagster._daemon.auto_run_reexecution.event_log_consumer")
    says(consumer, f'f"{constant("EVENT_LOG_CONSUMER_CURSOR")}{{event_type.value}}"', user=user)
    retrying = importlib.import_module("dagster._daemon.auto_run_reexecution.auto_run_reexecution")
    says(retrying, f'"{constant("RETRY_FAILED_MESSAGE")}",', user=user)
    cursors = dg.DagsterInstance.ephemeral().daemon_cursor_storage
    cursors.set_cursor_values({"a key": "7"})
    assert cursors.get_cursor_values({"a key"}) == {"a key": "7"}


def test_the_web_server_is_made_of_this_class() -> None:
    user = "instance/webserver.py"
    app = importlib.import_module("dagster_webserver.app")
    kind = importlib.import_module("dagster_webserver.webserver").DagsterWebserver
    assert app.DagsterWebserver.__mro__[-1] is object
    assert kind in app.DagsterWebserver.__mro__, f"dagster_webserver.app makes another server; user_pipeline/{user}"
    says(app, "return DagsterWebserver(", user=user)
    takes(kind.build_middleware, None, user=user)
    says(inspect.getmodule(kind.__base__), "self._app_path_prefix = ", "self.build_middleware()", user=user)


def test_metadata_and_checks_of_single_days_can_be_reported() -> None:
    step = importlib.import_module("dagster._core.execution.context.system").StepExecutionContext
    takes(step.add_asset_metadata, None, {}, asset_key=None, partition_key="2017-04-01", user="io_managers/lake.py")
    user = "defs/check_results.py"
    has(dg.AssetCheckExecutionContext, "op_execution_context", user=user)
    takes(dg.OpExecutionContext.log_event, None, None, user=user)
    says(dg.OpExecutionContext.log_event, "AssetCheckEvaluation", user=user)
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("an_asset"), check_name="a_check", passed=True, metadata={}, partition="2017-04-01"
    )
    assert evaluation.partition == "2017-04-01"


def test_the_latest_tags_of_many_partitions_are_one_query() -> None:
    storage = dg.DagsterInstance.ephemeral().event_log_storage
    found = storage.get_latest_tags_by_partition(
        dg.AssetKey("an_asset"),
        dg.DagsterEventType.ASSET_OBSERVATION,
        [internal("DATA_VERSION_TAG")],
        asset_partitions=["2017-04-01"],
    )
    assert found == {}, "user_pipeline/defs/ingest/data_versions.py asks for it"


def test_the_evaluations_of_a_check_can_be_asked_for_by_partition() -> None:
    has(internal("AssetCheckExecutionRecordStatus"), "SUCCEEDED", "FAILED", user="defs/automation/faults.py")
    takes(internal("PartitionKeyFilter"), key=None, user="defs/automation/faults.py")
    with dg.DagsterInstance.ephemeral() as instance:
        takes(
            instance.event_log_storage.get_asset_check_execution_history,
            dg.AssetCheckKey(dg.AssetKey("a"), "b"),
            limit=1,
            cursor=None,
            status=None,
            partition_filter=None,
            user="defs/automation/faults.py",
        )
