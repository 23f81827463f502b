"""What a GPU is used for also works on a device that only seems to be another one.

That says nothing of a GPU's speed or last bits, but that nothing is forgotten here or there.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import load_codec
from codec.images.files import write_image
from codec.models import zoo
from codec.training.run import RunSettings, run
from codec.training.run_folder import RunFolder
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import first_network, level_network, pixel_lattice, pixel_network, tuning
from codec.uqdm.paper import calibration
from codec.uqdm.paper.scheme import UniversalScheme
from tests.codec import elsewhere
from tests.codec.cdc.models import paper_config, write_model
from tests.codec.small_models import write_nested_model
from tests.codec.uqdm.paper.test_portability import disturb
from tests.codec.uqdm.paper.test_scheme import small_model
from tests.pipeline.makers import tar_bytes

pytestmark = pytest.mark.skipif(
    not elsewhere.AVAILABLE, reason="this torch takes no device that is written in Python"
)


@pytest.fixture(autouse=True)
def device() -> Iterator[str]:
    with elsewhere.elsewhere() as name:
        yield name


@pytest.fixture
def some(photo: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(photo[90 : 90 + h, 200:232]) for h in (40, 40, 9)]


def test_it_refuses_what_a_gpu_refuses(device: str) -> None:
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert there.device.type == device
    with pytest.raises(RuntimeError, match="tensors on cpu and elsewhere"):
        there + here
    with pytest.raises(RuntimeError, match="tensors on cpu and elsewhere"):
        torch.zeros(3, 3, device=device)[0].copy_(there).add_(here)
    with pytest.raises(RuntimeError, match="a tensor on cpu"):
        here[torch.tensor([0], device=device)]
    with pytest.raises(RuntimeError):
        there.numpy()
    assert (there + torch.tensor(2.0)).tolist() == [3.0] * 3  # numbers go anywhere
    assert there[torch.tensor([1, 2])].tolist() == [1.0] * 2
    view = there[1:]
    view.mul_(7)
    assert there.cpu().numpy().tolist() == [1.0, 7.0, 7.0]


def same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    return all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(ours, theirs, strict=True))


def check(
    path: str | Path, device: str, pictures: list[np.ndarray], *options: dict[str, Any]
) -> None:
    """A stream of the device is read here as it is there, in every way to decode it."""
    here, there = load_codec(path), load_codec(path, device)
    assert there.device == device
    streams = there.encode(pictures)
    prefixes = [list(codec.decode_progressively(streams)) for codec in (here, there)]
    assert all(map(same, *prefixes))
    assert not there.lossless or all(map(np.array_equal, pictures, prefixes[1][-1]))
    for given in ({}, *options):
        small = [
            codec.decode_small(streams, max_side=8, layers=1, **given) for codec in (here, there)
        ]
        assert same(*small)
    for given in options:
        assert same(*(codec.decode(streams[-1:], **given) for codec in (here, there)))


@pytest.mark.parametrize("name", zoo.list_models())
def test_shipped_models(name: str, device: str, some: list[np.ndarray]) -> None:
    diffusion = {"decoder": "diffusion", "steps": 2, "noise_scale": 0.5}
    check(name, device, some, diffusion if "cdc" in name else {"decoder": "mean"})


@pytest.mark.parametrize("name", zoo.list_models())
def test_a_gpu_is_seldom_waited_for(name: str, device: str, some: list[np.ndarray]) -> None:
    """However many pictures there are: while it is, it has nothing to do.

    By an encoder once a layer, or thrice in all, and twice for each pass that it tunes; by a
    decoder once a pass, whose tables are asked of it, or, where all tables are known after the
    first layer, once.
    """
    codec = load_codec(name, device)
    streams = codec.encode(some[:2])  # what is made at the first use is there now
    codec.decode(streams)
    with elsewhere.counted_waits() as waits:
        codec.encode(some[:2])
        encoding, waits[0] = waits[0], 0
        codec.decode(streams)
    passes = sum(map(codec.scheme.passes, range(codec.num_layers)))  # type: ignore[attr-defined]
    if codec.lossless:
        assert encoding == codec.num_layers + 2 * len(pixel_lattice.PASSES)
        assert waits[0] == passes + 2 - tuning.PASSES
    else:
        assert (encoding, waits[0]) == (3, 2)


def test_pictures_in_tiles(
    device: str, some: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in which tile is known without the device: it is waited for no more often."""
    model = write_nested_model(tmp_path)
    here, there = load_codec(model), load_codec(model, device)
    expected = here.encode(some[:1])
    counts = []
    for size in (96, 3):
        for module in (first_network, level_network):
            monkeypatch.setattr(module, "TILE", size)
        monkeypatch.setattr(pixel_network, "TILE", 4 * size)
        assert there.encode(some[:1]) == expected
        with elsewhere.counted_waits() as waits:
            there.decode(expected)
        counts.append(waits[0])
    assert counts[0] == counts[1]


