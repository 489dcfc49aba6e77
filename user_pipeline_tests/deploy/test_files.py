"""The files of ``deploy/``: that they parse, agree with each other and with the code, and hold no secret."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance
from dagster._core.instance.config import PoolGranularity
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin
from dagster._core.workspace.load import location_origins_from_yaml_paths
from dagster_aws.s3 import S3ComputeLogManager
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_postgres import DagsterPostgresStorage
from dagster_webserver.cli import dagster_webserver

from user_pipeline.definitions import defs
from user_pipeline.instance import Instance
from user_pipeline.launcher import WatchedRunLauncher
from user_pipeline.local.postgres import EmbeddedPostgres
from user_pipeline.settings import Settings
from user_pipeline_tests.deployment import COMPOSE, DEPLOY, code_command
from user_pipeline_tests.s3 import s3_endpoint

CHECKOUT = DEPLOY.parent
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
HELM: dict[str, Any] = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text())
DEPLOY_GUIDE = (CHECKOUT / "docs" / "deploy.md").read_text()
ONE_SHOT = {"roles", "tables", "migrate"}
# Where what is embedded lives; the image embeds nothing.
NOT_DEPLOYED = {"USER_PIPELINE_DATA_DIR"}


def strings(value: Any) -> Iterator[str]:
    """Every string of a YAML document, keys excepted."""
    match value:
        case str():
            yield value
        case dict():
            for item in value.values():
                yield from strings(item)
        case list():
            for item in value:
                yield from strings(item)


def variables(name: str) -> dict[str, str]:
    """The variables of an env file."""
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def optional(text: str) -> set[str]:
    """The variables that an env file names in a comment, to be taken out of it by whoever needs them."""
    return set(re.findall(r"^ *# (\w+)=", text, re.MULTILINE))


class Asked(dict[str, str]):
    """An empty environment that knows which variables it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Every variable that the settings are read from, but for what the image sets itself."""
    asked = Asked()
    Settings.from_environment(asked)
    assert len(asked.names) >= 14
    image = set(re.findall(r"\b([A-Z_]+)=", (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]))
    assert "USER_PIPELINE_SCRATCH_DIR" in image
    return asked.names - image - NOT_DEPLOYED


def test_every_yaml_file_of_the_deployment_has_no_key_twice() -> None:
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
            return super().construct_mapping(node, deep)

    files = [*DEPLOY.rglob("*.yaml"), *CHECKOUT.glob("*.yaml"), *(CHECKOUT / ".github").rglob("*.y*ml")]
    assert len(files) >= 6
    for file in files:
        assert isinstance(yaml.load(file.read_text(), Strict), dict), file  # noqa: S506 - a safe loader


def test_every_variable_of_the_compose_file_is_in_the_example_and_the_other_way_round() -> None:
    used = {name for text in strings(COMPOSE) for name in re.findall(r"\$\{(\w+)", text)}
    environments = [service.get("environment", {}) for service in COMPOSE["services"].values()]
    passed_on = {name for environment in environments for name, value in environment.items() if value is None}
    example = (DEPLOY / ".env.example").read_text()
    assert not set(variables(".env.example")) & optional(example)
    assert used | passed_on == set(variables(".env.example")) | optional(example)
    # An empty value is one for the AWS clients: these are set, or not there.
    assert passed_on <= optional(example)


def test_every_setting_reaches_the_containers_of_compose(known: set[str]) -> None:
    for name in ("code", "daemon", "webserver", "tables"):
        assert known <= set(COMPOSE["services"][name]["environment"]), name


def test_every_setting_reaches_the_pods_of_helm(known: set[str]) -> None:
    [deployment] = HELM["dagster-user-deployments"]["deployments"]
    values = {variable["name"]: variable["value"] for variable in deployment["env"]}
    # What is shown there is what holds without it.
    assert all(isinstance(value, str) for value in values.values())
    assert Settings.from_environment(values) == Settings.from_environment({})
    [secret] = re.findall(r"cat > pipeline\.env <<END\n(.*?)\n +END\n", DEPLOY_GUIDE, re.DOTALL)
    in_secret = set(re.findall(r"^ *(\w+)=", secret, re.MULTILINE)) | optional(secret)
    assert not in_secret & set(values)
    web_server = {variable["name"]: variable for variable in HELM["dagsterWebserver"]["env"]}
    # As whom it is asked concerns the web server alone. The chart hands the URL of Dagster's storage on in its own way.
    assert known - {"DAGSTER_POSTGRES_URL", "USER_PIPELINE_UI_HOSTS"} <= in_secret | set(values)
    assert {"USER_PIPELINE_UI_URL", "USER_PIPELINE_UI_HOSTS"} <= set(web_server)
    assert web_server["USER_PIPELINE_UI_URL"] in deployment["env"]
    assert deployment["envSecrets"] == [{"name": "user-pipeline"}]
    assert deployment["includeConfigInLaunchedRuns"]["enabled"]
    assert re.search(r"secret generic user-pipeline --from-env-file=pipeline\.env", DEPLOY_GUIDE)
    # S3 encryption, for compose as well as here.
    encryption = {"AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED"}
    assert encryption <= in_secret
    assert encryption <= set(COMPOSE["x-dagster"]["environment"])


def test_the_health_checks_ask_the_web_server_under_a_name_it_answers_to() -> None:
    command = " ".join(COMPOSE["services"]["webserver"]["healthcheck"]["test"])
    assert re.findall(r"https?://([^/:]+)", command) == ["127.0.0.1"]
    # Kubernetes asks a pod under its address, which is put in for $(POD_IP) if that stands before.
    variables = HELM["dagsterWebserver"]["env"]
    names = [variable["name"] for variable in variables]
    assert names.index("POD_IP") < names.index("USER_PIPELINE_UI_HOSTS")
    assert variables[names.index("POD_IP")]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    hosts = variables[names.index("USER_PIPELINE_UI_HOSTS")]["value"].replace("$(POD_IP)", "10.1.2.3")
    assert Settings.from_environment({"USER_PIPELINE_UI_HOSTS": hosts}).ui_hosts == ("10.1.2.3",)
    probe = HELM["dagsterWebserver"]["readinessProbe"]["httpGet"]
    assert "host" not in probe
    assert "httpHeaders" not in probe


def test_only_the_containers_that_make_tables_know_who_may() -> None:
    for name, service in COMPOSE["services"].items():
        said = " ".join(strings(service))
        assert ("OWNER_DB_PASSWORD" in said) == (name in ("roles", "tables")), name
        assert ("${POSTGRES_PASSWORD" in said) == (name in ("roles", "postgres")), name
        if name in ("code", "webserver", "daemon"):
            for database in ("STAGING", "ANALYTICS"):
                url = service["environment"][f"USER_PIPELINE_{database}_URL"]
                assert url.startswith("postgresql://user_pipeline_writer:"), name


def test_the_compose_file_and_the_example_hold_no_secret() -> None:
    required = {
        name for text in strings(COMPOSE) for name, how in re.findall(r"\$\{(\w+)(:\?|:-)", text) if how == ":?"
    }
    secret = {name for name in variables(".env.example") if re.search("PASSWORD|SECRET|KEY", name)}
    # A secret has no default anywhere, and nothing else has to be filled in.
    assert required == secret == {name for name, value in variables(".env.example").items() if not value}
    for text in [*strings(COMPOSE), *strings(HELM)]:
        assert not re.search(r"://[^/@]*:(?!\$\{)[^/@]+@", text), text


def test_services_are_pinned_watched_and_restarted() -> None:
    for name, service in COMPOSE["services"].items():
        assert re.search(r":(\d|\$\{USER_PIPELINE_TAG:-\d)", service["image"]), name
        assert ("healthcheck" in service) != (name in ONE_SHOT), name
        assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped"), name
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, (name, needed)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "the UI has no password"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume


def test_only_the_containers_listen_beyond_loopback() -> None:
    # The UI and the code server have no password. A container listens for others; what leads to it does not.
    shipped = [
        CHECKOUT / "Makefile",
        *CHECKOUT.glob("*.yaml"),
        *CHECKOUT.glob("*.md"),
        *(CHECKOUT / "docs").glob("*.md"),
    ]
    for directory in ("deploy", "user_pipeline"):
        shipped += [path for path in (CHECKOUT / directory).rglob("*") if path.suffix != ".pyc" and path.is_file()]
    elsewhere = re.compile(rb"0\.0\.0\.0|\[::\]|--host\W+(?!127\.0\.0\.1\b)[\w.:]|(?<=dev) .*-h (?!127)")
    wide = {str(path.relative_to(CHECKOUT)) for path in shipped if elsewhere.search(path.read_bytes())}
    assert wide == {"deploy/Dockerfile", "deploy/docker-compose.yaml"}
    listening = [name for name, service in COMPOSE["services"].items() if "0.0.0.0" in str(service.get("command"))]  # noqa: S104
    assert listening == ["object-store", "webserver"]
    published = {name for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"webserver"}
    assert all("network_mode" not in service for service in COMPOSE["services"].values())
    assert HELM["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    assert "ingress" not in HELM
    # What `dagster dev` and `dagster-webserver` do when they are not told.
    defaults = {option.name: option.default for option in dagster_webserver.params}
    assert defaults["host"] == "127.0.0.1"


def test_the_image_is_one_version_that_is_not_root() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    version = re.search(r'^version = "(.*)"', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert variables(".env.example")["USER_PIPELINE_TAG"] == version[1]
    assert f"user_pipeline:{version[1]}" in dockerfile
    helm_tags = set(re.findall(r"tag: (\S+)", (DEPLOY / "helm-values.yaml").read_text()))
    assert helm_tags == {version[1]}
    stages = dockerfile.split("\nFROM ")
    assert len(stages) == 3
    users = re.findall(r"^USER (\d+):(\d+)$", stages[-1], re.MULTILINE)
    assert [int(number) > 0 for pair in users for number in pair] == [True, True]
    # Only files that the builder is given can be copied.
    given = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for line in re.findall(r"^COPY (?!--)(.*)", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in given
            assert (CHECKOUT / source).exists(), source


def test_the_code_server_is_one_process_that_knows_its_runs() -> None:
    # WatchedRunLauncher asks it; `dagster code-server` could not answer for runs from before a reload.
    assert code_command()[:3] == ["dagster", "api", "grpc"]


@pytest.fixture
def production(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DagsterInstance]:
    """The shipped dagster.yaml as Dagster loads it, with its variables set and nothing else."""
    postgres.create_database("production")
    with s3_endpoint(monkeypatch, "dagster-logs"):
        monkeypatch.setenv("DAGSTER_POSTGRES_URL", postgres.url("production"))
        monkeypatch.setenv("DAGSTER_COMPUTE_LOGS_BUCKET", "dagster-logs")
        with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path), config_dir=str(DEPLOY))) as instance:
            yield instance


def test_the_production_instance_is_what_its_file_says(production: DagsterInstance, postgres: EmbeddedPostgres) -> None:
    storage = production.get_ref().storage
    assert isinstance(storage, DagsterPostgresStorage)
    assert storage.postgres_url == postgres.url("production")
    assert isinstance(production.compute_log_manager, S3ComputeLogManager)
    assert isinstance(production.run_launcher, WatchedRunLauncher)
    assert production.run_launcher.supports_check_run_worker_health
    assert production.run_monitoring_enabled
    assert production.run_retries_enabled
    assert not production.run_retries_retry_on_asset_or_op_failure
    limits = production.get_concurrency_config()
    assert limits.run_queue_config
    assert limits.run_queue_config.max_concurrent_runs == INSTANCE["concurrency"]["runs"]["max_concurrent_runs"]
    assert limits.pool_config.pool_granularity is PoolGranularity.OP
    assert limits.pool_config.default_pool_limit is None
    assert not production.telemetry_enabled
    # Private files and a guarded web server.
    assert isinstance(production, Instance)
    # What goes from process to process names the variable and not its value.
    assert postgres.url("production") not in str(production.get_ref().to_dict())


def test_a_variable_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_COMPUTE_LOGS_BUCKET", "dagster-logs")
    with pytest.raises(Exception, match="DAGSTER_POSTGRES_URL"):
        DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path), config_dir=str(DEPLOY)))


def test_the_workspace_leads_to_the_code_server(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = COMPOSE["x-dagster"]["environment"]
    for name in ("USER_PIPELINE_CODE_HOST", "USER_PIPELINE_CODE_PORT"):
        monkeypatch.setenv(name, environment[name])
    [origin] = location_origins_from_yaml_paths([str(DEPLOY / "workspace.yaml")])
    assert isinstance(origin, GrpcServerCodeLocationOrigin)
    command = code_command()
    assert (origin.host, origin.port) == ("code", int(command[command.index("--port") + 1]))
    assert origin.location_name == command[command.index("--location-name") + 1]
    [local] = yaml.safe_load((CHECKOUT / "workspace.yaml").read_text())["load_from"]
    assert origin.location_name == local["python_module"]["location_name"]


def test_the_pools_that_get_a_limit_are_those_of_the_assets() -> None:
    pools = {asset.op.pool for asset in defs.resolve_asset_graph().assets_defs if asset.is_executable} - {None}
    found = re.search(r"for pool in (.*); do", (DEPLOY / "migrate.sh").read_text())
    assert found
    assert set(found[1].split()) == pools


def test_the_values_for_helm_say_what_dagster_yaml_says() -> None:
    daemon, concurrency = HELM["dagsterDaemon"], HELM["concurrency"]
    runs = INSTANCE["concurrency"]["runs"]
    assert concurrency["enabled"]
    assert concurrency["runs"]["maxConcurrentRuns"] == runs["max_concurrent_runs"]
    assert concurrency["runs"]["tagConcurrencyLimits"] == runs["tag_concurrency_limits"]
    assert concurrency["pools"]["granularity"] == INSTANCE["concurrency"]["pools"]["granularity"]
    assert daemon["runMonitoring"]["enabled"]
    retries = INSTANCE["run_retries"]
    assert daemon["runRetries"] == {
        "enabled": retries["enabled"],
        "maxRetries": retries["max_retries"],
        "retryOnAssetOrOpFailure": retries["retry_on_asset_or_op_failure"],
    }
    for kind in ("schedule", "sensor"):
        purge = HELM["retention"][kind]["purgeAfterDays"]
        assert {name: days for name, days in purge.items() if days != -1} == INSTANCE["retention"][kind][
            "purge_after_days"
        ]
    [deployment] = HELM["dagster-user-deployments"]["deployments"]
    assert ["dagster", "api", "grpc", *deployment["dagsterApiGrpcArgs"]] == code_command()[:-4]
    instance_class = INSTANCE["instance_class"]
    assert HELM["additionalInstanceConfig"] == {"instance_class": instance_class}
    assert yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())["instance_class"] == instance_class
    limit = HELM["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["jobSpecConfig"]["activeDeadlineSeconds"]
    assert limit == INSTANCE["run_monitoring"]["max_runtime_seconds"]


def test_kubernetes_knows_what_the_values_ask_of_a_run() -> None:
    given = HELM["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    snake = {re.sub("([A-Z])", lambda letter: f"_{letter[0].lower()}", name): value for name, value in given.items()}
    config = UserDefinedDagsterK8sConfig.from_dict(snake)  # type: ignore[no-untyped-call]
    assert config.container_config["volume_mounts"][0]["name"] == config.pod_spec_config["volumes"][0]["name"]
    with pytest.raises(Exception, match=r"no_such_field|noSuchField"):
        UserDefinedDagsterK8sConfig.from_dict({"pod_spec_config": {"noSuchField": 1}})  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("script", ["migrate.sh", "sql/roles.sh"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = DEPLOY / script
    subprocess.run(["/bin/sh", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


def test_the_policy_in_the_docs_is_json_and_no_wider_than_three_buckets() -> None:
    policies = [json.loads(block) for block in re.findall(r"<<'JSON'\n(.*?)\n +JSON\n", DEPLOY_GUIDE, re.DOTALL)]
    statements = [statement for policy in policies for statement in policy.get("Statement", [])]
    assert statements
    for statement in statements:
        resources = statement.get("Resource", [])
        for action in [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]:
            assert "*" not in action
        assert "*" not in ([resources] if isinstance(resources, str) else resources)
