"""`ray job submit` to a cluster, from S3 to S3, and previews served there until it is stopped."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

import pipeline
from codec.images.files import read_image
from tests.integration.conftest import free_port
from tests.integration.servers import ROOT
from tests.integration.test_serve import PATIENCE, get, listens, wait_for
from tests.pipeline.makers import samples, tar_bytes

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class PrivateCluster:
    """A Ray cluster of its own, with the environment that reaches it."""

    address: str
    environment: dict[str, str]

    def job(self, *words: object) -> tuple[int, str]:
        """``ray job`` as people call it: its exit code, and all that it said."""
        command, *rest = words
        done = subprocess.run(
            list(map(str, [RAY, "job", command, "--address", self.address, *rest])),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


@pytest.fixture(scope="module")
def cluster(s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateCluster]:
    """``ray start --head`` in a process group of its own, which ends with these tests.

    It knows the S3 server through its environment.
    """
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "HOME": str(home),
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    dashboard, agent = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}"]
    # Another Ray on this machine may have the usual ones, and without its agent a cluster lives
    # but takes no job.
    for name in ("dashboard-agent-grpc", "ray-client-server"):
        command.append(f"--{name}-port={free_port()}")
    command += [f"--dashboard-agent-listen-port={agent}"]
    command += ["--dashboard-host=127.0.0.1", "--object-store-memory=200000000"]
    sockets = Path(tempfile.mkdtemp(prefix="ray-"))  # a socket's path ends at 107 bytes
    command += [f"--temp-dir={sockets}", "--disable-usage-stats"]
    log = home / "ray.log"
    head = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        start_new_session=True,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    cluster = PrivateCluster(f"http://127.0.0.1:{dashboard}", environment)
    try:
        deadline = time.monotonic() + PATIENCE
        needed = (f"{cluster.address}/api/version", f"http://127.0.0.1:{agent}/api/healthz")
        while not all(map(answers, needed)):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield cluster
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(5)
            os.killpg(head.pid, signal.SIGKILL)  # children that outlived it, if any
        head.wait(10)
        shutil.rmtree(sockets, ignore_errors=True)


def test_from_s3_to_s3_and_previews(
    cluster: PrivateCluster, s3: str, folder: str, tmp_path: Path
) -> None:
    fs = fsspec.filesystem("s3")
    for number in range(3):
        fs.pipe_file(f"strata/{folder}/in/{number}.tar", tar_bytes(samples(2)))
    checkout = tmp_path / "checkout"  # what a user submits: the packages and the jobs
    checkout.mkdir()
    for name in ("codec", "pipeline", "jobs"):
        (checkout / name).symlink_to(ROOT / name)
    where = ["--working-dir", checkout, "--"]

    archive, out = f"{s3}/{folder}/archive", f"{s3}/{folder}/out"
    compress = ["jobs/compress_dataset.py", "--input", f"{s3}/{folder}/in/", "--output", archive]
    code, said = cluster.job("submit", *where, "python", *compress)
    assert code == 0, said
    assert "compressed 6 pictures of 3 shards" in said
    dataset = pipeline.open_dataset(archive)
    assert sorted(dataset.keys()) == ["s0000"] * 3 + ["s0001"] * 3
    decode = ["jobs/decode_dataset.py", "--input", archive, "--output", out, "--layers", "1"]
    code, said = cluster.job("submit", *where, *decode)
    assert code == 0, said
    assert "decoded 6 pictures" in said
    fs.invalidate_cache()
    assert len(fs.glob(f"strata/{folder}/out/*.tar")) == 3

    port = free_port()
    serve = ["python", "jobs/serve_previews.py", "--input", archive, "--port", port]
    code, said = cluster.job("submit", "--submission-id", "previews", "--no-wait", *where, *serve)
    assert code == 0, said
    try:
        wait_for(port)
    except AssertionError:
        raise AssertionError(cluster.job("logs", "previews")[1]) from None
    status, _, body = get(port, "/v1/images/s0001?layers=1&max_side=16&format=png")
    assert (status, read_image(body).width) == (200, 16)
    cluster.job("stop", "previews")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and listens(port) and get(port, "/healthz")[0] == 200:
        time.sleep(0.5)
    # Serve itself stays on the cluster, but not our application.
    assert not listens(port) or get(port, "/healthz")[0] == 404
    assert "was stopped" in cluster.job("status", "previews")[1]
