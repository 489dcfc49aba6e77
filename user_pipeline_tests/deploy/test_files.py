"""The files of ``deploy/``: that they parse, agree with each other and with the code, and hold no secret."""

import hashlib
import importlib
import json
import os
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
from dagster_postgres import DagsterPostgresStorage
from dagster_webserver.cli import dagster_webserver

from user_pipeline.definitions import defs
from user_pipeline.instance import Instance
from user_pipeline.instance.run_launcher import WatchedRunLauncher
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.settings import Settings
from user_pipeline_tests.deployment import COMPOSE, DEPLOY, IMAGE_USER, code_command
from user_pipeline_tests.helm import HELM, code_deployment
from user_pipeline_tests.s3 import s3_endpoint

CHECKOUT = DEPLOY.parent
INSTANCE: dict[str, Any] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
DEPLOY_GUIDE = (CHECKOUT / "docs" / "deploy.md").read_text()
ONE_SHOT = {"roles", "tables", "migrate"}
CLIENTS = {"webserver", "daemon"}
WORKERS = {"spark-worker-1", "spark-worker-2"}
SPARK = {"spark-master", "spark-connect", *WORKERS}
"""The services of the profile `spark`."""
SERVICES: dict[str, Any] = COMPOSE["services"]
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


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


def test_every_setting_reaches_the_code_server_of_compose_and_its_runs(settings_asked: set[str]) -> None:
    given = set(SERVICES["code"]["environment"])
    # As whom it is asked concerns the web server.
    assert settings_asked - {"USER_PIPELINE_UI_HOSTS"} <= given
    assert {"USER_PIPELINE_UI_URL", "USER_PIPELINE_UI_HOSTS"} <= set(SERVICES["webserver"]["environment"])
    assert {"AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED"} <= given


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


@pytest.mark.parametrize(
    ("secret", "services"),
    [
        ("POSTGRES_PASSWORD", {"postgres", "roles"}),
        ("OWNER_DB_PASSWORD", {"roles", "tables"}),
        ("WRITER_DB_PASSWORD", {"roles", "code"}),
        ("DAGSTER_DB_PASSWORD", {"roles", "migrate", "code", *CLIENTS}),
        ("AWS_SECRET_ACCESS_KEY", {"object-store", "code", *CLIENTS, *WORKERS}),
        ("AWS_SESSION_TOKEN", {"code", *CLIENTS, *WORKERS}),
        ("USER_PIPELINE_SPARK_REMOTE", {"code"}),
        ("SPARK_CONNECT_AUTHENTICATE_TOKEN", {"spark-connect"}),
        ("USER_PIPELINE_USER_ID_KEY", {"code", *WORKERS}),
        ("USER_PIPELINE_ALERT_WEBHOOK_URL", {"code"}),
        ("USER_PIPELINE_HEARTBEAT_URL", {"code"}),
    ],
)
def test_a_secret_is_in_those_containers_that_use_it_and_in_no_other(secret: str, services: set[str]) -> None:
    def knows(service: dict[str, Any]) -> bool:
        return secret in service.get("environment", {}) or f"${{{secret}" in " ".join(strings(service))

    assert {name for name, service in SERVICES.items() if knows(service)} == services


def test_the_pipeline_runs_as_the_writer_and_the_owner_makes_its_tables() -> None:
    for name, role in (("code", "user_pipeline_writer"), ("tables", "user_pipeline_owner")):
        for database in ("STAGING", "ANALYTICS"):
            assert SERVICES[name]["environment"][f"USER_PIPELINE_{database}_URL"].startswith(f"postgresql://{role}:")


def test_the_compose_file_and_the_example_hold_no_secret() -> None:
    required = {
        name for text in strings(COMPOSE) for name, how in re.findall(r"\$\{(\w+)(:\?|:-)", text) if how == ":?"
    }
    secret = {name for name in variables(".env.example") if re.search("PASSWORD|SECRET|KEY", name)}
    digests = {name for name in variables(".env.example") if name.endswith("_DIGEST")}
    # A secret has no default anywhere, and nothing else has to be filled in but the digests.
    empty = {name for name, value in variables(".env.example").items() if not value}
    assert required == secret | digests == empty
    for text in [*strings(COMPOSE), *strings(HELM)]:
        assert not re.search(r"://[^/@]*:(?!\$\{)[^/@]+@", text), text


def test_services_are_pinned_watched_and_restarted() -> None:
    for name, service in COMPOSE["services"].items():
        # By version and digest; our own image is built here.
        own = r"^user_pipeline(_spark)?:\$\{USER_PIPELINE_TAG:-\d"
        assert re.search(rf":\d\S*@\$\{{\w+_DIGEST:\?|{own}", service["image"]), name
        assert ("build" in service) == bool(re.search(own, service["image"])), name
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


