"""Datasets in training: every picture once, in an order that can be repeated and gone on with."""

import io
import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import pipeline
from codec import EncodedImage
from codec.images import write_image
from pipeline import DamagedDataError, KeptOriginal, StrataImages, decode_batches
from pipeline.filesystems import StorageError
from pipeline.loading import order
from pipeline.loading.order import Epoch, Reader
from pipeline.retrieval.dataset import Dataset
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, write_tar

SIZES = [(9, 11), (9, 11), (12, 10), (8, 8)]


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """Pictures of three sizes in two files, of which the first has two row groups and a bad row."""
    files: list[tuple[str, bytes]] = []
    for n in range(340):
        files += [(f"a{n:04d}.png", png(n, *SIZES[n % 4])), (f"a{n:04d}.cls", b"%d" % (n % 10))]
    files.insert(20, ("broken.png", b"no picture"))
    write_tar(tmp_path / "a.tar", files)
    write_tar(
        tmp_path / "b.tar", [(f"b{n:04d}.png", png(n, *SIZES[n % 4])) for n in range(1000, 1060)]
    )
    return make_dataset([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])


def keys_of(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["key"] for sample in samples]


def flat(batches: Iterable[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def expected(key: str, layers: int = 4) -> np.ndarray:
    number = int(key[1:])
    return picture(number, *SIZES[number % 4]) & (0xFF00 >> 2 * layers & 0xFF)


def test_pictures_with_their_columns_in_order(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 2, columns=["fields", "source_format"])
    samples = list(images)
    assert keys_of(samples) == list(dataset.keys())
    for sample in samples[::37]:
        assert sample["image"].dtype == torch.uint8
        assert np.array_equal(sample["image"].numpy(), expected(sample["key"], 2))
        assert sample["source_format"] == "png"
    assert samples[17]["fields"] == {"cls": b"7"}


def test_a_filter_of_pictures(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 0, filter=pc.field("width") == 10, shuffle_buffer=50)
    wanted = [key for key in sorted(dataset.keys()) if int(key[1:]) % 4 == 2]
    assert sorted(keys_of(images)) == wanted


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


def test_batches_hold_pictures_of_one_size(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, columns=["fields"], batch_size=16, shuffle_buffer=100)
    batches = list(images)
    assert sorted(flat(batches)) == list(dataset.keys())
    for batch in batches:
        shape = batch["image"].shape
        assert shape[0] == len(batch["key"]) == len(batch["fields"]) <= 16
        for key, image in zip(batch["key"], batch["image"], strict=True):
            assert np.array_equal(image.numpy(), expected(key))
    assert sum(len(batch["key"]) < 16 for batch in batches) == 3  # the last of each size


def test_many_sizes_make_small_batches_and_no_crowd(make_dataset: Make, tmp_path: Path) -> None:
    files = [(f"{n:03d}.png", png(n, 8 + n % 50, 9)) for n in range(150)]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))])
    images = StrataImages(dataset.url, 1, batch_size=4)
    assert sorted(flat(images)) == list(dataset.keys())
    waiting = 0
    for _ in images:
        waiting = max(waiting, len(images.state_dict()["waiting"]))
    assert 16 < waiting < 32


def test_transforms_make_batches_of_neighbours(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 4, batch_size=50, transform=lambda x: x[:8, :8].float())
    batches = list(images)
    assert [len(batch["key"]) for batch in batches] == [50] * 8
    assert flat(batches) == list(dataset.keys())
    assert batches[0]["image"].shape == (50, 8, 8, 3)
    assert np.array_equal(batches[0]["image"][2].numpy(), expected("a0002")[:8, :8])
    uneven = next(iter(StrataImages(dataset.url, 4, batch_size=50, transform=lambda x: x)))
    assert [tuple(image.shape[:2]) for image in uneven["image"][:4]] == SIZES


def test_small_pictures(dataset: Dataset) -> None:
    images = StrataImages(dataset.url, 4, max_side=6, batch_size=100)
    shapes = {tuple(batch["image"].shape[1:3]) for batch in images}
    assert shapes == {(5, 6), (6, 5), (6, 6)}


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
    from pipeline.loading.rows import read_pictures

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
    assert sorted([*began, *keys_of(other)]) == sorted(key for key in grown.keys() if key[0] == "a")
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
    with pytest.raises(ValueError, match=r"reader 0 of 1 .* this is 1 of 2"):
        iter(other)
    with pytest.raises(ValueError, match="no state"):
        other.load_state_dict({"version": 99})


def test_encoded_in_workers_and_decoded_here(dataset: Dataset) -> None:
    images = StrataImages(
        dataset.url, 3, columns=["fields"], encoded=True, batch_size=16, shuffle_buffer=50
    )
    loader = DataLoader(images, batch_size=None, num_workers=2)
    codec = dataset.codec()
    assert isinstance(codec, ToyCodec)
    keys = []
    for batch in decode_batches(loader, codec):
        keys += batch["key"]
        assert batch["image"].shape[0] == len(batch["fields"])
        assert np.array_equal(batch["image"][0].numpy(), expected(batch["key"][0], 3))
    assert sorted(keys) == list(dataset.keys())
    (sample,) = islice(StrataImages(dataset.url, 3, encoded=True), 1)
    assert isinstance(sample["encoded"], EncodedImage)
    assert sample["encoded"].num_layers == 3
    with pytest.raises(ValueError, match="decode_batches"):
        StrataImages(dataset.url, encoded=True, max_side=5)


