"""Runs a CDC model: pictures to integers and back (see codec/scheme.py).

Layer 0 holds the quality and the hyper-latent z, layers 1, 2, ... the latent y: r, that is y - mean
rounded, trit by trit, in the order that the trees in the model file say (latents/trit_planes.py). A
prefix decodes to the conditional mean of what is missing.

Only the scale index of y must be the same for encoder and decoder, and it is computed in exact
integers (latents/integer_hyper_decoder.py). The mean is a float that shifts pixels and nothing
else, because what is coded is r.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidModelError
from ..models.checks import below, build
from ..numerics.precision import full_precision
from ..numerics.tiles import Area
from ..scheme import Choice
from ..stream import dither
from ..stream.entropy import Tables
from .latents.integer_hyper_decoder import FRACTION, IntegerHyperDecoder, ScaleIndex
from .latents.residual_choice import choose, prices
from .latents.symbols import CodingTables, PictureLayers, PictureState
from .latents.trees import MAX_COUNTED
from .latents.trit_planes import MAX_RESIDUAL, Progress, Trees
from .networks.model import LATENT_STRIDE, MULTIPLE, CDCModel, LightModel, Synthesis, build_model
from .networks.tiling import TILE_PIXELS, by_tiles

Decoder = Literal["fast", "diffusion"]
_LARGEST_UNITS = 1 << 40  # of the model's integers in 2**-12; their sums stay exact in float64
_HYPER_HALO = 256  # pixels around a tile that the hyper-analysis and -synthesis look at


@dataclass
class CDCState:
    """What a decoder knows of a batch of equally large pictures."""

    height: int
    width: int
    pictures: list[PictureState]

    @property
    def padded(self) -> tuple[int, int]:
        return _padded(self.height), _padded(self.width)


def _padded(side: int) -> int:
    return -(-side // MULTIPLE) * MULTIPLE


class CDCScheme:
    """A CDC model on one device."""

    uses_stream_id = False
    protected = False  # exact integers choose the tables
    batch_pixels = 1 << 21

    def __init__(
        self, config: dict[str, Any], tensors: dict[str, Tensor], device: str | torch.device
    ) -> None:
        self.device = torch.device(device)
        try:
            self.model = build(lambda: build_model(config), tensors)
            self.default_quality = int(config.get("default_quality", self.model.qualities - 1))
            self._load(tensors)
            self.default_steps = int(config.get("default_steps", 17))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidModelError(f"not a CDC model: {error}") from error
        self.num_layers = 1 + max(trees.num_layers for trees in self.trees)
        self.archive_layers = self.num_layers

    def _load(self, tensors: dict[str, Tensor]) -> None:
        own = self.model.state_dict()
        self.model.load_state_dict({name: tensors[name].float() for name in own})
        self.model.to(self.device).eval().requires_grad_(False)
        integers = ("medians", "scale_offsets", "thresholds")
        for name in integers:
            if tensors[name].dtype != torch.int64 or tensors[name].abs().max() > _LARGEST_UNITS:
                raise ValueError(f"its {name} are not integers in range")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name not in own}
        trees = Trees.from_arrays(below("trees.", arrays))
        self.trees = [replace(trees, layer=layer) for layer in arrays["layers"]]
        # The paper's models round, as their authors' code does.
        self._prices = prices(trees) if isinstance(self.model, LightModel) else None
        self.hyper_tables = Tables.from_arrays(below("hyper.", arrays))
        qualities, channels = self.model.qualities, self.model.hyper_channels
        if len(self.hyper_tables) != qualities * channels:
            raise ValueError(f"{len(self.hyper_tables)} tables of the hyper-latent")
        quality = Tables.from_pmfs([(0, np.full(qualities, 1 / qualities))])
        self.coding_tables = CodingTables(tuple(self.trees), self.hyper_tables, quality)
        self._medians = tensors["medians"].to(self.device, torch.float64)
        self._offsets = tensors["scale_offsets"].to(self.device, torch.float64)
        self._integers = IntegerHyperDecoder(below("integers.", tensors), self.device)
        if (
            self._medians.shape != (qualities, channels)
            or self._offsets.shape != (qualities, self.model.latents)
            or len(self.trees) != qualities
            or self._integers.outputs != self.model.latents
            or tensors["thresholds"].shape != (len(trees.scales) - 1,)
            or not (tensors["thresholds"].diff() > 0).all()
            or not 0 <= self.default_quality < qualities
        ):
            raise ValueError("the coding tensors do not fit the networks")
        self._scale_index = ScaleIndex(tensors["thresholds"].to(self.device))

    # -- encoding ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(
        self,
        images: Sequence[np.ndarray],
        stream_ids: Sequence[int],
        layers: int,
        *,
        quality: int | None = None,
        tile_pixels: int = TILE_PIXELS,
    ) -> list[PictureLayers]:
        height, width = images[0].shape[:2]
        state = self.start([(height, width)] * len(images), stream_ids)
        chosen = self.default_quality if quality is None else quality
        _, residuals = self._quantise(state, images, chosen, tile_pixels)
        return [
            PictureLayers(self.coding_tables, picture, r, layers)
            for picture, r in zip(state.pictures, residuals, strict=True)
        ]

    def _quantise(
        self, state: CDCState, images: Sequence[np.ndarray], quality: int, tile_pixels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scale index of every element, and its r, ``(B, n)`` each; z goes into ``state``."""
        z, y = self._analyse(images, state.padded, quality, tile_pixels)
        for picture, hyper in zip(state.pictures, z, strict=True):
            picture.quality, picture.hyper = quality, hyper
        self._choose_scales(state)
        left = (y - self._means(state, tile_pixels)).clamp_(-MAX_RESIDUAL, MAX_RESIDUAL)
        wanted = left.flatten(1).cpu().numpy()
        nodes = np.stack([p.progress.node for p in state.pictures if p.progress is not None])
        index = np.searchsorted(self.trees[quality].root, nodes)
        if self._prices is None:
            return index, np.rint(wanted).astype(np.int32)
        rows = zip(wanted, index, strict=True)
        return index, np.stack([choose(row, scales, self._prices) for row, scales in rows])

    def _analyse(
        self, images: Sequence[np.ndarray], size: tuple[int, int], quality: int, tile_pixels: int
    ) -> tuple[np.ndarray, Tensor]:
        """Integers of z ``(B, C, h, w) int32``, and y ``(B, M, H/16, W/16)``, of each picture."""
        pixels = torch.from_numpy(np.stack([_pad(image, size) for image in images]))
        qualities = torch.full((len(images),), quality, device=self.device)

        def analyse(x: Tensor, _: Area) -> Tensor:
            x = x.to(self.device, non_blocking=True).float() / 127.5 - 1
            return self.model.analysis(x, qualities)

        def hyper_analyse(y: Tensor, _: Area) -> Tensor:
            return self.model.hyper_analysis(y)

        with full_precision(self.device):
            x = pixels.permute(0, 3, 1, 2)
            y = by_tiles(analyse, x, 1, LATENT_STRIDE, tile_pixels, self.model.analysis_halo)
            z = by_tiles(hyper_analyse, y, LATENT_STRIDE, MULTIPLE, tile_pixels, _HYPER_HALO)
        medians = self._medians[quality][:, None, None]
        k = (z.double() - medians / FRACTION).round_().clamp_(-MAX_RESIDUAL, MAX_RESIDUAL)
        return k.to(torch.int32).cpu().numpy(), y

    @torch.inference_mode()
    def count_residuals(self, images: Sequence[np.ndarray], quality: int) -> np.ndarray:
        """How often each r occurs at each scale index, as ``build_trees`` takes it.

        All pictures must have the same size. ``(S, 2 MAX_COUNTED + 1) int64``.
        """
        state = self.start([images[0].shape[:2]] * len(images), [0] * len(images))
        index, residuals = self._quantise(state, images, quality, TILE_PIXELS)
        scales = len(self.trees[quality].root)
        columns = 2 * MAX_COUNTED + 1
        r = residuals.clip(-MAX_COUNTED, MAX_COUNTED) + MAX_COUNTED
        counts = np.bincount((index * columns + r).ravel(), minlength=scales * columns)
        return counts.reshape(scales, columns)

    # -- decoding ---------------------------------------------------------------------------------

    def passes(self, layer: int) -> int:
        return self.coding_tables.passes(layer)

    def least_bits(self, height: int, width: int) -> float:
        """See ``Scheme``: those of the hyper-latent, at the quality that takes the fewest."""
        bits = self.hyper_tables.least_bits().reshape(self.model.qualities, -1).sum(1)
        return float(bits.min()) * (_padded(height) // MULTIPLE) * (_padded(width) // MULTIPLE)

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> CDCState:
        height, width = sizes[0]
        shape = (self.model.hyper_channels, _padded(height) // MULTIPLE, _padded(width) // MULTIPLE)
        return CDCState(
            height,
            width,
            [PictureState(self.default_quality, np.zeros(shape, np.int32)) for _ in sizes],
        )

    def choices(self, state: CDCState, layer: int, number: int) -> list[Choice]:
        return [self.coding_tables.choice(picture, layer, number) for picture in state.pictures]

    @torch.inference_mode()
    def update(
        self, state: CDCState, layer: int, number: int, symbols: Sequence[np.ndarray]
    ) -> None:
        for picture, values in zip(state.pictures, symbols, strict=True):
            if layer:
                assert picture.progress is not None
                picture.progress.advance(picture.progress.pending(layer - 1), values)
            elif number == 0:
                if not 0 <= values[0] < self.model.qualities:
                    raise ValueError(f"the model has no quality {values[0]}")
                picture.quality = int(values[0])
            else:
                if not -MAX_RESIDUAL <= values.min() <= values.max() <= MAX_RESIDUAL:
                    raise ValueError("a hyper-latent is out of range")
                picture.hyper = values.reshape(picture.hyper.shape)
        if layer == 0 and number == 1:
            self._choose_scales(state)

    def _hyper_units(self, state: CDCState) -> Tensor:
        """z as integers in 2**-12, ``(B, C, h, w) float64``, and nothing but integers."""
        k = torch.from_numpy(np.stack([p.hyper for p in state.pictures]))
        k = k.to(self.device, non_blocking=True)
        chosen = [p.quality for p in state.pictures]
        return k.double() * FRACTION + self._medians[chosen][:, :, None, None]

    def _choose_scales(self, state: CDCState) -> None:
        offsets = self._offsets[[p.quality for p in state.pictures]]
        index = self._integers.scale_index(self._hyper_units(state), self._scale_index, offsets)
        for picture, row in zip(state.pictures, index.flatten(1).cpu().numpy(), strict=True):
            picture.progress = Progress.start(self.trees[picture.quality], row)

    def _means(self, state: CDCState, tile_pixels: int) -> Tensor:
        """``(B, M, H/16, W/16) float32``."""
        qualities = torch.tensor([p.quality for p in state.pictures])  # read one by one

        def mean(z: Tensor, _: Area) -> Tensor:
            return self.model.hyper_mean(z, qualities)

        z = (self._hyper_units(state) / FRACTION).float()
        with full_precision(self.device):
            return by_tiles(mean, z, MULTIPLE, LATENT_STRIDE, tile_pixels, _HYPER_HALO)

    @torch.inference_mode()
    def reconstruct(
        self,
        state: CDCState,
        layers: int,
        *,
        decoder: Decoder | None = None,
        steps: int | None = None,
        noise_scale: float = 0.0,
        seed: int = 0,
        tile_pixels: int = TILE_PIXELS,
    ) -> list[np.ndarray]:
        y = self._means(state, tile_pixels)
        for latent, picture in zip(y, state.pictures, strict=True):
            if picture.progress is not None:
                known = torch.from_numpy(picture.progress.expectation())
                latent += known.to(self.device, non_blocking=True).view_as(latent)
        qualities = torch.tensor([p.quality for p in state.pictures], device=self.device)
        noise = None
        fast = decoder == "fast" or (decoder is None and self.model.has_fast_head)
        if not fast and noise_scale:
            noise = torch.stack([_noise(p, seed, state.padded) for p in state.pictures])
            noise = noise.mul_(noise_scale)

        def synthesise(y: Tensor, area: Area) -> Tensor:
            seen = self.model.synthesis(y, qualities)
            if fast:
                assert seen.picture is not None
                x = seen.picture
            else:
                size = [side.stop - side.start for side in area]
                start = torch.zeros(len(y), 3, *size) if noise is None else noise[..., *area]
                x = self._diffuse(seen, start.to(self.device), steps or self.default_steps)
            return ((x + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)

        with full_precision(self.device):
            x = by_tiles(synthesise, y, LATENT_STRIDE, 1, tile_pixels, self.model.synthesis_halo)
        x = x[:, :, : state.height, : state.width].permute(0, 2, 3, 1).cpu()
        return [np.ascontiguousarray(picture.numpy()) for picture in x]

    def _diffuse(self, seen: Synthesis, start: Tensor, steps: int) -> Tensor:
        model: CDCModel = self.model
        assert model.diffusion is not None
        return model.diffusion.sample(lambda x, time: model.denoise(x, time, seen), start, steps)


def _pad(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reflected at its lower and right edges to ``size``."""
    rows, columns = (padded - side for padded, side in zip(size, image.shape, strict=False))
    for axis, extra in ((0, rows), (1, columns)):
        if extra:
            widths = [(0, 0)] * 3
            widths[axis] = (0, extra)
            # a single row or column has nothing to reflect
            image = np.pad(image, widths, "reflect" if image.shape[axis] > 1 else "edge")
    return image


def _noise(picture: PictureState, seed: int, size: tuple[int, int]) -> Tensor:
    """Standard normal noise ``(3, H, W) float32`` of a picture's own: its stream and the seed."""
    draw = zlib.crc32(picture.hyper.tobytes())
    return torch.from_numpy(
        dither.normal(seed, draw, (3, *size), dither.normal_quantiles())
    ).float()
