"""Runs the U-Net on pictures of any size, in windows of the size of its training.

Windows lie side by side; the last one of a row or column is shifted inwards, so that nothing
outside the picture is needed. Where two windows overlap, they see the same latents, and the output
of the later one is used. A picture smaller than a window is mirrored, with its noise.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...numerics.precision import direct_convolutions, full_precision, without_mkldnn
from .unet import TILE, UNet

_threads_lock = threading.Lock()

_Place = tuple[int, int, int]  # latent, top, left


@dataclass(frozen=True)
class Execution:
    """How the network is run. It makes a difference only in the last bits.

    Attributes:
        dtype: torch.float32 or torch.float64.
        batch: windows that are evaluated together.
        threads: torch's threads in an evaluation; None evaluates several windows at once, each in
            one thread.
        mkldnn: whether that library's kernels may be used (on CPUs).
        channels_last: memory layout of activations and weights.
        fused_attention: whether attention may be computed without storing its weights.
    """

    dtype: torch.dtype = torch.float32
    batch: int = 1
    threads: int | None = None
    mkldnn: bool = True
    channels_last: bool = False
    fused_attention: bool = True


# Batches of several windows were not faster on CPUs.
USUAL = Execution()
PRECISE = Execution(torch.float64)


def windows(height: int, width: int) -> list[tuple[int, int]]:
    """Top left corners of the windows that cover a picture of at least TILE x TILE."""
    rows, columns = (
        [min(at, size - TILE) for at in range(0, size, TILE)] for size in (height, width)
    )
    return [(top, left) for top in rows for left in columns]


def predict(
    network: UNet,
    latents: Sequence[np.ndarray],
    time: float,
    device: torch.device,
    execution: Execution = USUAL,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise and scale factor, ``(3, H, W) float64``, of latents ``(3, H, W) float64``.

    ``network`` must have the execution's dtype and layout. Its input is rounded to float32 in any
    case, so that float64 computes the same function more precisely.
    """
    padded = [_mirrored(z) for z in latents]
    places = [(i, top, left) for i, z in enumerate(padded) for top, left in windows(*z.shape[1:])]
    batches = [places[at : at + execution.batch] for at in range(0, len(places), execution.batch)]
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    seconds = torch.full((1,), time, device=device).to(execution.dtype)

    def evaluate(batch: Sequence[_Place]) -> np.ndarray:
        cut = [padded[i][:, top : top + TILE, left : left + TILE] for i, top, left in batch]
        window = torch.from_numpy(np.stack(cut).astype(np.float32)).to(device, execution.dtype)
        with full_precision(device), direct_convolutions(), torch.inference_mode():
            noise, factor = network(
                window.contiguous(memory_format=layout), seconds.expand(len(batch))
            )
            return torch.stack([noise, factor], 1).double().cpu().numpy()

    outputs = [np.empty((2, *z.shape)) for z in padded]
    with _kernels(execution):
        for batch, found in zip(batches, _map(evaluate, batches, device, execution), strict=True):
            for (i, top, left), output in zip(batch, found, strict=True):
                outputs[i][:, :, top : top + TILE, left : left + TILE] = output
    return [
        (noise[:, : z.shape[1], : z.shape[2]], factor[:, : z.shape[1], : z.shape[2]])
        for (noise, factor), z in zip(outputs, latents, strict=True)
    ]


def _mirrored(latent: np.ndarray) -> np.ndarray:
    """A latent CHW, mirrored at the lower and right edge to at least TILE x TILE."""
    _, height, width = latent.shape
    missing = ((0, 0), (0, max(TILE - height, 0)), (0, max(TILE - width, 0)))
    return np.pad(latent, missing, mode="symmetric")


@contextmanager
def _kernels(execution: Execution) -> Iterator[None]:
    with ExitStack() as stack:
        if not execution.mkldnn:
            stack.enter_context(without_mkldnn())
        if not execution.fused_attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _map(
    function: Callable[[Sequence[_Place]], np.ndarray],
    batches: Sequence[Sequence[_Place]],
    device: torch.device,
    execution: Execution,
) -> list[np.ndarray]:
    """``map`` in as many threads as torch may use, each with one thread of torch.

    With ``execution.threads``, one by one with so many threads of torch.
    """
    if device.type != "cpu":
        return list(map(function, batches))
    with _threads_lock:  # the number of threads is the whole process's
        threads = torch.get_num_threads()
        torch.set_num_threads(execution.threads or 1)
        try:
            if execution.threads or min(threads, len(batches)) <= 1:
                return list(map(function, batches))
            with ThreadPoolExecutor(threads) as pool:  # new threads use the number just set
                return list(pool.map(function, batches))
        finally:
            torch.set_num_threads(threads)


def to_tensor(array: np.ndarray) -> Tensor:
    """A numpy array as a contiguous tensor, for model files."""
    return torch.from_numpy(np.ascontiguousarray(array))
