"""The manifests for KubeRay: right names, right types, and commands that the jobs understand."""

import copy
import shlex
from collections.abc import Callable
from typing import Any

import click
import pytest

from tests.infra.commands import ROOT, parse_job, parse_ray_start
from tests.infra.kuberay import cluster_spec, groups, load, problems

FOLDER = ROOT / "infra" / "kuberay"
Documents = list[dict[str, Any]]


@pytest.fixture
def storage() -> Documents:
    return load(FOLDER / "storage.yaml")


@pytest.fixture
def job() -> dict[str, Any]:
    (document,) = load(FOLDER / "job.yaml")
    return document


@pytest.fixture
def cluster() -> dict[str, Any]:
    (document,) = load(FOLDER / "cluster.yaml")
    return document


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"]["containers"][0] for group in groups(document)]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"]}


def test_the_manifests_are_valid(
    storage: Documents, job: dict[str, Any], cluster: dict[str, Any]
) -> None:
    assert problems([*storage, job, cluster]) == []
    assert [document["kind"] for document in storage] == ["Secret", "ConfigMap"]


def test_job_and_cluster_describe_the_same_machines(
    job: dict[str, Any], cluster: dict[str, Any]
) -> None:
    assert cluster_spec(job) == cluster_spec(cluster)


def test_the_job_understands_its_entrypoint(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    options = parse_job(words)
    assert options.output.startswith("s3://")
    # The pods have a place to write, and the command uses it.
    for container in containers(job):
        assert options.scratch in [mount["mountPath"] for mount in container["volumeMounts"]]
    # Quotes, globs and braces would have to survive two shells.
    assert not set("'\"*{}$") & set(job["spec"]["entrypoint"])


def test_ray_understands_its_start_parameters(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        words = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        given = parse_ray_start(words)
        assert given["object_store_memory"] == 512 << 20
    assert parse_ray_start(["--num-cpus=0"])["num_cpus"] == 0
    with pytest.raises(click.UsageError):
        parse_ray_start(["--object-store-memry=1"])


def test_no_worker_lands_on_the_head_and_each_on_one_gpu(cluster: dict[str, Any]) -> None:
    head, *workers = groups(cluster)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert workers
    for group in workers:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert group["minReplicas"] >= 1, "a job begins with the workers that are there"


def test_the_object_store_fits_into_shared_memory(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        pod = group["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0]["volumeMounts"]}
        (shm,) = [volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"]]
        assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
        assert int(group["rayStartParams"]["object-store-memory"]) < 1 << 30


def test_nobody_is_killed_while_finishing(job: dict[str, Any]) -> None:
    """The job's draining, Ray's, Ray's patience with the job, and that of Kubernetes, in order."""
    options = parse_job(shlex.split(job["spec"]["entrypoint"]))
    job_seconds = getattr(options, "drain_seconds", 25.0)
    head, *_ = containers(job)
    patience = float(environment(head)["RAY_JOB_STOP_WAIT_TIME_S"])
    for group, container in zip(groups(job), containers(job), strict=True):
        draining = float(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert job_seconds < draining < patience < grace


def test_only_workers_may_be_lost(cluster: dict[str, Any]) -> None:
    """The head avoids every label by which the workers look for spot machines."""
    head, *workers = (
        group["template"]["spec"]["affinity"]["nodeAffinity"] for group in groups(cluster)
    )
    (term,) = head["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    avoided = {(e["key"], *e["values"]) for e in term["matchExpressions"]}
    assert {e["operator"] for e in term["matchExpressions"]} == {"NotIn"}
    for worker in workers:
        preferred = worker["preferredDuringSchedulingIgnoredDuringExecution"]
        expressions = [e for p in preferred for e in p["preference"]["matchExpressions"]]
        assert {(e["key"], *e["values"]) for e in expressions} == avoided


def test_credentials_come_from_the_secret_alone(
    storage: Documents, job: dict[str, Any], cluster: dict[str, Any]
) -> None:
    secret, _ = storage
    for document in (job, cluster):
        for container in containers(document):
            assert {"secretRef": {"name": secret["metadata"]["name"]}} in container["envFrom"]
            assert not set(environment(container)) & set(secret["stringData"])
    assert all(value == "CHANGE-ME" for value in secret["stringData"].values())


def _pod(document: dict[str, Any]) -> dict[str, Any]:
    return cluster_spec(document)["workerGroupSpecs"][0]["template"]["spec"]


def _rename(where: dict[str, Any], old: str, new: str) -> None:
    where[new] = where.pop(old)


BREAKAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a field of the job": (
        lambda d: _rename(d["spec"], "shutdownAfterJobFinishes", "shutdownAfterJobFinish"),
        "shutdownAfterJobFinish",
    ),
    "a field of the cluster": (
        lambda d: _rename(cluster_spec(d), "enableInTreeAutoscaling", "enableInTreeAutoScaling"),
        "enableInTreeAutoScaling",
    ),
    "a field of the workers": (
        lambda d: _rename(cluster_spec(d)["workerGroupSpecs"][0], "maxReplicas", "maxReplica"),
        "maxReplica",
    ),
    "a number where Ray wants text": (
        lambda d: cluster_spec(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "num-cpus",
    ),
    "text where the operator wants a number": (
        lambda d: d["spec"].update(backoffLimit="2"),
        "backoffLimit",
    ),
    "another version of the API": (lambda d: d.update(apiVersion="ray.io/v1alpha1"), "ray.io/v1"),
    "a field of the pod": (
        lambda d: _rename(_pod(d), "terminationGracePeriodSeconds", "terminationGraceSeconds"),
        "terminationGraceSeconds",
    ),
    "a field of the container": (
        lambda d: _rename(_pod(d)["containers"][0], "envFrom", "envfrom"),
        "envfrom",
    ),
    "no memory limit": (
        lambda d: _pod(d)["containers"][0]["resources"]["limits"].pop("memory"),
        "limits no memory",
    ),
    "no resources": (lambda d: _pod(d)["containers"][0].pop("resources"), "requests no cpu"),
    "a volume that is not there": (
        lambda d: _pod(d)["volumes"].pop(0),
        "mounts scratch",
    ),
    "a secret that is not there": (
        lambda d: _pod(d)["containers"][0]["envFrom"][0]["secretRef"].update(name="strata-s4"),
        "no Secret strata-s4",
    ),
    "more workers than allowed": (
        lambda d: cluster_spec(d)["workerGroupSpecs"][0].update(replicas=9),
        "replicas",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_mistake_is_found(breakage: str, storage: Documents, job: dict[str, Any]) -> None:
    break_it, found = BREAKAGES[breakage]
    broken = copy.deepcopy(job)
    break_it(broken)
    assert any(found in problem for problem in problems([*storage, broken]))


def test_a_mistake_in_a_secret_is_found(storage: Documents, job: dict[str, Any]) -> None:
    _rename(storage[0], "stringData", "stringdata")
    assert any("stringdata" in problem for problem in problems([*storage, job]))


def test_a_renamed_flag_is_found(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(job["spec"]["entrypoint"].replace("--scratch", "--scratch-folder"))
    with pytest.raises(SystemExit):
        parse_job(words)
    assert "--scratch-folder" in capsys.readouterr().err
