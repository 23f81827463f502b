"""Some rows at a time: a CPU is fastest if data stay in its cache between operations."""

from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS = 1024 * 384  # numbers that a thread computes at once


def strips(width: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of some rows of each ``(n, ...)`` at a time; on other devices of all rows at once.

    Args:
        width: about how many numbers are computed for each row.
    """
    count = len(tensors[0])
    if tensors[0].device.type == "cpu":
        count = NUMBERS // width * torch.get_num_threads()
    return zip(*(x.split(max(count, 1)) for x in tensors), strict=True)
