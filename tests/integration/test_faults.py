"""Whatever a worker or the network does, the dataset is what it would have been, and in time."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.compress.job import compress
from pipeline.running.progress.summary import Summary
from pipeline.sources.shards import Shard, open_shard
from pipeline.sources.tar_members import ShardError
from tests.integration.corpus import DEADLINE, SAMPLES, SHARDS, Corpus
from tests.integration.faults import FaultProxy
from tests.integration.processes import actors, kill
from tests.integration.servers import S3Server
from tests.pipeline.makers import samples, tar_bytes

pytestmark = [pytest.mark.integration]
SLOWLY = 20_000  # bytes per second


@pytest.fixture(scope="module")
def corpus(moto_server: S3Server, ray_session: None, small_model: str) -> Corpus:
    corpus = Corpus(moto_server, small_model)
    corpus.upload()
    return corpus


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
    "point",
    [
        {"method": "GET", "path": r"/x-1\.tar", "when": "before"},
        {"method": "PUT", "path": "/data/x-1", "when": "middle"},
        {"method": "PUT", "path": "/data/x-1", "when": "after"},
    ],
    ids=["before-encoding", "amid-upload", "before-record"],
)
def test_a_worker_is_killed(
    point: dict[str, Any], corpus: Corpus, proxy: FaultProxy, folder: str
) -> None:
    killed: list[int] = []

    def kill_worker(path: str) -> None:
        killed.extend(actors(os.getpid()))
        kill(killed)

    proxy.call(kill_worker, **point, cut=True)
    summary = run(corpus, folder, proxy)
    assert len(killed) == 1
    assert (summary.exit_code, summary.ok) == (0, SHARDS * SAMPLES)
    corpus.check(folder)
    again = run(corpus, folder, proxy)
    assert (again.exit_code, again.resumed, again.new_samples) == (0, SHARDS, 0)


@pytest.mark.slow
def test_two_jobs_at_the_same_time(corpus: Corpus, proxy: FaultProxy, folder: str) -> None:
    """Both are about to publish the same shard at the same moment."""
    meeting = threading.Barrier(2, timeout=DEADLINE)
    proxy.call(lambda path: meeting.wait(), method="PUT", path="/data/x-0", when="before", times=2)
    patient = corpus.server.options(proxy.endpoint)
    job = replace(corpus.job(folder), worker_cpus=1, input_options=patient, output_options=patient)
    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(compress, job) for _ in range(2)]:
            summary = running.result()
            assert (summary.exit_code, summary.ok) == (0, SHARDS * SAMPLES)
    assert not meeting.broken
    refused = [e for e in proxy.exchanges if "/data/x-0" in e.path and e.status == 412]
    assert len(refused) == 1
    corpus.check(folder)


@pytest.mark.slow
def test_a_busy_store(corpus: Corpus, proxy: FaultProxy, folder: str) -> None:
    rule = proxy.slow_down(0.1, seed=1)
    assert run(corpus, folder, proxy).exit_code == 0
    assert rule.hits >= 3
    corpus.check(folder)


@pytest.mark.slow
def test_downloads_that_break_off(corpus: Corpus, proxy: FaultProxy, folder: str) -> None:
    """More often than one download is continued, so that an attempt fails too."""
    rules = [
        proxy.truncate(path="/models/", times=2),
        proxy.truncate(path=r"/x-[01]\.tar", times=4),
        proxy.stall(path=r"/x-2\.tar", times=1),
    ]
    assert run(corpus, folder, proxy).exit_code == 0
    assert [rule.hits for rule in rules] == [2, 4, 1]
    corpus.check(folder)


@pytest.mark.slow
def test_a_shard_that_never_comes(corpus: Corpus, proxy: FaultProxy, folder: str) -> None:
    """The job ends without it, says so, and does it when the store is well again."""
    proxy.stall(path=r"/x-1\.tar")
    summary = run(corpus, folder, proxy, attempts=1)
    assert summary.exit_code == 1
    assert [problem.shard for problem in summary.failed_shards] == [f"{corpus.inputs}/x-1.tar"]
    half = corpus.contents(folder)
    assert 0 < len(half) < SHARDS * SAMPLES
    proxy.clear()
    again = run(corpus, folder, proxy)
    assert (again.exit_code, again.resumed) == (0, SHARDS - 1)
    corpus.check(folder)


@pytest.mark.slow
def test_a_slow_network(corpus: Corpus, proxy: FaultProxy, folder: str) -> None:
    proxy.throttle(SLOWLY, path=r"\.tar|/data/")
    assert run(corpus, folder, proxy).exit_code == 0
    corpus.check(folder)


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
