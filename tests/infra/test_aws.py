"""The cluster launcher's file for AWS, as Ray, boto and IAM read it."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra.commands import ROOT, job_commands, parse_job, parse_ray_start

FILE = ROOT / "infra" / "aws" / "cluster.yaml"
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    return dict(yaml.safe_load(FILE.read_text()))


def check(config: Config) -> None:
    """Raises what `ray up` would raise, or AWS when it is asked for a machine."""
    validate_config(prepare_config(copy.deepcopy(config)))
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    for name, kind in config["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **kind["node_config"]}
        report = ParamValidator().validate(request, shape.input_shape)
        if report.has_errors():
            raise ValueError(f"{name}: {report.generate_report()}")


def test_the_launcher_accepts_the_file(config: Config) -> None:
    check(config)


BREAKAGES: dict[str, Callable[[Config], Any]] = {
    "a field of the launcher": lambda c: c.update(idle_timeout_minute=5),
    "a field of a node type": lambda c: c["available_node_types"]["gpu"].update(min_worker=1),
    "resources that are no numbers": lambda c: c["available_node_types"]["gpu"]["resources"].update(
        GPU="1"
    ),
    "a head that is not there": lambda c: c.update(head_node_type="heads"),
    "more workers than machines": lambda c: c["available_node_types"]["gpu"].update(min_workers=99),
    "a field of the machine": lambda c: c["available_node_types"]["gpu"]["node_config"].update(
        InstanceMarketOption={}
    ),
    "a type in the machine": lambda c: c["available_node_types"]["gpu"]["node_config"].update(
        IamInstanceProfile="strata-worker"
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_mistake_is_found(breakage: str, config: Config) -> None:
    BREAKAGES[breakage](config)
    with pytest.raises((ValueError, jsonschema.ValidationError)):
        check(config)


def test_workers_are_spot_machines_with_gpus_and_the_head_is_neither(config: Config) -> None:
    kinds = config["available_node_types"]
    head = kinds.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert kinds
    for kind in kinds.values():
        assert kind["resources"]["GPU"] >= 1
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["min_workers"] >= 1, "a job begins with the workers that are there"


def test_no_credentials_in_the_file(config: Config) -> None:
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"]["Name"].startswith("strata-")
    assert not re.search(r"AKIA|aws_access_key_id|AWS_SECRET", FILE.read_text())


def test_what_is_mounted_is_all_that_the_set_up_needs(config: Config) -> None:
    mounts = config["file_mounts"]
    for local in mounts.values():
        assert (ROOT / local).exists()
    for used in re.findall(r"~/strata/(\w+)", " ".join(config["setup_commands"])):
        assert f"~/strata/{used}" in mounts
    # What pip builds the package from: see pyproject.toml.
    assert {"codec", "pipeline", "jobs", "pyproject.toml", "README.md", "LICENSE"} <= set(
        mounts.values()
    )


def test_ray_understands_how_it_is_started(config: Config) -> None:
    def options(commands: list[str]) -> dict[str, Any]:
        (command,) = [command for command in commands if "ray start" in command]
        return parse_ray_start(shlex.split(command.split("ray start", 1)[1]))

    head = options(config["head_start_ray_commands"])
    worker = options(config["worker_start_ray_commands"])
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert head["object_store_memory"] == worker["object_store_memory"] == 512 << 20


def test_the_job_understands_the_example(config: Config) -> None:
    (words,) = job_commands(FILE.read_text())
    assert parse_job(words).output == "s3://..."
    assert words[1].startswith(f"/home/{config['auth']['ssh_user']}/strata/")
    assert "~/strata/jobs" in config["file_mounts"]


@pytest.mark.parametrize("name", ["s3-policy", "head-policy"])
def test_iam_accepts_the_policies(name: str) -> None:
    document = (FILE.parent / f"{name}.json").read_text()
    with mock_aws():
        iam = boto3.client("iam")
        iam.create_policy(PolicyName=name, PolicyDocument=document)
        broken = json.loads(document)
        broken["Statement"][0]["Actions"] = broken["Statement"][0].pop("Action")
        with pytest.raises(botocore.exceptions.ClientError):
            iam.create_policy(PolicyName="broken", PolicyDocument=json.dumps(broken))


def test_the_head_may_only_touch_its_own_cluster(config: Config) -> None:
    policy = json.loads((FILE.parent / "head-policy.json").read_text())
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    tags = statements["EndOnlyMachinesOfThisCluster"]["Condition"]["StringEquals"]
    assert tags == {"ec2:ResourceTag/ray-cluster-name": config["cluster_name"]}
    worker = config["available_node_types"]["gpu"]["node_config"]["IamInstanceProfile"]["Name"]
    assert statements["GiveWorkersTheirProfile"]["Resource"].endswith(f":role/{worker}")
