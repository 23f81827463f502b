"""One S3 server and one Ray for the whole session, both on 127.0.0.1 and ended at its end."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an empty bucket on a moto server, which fsspec finds through the environment."""
    import fsspec

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        fsspec.filesystem("s3").mkdir("strata")
        yield "s3://strata"
    finally:
        os.environ.pop("AWS_ENDPOINT_URL", None)
        server.terminate()
        server.wait(10)


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
