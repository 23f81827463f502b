"""Settings of torch that trade precision for speed, as a user may have chosen them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _precisions() -> dict[str, Any]:
    backends: Any = torch.backends
    owners = {
        "matmul": backends.cuda.matmul,
        "conv": backends.cudnn.conv,
        "mkldnn.matmul": backends.mkldnn.matmul,
        "mkldnn.conv": backends.mkldnn.conv,
    }
    return {name: owner.fp32_precision for name, owner in owners.items()}


def precisions() -> dict[str, Any]:
    """What torch would compute float32 products with now, and the rest that matters."""
    return {
        **_precisions(),
        "older": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@contextmanager
def careless() -> Iterator[None]:
    """bfloat16 and TF32 wherever torch can be told to use them, and the user's autocast."""
    cudnn: Any = torch.backends.cudnn
    benchmark, tf32 = cudnn.benchmark, cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    cudnn.benchmark = cudnn.allow_tf32 = True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")
        cudnn.benchmark, cudnn.allow_tf32 = benchmark, tf32
