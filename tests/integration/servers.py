"""Real S3 servers for the tests, each in a process of its own on 127.0.0.1."""

import importlib.util
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.integration.server_process import SWIFT_ACCOUNT, SWIFT_SECRET, SWIFT_USER

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
BUCKET = "strata"


@dataclass(frozen=True)
class S3Server:
    """Where a server is and who may use it. It begins with one empty bucket, ``BUCKET``."""

    name: str
    endpoint: str
    key: str = "test"
    secret: str = "test"
    url: str = f"s3://{BUCKET}"

    def options(self, endpoint: str | None = None, **config: Any) -> dict[str, Any]:
        """fsspec's storage options; ``endpoint`` where a proxy stands in front of the server."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": endpoint or self.endpoint,
            "config_kwargs": config,
        }

    def filesystem(self, endpoint: str | None = None, **config: Any) -> Any:
        """A file system that nobody else has, so that no listing is remembered."""
        import s3fs

        options = self.options(endpoint, **config)
        return s3fs.S3FileSystem(**options, skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def moto() -> Iterator[S3Server]:
    """A server in memory: quick, with atomic create-only writes; it believes every signature."""
    with _serving("moto") as endpoint:
        server = S3Server("moto", endpoint)
        server.filesystem().mkdir(BUCKET)
        yield server


def why_no_swift() -> str:
    """What is missing for Swift on this machine, or ''."""
    if importlib.util.find_spec("swift") is None:
        return "OpenStack Swift is not installed: pip install -e .[stores]"
    with tempfile.NamedTemporaryFile(prefix="strata-swift-") as file:
        try:
            os.setxattr(file.name, "user.swift.metadata", b"x" * 1024)
        except (AttributeError, OSError) as error:
            return f"{tempfile.gettempdir()} cannot hold Swift's extended attributes: {error}"
    return ""


@contextmanager
def swift() -> Iterator[S3Server]:
    """OpenStack Swift with its S3 side: a store on disk that checks every signature."""
    with _serving("swift") as endpoint:
        server = S3Server("swift", endpoint, f"{SWIFT_ACCOUNT}:{SWIFT_USER}", SWIFT_SECRET)
        server.filesystem().mkdir(BUCKET)
        yield server


@contextmanager
def _serving(kind: Literal["moto", "swift"]) -> Iterator[str]:
    """Run ``server_process`` until the end of the block; yields its address."""
    with tempfile.TemporaryDirectory(prefix=f"strata-{kind}-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.server_process", kind, folder],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C is for the tests, which then end the server
            )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            line = process.stdout.readline() if ready else b""
            if not line.strip().isdigit():
                raise RuntimeError(f"{kind} did not start: {log.read_text()[-2000:]}")
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