def test_no_container_writes_to_its_image_has_a_right_of_root_or_fills_the_disk() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert 0 < service["pids_limit"] <= 4000, name
        # The driver that compresses and turns over; by default a log grows for ever.
        assert service["logging"]["driver"] == "local", name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert "privileged" not in service, name
        if "build" not in service:
            # Ours says in the Dockerfile that it is not root.
            assert service.get("user") == "postgres" or name == "object-store"
    # It becomes its user by itself, once the volume is that user's.
    assert {name: service["cap_add"] for name, service in SERVICES.items() if "cap_add" in service} == {
        "object-store": ["CHOWN", "SETGID", "SETUID"]
    }


def test_whoever_writes_has_where_to() -> None:
    for name, service in SERVICES.items():
        paths = [entry.split(":")[0] for entry in service.get("tmpfs", [])]
        assert ("/tmp" in paths) == (name != "roles"), name  # noqa: S108
        writable = [volume.split(":")[1] for volume in service.get("volumes", []) if not volume.endswith(":ro")]
        assert writable == {
            "postgres": ["/var/lib/postgresql"],
            "object-store": ["/data"],
            **{name: ["/var/lib/user_pipeline/scratch"] for name in ("code", *SPARK)},
        }.get(name, []), name
    # Each has a volume of its own.
    written = [volume for service in SERVICES.values() for volume in service.get("volumes", []) if volume[-3:] != ":ro"]
    assert len(written) == len(set(written))
    image = (DEPLOY / "Dockerfile").read_text()
    assert "USER_PIPELINE_SCRATCH_DIR=/var/lib/user_pipeline/scratch" in image
    assert "MPLCONFIGDIR=/tmp/" in image
    assert re.findall(r"install --directory --owner=pipeline .*", image) == [
        'install --directory --owner=pipeline --group=pipeline "$USER_PIPELINE_SCRATCH_DIR"'
    ]


def networks(name: str) -> set[str]:
    """The networks that a service is in."""
    assert "networks" in SERVICES[name], f"{name} would be in the default network"
    return set(SERVICES[name]["networks"])


def test_only_the_web_server_and_the_daemon_reach_the_port_that_runs_code() -> None:
    # The code server listens on one address: that of its alias, which one network knows.
    command = SERVICES["code"]["command"]
    alias = command[command.index("--host") + 1]
    [network] = [name for name, how in SERVICES["code"]["networks"].items() if how]
    assert SERVICES["code"]["networks"][network] == {"aliases": [alias]}
    assert network not in {name for spark in SPARK for name in networks(spark)}
    assert {name for name in SERVICES if network in networks(name)} == {"code", *CLIENTS}
    assert COMPOSE["networks"][network] == {"internal": True}
    for name in CLIENTS:
        assert SERVICES[name]["environment"]["USER_PIPELINE_CODE_HOST"] == alias
    check = SERVICES["code"]["healthcheck"]["test"]
    assert check[check.index("--host") + 1] == alias


def test_databases_and_store_reach_nothing_outside_and_who_uses_them_does() -> None:
    inside = {name for name, network in COMPOSE["networks"].items() if network}
    assert all(COMPOSE["networks"][name] == {"internal": True} for name in inside)
    for name, service in SERVICES.items():
        assert networks(name) <= set(COMPOSE["networks"])
        alone = {"postgres", "object-store", "spark-master", "spark-connect"}
        assert (networks(name) <= inside) == (name in alone), name
        for needed in service.get("depends_on", {}):
            if needed not in ONE_SHOT:
                assert networks(name) & networks(needed), (name, needed)
        if "ports" in service:
            assert networks(name) - inside, "an internal network publishes no port"


@pytest.fixture
def registry(tmp_path: Path) -> dict[str, str]:
    """An environment whose docker answers as one that reaches a registry does: another digest for each image.

    As buildx does, it prints a table, whatever was asked for, where the template begins with a field of the manifest
    (https://github.com/docker/buildx/pull/4006).
    """
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(
        "#!/bin/sh\n"
        '[ "$1 $2 $3 $4" = "buildx imagetools inspect --format" ] || exit 64\n'
        '[ "$6" != "${REFUSED-}" ] || { echo "no such image" >&2; exit 1; }\n'
        'digest=${ANSWER-sha256:$(printf %s "$6" | sha256sum | cut -c1-64)}\n'
        "case $5 in\n"
        '    "{{.Manifest"*) printf "Name: %s\\nDigest: %s\\n" "$6" "$digest" ;;\n'
        '    "{{json .Manifest.Digest}}") printf \'"%s"\' "$digest" ;;\n'
        "    *) exit 64 ;;\n"
        "esac\n"
    )
    docker.chmod(0o755)
    return {"PATH": f"{docker.parent}:{os.defpath}"}


