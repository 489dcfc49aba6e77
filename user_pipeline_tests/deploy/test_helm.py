"""The values for Dagster's Helm chart and the network policy: the pods they make, what these get, who reaches whom."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster_postgres.utils import get_conn_string
from kubernetes.client import V1NetworkPolicy, V1Pod, V1PodSpec
from sqlalchemy.engine import make_url

from user_pipeline.settings import Settings, SettingsError
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.deployment import DEPLOY, IMAGE_USER
from user_pipeline_tests.helm import HELM, RELEASE, code_deployment, image_name, run_job, service_pods, typed

GUIDE = (CHECKOUT / "docs" / "deploy.md").read_text()
CERTIFICATE = "/etc/user_pipeline/certificates/rds.pem"
SECRETS = {
    "user-pipeline": "pipeline",
    "user-pipeline-staging": "staging",
    "user-pipeline-analytics": "analytics",
    "user-pipeline-alerts": "alerts",
}
"""The files of docs/deploy.md that each secret is made of."""


ALERTS = {"USER_PIPELINE_ALERT_WEBHOOK_URL", "USER_PIPELINE_HEARTBEAT_URL"}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, V1PodSpec]:
    """The pods of the services and of a run, as Kubernetes is asked for them."""
    job = run_job(tmp_path_factory.mktemp("home"))
    return {**service_pods(), "run": job.spec.template.spec}


def amount(quantity: str) -> float:
    """Bytes, or CPUs."""
    number, unit = re.fullmatch(r"(\d+)(m|Mi|Gi)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}[unit]


def secrets(pod: V1PodSpec) -> list[str]:
    """The secrets whose every entry is a variable of the pod."""
    return [source.secret_ref.name for source in pod.containers[0].env_from or []]


def values_of(pod: V1PodSpec) -> dict[str, str]:
    """The variables that the pod is given in the open."""
    return {variable.name: variable.value for variable in pod.containers[0].env if variable.value is not None}


def entries(secret: str) -> set[str]:
    """The variables of a secret, those in comments too, which are for who needs them."""
    [text] = re.findall(rf"cat > {SECRETS[secret]}\.env <<END\n(.*?)\n +END\n", GUIDE, re.DOTALL)
    assert f"secret generic {secret} --from-env-file={SECRETS[secret]}.env" in GUIDE
    return set(re.findall(r"^ *(?:# )?(\w+)=", text, re.MULTILINE))


def test_a_run_has_the_memory_of_its_limit_and_a_core_of_its_own(pods: dict[str, V1PodSpec]) -> None:
    [container] = pods["run"].containers
    limit = Settings.from_environment(values_of(pods["run"])).memory_limit
    for asked in (container.resources.limits, container.resources.requests):
        # What a run works in, and what Python and Dagster take.
        assert amount(asked["memory"]) >= limit + 0.5e9
    assert amount(container.resources.requests["cpu"]) >= 1
    # The code server, which only loads the code, asks for less.
    [code] = pods["code"].containers
    assert amount(code.resources.limits["memory"]) < limit


def test_what_the_code_server_would_hand_on_wins_over_what_is_said_of_runs(tmp_path: Path) -> None:
    # So it is told to hand on nothing.
    assert code_deployment()["includeConfigInLaunchedRuns"] == {"enabled": False}
    values = copy.deepcopy(HELM)
    code_deployment(values)["includeConfigInLaunchedRuns"]["enabled"] = True
    [container] = run_job(tmp_path, values).spec.template.spec.containers
    assert container.resources.limits == code_deployment()["resources"]["limits"]


def test_no_pod_has_more_rights_than_it_needs(pods: dict[str, V1PodSpec]) -> None:
    assert set(pods) == {"code", "webserver", "daemon", "run"}
    for name, pod in pods.items():
        [container] = pod.containers
        given = {field: value for field, value in container.security_context.to_dict().items() if value is not None}
        assert given == {
            "allow_privilege_escalation": False,
            "capabilities": {"add": None, "drop": ["ALL"]},
            "read_only_root_filesystem": True,
            "run_as_non_root": True,
            # The init containers of the chart get it too, of images that would run as root.
            "run_as_user": IMAGE_USER,
            "run_as_group": IMAGE_USER,
            "seccomp_profile": {"localhost_profile": None, "type": "RuntimeDefault"},
        }, name


def test_whoever_writes_has_a_volume_for_it_that_goes_with_the_pod(pods: dict[str, V1PodSpec]) -> None:
    for name, pod in pods.items():
        volumes = {volume.name: volume for volume in pod.volumes}
        mounts = {mount.mount_path: mount for mount in pod.containers[0].volume_mounts}
        assert set(volumes) == {mount.name for mount in mounts.values()}, name
        writable = {path for path, mount in mounts.items() if not mount.read_only}
        assert writable == {"/tmp", *({"/var/lib/user_pipeline/scratch"} if name == "run" else ())}, name  # noqa: S108
        for path in writable:
            assert volumes[mounts[path].name].empty_dir.size_limit, (name, path)
    # It is the image's user that writes to the volume.
    assert pods["run"].security_context.fs_group == IMAGE_USER


def test_a_secret_is_in_those_pods_that_use_it_and_in_no_other(pods: dict[str, V1PodSpec]) -> None:
    assert {name: secrets(pod) for name, pod in pods.items()} == {
        "code": ["user-pipeline", "user-pipeline-staging", "user-pipeline-alerts"],
        "run": ["user-pipeline", "user-pipeline-staging", "user-pipeline-analytics"],
        "webserver": [],
        "daemon": [],
    }
    assert entries("user-pipeline-staging") == {"USER_PIPELINE_STAGING_URL"}
    assert entries("user-pipeline-analytics") == {"USER_PIPELINE_ANALYTICS_URL"}
    assert entries("user-pipeline-alerts") == ALERTS
    # Who has no webhook makes no secret of it.
    optional = [source.secret_ref for source in pods["code"].containers[0].env_from if source.secret_ref.optional]
    assert [reference.name for reference in optional] == ["user-pipeline-alerts"]
    # The values themselves hold none.
    for pod in pods.values():
        assert not [name for name in values_of(pod) if re.search("PASSWORD|SECRET|KEY|WEBHOOK", name)]


def test_every_setting_reaches_the_pods_that_use_it(pods: dict[str, V1PodSpec], settings_asked: set[str]) -> None:
    # The chart hands the URL of Dagster's storage on in its own way. As whom it is asked concerns the web server.
    wanted = settings_asked - {"DAGSTER_POSTGRES_URL", "USER_PIPELINE_UI_HOSTS"}
    asked_as = {variable.name for variable in pods["webserver"].containers[0].env}
    assert {"USER_PIPELINE_UI_URL", "USER_PIPELINE_UI_HOSTS"} <= asked_as
    assert values_of(pods["webserver"])["USER_PIPELINE_UI_URL"] == values_of(pods["code"])["USER_PIPELINE_UI_URL"]
    given = {}
    for name in ("run", "code"):
        in_secrets = set().union(*(entries(secret) for secret in secrets(pods[name])))
        assert not in_secrets & set(values_of(pods[name])), "in the open and in a secret"
        given[name] = in_secrets | set(values_of(pods[name]))
    assert wanted - given["run"] == ALERTS
    assert wanted - given["code"] == entries("user-pipeline-analytics")
    assert {"AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID", "AWS_SSE_BUCKET_KEY_ENABLED"} <= given["run"]
    # What is shown in the open is what holds without it.
    shown = {name: value for name, value in values_of(pods["run"]).items() if name.startswith("USER_PIPELINE_")}
    assert Settings.from_environment(shown) == Settings.from_environment({})
    # The region of the bucket with the logs is everyone's.
    region = HELM["computeLogManager"]["config"]["s3ComputeLogManager"]["region"]
    for name, pod in pods.items():
        assert (values_of(pod)["AWS_REGION"], values_of(pod)["AWS_DEFAULT_REGION"]) == (region, region), name


def test_runs_are_on_spark_by_one_value_and_one_line_of_a_secret(tmp_path: Path) -> None:
    value, text = "{name: USER_PIPELINE_ENGINE, value: duckdb}", (DEPLOY / "helm-values.yaml").read_text()
    assert text.count(value) == 1
    values = yaml.safe_load(text.replace(value, value.replace("duckdb", "spark")))
    [run] = run_job(tmp_path, values).spec.template.spec.containers
    assert values_of(service_pods(values)["code"])["USER_PIPELINE_ENGINE"] == "spark"
    # The address may hold a token: it is in a secret that the run has.
    assert "user-pipeline" in [source.secret_ref.name for source in run.env_from]
    [remote] = re.findall(r"USER_PIPELINE_SPARK_REMOTE=(\S+)", GUIDE)
    shown = {variable.name: variable.value for variable in run.env if variable.name.startswith("USER_PIPELINE_")}
    settings = Settings.from_environment({**shown, "USER_PIPELINE_SPARK_REMOTE": remote.replace("…", "t")})
    assert settings.engine == "spark"
    with pytest.raises(SettingsError, match="USER_PIPELINE_SPARK_REMOTE"):
        Settings.from_environment(shown)


def test_the_pod_for_commands_has_what_a_run_has(pods: dict[str, V1PodSpec]) -> None:
    pod = typed(V1Pod, yaml.safe_load((DEPLOY / "command.yaml").read_text()))
    assert (pod.api_version, pod.kind) == ("v1", "Pod")
    run, [command], [of_run] = pods["run"], pod.spec.containers, pods["run"].containers
    assert command.image == image_name(code_deployment()["image"])
    for field in ("env_from", "resources", "security_context"):
        assert getattr(command, field) == getattr(of_run, field), field
    assert pod.spec.security_context == run.security_context
    assert pod.spec.service_account_name == run.service_account_name
    assert Settings.from_environment(values_of(pod.spec)) == Settings.from_environment(values_of(run))
    assert values_of(pod.spec).items() <= values_of(run).items()
    # Dagster hands its instance to a run; here it is read from the file that the chart writes.
    [instance] = [mount for mount in command.volume_mounts if mount not in of_run.volume_mounts]
    assert instance.mount_path == f"/opt/dagster/dagster_home/{instance.sub_path}"
    assert [mount for mount in of_run.volume_mounts if mount not in command.volume_mounts] == []
    [volume] = [volume for volume in pod.spec.volumes if volume not in run.volumes]
    assert (volume.name, volume.config_map.name) == (instance.name, f"{RELEASE}-dagster-instance")
    assert [volume for volume in run.volumes if volume not in pod.spec.volumes] == []
    [password] = [variable for variable in command.env if variable.value is None]
    assert password in of_run.env
    assert f"exec --stdin --tty {pod.metadata.name} -- user-pipeline verify" in GUIDE
    assert f"--filename deploy/command.yaml {command.name}=$IMAGE" in GUIDE


def test_every_connection_verifies_the_database_by_a_certificate_that_is_mounted(pods: dict[str, V1PodSpec]) -> None:
    postgresql = HELM["postgresql"]
    storage = get_conn_string(
        postgresql["postgresqlUsername"],
        "secret",
        postgresql["postgresqlHost"],
        postgresql["postgresqlDatabase"],
        postgresql["service"]["port"],
        postgresql["postgresqlParams"],
    )
    options = re.search(r'TLS="(.*)"', GUIDE)
    assert options
    written = re.findall(r"_URL=(postgresql://user_pipeline_writer\S+)\?\$TLS$", GUIDE, re.MULTILINE)
    assert len(written) == 2
    for url in (storage, *(f"{url.replace('$DB', 'db')}?{options[1]}" for url in written)):
        assert make_url(url).query == {"sslmode": "verify-full", "sslrootcert": CERTIFICATE}
    directory, _, name = CERTIFICATE.rpartition("/")
    for pod in pods.values():
        [mount] = [mount for mount in pod.containers[0].volume_mounts if mount.mount_path == directory]
        [volume] = [volume for volume in pod.volumes if volume.name == mount.name]
        assert f"create configmap {volume.config_map.name} --from-file={name}" in GUIDE


DOCUMENTS = [
    *(CHECKOUT / "docs").glob("*.md"),
    CHECKOUT / "README.md",
    DEPLOY / "sql" / "roles.sql",
    DEPLOY / ".env.example",
    DEPLOY / "helm-values.yaml",
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_documented_for_a_database_elsewhere_verifies_it(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"sslmode[=:] ?([\w-]+)", text, re.IGNORECASE)) <= {"verify-full"}
    for block in re.findall(r"(?:^(?: {4}|-- ).*\n?)+", text, re.MULTILINE):
        if re.search(r"@db\b|PGHOST=db|host=\$DB|@\$DB", block):
            assert re.search(r"sslmode=verify-full|\?\$TLS", block, re.IGNORECASE), block


def test_kubernetes_refuses_a_field_that_it_does_not_know(tmp_path: Path) -> None:
    values = copy.deepcopy(HELM)
    values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]["podSpecConfig"]["noSuchField"] = 1
    with pytest.raises(Exception, match="noSuchField"):
        run_job(tmp_path, values)


def allowed(policy: V1NetworkPolicy, client: dict[str, str], server: dict[str, str], port: int) -> bool:
    """Whether the policy lets pods with the labels ``client`` reach a port of those with the labels ``server``."""

    def selects(selector: Any, labels: dict[str, str]) -> bool:
        for expression in selector.match_expressions or []:
            assert expression.operator == "In"
            if labels.get(expression.key) not in expression.values:
                return False
        return (selector.match_labels or {}).items() <= labels.items()

    if not selects(policy.spec.pod_selector, server):
        return True
    assert policy.spec.policy_types == ["Ingress"]
    for rule in policy.spec.ingress:
        # Without any of these a rule lets everyone in.
        assert rule._from
        assert rule.ports
        for peer in rule._from:
            assert peer.ip_block is None
            assert peer.namespace_selector is None
            if selects(peer.pod_selector, client) and port in [allowed.port for allowed in rule.ports]:
                return True
    return False


def labels(component: str, release: str = RELEASE) -> dict[str, str]:
    """Those of the chart that say which pod it is."""
    return {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": release, "component": component}


def test_only_the_web_servers_and_the_daemon_reach_the_port_that_runs_code() -> None:
    policy = typed(V1NetworkPolicy, yaml.safe_load((DEPLOY / "network-policy.yaml").read_text()))
    assert (policy.api_version, policy.kind) == ("networking.k8s.io/v1", "NetworkPolicy")
    code, port = labels("user-deployments"), code_deployment()["port"]
    for component in ("dagster-webserver", "dagster-webserver-read-only", "dagster-daemon"):
        assert allowed(policy, labels(component), code, port), component
        assert not allowed(policy, labels(component), code, port + 1)
        assert not allowed(policy, labels(component, "another"), code, port)
    run = {"app.kubernetes.io/component": "run_worker", "app.kubernetes.io/instance": RELEASE}
    for stranger in (run, labels("user-deployments"), labels("another"), {}):
        assert not allowed(policy, stranger, code, port)
    # It is about the code server alone, and the documented release is the one it names.
    assert allowed(policy, {}, labels("dagster-webserver"), 3000)
    assert f"helm upgrade --install {RELEASE} dagster/dagster" in GUIDE
    assert "kubectl apply --filename deploy/network-policy.yaml" in GUIDE
