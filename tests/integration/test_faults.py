"""Whatever a worker or the network does, the dataset is the undisturbed one, and in time."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.compress.job import compress
from pipeline.running.progress.summary import Summary
from pipeline.sources.shards import Shard, ShardError, open_shard
from tests.integration.corpus import DEADLINE, SHARDS, Contents, Corpus
from tests.integration.faults import FaultProxy
from tests.integration.processes import actors, kill
from tests.integration.servers import S3Server
from tests.pipeline.makers import samples, tar_bytes

pytestmark = pytest.mark.integration
SLOWLY = 20_000  # bytes per second


@pytest.fixture(scope="module")
def corpus(moto_server: S3Server) -> Corpus:
    corpus = Corpus(moto_server)
    corpus.upload()
    return corpus


@pytest.fixture(scope="module")
def undisturbed(corpus: Corpus, ray_session: None) -> Contents:
    assert compress(corpus.job("undisturbed")).exit_code == 0
    contents = corpus.contents("undisturbed")
    corpus.check_undisturbed(contents)
    return contents


@pytest.fixture
def proxy(moto_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.endpoint) as proxy:
        yield proxy


def run(corpus: Corpus, name: str, proxy: FaultProxy, **policy: Any) -> Summary:
    """The job, which must end before the deadlines of its attempts are over."""
    started = time.monotonic()
    summary = compress(corpus.job(name, proxy.endpoint, **policy))
    assert time.monotonic() - started < DEADLINE
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("before-encoding", {"method": "GET", "path": r"/x-1\.tar", "when": "before"}),
        ("amid-upload", {"method": "PUT", "path": "/data/x-1", "when": "middle"}),
        ("before-record", {"method": "PUT", "path": "/data/x-1", "when": "after"}),
    ],
)
def test_a_worker_is_killed(
    name: str, point: dict[str, Any], corpus: Corpus, undisturbed: Contents, proxy: FaultProxy
) -> None:
    killed: list[int] = []

    def kill_worker(path: str) -> None:
        killed.extend(actors(os.getpid()))
        kill(killed)

    proxy.call(kill_worker, **point, cut=True)
    summary = run(corpus, name, proxy)
    assert len(killed) == 1
    assert (summary.exit_code, summary.ok) == (0, len(undisturbed))
    corpus.check(name, undisturbed)
    again = run(corpus, name, proxy)
    assert (again.exit_code, again.resumed, again.new_samples) == (0, SHARDS, 0)


@pytest.mark.slow
def test_a_busy_store(corpus: Corpus, undisturbed: Contents, proxy: FaultProxy) -> None:
    rule = proxy.slow_down(0.1, seed=1)
    assert run(corpus, "slow-down", proxy).exit_code == 0
    assert rule.hits >= 3
    corpus.check("slow-down", undisturbed)


@pytest.mark.slow
def test_downloads_that_break_off(corpus: Corpus, undisturbed: Contents, proxy: FaultProxy) -> None:
    """More often than one download is continued, so that an attempt fails too."""
    rules = [
        proxy.truncate(path="/models/", times=2),
        proxy.truncate(path=r"/x-[01]\.tar", times=4),
        proxy.stall(path=r"/x-2\.tar", times=1),
    ]
    assert run(corpus, "broken-off", proxy).exit_code == 0
    assert [rule.hits for rule in rules] == [2, 4, 1]
    corpus.check("broken-off", undisturbed)


@pytest.mark.slow
def test_a_shard_that_never_comes(corpus: Corpus, undisturbed: Contents, proxy: FaultProxy) -> None:
    """The job ends without it, says so, and does it when the store is well again."""
    proxy.stall(path=r"/x-1\.tar")
    summary = run(corpus, "never", proxy, attempts=1)
    assert summary.exit_code == 1
    assert [problem.shard for problem in summary.failed_shards] == [f"{corpus.inputs}/x-1.tar"]
    half = corpus.contents("never")
    assert 0 < len(half) < len(undisturbed)
    proxy.clear()
    again = run(corpus, "never", proxy)
    assert (again.exit_code, again.resumed) == (0, SHARDS - 1)
    corpus.check("never", undisturbed)


@pytest.mark.slow
def test_a_slow_network(corpus: Corpus, undisturbed: Contents, proxy: FaultProxy) -> None:
    proxy.throttle(SLOWLY, path=r"\.tar|/data/")
    assert run(corpus, "slowly", proxy).exit_code == 0
    corpus.check("slowly", undisturbed)


def test_a_tar_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    whole = tar_bytes(samples(2))
    path = tmp_path / "x.tar"
    for cut in [*range(0, len(whole), 512), len(whole)]:
        path.write_bytes(whole[:cut])
        shard = Shard(str(path), cut, "")
        if whole[cut - 1024 : cut] == bytes(1024):  # both closing blocks are there
            with open_shard(shard, tmp_path) as file:
                assert [sample.key for sample in file.samples] == ["s0000", "s0001"]
                assert not any(sample.problem for sample in file.samples)
        else:
            with pytest.raises(ShardError, match=r"x\.tar"), open_shard(shard, tmp_path):
                pass
