"""jobs/serve_previews.py as a process: on a Ray of its own, from S3."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codec.images.files import read_image
from pipeline.reader.dataset import Dataset
from pipeline.serving.front import FrontLimits
from tests.integration.conftest import RunHere, free_port
from tests.integration.processes import descendants
from tests.integration.servers import S3Server
from tests.pipeline.makers import png, samples, write_tar
from tests.pipeline.serving.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "jobs" / "serve_previews.py"
PATIENCE = 120  # seconds for Ray to start on a machine that does other things, too

pytestmark = [pytest.mark.integration]


@pytest.fixture(scope="module")
def archive(s3: str) -> Dataset:
    """A small dataset of the shipped model, on S3."""
    with tempfile.TemporaryDirectory() as folder:
        tar = write_tar(Path(folder) / "a.tar", [*samples(2), ("b/c.png", png(3))])
        return write_dataset(f"{s3}/previews/archive", [tar], layers=2)


def get(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


def wait_for(port: int, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if get(port, "/healthz")[0] == 200:
                return
        assert process is None or process.poll() is None, "it has ended"
        time.sleep(0.2)
    raise AssertionError("nothing answers")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def job(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The job in a session of its own, as a terminal starts it; it is gone in the end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        env=environment | {"HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def replicas_add_up(port: int) -> None:
    """Whichever replica is asked for the figures, those of both are there, each under its name."""
    pattern = (
        r'strata_preview_requests_total{replica="(\w+)",route="/v1/dataset",status="200"} (\S+)'
    )
    asked = int(json.loads(get(port, "/v1/dataset")[2])["pictures"] == 3)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = dict(re.findall(pattern, get(port, "/metrics")[2].decode()))
        # one request was made before; a replica's figures come some seconds later to the others
        if len(found) == 2 and sum(map(float, found.values())) == asked + 1:
            return
        get(port, "/v1/dataset")
        asked += 1
        time.sleep(1)
    raise AssertionError(f"{asked + 1} requests, of which {found} are told")


def half_a_request_ends(port: int) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < FrontLimits().head_seconds + 10


@pytest.mark.slow
def test_from_s3_until_it_is_told_to_end(
    archive: Dataset, moto_server: S3Server, tmp_path: Path
) -> None:
    """By Ctrl-C, which all processes of the terminal get; test_submit.py ends one by SIGTERM."""
    port = free_port()
    secrets = tmp_path / "options.json"
    secrets.write_text(json.dumps(moto_server.options()))
    arguments = ["--input", archive.url, "--input-options", f"@{secrets}", "--port", port]
    arguments += ["--replicas", 2]
    with job(tmp_path, *arguments) as process:
        wait_for(port, process)
        below = descendants(process.pid)
        status, headers, body = get(port, "/v1/images/b%2Fc?layers=2&format=png")
        assert status == 200
        np.testing.assert_array_equal(
            read_image(body).rgb, archive.codec().decode([archive.record("b/c").encoded])[0]
        )
        assert headers["x-strata-layers"] == "2"
        assert get(port, "/v1/images/b/c?layers=1&max_side=16")[0] == 200
        assert get(port, "/v1/images/nothing")[0] == 404
        assert json.loads(get(port, "/v1/images?limit=2")[2])["items"][1]["key"] == "s0001"
        assert json.loads(get(port, "/v1/dataset")[2])["pictures"] == 3
        assert b"<title>" in get(port, "/")[2]
        half_a_request_ends(port)
        replicas_add_up(port)
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"3 pictures of {archive.url} are at http://127.0.0.1:{port}/" in printed
    told = [errors.find(words) for words in ("starting Ray", "ending: ", "the server has ended")]
    assert -1 < told[0] < told[1] < told[2]
    assert "Traceback" not in errors
    assert not listens(port)
    time.sleep(0.5)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()], "Ray goes with it"
    assert not (tmp_path / ".ray").exists()  # a token there would lock `ray start` for this user


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "none"], "there is no archive here"),
        (["--input", "s3://key:secret@bucket/x"], "holds a user's name or password"),
        (["--input", "x", "--port", "0"], "must be from 1 to 65535"),
        (["--input", "x", "--max-queued", "-1"], "must be at least 1"),
        ([], "--input"),
    ],
)
def test_what_must_be_put_right_first(run_here: RunHere, arguments: list[str], words: str) -> None:
    code, _, errors = run_here(SCRIPT, *arguments)
    assert code == 2
    assert words in errors


def test_a_port_that_somebody_has(run_here: RunHere, archive: Dataset) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = run_here(SCRIPT, "--input", archive.url, "--port", str(port))
    assert code == 2
    assert f"--port {port}: cannot listen there" in errors
