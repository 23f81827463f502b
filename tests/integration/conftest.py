"""S3 servers and one Ray for the whole session, all on 127.0.0.1 and ended at its end."""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.integration.servers import S3Server, moto, swift, why_no_swift


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
