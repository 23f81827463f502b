"""Jobs as whole programs with a Ray of their own: killed, poisoned, on lost machines."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pipeline
from tests.integration.conftest import RunHere
from tests.integration.corpus import SAMPLES, SHARDS, Corpus, sample_files
from tests.integration.faults import FaultProxy
from tests.integration.processes import kill, marked
from tests.integration.servers import BUCKET, ROOT, S3Server
from tests.pipeline.makers import png, tar_bytes

COMPRESS = ROOT / "jobs" / "compress_dataset.py"
PATIENCE = 250  # seconds for a job with its Ray, which takes 20 to 30 on two idle cores

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@contextmanager
def started(
    command: list[str], home: Path, endpoint: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A program with a Ray of its own, all of whose processes are gone at the end.

    They are known by their home, which nobody else has.
    """
    settings = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    settings |= {"HOME": str(home), "AWS_ENDPOINT_URL": endpoint, "OMP_NUM_THREADS": "1"}
    settings |= environment
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield program
    finally:
        kill(marked(f"HOME={home}"))
        program.communicate()


def compress_command(corpus: Corpus, name: str) -> list[str]:
    command = [
        sys.executable,
        str(COMPRESS),
        "--input",
        corpus.inputs,
        "--output",
        corpus.output(name),
    ]
    return [
        *command,
        "--model",
        corpus.model,
        "--lossless",
        "--keep-original",
        "always",
        "--workers",
        "1",
    ]


@pytest.fixture(scope="module")
def corpus(moto_server: S3Server, small_model: str) -> Corpus:
    corpus = Corpus(moto_server, small_model, "lost")
    corpus.upload()
    return corpus


def test_the_driver_is_killed(
    ray_session: None, corpus: Corpus, run_here: RunHere, folder: str, tmp_path: Path
) -> None:
    """Without warning, so that parts of its Ray outlive it; then the same command again."""
    command = compress_command(corpus, folder)
    with FaultProxy(corpus.server.endpoint) as proxy:
        with started(command, tmp_path, proxy.endpoint) as job:

            def kill_driver(path: str) -> None:
                os.kill(job.pid, signal.SIGKILL)

            proxy.call(kill_driver, method="PUT", path="/commits/x-1", when="before", cut=True)
            assert job.wait(PATIENCE) == -signal.SIGKILL
        assert not marked(f"HOME={tmp_path}")
    code, output, errors = run_here(COMPRESS, *command[2:])
    assert code == 0, errors
    assert f"compressed {SHARDS * SAMPLES} pictures of {SHARDS} shards" in output
    corpus.check(folder)


# A machine that does not answer is given up within seconds, which is up to a minute otherwise.
PATIENCE_OF_RAY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_raylet_rpc_server_reconnect_timeout_max_s": "5",
    "RAY_core_worker_rpc_server_reconnect_timeout_max_s": "5",
}


def test_a_machine_is_lost(corpus: Corpus, folder: str, tmp_path: Path) -> None:
    module = "tests.integration.lose_node"
    # a socket's path ends at 107 bytes, and pytest's folders are long
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
        command = [
            sys.executable,
            "-m",
            module,
            corpus.server.endpoint,
            corpus.model,
            corpus.folder,
            folder,
            short,
        ]
        with started(command, tmp_path, corpus.server.endpoint, **PATIENCE_OF_RAY) as program:
            output, errors = program.communicate(timeout=2 * PATIENCE)
    assert program.returncode == 0, errors
    (result,) = (line for line in output.splitlines() if line.startswith("{"))  # amid Ray's own
    facts = {"lost": True, "given_up": True, "exit_code": 0, "ok": SHARDS * SAMPLES}
    assert json.loads(result) == facts
    corpus.check(folder)


# Goes into every Python process of the job, and makes the workers' PNG decoder one that a certain
# text chunk kills, as some decoders in C are killed by some files.
KILLED_BY_A_PICTURE = """
import os, signal, sys

if any("default_worker" in argument for argument in sys.orig_argv):
    from PIL.PngImagePlugin import PngStream

    read_header = PngStream.chunk_IHDR

    def chunk_IHDR(self, position, length):
        data = read_header(self, position, length)
        if self.im_size == (37, 41):
            os.kill(os.getpid(), signal.SIGSEGV)
        return data

    PngStream.chunk_IHDR = chunk_IHDR
"""


def test_a_picture_that_kills_its_worker(
    moto_server: S3Server, small_model: str, folder: str, tmp_path: Path
) -> None:
    """It alone is bad, and the shard comes through with all the others."""
    corpus = Corpus(moto_server, small_model, "poison")
    corpus.upload()
    poison = {"s0015.jpg": ("s0015.png", png(15, 41, 37))}
    files = [poison.get(file[0], file) for n in range(10, 10 + SAMPLES) for file in sample_files(n)]
    corpus.server.filesystem().pipe_file(f"{BUCKET}/poison/in/x-1.tar", tar_bytes(files))
    (tmp_path / "sitecustomize.py").write_text(KILLED_BY_A_PICTURE)
    command = [*compress_command(corpus, folder), "--attempts", "1"]
    with started(command, tmp_path, moto_server.endpoint, PYTHONPATH=str(tmp_path)) as job:
        output, errors = job.communicate(timeout=PATIENCE)
    assert job.returncode == 1, errors
    assert f"compressed {SHARDS * SAMPLES - 1} pictures of {SHARDS} shards; 1 bad" in output
    dataset = pipeline.open_dataset(corpus.output(folder), moto_server.options())
    ((url, key, status, reason),) = dataset.problems()
    assert (url, key, status) == (f"{corpus.inputs}/x-1.tar", "s0015", "bad")
    assert reason.startswith("kills its worker")
    corpus.check(folder, without="s0015")
