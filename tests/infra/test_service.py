"""The manifest of the preview server: valid, and understood by Ray Serve and by the server."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from pipeline.serving import deployment
from pipeline.serving.deployment import application
from tests.infra.commands import ROOT, parse_ray_start
from tests.infra.kuberay import groups, load, problems

FOLDER = ROOT / "infra" / "kuberay"


@pytest.fixture
def service() -> dict[str, Any]:
    (document,) = load(FOLDER / "service.yaml")
    return document


@pytest.fixture
def config(service: dict[str, Any]) -> dict[str, Any]:
    return dict(yaml.safe_load(service["spec"]["serveConfigV2"]))


def test_the_manifest_is_valid(service: dict[str, Any]) -> None:
    assert problems([*load(FOLDER / "storage.yaml"), service]) == []
    for group in groups(service):
        parse_ray_start([f"--{name}={value}" for name, value in group["rayStartParams"].items()])


def test_a_mistake_is_found(service: dict[str, Any]) -> None:
    service["spec"]["rayClusterSpec"] = service["spec"].pop("rayClusterConfig")
    assert any("rayClusterConfig" in problem for problem in problems([service]))


def test_serve_and_the_server_understand_the_configuration(config: dict[str, Any]) -> None:
    parsed = ServeDeploySchema.model_validate(config)
    (app,) = parsed.applications
    module, _, name = app.import_path.partition(":")
    assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()
    assert getattr(deployment, name) is application
    assert isinstance(application(app.args), serve.Application)
    with pytest.raises(TypeError, match="cache"):
        application({**app.args, "limits": {"cache": 1}})


def test_the_replicas_fit_into_the_pods(service: dict[str, Any], config: dict[str, Any]) -> None:
    arguments = config["applications"][0]["args"]
    head, *workers = groups(service)
    assert head["rayStartParams"]["num-cpus"] == "0"
    room = 0
    for group in workers:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        room += group["minReplicas"] * (
            int(container["resources"]["limits"]["cpu"]) // arguments["cpus"]
        )
    assert room >= arguments["replicas"]


def test_the_port_is_reached(service: dict[str, Any], config: dict[str, Any]) -> None:
    assert config["http_options"]["host"] == "0.0.0.0"
    for group in groups(service):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["serve"] == config["http_options"]["port"]
