"""CDC as a ``Codec``: a ``LayeredCodec`` around ``CDCScheme``, and the values its options take."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..base import Purpose
from ..layered import LayeredCodec
from .networks.tiling import MIN_TILE_PIXELS
from .scheme import CDCScheme

MAX_NOISE_SCALE = 10.0


class CDCCodec(LayeredCodec):
    """A CDC model on one device.

    Options of ``encode``:
        quality: at which of the model's rates, from 0 (smallest files); default: the model's.

    Options of ``decode``:
        decoder: ``"fast"``: one pass, the least squared error; ``"diffusion"``: realistic detail.
            Default: fast where the model has a fast head.
        steps: of the diffusion, more are finer and slower; default: the model's.
        noise_scale: deviation of the noise that the diffusion starts from (the paper's gamma): 0,
            the default, has the least error, 0.8 the most realistic detail.
        seed: of that noise. The same seed gives the same picture.

    Both: ``tile_pixels``, how large an area a network is given at once. It bounds memory. Larger
    pictures are cut into tiles, with a halo: the fast picture stays the same but for rounding.
    """

    codec = "cdc"
    lossless = False
    encode_options = frozenset({"quality", "tile_pixels"})
    decode_options = frozenset({"decoder", "steps", "noise_scale", "seed", "tile_pixels"})
    resource_options = frozenset({"tile_pixels"})
    scheme: CDCScheme

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        """See ``Codec.check_options``."""
        super().check_options(purpose, options)
        model = self.scheme.model
        _check_integer(options, "quality", 0, model.qualities - 1)
        _check_integer(options, "tile_pixels", MIN_TILE_PIXELS, 1 << 40)
        if purpose == "encode":
            return
        decoder = options.get("decoder")
        has = {"fast": model.has_fast_head, "diffusion": model.diffusion is not None}
        if decoder is not None and not has.get(decoder):
            known = ", ".join(name for name, there in has.items() if there)
            raise ValueError(
                f"{self.codec} ({self.model_id[:8]}) has no decoder {decoder}: it has {known}"
            )
        _check_integer(options, "seed", 0, (1 << 64) - 1)
        if model.diffusion is not None:
            _check_integer(options, "steps", 1, model.diffusion.num_timesteps)
        scale = options.get("noise_scale")
        if scale is not None and not (
            isinstance(scale, int | float)
            and math.isfinite(scale)
            and 0 <= scale <= MAX_NOISE_SCALE
        ):
            raise ValueError(f"noise_scale must be 0 to {MAX_NOISE_SCALE:g}, got {scale!r}")
        if decoder is None and model.has_fast_head:
            decoder = "fast"
        idle = sorted({"steps", "noise_scale", "seed"} & {n for n, v in options.items() if v})
        if decoder == "fast" and idle:
            raise ValueError(f"{', '.join(idle)}: only for decoder diffusion")


def _check_integer(options: Mapping[str, Any], name: str, low: int, high: int) -> None:
    value = options.get(name)
    if value is not None and not (type(value) is int and low <= value <= high):
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")


def load(
    name: str,
    path: Path,
    model_id: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    device: str,
) -> CDCCodec:
    """Make a codec of a model file's content. Raises InvalidModelError."""
    return CDCCodec(name, model_id, path, config, CDCScheme(config, tensors, device), device)