def test_workers_refuse_a_device_they_cannot_share(dataset: Dataset) -> None:
    loader = DataLoader(StrataImages(dataset.url, 1, device="cuda"), batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match="decode_batches"):
        next(iter(loader))


def test_files_that_were_kept_instead_of_layers(make_dataset: Make, tmp_path: Path) -> None:
    """Their streams would be larger than they are; the others' are not."""
    bitmap = io.BytesIO()
    Image.fromarray(picture(3, 20, 30)).save(bitmap, "bmp")
    jpeg = write_image(picture(1, 20, 30), None, "jpg")
    files = [("a.jpg", jpeg), ("b.png", png(2, 20, 30)), ("c.bmp", bitmap.getvalue())]
    write_tar(tmp_path / "x.tar", files)
    dataset = make_dataset([str(tmp_path / "x.tar")], keep_original="larger")
    stored = {record.key: record.encoded.num_layers for record in dataset.read()}
    assert min(stored["a"], stored["b"]) < stored["c"] == 4
    for layers in (1, 4):
        for sample in StrataImages(dataset.url, layers):
            image = dataset.image(sample["key"], layers)
            assert np.array_equal(sample["image"].numpy(), image)
    kinds = {s["key"]: type(s["encoded"]) for s in StrataImages(dataset.url, 4, encoded=True)}
    assert kinds == {
        key: EncodedImage if count == 4 else KeptOriginal for key, count in stored.items()
    }
    shapes = {tuple(s["image"].shape) for s in StrataImages(dataset.url, 4, max_side=15)}
    assert shapes == {(10, 15, 3)}


def damage(dataset: Dataset, key: str, layer: int) -> None:
    """Change a byte of a layer; its page's checksum will not agree."""
    (record,) = dataset.read(4, [key])
    for file in dataset.files:
        path = Path(dataset.url) / file.path
        data = path.read_bytes()
        place = data.find(record.encoded.layers[layer])
        if place >= 0:
            path.write_bytes(data[: place + 9] + bytes([data[place + 9] ^ 1]) + data[place + 10 :])


def test_damage_is_an_error_or_counted(dataset: Dataset) -> None:
    damage(dataset, "b1007", 1)
    with pytest.raises(DamagedDataError, match=r"data/b.* row group 0 is damaged"):
        list(StrataImages(dataset.url, 2))
    images = StrataImages(dataset.url, 2, errors="skip")
    assert sorted(keys_of(images)) == [key for key in sorted(dataset.keys()) if key[0] == "a"]
    assert images.skipped == 60
    assert len(keys_of(StrataImages(dataset.url, 1))) == 400  # the damage is in another layer


def test_what_is_not_damage_is_never_skipped(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> bytes:
        raise ConnectionError("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.retrieval.datafiles.RangeFile.read", offline)
        with pytest.raises(StorageError, match="nobody answers"):
            list(StrataImages(dataset.url, 1, errors="skip"))
    (Path(dataset.url) / dataset.files[1].path).unlink()
    with pytest.raises(pipeline.DatasetError, match="gone"):
        list(StrataImages(dataset.url, 1, errors="skip"))


def test_a_picture_that_cannot_be_decoded(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = dataset.codec()
    whole = codec.decode

    def decode(encoded: Any, **options: Any) -> Any:
        for one in encoded:
            if one.layers[0] == bad.layers[0]:
                raise pipeline.loading.decoding.CorruptStreamError("bad symbols", 0)
        return whole(encoded, **options)

    bad = dataset.record("a0133").encoded
    monkeypatch.setattr(codec, "decode", decode)
    with pytest.raises(DamagedDataError, match=r"'a0133' cannot be decoded: .*bad symbols"):
        list(StrataImages(dataset.url, 2))
    met: Counter[str] = Counter()
    images = StrataImages(dataset.url, 2, errors=lambda key, error: met.update([key]), batch_size=8)
    assert sorted([*flat(images), "a0133"]) == list(dataset.keys())
    assert met == {"a0133": 1}
    assert images.skipped == 1

    def broken(encoded: Any, **options: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(codec, "decode", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(StrataImages(dataset.url, 2, errors="skip"))


def test_arguments_that_make_no_sense(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="belong together"):
        StrataImages(dataset.url, rank=1)
    with pytest.raises(ValueError, match="0 to 1"):
        StrataImages(dataset.url, rank=2, world_size=2)
    with pytest.raises(ValueError, match="errors must be"):
        StrataImages(dataset.url, errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option colour"):
        iter(StrataImages(dataset.url, decode_options={"colour": True}))
    with pytest.raises(pipeline.DatasetError, match="stores 4 layers"):
        iter(StrataImages(dataset.url, 9))
