"""Resuming after any picture or batch, in another process, with the same result."""

import io
import pickle
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

import pipeline
from pipeline import StrataImages
from pipeline.loading import order
from pipeline.reader.dataset import Dataset
from tests.pipeline.conftest import Make
from tests.pipeline.loading.pictures import keys_of
from tests.pipeline.makers import png, write_tar


def resumed(make: Any, moments: Iterable[int]) -> None:
    """Stopped at any of these moments, another process goes on as if nothing had happened."""
    whole = [(sample["key"], sample["image"]) for sample in make()]
    for moment in moments:
        images = make()
        iterator = iter(images)
        begun = [sample["key"] for sample in islice(iterator, moment)]
        state = images.state_dict()
        again = make()
        again.load_state_dict(state)
        rest = [(sample["key"], sample["image"]) for sample in again]
        assert [*begun, *(key for key, _ in rest)] == [key for key, _ in whole]
        for (_, image), (_, other) in zip(rest, whole[moment:], strict=True):
            assert torch.equal(image, other)


@pytest.mark.parametrize("buffer", [0, 25, 300])
@pytest.mark.parametrize("few_files", [True, False])
def test_going_on_after_any_picture(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, buffer: int, few_files: bool
) -> None:
    monkeypatch.setattr(order, "FEW_FILES", 64 if few_files else 0)

    def make() -> StrataImages:
        return StrataImages(dataset.url, 1, shuffle_buffer=buffer, rank=0, world_size=2, seed=9)

    resumed(make, [0, 1, 19, 31, 32, 33, 150, 199, 200])


@pytest.mark.parametrize("batch_size", [3, 16])
def test_going_on_after_any_batch(dataset: Dataset, batch_size: int) -> None:
    def make() -> StrataImages:
        return StrataImages(dataset.url, 1, shuffle_buffer=90, batch_size=batch_size)

    count = len(list(make()))
    resumed(make, [0, 1, 7, count - 4, count - 2, count - 1, count])


def test_going_on_reads_only_what_is_left(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = StrataImages(dataset.url, 1)
    iterator = iter(images)
    for _ in range(350):
        next(iterator)
    state = images.state_dict()
    read: list[str] = []
    monkeypatch.setattr(
        "pipeline.loading.stream.read_pictures",
        lambda opened, *rest: read.append(opened.file.name) or read_pictures(opened, *rest),
    )
    from pipeline.reader.rows import read_pictures

    again = StrataImages(dataset.url, 1)
    again.load_state_dict(state)
    assert len(keys_of(again)) == 50
    assert [name[0] for name in read] == ["b"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", [3, 11])
def test_torchdatas_loader_goes_on(dataset: Dataset, workers: int, moment: int) -> None:
    def make() -> StatefulDataLoader:
        images = StrataImages(dataset.url, 1, shuffle_buffer=60, batch_size=16, seed=5)
        images.set_epoch(4)
        return StatefulDataLoader(images, batch_size=None, num_workers=workers)

    whole = [batch["key"] for batch in make()]
    loader = make()
    begun = [batch["key"] for batch in islice(loader, moment)]
    state = loader.state_dict()
    del loader
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    again = make()
    again.load_state_dict(torch.load(buffer))
    assert [*begun, *(batch["key"] for batch in again)] == whole
    assert sorted(key for keys in whole for key in keys) == list(dataset.keys())


def test_the_epoch_is_part_of_the_state(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 0, shuffle_buffer=60)
    images.set_epoch(2)
    whole = keys_of(images)
    images.set_epoch(1)
    next(iter(images))
    images.set_epoch(2)
    iterator = iter(images)
    begun = keys_of(islice(iterator, 5))
    again = StrataImages(dataset.url, 0, shuffle_buffer=60)
    again.load_state_dict(images.state_dict())
    assert again.epoch == 2
    assert begun + keys_of(again) == whole
    assert keys_of(again) == whole  # the next iteration begins anew
    again.load_state_dict(images.state_dict())
    again.set_epoch(3)  # somebody thought better of it
    assert len(keys_of(again)) == 400


def test_a_dataset_that_grows_does_not_change_what_was_begun(
    make_dataset: Make, tmp_path: Path
) -> None:
    """Workers open it at other times than the process that made them, and so do those who go on."""
    a, b = (
        str(
            write_tar(tmp_path / f"{name}.tar", [(f"{name}{n:03d}.png", png(n)) for n in range(20)])
        )
        for name in "ab"
    )
    url = make_dataset([a]).url
    images = StrataImages(url, 0, shuffle_buffer=5, rank=0, world_size=2)
    worker, began = pickle.dumps(images), keys_of(images)
    next(iter(images))
    state = images.state_dict()
    grown = make_dataset([a, b])
    assert keys_of(pickle.loads(worker)) == keys_of(images) == began
    again = StrataImages(url, 0, shuffle_buffer=5, rank=0, world_size=2)
    assert len(keys_of(again)) == 20
    again.load_state_dict(state)
    assert keys_of(again) == began[1:]
    other = StrataImages(url, 0, shuffle_buffer=5, rank=1, world_size=2, manifest=images.manifest)
    both = sorted([*began, *keys_of(other)])
    assert both == sorted(record.key for record in grown.read(0) if record.key[0] == "a")
    with pytest.raises(pipeline.DatasetError, match=r"there is no manifest-000009\.json"):
        StrataImages(url, manifest=9)


def test_states_of_other_orders_are_refused(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 0, shuffle_buffer=60)
    next(iter(images))
    state = images.state_dict()
    other = StrataImages(dataset.url, 0, shuffle_buffer=61)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle_buffer"):
        iter(other)
    other = StrataImages(dataset.url, 0, shuffle_buffer=60, rank=1, world_size=2)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"reader 0 of 1 .* this is reader 1 of 2"):
        iter(other)
    with pytest.raises(ValueError, match="a release that is not compatible"):
        other.load_state_dict({"version": 99})
