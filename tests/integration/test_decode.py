"""Handing a dataset out as people do it: the command, on Ray, on an object store that counts."""

import contextlib
import json
import os
import signal
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import pipeline
from codec.images.files import read_image
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions, decode
from pipeline.stores.store import Store
from pipeline.verify.job import Subset, VerifyOptions, verify
from tests.integration.conftest import RunHere
from tests.integration.faults import FaultProxy
from tests.integration.processes import marked
from tests.integration.servers import ROOT, S3Server
from tests.integration.test_lost_processes import PATIENCE, started
from tests.pipeline.makers import samples, tar_bytes

pytestmark = [pytest.mark.integration, pytest.mark.slow]
DECODE = ROOT / "jobs" / "decode_dataset.py"


@pytest.fixture(scope="module")
def archive(ray_session: None, s3: str, small_model: str) -> str:
    """Three small shards, compressed without loss, on the S3 server."""
    url = f"{s3}/distribution"
    sources = Store(f"{url}/in")
    for number in range(3):
        sources.create(f"x-{number}.tar", tar_bytes(samples(4, 10 * number)))
    summary = compress(
        CompressOptions(
            (f"{url}/in",), f"{url}/set", small_model, lossless=True, keep_original="bad", workers=1
        )
    )
    assert summary.ok == 12
    return f"{url}/set"


def test_a_part_as_tars(archive: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("s0002\ns0021\ns0020\n")
    options = DecodeOptions(
        archive,
        str(tmp_path / "out"),
        keys_file=str(keys),
        filter='width == 32 and key != "s0020"',
        layers=2,
        max_side=16,
        workers=1,
    )
    summary = decode(options)
    assert (summary.exit_code, summary.ok, summary.shards) == (0, 2, 2)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert [path.name[:4] for path in tars] == ["x-0-", "x-2-"]
    dataset = pipeline.open_dataset(archive)
    for path, key in zip(tars, ("s0002", "s0021"), strict=True):
        with tarfile.open(path) as tar:
            found = read_image(tar.extractfile(f"{key}.png").read()).rgb  # type: ignore[union-attr]
        encoded = dataset.record(key, 2).encoded
        expected = dataset.codec().decode_small([encoded], max_side=16)[0]
        assert found.shape == expected.shape == (12, 16, 3)
        assert np.abs(found.astype(int) - expected).max() <= 1  # another process, another batch
    assert decode(options).resumed == 2


def test_a_truncated_dataset(archive: str, s3: str, folder: str) -> None:
    output = f"{s3}/{folder}"
    options = DecodeOptions(archive, output, format="strata", layers=2, workers=1)
    summary = decode(options)
    assert (summary.exit_code, summary.ok, summary.shards) == (0, 12, 3)
    whole, cut = pipeline.open_dataset(archive), pipeline.open_dataset(output)
    for key in ("s0000", "s0013", "s0022"):
        assert cut.record(key).encoded == whole.record(key, 2).encoded
        assert (cut.image(key) == whole.image(key, 2)).all()
    report = verify(VerifyOptions(output, read=Subset(), workers=1))
    assert (report.exit_code, report.pictures_decoded) == (0, 12)
    again = decode(options)
    assert (again.resumed, again.new_samples, again.exit_code) == (3, 0, 0)


def test_the_driver_of_a_copy_is_killed(
    archive: str, moto_server: S3Server, folder: str, run_here: RunHere, tmp_path: Path
) -> None:
    """Without warning, before a record; then the same command again."""
    budget = 700  # bytes: some of the layers
    output = f"{moto_server.url}/{folder}"
    command = [sys.executable, str(DECODE), "--input", archive, "--output", output]
    command += ["--format", "strata", "--max-bytes", str(budget), "--workers", "1"]
    with FaultProxy(moto_server.endpoint) as proxy:
        with started(command, tmp_path, proxy.endpoint) as job:

            def kill_driver(path: str) -> None:
                with contextlib.suppress(
                    ProcessLookupError
                ):  # its worker may outlive it, and try on
                    os.kill(job.pid, signal.SIGKILL)

            record = f"/{folder}/commits/x-1"
            proxy.call(kill_driver, method="PUT", path=record, times=None, cut=True)
            assert job.wait(PATIENCE) == -signal.SIGKILL
        assert not marked(f"HOME={tmp_path}")
    left = Store(output, moto_server.options())
    assert not [name for name in left.sizes("commits") if name.startswith("x-1")]
    assert not [name for name in left.sizes() if name.startswith("manifest")]
    code, text, errors = run_here(DECODE, *command[2:])
    assert code == 0, errors
    assert "copied 12 pictures of 3 shards" in text
    assert "layers on average" in text
    whole, cut = pipeline.open_dataset(archive), pipeline.open_dataset(output)
    assert sorted(cut.keys()) == sorted(whole.keys())
    for key in [*whole.keys()]:
        sizes = whole.metadata(key)["cumulative_bytes"]
        layers = max(1, sum(size <= budget for size in sizes))
        assert cut.record(key).encoded == whole.record(key, layers).encoded
    assert verify(VerifyOptions(output)).exit_code == 0


def test_the_command_says_what_is_missing(archive: str, run_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("s0001\nnobody\n")
    command = ["--input", archive, "--output", str(tmp_path / "out")]
    command += ["--keys-file", str(tmp_path / "keys"), "--format", "files", "--layers", "1"]
    command += ["--log", str(tmp_path / "log"), "--workers", "1"]
    code, text, errors = run_here(DECODE, *command)
    assert code == 1, errors
    assert "decoded 1 picture of 1 shard" in text
    assert "1 key not in the archive: 'nobody'" in text
    (finished,) = [
        json.loads(line)
        for line in (tmp_path / "log").read_text().splitlines()
        if "missing_keys" in line
    ]
    assert finished["missing_keys"] == ["nobody"]
    assert len([*(tmp_path / "out").rglob("s0001.png")]) == 1
