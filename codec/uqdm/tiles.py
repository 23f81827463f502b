"""The U-Net over pictures of any size, in windows of the size it was trained at.

Windows lie side by side; the last of a row or column is shifted inwards, so that nothing outside
the picture is needed (a picture smaller than a window is padded by the caller). Latents belong to
the picture, not to a window, so where two windows overlap they see the same latents; the output of
the later one is taken.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..devices import full_precision
from .unet import TILE, UNet

_threads_lock = threading.Lock()


def windows(height: int, width: int) -> list[tuple[int, int]]:
    """Top left corners of the windows that cover a picture of at least TILE x TILE."""
    rows, columns = (
        [min(at, size - TILE) for at in range(0, size, TILE)] for size in (height, width)
    )
    return [(top, left) for top in rows for left in columns]


def predict(
    network: UNet, latents: Sequence[np.ndarray], time: float, device: torch.device
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noise and scale factor, ``(3, H, W) float64``, of latents ``(3, H, W) float64``.

    Every window is evaluated by itself and on one thread, whatever else is in the batch and however
    many threads there are: float kernels give other last bits for another batch size or number of
    threads, and both sides must get the same numbers. Windows are shared out among the threads;
    measured, batches of several windows are no faster.
    """
    places = [(i, top, left) for i, z in enumerate(latents) for top, left in windows(*z.shape[1:])]

    def evaluate(place: tuple[int, int, int]) -> np.ndarray:
        i, top, left = place
        window = latents[i][None, :, top : top + TILE, left : left + TILE].astype(np.float32)
        with torch.inference_mode():
            times = torch.full((1,), time, device=device)
            noise, factor = network(torch.from_numpy(window).to(device), times)
            return torch.cat([noise, factor]).double().cpu().numpy()

    outputs = [np.empty((2, *z.shape)) for z in latents]
    with full_precision(device):
        for (i, top, left), output in zip(places, _map(evaluate, places, device), strict=True):
            outputs[i][:, :, top : top + TILE, left : left + TILE] = output
    return [(noise, factor) for noise, factor in outputs]


def _map(
    function: Callable[[tuple[int, int, int]], np.ndarray],
    places: Sequence[tuple[int, int, int]],
    device: torch.device,
) -> Iterator[np.ndarray]:
    """``map`` over as many threads as torch may use, each of which runs torch on itself alone."""
    if device.type != "cpu":
        yield from map(function, places)
        return
    with _threads_lock:  # the number of threads is the whole process's
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            if min(threads, len(places)) <= 1:
                yield from map(function, places)
            else:
                with ThreadPoolExecutor(threads) as pool:  # new threads take the number just set
                    yield from pool.map(function, places)
        finally:
            torch.set_num_threads(threads)


def to_tensor(array: np.ndarray) -> Tensor:
    """A contiguous tensor of a numpy array, as model files take it."""
    return torch.from_numpy(np.ascontiguousarray(array))
