"""Small models to test with: untrained, but started from statistics like every nested model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from codec import load_codec
from codec.models import heads, zoo
from codec.numerics.lapped_transform import BANDS
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.head import HeadConfig, HeadNetwork
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.schedule import NestedConfig
from codec.uqdm.nested.scheme import NestedScheme
from codec.uqdm.nested.statistics import start_biases

NETWORKS: dict[str, dict[str, int]] = {
    "network": {"channels": 16, "hidden": 32, "blocks": 2},
    "pass_network": {"channels": 12, "hidden": 24, "blocks": 1},
    "first_network": {"channels": 16, "hidden": 32, "blocks": 2},
    "pixel_network": {"channels": 16, "hidden": 32, "blocks": 2, "heads": 16},
}


def _weights() -> tuple[float, ...]:
    """Weights of bands that fall with the frequency."""
    radius = np.hypot(*np.mgrid[:8, :8])
    slopes = ((2.2, 2.5), (1.76, 1.2), (2.42, 1.6))
    weights = [gain / (1 + (radius / middle) ** 1.5) for gain, middle in slopes]
    return tuple(np.round(np.stack(weights).flatten(), 5).tolist())


# Few digits, and chroma means that lead by one level: an untrained model has no good tables of
# many digits, and the noise below has larger chroma means than photographs.
CONFIG = NestedConfig(
    band_weights=_weights(), band_rms=tuple(np.geomspace(6, 0.02, 192)), lead=1, first_digits=4
)
LAYERS = CONFIG.levels + 1  # of ``nested_codec``'s


def noise_pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures ``(count, 3, side, side) uint8``: blurred noise with some detail."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(128, 60, (count, 3, side // 8, side // 8)))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return (smooth + torch.from_numpy(rng.normal(0, 4, smooth.shape))).clamp(0, 255).byte()


def nested_model(
    seed: int = 0, config: NestedConfig = CONFIG, pixels: bool = True, **network: int
) -> NestedModel:
    """A tiny nested model whose networks say something: their output layers are not zero.

    With a lossless layer if it has ``pixels``; ``network`` are other sizes of its trunk.
    """
    torch.manual_seed(seed)
    sizes = {**NETWORKS, "network": {**NETWORKS["network"], **network}}
    if not pixels:
        del sizes["pixel_network"]
    model = NestedModel(config, **sizes)
    start_biases(model, [noise_pictures(8, 64)])
    torch.manual_seed(seed)  # the same numbers with and without pixels
    for part in (model.network, model.pass_network, model.first_network):
        _stir(part)
    with torch.no_grad():
        for own in (model.network, model.first_network):
            own.stem_bias.normal_(std=0.3)  # lattices are told apart
            own.head[-BANDS:].mul_(0.1)  # what is expected is not far from what is known
        if model.pixel_network is not None:
            model.pixel_network.network.head.normal_(std=0.05)
            for name, parameter in model.pixel_network.heads.named_parameters():
                if name.endswith("project"):
                    parameter.normal_(std=0.2)
    return model


@torch.no_grad()
def _stir(part: nn.Module) -> None:
    for name, parameter in part.named_parameters():
        if name == "head":
            parameter.normal_(std=0.05)
        if name.endswith("project"):
            parameter.normal_(std=0.2)


def write_nested_model(folder: Path, seed: int = 0, **options: Any) -> Path:
    """The file of ``nested_model(seed, **options)``."""
    model = nested_model(seed, **options)
    path = folder / zoo.MODEL_FILE
    config = {**model_config(model), "archive_layers": 5}
    zoo.write_model(path, config, export(model), {"test": True})
    return path


def write_head(model: Path, decoder: str, seed: int = 0) -> Path:
    """A head of few numbers for a ``write_nested_model``'s file, beside it, whose output shows."""
    torch.manual_seed(seed)
    sizes = {"channels": 8, "hidden": 16, "blocks": 2}
    trunk = NETWORKS["network"]["channels"]
    network = HeadNetwork(HeadConfig(CONFIG.levels, trunk, **sizes, noise=decoder == "realistic"))
    with torch.no_grad():
        network.scale.fill_(0.2)
        network.out.weight.normal_(std=0.3)
    path = heads.head_file(model, decoder)
    tensors = dict(network.state_dict())
    heads.write_head(path, decoder, zoo.model_id(model), network.config.to_dict(), tensors)
    return path


def nested_codec(folder: Path, **options: Any) -> UQDMCodec:
    """The codec of ``write_nested_model(folder, **options)``."""
    codec = load_codec(write_nested_model(folder, **options))
    assert isinstance(codec, UQDMCodec)
    return codec


def grids_after(codec: UQDMCodec, picture: np.ndarray) -> list[np.ndarray]:
    """The grid after each level of a picture's stream, ``(h, w, 192)``, as its decoder has it."""
    scheme = codec.scheme
    assert isinstance(scheme, NestedScheme)
    levels = scheme.config.levels
    (stream,) = scheme.encode([picture], [0], levels)
    state, found = scheme.start([picture.shape[:2]], [0]), []
    for level in range(levels):
        for number in range(scheme.passes(level)):
            (choice,) = scheme.choices(state, level, number)
            np.testing.assert_array_equal(choice.index, stream[level].choices[number].index)
            scheme.update(state, level, number, [stream[level].symbols[number]])
        found.append(state.copy().grid[0].numpy())
    return found
