"""S3 servers and one Ray for the whole session, all on 127.0.0.1, stopped at its end."""

import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.running import cluster
from tests.codec.small_models import write_nested_model
from tests.integration.servers import S3Server, moto, swift, why_no_swift

RunHere = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def swift_server() -> Iterator[S3Server]:
    """OpenStack Swift; tests of it are skipped where it cannot run, and say why."""
    if missing := why_no_swift():
        pytest.skip(missing)
    with swift() as server:
        yield server


@pytest.fixture(scope="session")
def s3(moto_server: S3Server) -> Iterator[str]:
    """The URL of a bucket on a moto server, which fsspec finds through the environment."""
    os.environ["AWS_ENDPOINT_URL"] = moto_server.endpoint
    yield moto_server.url
    os.environ.pop("AWS_ENDPOINT_URL", None)


@pytest.fixture(scope="session")
def ray_session(s3: str) -> Iterator[None]:
    """Ray on this machine, started after the S3 server so that workers know where that is."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=512 << 20,
        include_dashboard=False,
        logging_level="WARNING",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a model that is quick, and exact with all of its seven layers, as uqdm is."""
    return str(write_nested_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder of a bucket that nobody has written to: no other test, and no earlier try of one."""
    return tmp_path.name


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunHere:
    """``run_here(script, *arguments)``: a job's command in this process, which is seconds less.

    It uses this process's Ray where there is one. Gives the exit code, and what was printed where.
    """

    def run_here(script: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
        monkeypatch.setattr(cluster, "disconnect", lambda: None)  # and its Ray
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(script), run_name="__main__")
        assert isinstance(done.value.code, int)
        return done.value.code, *capsys.readouterr()

    return run_here
