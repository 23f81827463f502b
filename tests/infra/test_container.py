"""The container file: lint, and what it says about the rest of the repository."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.infra.commands import ROOT
from tests.infra.kuberay import cluster_spec, groups, load

FILE = ROOT / "infra" / "container" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.fixture
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


@pytest.fixture
def pins() -> dict[str, str]:
    lines = (ROOT / "infra" / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in found}


def instructions(text: str) -> list[str]:
    """The container file's instructions without comments, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [line for line in joined.splitlines() if line.strip()]


def lint(file: Path) -> str:
    ran = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True)
    return ran.stdout + ran.stderr


def test_lint() -> None:
    assert lint(FILE) == ""


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("FROM python:3.11-slim-trixie", "FROM python", "DL3006"),
        ("USER 1000", "USER root", "DL3002"),
        ("pip install --no-cache-dir --root-user-action=ignore --no-deps", "pip install", "DL3042"),
        ('CMD ["python", "jobs/compress_dataset.py", "--help"]', "CMD python jobs", "DL3025"),
        ("WORKDIR /strata", "WORKDIR strata", "DL3000"),
    ],
)
def test_lint_finds_mistakes(old: str, new: str, rule: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    assert old in text
    broken = tmp_path / "Dockerfile"
    broken.write_text(text.replace(old, new))
    assert rule in lint(broken)


def test_what_it_copies_exists_and_is_sent_to_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore, "everything else stays outside: .git, .venv, runs"
    copied = set()
    for line in instructions(FILE.read_text()):
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
    assert copied == sent
    for name in copied:
        assert (ROOT / name).exists(), name
    assert {"codec", "pipeline", "jobs", "infra/constraints.txt"} <= copied


def test_python_is_the_one_of_the_constraints(project: dict[str, Any]) -> None:
    found = re.search(r"^FROM python:(\d+\.\d+)-slim", FILE.read_text(), re.MULTILINE)
    assert found
    assert found[1] in SpecifierSet(project["requires-python"])
    assert f"on Python {found[1]}" in (ROOT / "infra" / "constraints.txt").read_text()


def test_everything_it_installs_is_pinned(project: dict[str, Any], pins: dict[str, str]) -> None:
    installs = [line for line in instructions(FILE.read_text()) if "pip install" in line]
    assert len(installs) == 2
    assert "-c infra/constraints.txt" in installs[0]
    assert "--no-deps" in installs[1]
    for requirement in map(Requirement, project["dependencies"]):
        pin = pins[requirement.name.lower()]
        assert pin in requirement.specifier, f"{requirement} and {pin}"


def test_it_has_what_kuberay_needs() -> None:
    lines = instructions(FILE.read_text())
    (apt,) = [line for line in lines if "apt-get install" in line]
    assert re.search(r"\bwget\b", apt), "KubeRay's probes call wget"
    assert not any(line.startswith("ENTRYPOINT") for line in lines)
    # The pods run as this user, and Kubernetes must be able to see that it is not root.
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert re.search(rf"useradd .*--uid {user}\b", apt)
    for name in ("job", "cluster"):
        (document,) = load(ROOT / "infra" / "kuberay" / f"{name}.yaml")
        for group in groups(document):
            security = group["template"]["spec"]["securityContext"]
            assert security["runAsUser"] == int(user)
            assert security["runAsNonRoot"] is True


def test_the_manifests_use_these_images(project: dict[str, Any], pins: dict[str, str]) -> None:
    text = FILE.read_text()
    for name in ("job", "cluster"):
        (document,) = load(ROOT / "infra" / "kuberay" / f"{name}.yaml")
        assert cluster_spec(document)["rayVersion"] == pins["ray"]
        images = [group["template"]["spec"]["containers"][0]["image"] for group in groups(document)]
        tags = [image.rsplit("/", 1)[1] for image in images]
        assert tags == [f"strata:{project['version']}-{variant}" for variant in ("cpu", "cuda")]
        assert all(f"-t {tag} " in text for tag in tags)
