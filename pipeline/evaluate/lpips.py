"""LPIPS, where its weights are given. Nothing is downloaded."""

from pathlib import Path

import numpy as np
import torch

from codec.cdc.perceptual import LPIPS

from .measuring import Learned

SMALLEST = 16  # side of a picture that VGG16 can look at


def load_lpips(path: Path, device: str = "cpu") -> Learned:
    """LPIPS (VGG16) with weights from a file (see ``LPIPS.from_file``); None for small pictures.

    Raises InvalidModelError where the file has other content.
    """
    model = LPIPS.from_file(path).to(device)

    def distance(a: np.ndarray, b: np.ndarray) -> float | None:
        if min(a.shape[:2]) < SMALLEST:
            return None
        both = torch.from_numpy(np.stack([a, b])).to(device).permute(0, 3, 1, 2).float()
        x, y = (both / 127.5 - 1).split(1)
        with torch.inference_mode():
            return float(model(x, y))

    return distance