@pytest.fixture(scope="module")
def universal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with guards."""
    config, tensors = small_model()
    guards = calibration.quick(UniversalScheme(config, tensors, "cpu")).guards
    path = tmp_path_factory.mktemp("model") / zoo.MODEL_FILE
    zoo.write_model(path, config, tensors | {"guards": guards})
    return path


def test_models_of_the_papers(
    universal: Path, device: str, some: list[np.ndarray], tmp_path: Path
) -> None:
    check(universal, device, some[2:], {"decoder": "flow"})
    diffusion = {"decoder": "diffusion", "steps": 2}
    check(write_model(tmp_path / "x", paper_config()), device, some[2:], diffusion)
    check(write_model(tmp_path / "eps", paper_config(False, "eps")), device, some[2:])


def test_numbers_of_another_device_are_settled_there(
    universal: Path, device: str, some: list[np.ndarray]
) -> None:
    """Those that are rounded otherwise are computed once more, in float64."""
    here, there = load_codec(universal), load_codec(universal, device)
    assert isinstance(there, UQDMCodec)
    disturb(there, lambda layer, precise: 0.0 if precise else 30.0)
    assert all(map(np.array_equal, some[1:], there.decode(here.encode(some[1:]))))


TRAINED: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "nested": ("uqdm", "tiny", None, {}),
    "first layer": ("uqdm", "tiny", "uqdm", {"train": "first"}),
    "pixels": ("uqdm", "tiny", "uqdm", {"train": "pixels"}),
    "universal": ("uqdm", "paper-tiny", None, {}),
    "light": ("cdc", "tiny", None, {"rho": 0.5}),
    "diffusion": ("cdc", "tiny", "cdc-small", {"stage": "diffusion"}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_training(name: str, device: str, photo: np.ndarray, tmp_path: Path) -> None:
    """It ends with a model file that works, and goes on from its checkpoint.

    How that is read does not depend on the recipe, so only the quickest ones of both codecs go on.
    """
    codec, recipe, init, loss = TRAINED[name]
    parts = [photo[y : y + 128, x : x + 128] for y in (0, 128, 256) for x in (100, 228)]
    files = {f"{i}.png": write_image(part, None, "png") for i, part in enumerate(parts)}
    tar = tmp_path / "a.tar"
    tar.write_bytes(tar_bytes(list(files.items())))
    lines: list[str] = []
    goes_on = name in ("first layer", "light")
    for steps in (1, 2) if goes_on else (1,):
        training = {"steps": steps, "batch": 4, "crop": 64, "counted_crops": 2, "warmup": 1}
        settings = RunSettings(codec, recipe, init, (str(tar),), (), training, loss)
        run(
            settings,
            partial(open, mode="rb"),
            RunFolder(tmp_path / "run"),
            device=device,
            log=lines.append,
        )
    assert any(line.startswith("resumed") for line in lines) == goes_on
    model = load_codec(tmp_path / "run" / zoo.MODEL_FILE)
    picture = np.ascontiguousarray(photo[:64, 200:264])
    (decoded,) = model.decode(model.encode([picture]))
    assert decoded.shape == picture.shape
    assert not model.lossless or (decoded == picture).all()