def digests(environment: dict[str, str], *arguments: Path) -> subprocess.CompletedProcess[str]:
    command: list[Path] = [DEPLOY / "digests.sh", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def digest_of(image: str) -> str:
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


def test_the_digests_for_compose_are_of_the_images_it_names(registry: dict[str, str]) -> None:
    done = digests(registry)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=") for line in done.stdout.splitlines())
    named = {name for text in strings(COMPOSE) for name in re.findall(r"\$\{(\w+_DIGEST):\?", text)}
    assert set(found) == named == {name for name in variables(".env.example") if name.endswith("_DIGEST")}
    for service in SERVICES.values():
        if match := re.fullmatch(r"(.*)@\$\{(\w+):\?.*\}", service["image"]):
            assert found[match[2]] == digest_of(match[1])
            assert DIGEST.fullmatch(found[match[2]])
    # Executors have the Python of the runs, to the digest.
    for name in ("Dockerfile", "spark.Dockerfile"):
        dockerfile = (DEPLOY / name).read_text()
        python = re.search(r"^ARG PYTHON=(.*)", dockerfile, re.MULTILINE)
        assert python
        assert found["PYTHON_DIGEST"] == digest_of(f"python:{python[1]}")
        bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
        assert set(bases) == {"python:${PYTHON}@${PYTHON_DIGEST:?run-deploy/digests.sh}"}
    for name in ("code", *SPARK):
        assert SERVICES[name]["build"]["args"]["PYTHON_DIGEST"].startswith("${PYTHON_DIGEST:?")


def test_the_digests_for_helm_take_the_place_of_the_tags(registry: dict[str, str], tmp_path: Path) -> None:
    before = (DEPLOY / "helm-values.yaml").read_text()
    done = digests(registry, DEPLOY / "helm-values.yaml")
    assert done.returncode == 0, done.stderr
    pattern = r'^ *repository: (\S+)\n(?: *#.*\n)* *tag: "?([^"\n]+)"?$'
    images = [f"{name}:{tag}" for name, tag in re.findall(pattern, before, re.MULTILINE)]
    # The image once, and those of the chart's init containers.
    assert len(images) == before.count("tag:") == 3
    pinned = [f"{name}:{tag}" for name, tag in re.findall(pattern, done.stdout, re.MULTILINE)]
    assert pinned == [f"{image.rpartition(':')[0]}@{digest_of(image)}" for image in images]
    # Nothing else has changed, and doing it again changes nothing.
    changed = yaml.safe_load(done.stdout)
    assert (
        changed["dagsterWebserver"]["image"] == changed["dagsterDaemon"]["image"] == code_deployment(changed)["image"]
    )
    assert re.sub(r"repository: .*|tag: .*", "", done.stdout) == re.sub(r"repository: .*|tag: .*", "", before)
    (tmp_path / "pinned.yaml").write_text(done.stdout)
    assert digests(registry, tmp_path / "pinned.yaml").stdout == done.stdout


def test_the_commands_of_the_docs_name_images_of_others_by_digest(registry: dict[str, str]) -> None:
    images = re.findall(r"""--image=(\S+)|"image": "([^"]+)\"""", DEPLOY_GUIDE)
    others = {name for pair in images for name in pair if name} - {"$IMAGE"}
    assert "export $(deploy/digests.sh)" in DEPLOY_GUIDE
    given = dict(line.split("=") for line in digests(registry).stdout.splitlines())
    filled = {re.sub(r"'?\$(\w+)'?", lambda variable: given[variable[1]], name) for name in others}
    assert filled == {f"postgres:18@{digest_of('postgres:18')}"}


@pytest.mark.parametrize("arguments", [(), (DEPLOY / "helm-values.yaml",)])
def test_a_digest_that_cannot_be_had_gives_nothing_and_says_of_which_image(
    registry: dict[str, str], arguments: tuple[Path, ...]
) -> None:
    refused = digests({**registry, "REFUSED": "busybox:1.28" if arguments else "postgres:18"}, *arguments)
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", "no such image\n")
    wrong = digests({**registry, "ANSWER": "latest"}, *arguments)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    image = "library/postgres:18" if arguments else "python:3.11-slim-bookworm"
    assert wrong.stderr == f"docker gives no digest of {image}, but: latest\n"


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
    # Its _HOST is 127.0.0.1: what it starts is tried in cli/test_spark_cluster.py.
    shipped.remove(CHECKOUT / "user_pipeline/cli/spark_cluster.py")
    elsewhere = re.compile(rb"0\.0\.0\.0|\[::\]|--host\W+(?!127\.0\.0\.1\b)[\w.:]|(?<=dev) .*-h (?!127)")
    wide = {str(path.relative_to(CHECKOUT)) for path in shipped if elsewhere.search(path.read_bytes())}
    assert wide == {"deploy/Dockerfile", "deploy/docker-compose.yaml", "deploy/spark.sh"}
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


@pytest.mark.parametrize("name", ["Dockerfile", "spark.Dockerfile"])
def test_an_image_is_one_version_that_is_not_root(name: str) -> None:
    dockerfile = (DEPLOY / name).read_text()
    image = {"Dockerfile": "user_pipeline", "spark.Dockerfile": "user_pipeline_spark"}[name]
    version = re.search(r'^version = "(.*)"', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert variables(".env.example")["USER_PIPELINE_TAG"] == version[1]
    assert f"--tag {image}:{version[1]} ." in dockerfile
    built = {service["build"]["dockerfile"] for service in SERVICES.values() if image == service["image"].split(":")[0]}
    assert built == {f"deploy/{name}"}
    assert code_deployment()["image"]["tag"] == version[1]
    for service in ("dagsterWebserver", "dagsterDaemon"):
        assert HELM[service]["image"] == code_deployment()["image"]
    stages = dockerfile.split("\nFROM ")
    assert len(stages) == 3
    users = re.findall(r"^USER (\d+):(\d+)$", stages[-1], re.MULTILINE)
    assert users == [(str(IMAGE_USER), str(IMAGE_USER))]
    assert f"useradd --uid {IMAGE_USER} " in stages[-1]
    # Only files that the builder is given can be copied.
    given = {line[1:] for line in (DEPLOY / f"{name}.dockerignore").read_text().splitlines() if line[:1] == "!"}
    for line in re.findall(r"^COPY (?!--)(.*)", dockerfile, re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in given
            assert (CHECKOUT / source).exists(), source


def test_the_code_server_is_one_process_that_knows_its_runs() -> None:
    # WatchedRunLauncher asks it; `dagster code-server` could not answer for runs from before a reload.
    command = code_command()
    assert command[:3] == ["dagster", "api", "grpc"]
    # In compose it is the same, in one network.
    command[command.index("--host") + 1] = "code-server"
    assert SERVICES["code"]["command"] == command


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
    for name in ("USER_PIPELINE_CODE_HOST", "USER_PIPELINE_CODE_PORT"):
        [value] = {SERVICES[client]["environment"][name] for client in CLIENTS}
        monkeypatch.setenv(name, value)
    [origin] = location_origins_from_yaml_paths([str(DEPLOY / "workspace.yaml")])
    assert isinstance(origin, GrpcServerCodeLocationOrigin)
    command = code_command()
    assert (origin.host, origin.port) == ("code-server", int(command[command.index("--port") + 1]))
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
    assert ["dagster", "api", "grpc", *code_deployment()["dagsterApiGrpcArgs"]] == code_command()[:-4]
    instance_class = INSTANCE["instance_class"]
    assert HELM["additionalInstanceConfig"] == {"instance_class": instance_class}
    local = yaml.safe_load((CHECKOUT / "dagster.yaml").read_text())["instance_class"]
    assert issubclass(getattr(importlib.import_module(local["module"]), local["class"]), Instance)
    limit = HELM["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["jobSpecConfig"]["activeDeadlineSeconds"]
    assert limit == INSTANCE["run_monitoring"]["max_runtime_seconds"]


def test_the_images_of_runs_and_executors_have_what_they_hand_each_other_in_the_same_versions() -> None:
    # An executor refuses to work with others.
    versions = {}
    for lock in ("requirements-dev.lock", "requirements-spark.lock"):
        text = (CHECKOUT / lock).read_text()
        versions[lock] = dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))
    here, there = versions["requirements-dev.lock"], versions["requirements-spark.lock"]
    assert {name for name in here.keys() & there.keys() if here[name] != there[name]} == set()
    assert {"duckdb", "pyarrow", "obstore", "pydantic"} <= here.keys() & there.keys()
    assert here["pyspark-client"].split(".")[:2] == there["pyspark"].split(".")[:2]
    assert "dagster" not in there
    assert "--extra spark " in (DEPLOY / "Dockerfile").read_text()
    assert "COPY requirements-spark.lock " in (DEPLOY / "spark.Dockerfile").read_text()


def test_the_spark_cluster_is_started_when_it_is_asked_for_and_is_what_runs_are_told_of() -> None:
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["spark"]} == SPARK
    # Nobody waits for what may not be there.
    for name, service in SERVICES.items():
        if name not in SPARK:
            assert "profiles" not in service
            assert not SPARK & set(service.get("depends_on", {})), name
    # The cluster has a network, in which nobody else is but the runs.
    assert {name for name in SERVICES if "spark" in networks(name)} == {"code", *SPARK}
    assert COMPOSE["networks"]["spark"] == {"internal": True}
    # Executors reach the store; what plans their work does not.
    assert {name for name in SPARK if "data" in networks(name)} == WORKERS
    kinds = {}
    for name in SPARK:
        shell, script, kind, host, port, *master = SERVICES[name]["command"]
        assert (shell, script) == ("sh", "/opt/user_pipeline/spark.sh")
        assert f"COPY deploy/spark.sh {script}" in (DEPLOY / "spark.Dockerfile").read_text()
        kinds[name] = kind
        assert master == ([] if kind == "master" else ["spark://spark-master:7077"])
        # One name is one address: an alias in this network, or the service's, which is in no other one.
        aliases = [how["aliases"] for how in [SERVICES[name]["networks"]["spark"]]] if kind == "worker" else [[name]]
        assert aliases == [[host]]
        assert f"create_connection(('{host}', {port}), 5)" in SERVICES[name]["healthcheck"]["test"][-1]
    assert kinds == {"spark-master": "master", "spark-connect": "connect", **dict.fromkeys(WORKERS, "worker")}
    # The address in the example is the server's, and the token travels as its client sends one over TLS.
    example = (DEPLOY / ".env.example").read_text()
    [address] = re.findall(r"USER_PIPELINE_SPARK_REMOTE=(sc://spark-connect\S+)", example)
    assert address == "sc://spark-connect:15002/;authorization=Bearer%20TOKEN"
    assert SERVICES["spark-connect"]["command"][3:5] == ["spark-connect", "15002"]
    assert f"USER_PIPELINE_SPARK_REMOTE={address}" in (CHECKOUT / "docs" / "spark.md").read_text()


def test_a_worker_has_room_for_its_executor_and_what_duckdb_may_use_beside_it() -> None:
    sizes = {"g": 2**30}
    for name in WORKERS:
        given = SERVICES[name]["environment"]
        jvm = int(given["SPARK_WORKER_MEMORY"][:-1]) * sizes[given["SPARK_WORKER_MEMORY"][-1]]
        asked = SERVICES["spark-connect"]["environment"]["SPARK_EXECUTOR_MEMORY"]
        assert int(asked[:-1]) * sizes[asked[-1]] <= jvm
        tasks = int(given["SPARK_WORKER_CORES"])
        limit = Settings.from_environment({"USER_PIPELINE_MEMORY_LIMIT": given["USER_PIPELINE_MEMORY_LIMIT"]})
        most = int(SERVICES[name]["mem_limit"][:-1]) * sizes[SERVICES[name]["mem_limit"][-1]]
        # Half a gigabyte for Python, what Java has beside its heap, and the worker.
        assert jvm + tasks * limit.memory_limit + 0.5e9 <= most


@pytest.mark.parametrize(
    "arguments",
    [[], ["connect", "h", "1"], ["worker", "h", "1"], ["other", "h", "1"], ["worker", "h", "1", "spark://a:1", "more"]],
)
def test_a_spark_process_that_nobody_can_start_is_told_of(arguments: list[str]) -> None:
    variables = {"PATH": os.defpath, "USER_PIPELINE_SCRATCH_DIR": "/nowhere"}
    done = subprocess.run(
        ["sh", DEPLOY / "spark.sh", *arguments], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert "spark.sh worker|connect HOST PORT spark://MASTER:PORT" in done.stderr


def test_a_spark_connect_server_without_a_token_does_not_start() -> None:
    variables = {"PATH": os.defpath, "USER_PIPELINE_SCRATCH_DIR": "/nowhere"}
    for token in ({}, {"SPARK_CONNECT_AUTHENTICATE_TOKEN": ""}):
        done = subprocess.run(
            ["sh", DEPLOY / "spark.sh", "connect", "h", "1", "spark://a:1"],
            env=variables | token,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode
        assert "SPARK_CONNECT_AUTHENTICATE_TOKEN: set it" in done.stderr


@pytest.mark.parametrize("script", ["spark.sh", "migrate.sh", "sql/roles.sh", "digests.sh", "backup.sh", "restore.sh"])
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
