"""What Dagster's Helm chart (1.13.27) and its run launcher make of ``deploy/helm-values.yaml``: containers and pods.

Helm is not needed: the chart copies these values to where this module does, and Dagster's own classes do the rest.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._config import process_config
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.storage.dagster_run import DagsterRun
from dagster_k8s import K8sRunLauncher
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from kubernetes.client import V1Container, V1Job, V1PodSpec

from user_pipeline_tests.deployment import DEPLOY

HELM: dict[str, Any] = yaml.safe_load((DEPLOY / "helm-values.yaml").read_text())
RELEASE = "user-pipeline"
"""The release's name in the docs."""
_KUBECONFIG = {
    "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
    "users": [{"name": "none", "user": {}}],
    "current-context": "none",
}


def code_deployment(values: Mapping[str, Any] = HELM) -> dict[str, Any]:
    """The values of the one code location."""
    [deployment] = values["dagster-user-deployments"]["deployments"]
    found: dict[str, Any] = deployment
    return found


def image_name(image: Mapping[str, Any]) -> str:
    """How the chart names an image, of whatever it runs."""
    return f"{image['repository']}:{image['tag']}"


def typed(model: type[Any], value: Mapping[str, Any]) -> Any:
    """``value``, as it stands in YAML, as an object of the Kubernetes client; a field that it does not know fails."""
    return k8s_model_from_dict(model, k8s_snake_case_dict(model, value))


def service_pods(values: Mapping[str, Any] = HELM) -> dict[str, V1PodSpec]:
    """The pods of the code server, web server and daemon, without what the chart adds of its own."""
    services = {
        "code": code_deployment(values),
        "webserver": values["dagsterWebserver"],
        "daemon": values["dagsterDaemon"],
    }
    return {name: _service_pod(service) for name, service in services.items()}


def _service_pod(service: Mapping[str, Any]) -> V1PodSpec:
    container = {
        "name": "dagster",
        "image": image_name(service["image"]),
        "env": service.get("env", []),
        "envFrom": [{"secretRef": secret} for secret in service.get("envSecrets", [])],
        "resources": service["resources"],
        "securityContext": service["securityContext"],
        "volumeMounts": service.get("volumeMounts", []),
    }
    pod = {
        "containers": [container],
        "securityContext": service.get("podSecurityContext", {}),
        "volumes": service.get("volumes", []),
    }
    return typed(V1PodSpec, pod)


def run_job(directory: Path, values: Mapping[str, Any] = HELM) -> V1Job:
    """The job that the run launcher asks Kubernetes for; ``directory`` becomes Dagster's home."""
    jobs = _Jobs()
    kubeconfig = directory / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_KUBECONFIG))
    checked = process_config(K8sRunLauncher.config_type(), _launcher_config(values))  # type: ignore[no-untyped-call]
    assert checked.value is not None, checked.errors
    launcher = K8sRunLauncher(
        **{**checked.value, "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)},
        k8s_client_batch_api=jobs,
    )
    with dg.DagsterInstance.local_temp(str(directory)) as instance:
        launcher.register_instance(instance)
        repository = RepositoryPythonOrigin(
            executable_path="python",
            code_pointer=ModuleCodePointer("user_pipeline.definitions", "defs"),
            # DAGSTER_CURRENT_IMAGE, which the chart sets.
            container_image=image_name(code_deployment(values)["image"]),
            container_context=_container_context(values),
        )
        run = DagsterRun(
            "daily_log_pipeline", job_code_origin=JobPythonOrigin("daily_log_pipeline", repository_origin=repository)
        )
        instance.add_run(run)
        launcher.launch_run(LaunchRunContext(run, workspace=None))
    [job] = jobs.asked
    return job


def run_container(directory: Path, values: Mapping[str, Any] = HELM) -> V1Container:
    """The one container of a run's pod."""
    [container] = run_job(directory, values).spec.template.spec.containers
    return container


class _Jobs:
    """Kubernetes' API for jobs, which notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[V1Job] = []

    def create_namespaced_job(self, body: V1Job, **_: object) -> None:
        self.asked.append(body)


def _launcher_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the chart writes under ``run_launcher`` of the instance's dagster.yaml."""
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    given = dict(values["runLauncher"]["config"]["k8sRunLauncher"])
    config: dict[str, Any] = {
        "job_namespace": "default",
        "service_account_name": values["global"]["serviceAccountName"],
        "dagster_home": "/opt/dagster/dagster_home",
        "instance_config_map": f"{RELEASE}-dagster-instance",
        "postgres_password_secret": values["global"]["postgresqlSecretName"],
    }
    if raw := given.pop("runK8sConfig", None):
        config["run_k8s_config"] = {_snake(name): value for name, value in raw.items()}
    for name in ("envSecrets", "envConfigMaps"):
        if references := given.pop(name, None):
            config[_snake(name)] = [reference["name"] for reference in references]
    return config | {_snake(name): value for name, value in given.items()}


def _container_context(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the chart hands to the code server for its runs, with ``includeConfigInLaunchedRuns``."""
    deployment = code_deployment(values)
    if not deployment.get("includeConfigInLaunchedRuns", {"enabled": True})["enabled"]:
        return None
    context: dict[str, Any] = {
        "image_pull_policy": deployment["image"]["pullPolicy"],
        "env_config_maps": [f"{RELEASE}-{deployment['name']}-user-env"],
        "env_secrets": [secret["name"] for secret in deployment.get("envSecrets", [])],
        "namespace": "default",
        "service_account_name": values["global"]["serviceAccountName"],
    }
    # Not the security contexts.
    for name in ("volumeMounts", "volumes", "labels", "resources", "schedulerName", "env"):
        if value := deployment.get(name):
            context[_snake(name)] = value
    copied: dict[str, Any] = json.loads(json.dumps({"k8s": context}))
    return copied


def _snake(name: str) -> str:
    return re.sub("([A-Z])", lambda letter: f"_{letter[0].lower()}", name)
