"""Reading by key from a real S3 server: how many bytes leave it, and what faults do to it."""

from collections.abc import Iterator

import pytest

from pipeline import DatasetError, open_dataset
from pipeline.reader.dataset import Dataset
from tests.integration.faults import FaultProxy
from tests.integration.servers import S3Server
from tests.pipeline.streams import rows, write_dataset

KEYS = [f"{number * 7919 % 400:04d}" for number in range(400)]
SIZES = (300, 4000)
URL = "s3://strata/reading"


@pytest.fixture(scope="module")
def made(moto_server: S3Server) -> Dataset:
    """Two files of 200 pictures."""
    shards = [rows(KEYS[n::2], SIZES, n) for n in range(2)]
    return write_dataset(URL, shards, 2, options=moto_server.options())


@pytest.fixture
def proxy(moto_server: S3Server, made: Dataset) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def dataset(moto_server: S3Server, proxy: FaultProxy) -> Dataset:
    return open_dataset(URL, moto_server.options(proxy.endpoint))


def test_a_preview_is_one_request_of_its_own_bytes(dataset: Dataset, proxy: FaultProxy) -> None:
    entry = dataset.locate("0123")
    assert entry is not None
    seen = len(proxy.exchanges)
    (record,) = dataset.fetch(["0123"], 1)
    (exchange,) = proxy.exchanges[seen:]
    assert exchange.downloaded == len(record.encoded.layers[0]) == entry.lengths[0]


def test_the_first_layer_of_everything_is_all_that_is_read(
    dataset: Dataset, proxy: FaultProxy
) -> None:
    layer = sum(len(record.encoded.layers[0]) for record in dataset.read(1))
    _, read = proxy.bytes("GET", r"/data/")
    footers = sum(file.footer_bytes for file in dataset.files)
    small = 400 * (10 + 4 + 12)  # header, key, sizes
    assert layer < read < 1.1 * (layer + small) + footers


def test_keys_come_back_through_faults(dataset: Dataset, proxy: FaultProxy, made: Dataset) -> None:
    expected = {record.key: record for record in made.read()}
    proxy.slow_down(0.2, path="/data/|/index/")
    proxy.truncate(path="/data/", times=3)
    found = list(dataset.fetch(KEYS[::3]))
    assert [record.key for record in found] == KEYS[::3]
    assert all(record == expected[record.key] for record in found)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_files_that_are_gone_or_short(moto_server: S3Server, folder: str) -> None:
    url = f"{moto_server.url}/{folder}"
    made = write_dataset(url, [rows(KEYS[:9], SIZES)], 2, options=moto_server.options())
    (file,) = made.files
    assert file.index is not None
    expected = [record.encoded for record in made.fetch(KEYS[:9])]
    whole = made.store.read(file.path)
    made.store.remove(file.index["path"])
    without = open_dataset(url, moto_server.options())
    assert [record.encoded for record in without.fetch(KEYS[:9])] == expected
    for left in (whole[:500], None):
        made.store.remove(file.path)
        if left is not None:
            made.store.create(file.path, left)
        for dataset in (made, open_dataset(url, moto_server.options())):
            with pytest.raises(DatasetError, match=rf"{folder}/data/000-.*(gone|footer)"):
                list(dataset.fetch(KEYS[8:9]))
