"""Calibration: measures how much a model's numbers differ between ways of computing them.

    python -m codec calibrate MODEL --data shards/*.tar

A float network computes other last bits in float64, in another batch, with other kernels or another
number of threads. The guard of each layer and kind of number is the largest difference between any
two of these ways, times a safety factor (protection.py explains its use). A network of exact
integers must show no difference.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...base import Codec
from ...errors import InvalidModelError, StrataError
from ...numerics.precision import without_bytes, without_mkldnn
from .scheme import UniversalScheme
from .windows import PRECISE, USUAL, Execution

SAFETY = 4.0
SIDE = 64  # pixels per side of the squares that are cut out of pictures
EXECUTIONS = (
    *(
        Execution(batch=batch, threads=1, mkldnn=mkldnn, channels_last=channels_last)
        for batch, mkldnn, channels_last in product((1, 7), (True, False), (False, True))
    ),
    Execution(threads=2),
    Execution(threads=2, mkldnn=False),
    Execution(threads=1, fused_attention=False),
    PRECISE,
)
# Exports and imports use this quick calibration, seconds for a small model. It sees fewer numbers,
# so its safety factor is larger.
FEW_EXECUTIONS = (USUAL, Execution(mkldnn=False, channels_last=True), PRECISE)
_FEW_PICTURES, _FEW_SAFETY = 2, 8.0


@dataclass(frozen=True)
class Calibration:
    """The measurements of a float network.

    Attributes:
        differences: the largest differences, ``(steps, 2) float64``: of means in units of the step,
            and of scales relative to themselves.
        safety: the guards are so many times the differences.
    """

    differences: np.ndarray
    safety: float
    pictures: int
    executions: int

    @property
    def guards(self) -> Tensor:
        """The model file's tensor ``guards``, ``(steps, 2) float64``."""
        return torch.from_numpy(self.differences * self.safety)

    def card(self) -> dict[str, Any]:
        """The entry in the model's card."""
        mean, scale = ([float(f"{v:.3g}") for v in column] for column in self.differences.T)
        return {
            "differences": {"mean": mean, "scale": scale},
            "safety": self.safety,
            "pictures": self.pictures,
            "executions": self.executions,
            "torch": torch.__version__,
        }


def calibrate(
    scheme: UniversalScheme,
    pictures: Sequence[np.ndarray],
    safety: float = SAFETY,
    executions: Sequence[Execution] | None = None,
) -> Calibration:
    """Measure a model with a float network, on ``squares`` of pictures."""
    executions = executions or EXECUTIONS
    steps = len(scheme.steps)
    ids = list(range(len(pictures)))
    coded = scheme.encode(pictures, ids, steps)
    state = scheme.start([picture.shape[:2] for picture in pictures], ids)
    largest = np.zeros((steps, 2))
    for layer in range(steps):
        found = []  # (pictures, 2, n) each
        for execution in executions:
            scheme.predict(state, layer, execution)
            found.append(np.stack([scheme.prior(picture, layer) for picture in state]))
        everything = np.stack(found)
        spread = np.ptp(everything, axis=0)
        spread[:, 1] /= everything[:, :, 1].min(0)
        largest[layer] = spread.max((0, 2))
        scheme.choices(state, layer, 0)
        scheme.update(state, layer, 0, [layers[layer].symbols[0] for layers in coded])
    return Calibration(largest, safety, len(pictures), len(executions))


def quick(scheme: UniversalScheme, pictures: Sequence[np.ndarray] = ()) -> Calibration:
    """A calibration that takes seconds, on a few of the pictures or on made-up ones."""
    few = squares(pictures, _FEW_PICTURES) or made_up(_FEW_PICTURES)
    return calibrate(scheme, few, _FEW_SAFETY, FEW_EXECUTIONS)


def verify_exact(codec: Codec, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Verify a model that must be exact, because integers choose its tables.

    Computes every sum of products of integers in a wider type as well, and decodes streams in
    several ways. Returns the entry for the model's card. Raises InvalidModelError if a sum differs
    or a stream does not decode.
    """
    streams = codec.encode(pictures)
    try:
        with without_bytes(), _Sums() as sums:
            codec.decode(streams)
        ways = list(_exact_ways(codec, streams))
    except StrataError as error:
        raise InvalidModelError(f"the model {codec.name} is not exact: {error}") from error
    if sums.largest:
        raise InvalidModelError(
            f"the model {codec.name} is not exact: sums of integers are off by {sums.largest:g}"
        )
    return {
        "difference": 0,
        "sums": sums.count,
        "pictures": len(pictures),
        "executions": len(ways),
        "torch": torch.__version__,
    }


def _exact_ways(codec: Codec, streams: Sequence[Any]) -> Iterator[None]:
    for threads, mkldnn, alone in product((1, 2), (True, False), (True, False)):
        with _threads(threads):
            for some in [[stream] for stream in streams] if alone else [streams]:
                if mkldnn:
                    codec.decode(some)
                else:
                    with without_mkldnn():
                        codec.decode(some)
        yield


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Sums(TorchFunctionMode):
    """Computes each sum of products of integers a second time, in a wider type.

    Attributes:
        largest: difference from what the model computed.
        count: how many sums were compared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.count = 0.0, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        wider: Tensor
        if func is Tensor.addmm_ and _integers(*args):
            total, a, b = args
            wider = total.long() + a.long() @ b.long()
        elif func is torch.mm and _integers(*args):
            a, b = (x.double() for x in args)
            wider = a @ b
        elif func in (F.linear, F.conv2d) and _integers(*args[:2]):
            a, b = (x.double() for x in args[:2])
            wider = func(a, b, *args[2:], **kwargs)
        else:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if out.numel():
            self.largest = max(self.largest, float((out - wider).abs().max()))
            self.count += out.numel()
        return out


def _integers(*tensors: Tensor) -> bool:
    return all(bool((x == x.round()).all()) for x in tensors)


def squares(pictures: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """The middles ``(64, 64, 3) uint8`` of up to ``count`` pictures that are large enough."""
    out: list[np.ndarray] = []
    for picture in pictures:
        top, left = ((side - SIDE) // 2 for side in picture.shape[:2])
        if min(top, left) >= 0 and len(out) < count:
            out.append(np.ascontiguousarray(picture[top : top + SIDE, left : left + SIDE]))
    return out


def made_up(count: int) -> list[np.ndarray]:
    """Squares of noise at every scale; coarse noise is the strongest, as in photographs."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(count):
        total = np.full((SIDE, SIDE, 3), 127.5)
        cells = 2
        while cells <= SIDE:
            noise = rng.normal(0, 128 / cells, (cells, cells, 3)).astype(np.float32)
            for channel in range(3):
                plane = Image.fromarray(np.ascontiguousarray(noise[..., channel]))
                total[..., channel] += plane.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            cells *= 2
        out.append(total.round().clip(0, 255).astype(np.uint8))
    return out
