"""docs/cluster.md agrees with the files that it describes."""

import re

import pytest

from tests.infra.commands import ROOT, job_commands, parse_job
from tests.infra.kuberay import load

TEXT = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
MANIFEST = (ROOT / "infra" / "kuberay" / "cluster.yaml").read_text()


@pytest.mark.parametrize("words", job_commands(BLOCKS) + job_commands(MANIFEST), ids=" ".join)
def test_the_jobs_understand_the_commands(words: list[str]) -> None:
    assert parse_job(words).output


def test_there_are_commands_to_check() -> None:
    assert len(job_commands(BLOCKS)) == 2
    assert len(job_commands(MANIFEST)) == 1


def test_the_names_in_kubernetes_are_those_of_the_manifests() -> None:
    (job,) = load(ROOT / "infra" / "kuberay" / "job.yaml")
    (cluster,) = load(ROOT / "infra" / "kuberay" / "cluster.yaml")
    job_name, cluster_name = job["metadata"]["name"], cluster["metadata"]["name"]
    assert set(re.findall(r"\bjob/([\w-]+)", BLOCKS)) == {job_name}
    assert set(re.findall(r"delete rayjob ([\w-]+)", TEXT)) == {job_name}
    # KubeRay names the head's service after the cluster.
    assert set(re.findall(r"service/([\w-]+)", TEXT)) == {f"{cluster_name}-head-svc"}
