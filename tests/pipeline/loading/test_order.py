"""Every picture once over all readers, in an order that can be repeated."""

import pickle
from itertools import pairwise

import numpy as np
import pyarrow.compute as pc
import pytest
from torch.utils.data import DataLoader

from pipeline import StrataImages
from pipeline.loading import order
from pipeline.loading.order import Epoch, Reader
from pipeline.reader.dataset import Dataset
from tests.pipeline.loading.pictures import flat, keys_of


@pytest.mark.parametrize("few_files", [True, False])
@pytest.mark.parametrize(("buffer", "world"), [(0, 3), (30, 1), (30, 3), (5000, 2)])
def test_all_ranks_together_read_each_picture_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, buffer: int, world: int, few_files: bool
) -> None:
    monkeypatch.setattr(order, "FEW_FILES", 64 if few_files else 0)
    read = [
        keys_of(StrataImages(dataset.url, 0, shuffle_buffer=buffer, rank=rank, world_size=world))
        for rank in range(world)
    ]
    assert sorted(key for keys in read for key in keys) == list(dataset.keys())
    assert max(map(len, read)) - min(map(len, read)) <= 2  # a row is bad


def test_an_order_is_of_its_seed_and_epoch(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 0, shuffle_buffer=64, seed=3)
    first = keys_of(images)
    assert (
        first == keys_of(images) == keys_of(StrataImages(dataset.url, 0, shuffle_buffer=64, seed=3))
    )
    images.set_epoch(1)
    second = keys_of(images)
    assert len({tuple(first), tuple(second), tuple(dataset.keys())}) == 3
    assert second != keys_of(StrataImages(dataset.url, 0, shuffle_buffer=64, seed=4))
    # mixed over the whole of both files: neighbours were far apart, and both files come early
    places = {key: n for n, key in enumerate(dataset.keys())}
    steps = [abs(places[a] - places[b]) for a, b in pairwise(first)]
    assert np.median(steps) > 30


def test_the_order_never_changes(dataset: Dataset) -> None:
    """Of another release, or another Python: who resumes a training run relies on it."""
    refs = list(order.refs(dataset, Epoch(1, 2, 10), Reader(1, 3)))
    assert [(ref.unit.file.name[0], ref.unit.group) for ref in refs[:6]] == [("a", 0)] * 6
    assert [ref.row for ref in refs[:6]] == [192, 136, 189, 133, 219, 158]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_share_an_epoch_and_hear_of_the_next(dataset: Dataset, workers: int) -> None:
    images = StrataImages(dataset.url, 1, shuffle_buffer=40, batch_size=8)
    loader = DataLoader(
        images, batch_size=None, num_workers=workers, persistent_workers=True, prefetch_factor=4
    )
    epochs = []
    for epoch in range(2):
        images.set_epoch(epoch)
        epochs.append(flat(loader))
        assert sorted(epochs[-1]) == list(dataset.keys())
    assert epochs[0] != epochs[1]


def test_rank_and_world_of_torch_distributed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = StrataImages(dataset.url, 0, shuffle_buffer=20, filter=pc.field("width") > 0)
    explicit = StrataImages(dataset.url, 0, shuffle_buffer=20, rank=1, world_size=2)
    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.is_initialized", lambda: True)
        patch.setattr("torch.distributed.get_rank", lambda: 1)
        patch.setattr("torch.distributed.get_world_size", lambda: 2)
        assert keys_of(images) == keys_of(explicit)
        copied = pickle.dumps(images)  # as workers get it that are not forked
    assert len(keys_of(images)) == 400
    assert keys_of(pickle.loads(copied)) == keys_of(explicit)
