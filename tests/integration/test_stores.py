"""The same job on real S3 stores: in memory (moto) and on disk with signatures checked (Swift)."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from codec.images.files import read_image
from pipeline.compress.job import CompressOptions, compress
from pipeline.decode.job import DecodeOptions, decode
from pipeline.sources.listing import expand_inputs
from pipeline.stores.filesystems import StorageError
from pipeline.stores.store import Store
from tests.integration.faults import FaultProxy
from tests.integration.server_process import PAGE
from tests.integration.servers import BUCKET, S3Server
from tests.pipeline.makers import png, samples, tar_bytes

pytestmark = pytest.mark.integration


@pytest.fixture(params=["moto_server", "swift_server"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work(n)`` gives, all begun at the same moment."""
    barrier, results = threading.Barrier(count), [None] * count

    def begin(number: int) -> None:
        barrier.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=begin, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.usefixtures("ray_session")
def test_there_and_back(swift_server: S3Server, small_model: str, folder: str) -> None:
    fs, options = swift_server.filesystem(), swift_server.options()
    for number in range(2):
        fs.pipe_file(f"{BUCKET}/{folder}/in/x-{number}.tar", tar_bytes(samples(2, 10 * number)))
    fs.pipe_file(f"{BUCKET}/{folder}/in/y-0.tar", tar_bytes(samples(2, 90))[: 512 * 7])
    url = f"{swift_server.url}/{folder}"
    job = CompressOptions(
        (f"{url}/in/x-{{0..1}}.tar", f"{url}/in/y-*.tar"),
        f"{url}/set",
        small_model,
        lossless=True,
        keep_original="bad",
        workers=1,
        input_options=options,
        output_options=options,
    )
    summary = compress(job)
    assert (summary.exit_code, summary.ok, len(summary.failed_shards)) == (1, 4, 1)
    assert f"{folder}/in/y-0.tar" in summary.failed_shards[0].reason
    assert not any("create-only" in note for note in summary.notes)
    again = compress(job)
    assert (again.resumed, again.new_samples, again.ok) == (2, 0, 4)

    dataset = pipeline.open_dataset(f"{url}/set", options)
    assert sorted(dataset.keys()) == ["s0000", "s0001", "s0010", "s0011"]
    assert [failed["url"] for failed in dataset.failed] == [f"{url}/in/y-0.tar"]
    assert (dataset.image("s0010") == read_image(png(10)).rgb).all()
    back = decode(
        DecodeOptions(
            f"{url}/set", f"{url}/out", workers=1, input_options=options, output_options=options
        )
    )
    assert (back.exit_code, back.ok) == (0, 4)
    tars = [name for name in fs.ls(f"{BUCKET}/{folder}/out", detail=False) if name.endswith(".tar")]
    assert [name.rsplit("/", 1)[-1][:4] for name in sorted(tars)] == ["x-0-", "x-1-"]


def test_a_wrong_key_is_refused_and_not_shown(swift_server: S3Server) -> None:
    wrong = {**swift_server.options(), "secret": "not-the-secret"}
    with pytest.raises(StorageError, match=r"nothing\.tar") as caught:
        expand_inputs([f"{swift_server.url}/keys/nothing.tar"], wrong)
    assert "not-the-secret" not in str(caught.value)


def test_create_only(server: S3Server, folder: str, tmp_path: Path) -> None:
    store = Store(f"{server.url}/{folder}", server.options())
    local = tmp_path / "file"
    local.write_bytes(b"the first" * 1000)
    assert store.create_from("a", local)
    assert not store.create("a", b"the second")
    local.write_bytes(b"the third")
    assert not store.create_from("a", local)
    assert store.read("a") == b"the first" * 1000
    assert store.refuses_overwriting("a")


def test_of_many_writers_at_once_one_wins(moto_server: S3Server, folder: str) -> None:
    """On Swift two may win: it looks before it writes (and the job says nothing about it)."""
    options = moto_server.options()
    stores = [Store(f"{moto_server.url}/{folder}", options) for _ in range(6)]
    for name in "abcde":
        won = together(6, lambda n: stores[n].create(name, b"%d" % n))  # noqa: B023
        assert won.count(True) == 1
        assert stores[0].read(name) == b"%d" % won.index(True)


def test_listings_of_several_pages(server: S3Server) -> None:
    names = {f"{number:04d}": b"x" * (number % 7) for number in range(2 * PAGE + 50)}
    fs = server.filesystem()
    fs.pipe({f"{BUCKET}/pages/many/{name}": data for name, data in names.items()})
    fs.pipe_file(f"{BUCKET}/pages/many/deeper/one", b"not directly inside")
    with FaultProxy(server.endpoint) as proxy:
        store = Store(f"{server.url}/pages", server.options(proxy.endpoint))
        assert store.sizes("many") == {name: len(data) for name, data in names.items()}
        assert proxy.counts["GET"] == 3
        assert store.sizes("none") == {}


@pytest.mark.usefixtures("ray_session")
def test_few_layers_are_few_bytes(swift_server: S3Server, small_model: str, folder: str) -> None:
    """Ranged reads of the real server, counted on their way."""
    fs = swift_server.filesystem()
    files = [(f"p{number}.png", png(number, 96, 96)) for number in range(6)]
    fs.pipe_file(f"{BUCKET}/{folder}/a.tar", tar_bytes(files))
    url = f"{swift_server.url}/{folder}"
    options = swift_server.options()
    job = CompressOptions(
        (f"{url}/a.tar",),
        f"{url}/set",
        small_model,
        lossless=True,
        keep_original="bad",
        workers=1,
        input_options=options,
        output_options=options,
    )
    assert compress(job).exit_code == 0
    read = {}
    for layers in (1, 3, 7):
        with FaultProxy(swift_server.endpoint) as proxy:
            dataset = pipeline.open_dataset(f"{url}/set", swift_server.options(proxy.endpoint))
            streams = [record.encoded for record in dataset.read(layers)]
            assert [len(stream.layers) for stream in streams] == [layers] * 6
            _, read[layers] = proxy.bytes("GET", r"/data/.*\.parquet")
        held = sum(stream.nbytes for stream in streams)
        footer = dataset.files[0].footer_bytes
        assert read[layers] <= 1.1 * (held + footer)
    assert read[1] < read[3] < read[7] <= 1.1 * dataset.files[0].bytes
    assert os.environ.get("AWS_ACCESS_KEY_ID") == "test"  # so Swift was reached by options alone
