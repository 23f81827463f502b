"""The jobs as commands: exit codes, messages, signals, and `ray job submit`."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

import pipeline
from tests.integration.conftest import RunHere, free_port
from tests.pipeline.makers import samples, write_tar

ROOT = Path(__file__).resolve().parents[2]
COMPRESS, DECODE = ROOT / "jobs" / "compress_dataset.py", ROOT / "jobs" / "decode_dataset.py"

pytestmark = pytest.mark.integration


def run(
    script: Path, *arguments: object, cwd: Path, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"HOME": str(home or cwd), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250, check=False
    )


def test_what_must_be_put_right_first(tmp_path: Path) -> None:
    """The command as people run it; more messages are below, without a process for each."""
    done = run(COMPRESS, "--input", "none.tar", "--output", "set", cwd=tmp_path)
    assert done.returncode == 2
    assert "none.tar: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "a.tar", "--output", "set", "--model", "nosuch"], "no model 'nosuch'"),
        (["--input", "a.tar", "--output", "set", "--store-layers", "99"], "--store-layers 99"),
        (["--input", "a.tar", "--output", "set", "--store-layers", "x"], "positive number or auto"),
        (
            ["--input", "a.tar", "--output", "set", "--lossless", "--store-layers", "1"],
            "leave out --store-layers",
        ),
        (["--input", "a.tar", "--output", "set", "--quality", "1"], "uqdm has no option quality"),
        (["--input", "a.tar", "--output", "a.tar/set"], "cannot be written"),
        (["--input", "a.tar", "--output", "nosuch://x"], "nosuch"),
        (["--input", "a.tar", "--output", "set", "--workers", "0"], "must be at least 1"),
        (["--input", "a.tar"], "--output"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], words: str, run_here: RunHere, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", samples(1))
    code, _, errors = run_here(COMPRESS, *arguments)
    assert code == 2
    assert words in errors
    assert not (tmp_path / "set" / "data").exists()


def test_decoding_what_is_no_dataset(run_here: RunHere, tmp_path: Path) -> None:
    code, _, errors = run_here(DECODE, "--input", str(tmp_path), "--output", str(tmp_path / "out"))
    assert code == 2
    assert "there is no dataset here" in errors


@pytest.mark.parametrize("script", [COMPRESS, DECODE])
def test_help_explains_every_option(run_here: RunHere, script: Path) -> None:
    code, output, _ = run_here(script, "--help")
    assert code == 0
    assert "Exit code 0" in output
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_from_any_folder_on_a_ray_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_tar(tmp_path / "a.tar", [*samples(3), ("b.png", b"broken")])
    done = run(COMPRESS, "--input", "a.tar", "--output", "set", cwd=tmp_path, home=home)
    assert done.returncode == 1, done.stderr
    assert "compressed 3 pictures of 1 shards; 1 bad, 0 filtered, 0 shards failed" in done.stdout
    assert f"{tmp_path}/a.tar : 'b' : " in done.stdout
    assert not (home / ".ray").exists()  # a token there would lock `ray start` for this user
    assert len(pipeline.open_dataset(str(tmp_path / "set"))) == 3


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_nothing_half_done(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2))
    for name in ("b.tar", "c.tar"):
        write_tar(tmp_path / name, samples(1500))
    arguments = ["--input", "a.tar", "b.tar", "c.tar", "--output", "set", "--lossless"]
    arguments += ["--workers", "1", "--drain-seconds", "2"]
    job = subprocess.Popen(
        [sys.executable, str(COMPRESS), *arguments],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    commits = tmp_path / "set" / "commits"
    for _ in range(1000):
        if commits.is_dir() and list(commits.glob("*.json")):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "stopping: finishing or saving the shards under way" in errors
    assert "goes on from there" in errors
    time.sleep(1)
    data, recorded = (
        {path.stem for path in (tmp_path / "set" / folder).iterdir()}
        for folder in ("data", "commits")
    )
    assert data == recorded
    assert 1 <= len(data) < 3
    assert not list((tmp_path / "set").glob("manifest*"))


@dataclass(frozen=True)
class PrivateCluster:
    """A Ray cluster of its own, with the environment that reaches it."""

    address: str
    environment: dict[str, str]


@pytest.fixture
def head_node(s3: str, tmp_path: Path) -> Iterator[PrivateCluster]:
    """``ray start --head`` in a process group of its own, which ends with the test.

    It knows the S3 server through its environment.
    """
    home = tmp_path / "home"
    home.mkdir()
    ray, port, dashboard = Path(sys.executable).with_name("ray"), free_port(), free_port()
    environment = os.environ | {
        "HOME": str(home),
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    command = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}"]
    # Another Ray on this machine may have the usual ones, and without its agent a cluster lives
    # but takes no job.
    for name in ("dashboard-agent-listen", "dashboard-agent-grpc", "ray-client-server"):
        command.append(f"--{name}-port={free_port()}")
    command += ["--dashboard-host=127.0.0.1", "--object-store-memory=200000000"]
    sockets = Path(tempfile.mkdtemp(prefix="strata-ray-"))  # a socket's path ends at 107 bytes
    command += [f"--temp-dir={sockets}", "--disable-usage-stats"]
    head = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        start_new_session=True,
        stdout=(tmp_path / "ray.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            listing = subprocess.run(
                [ray, "job", "list", "--address", address],
                env=environment,
                capture_output=True,
                check=False,
            )
            if listing.returncode == 0:
                break
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
            time.sleep(0.5)
        yield PrivateCluster(address, environment)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(5)
            os.killpg(head.pid, signal.SIGKILL)  # children that outlived it, if any
        head.wait(10)
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.slow
def test_ray_job_submit_from_s3_to_s3(head_node: PrivateCluster, s3: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2))
    fs = fsspec.filesystem("s3")
    for number in range(3):
        fs.put_file(str(tmp_path / "a.tar"), f"strata/submitted/in/{number}.tar")
    folder = tmp_path / "checkout"  # what a user submits: the packages and the jobs
    for name in ("codec", "pipeline", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def submit(*entrypoint: str, patience: int = 20) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
        command += ["--address", head_node.address, "--working-dir", ".", "--", *entrypoint]
        done = subprocess.run(
            command,
            cwd=folder,
            env=head_node.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        if done.returncode and "submitted successfully" not in done.stdout and patience:
            time.sleep(1)  # the cluster listens before it is able to take a job
            return submit(*entrypoint, patience=patience - 1)
        return done

    archive, tar = f"{s3}/submitted/archive", str(tmp_path / "a.tar")
    inputs = f"{s3}/submitted/in/"
    first = submit("python", "jobs/compress_dataset.py", "--input", inputs, "--output", archive)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "compressed 6 pictures of 3 shards" in first.stdout
    dataset = pipeline.open_dataset(archive)
    assert sorted(dataset.keys()) == ["s0000"] * 3 + ["s0001"] * 3
    out = f"{s3}/submitted/out"
    second = submit("jobs/decode_dataset.py", "--input", archive, "--output", out, "--layers", "1")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "decoded 6 pictures" in second.stdout
    fs.invalidate_cache()
    assert len(fs.glob("strata/submitted/out/*.tar")) == 3
    lost = submit("jobs/compress_dataset.py", "--input", tar, "--output", "relative")
    assert lost.returncode != 0
    assert "a relative path would be lost" in " ".join((lost.stdout + lost.stderr).split())
