"""oneDNN's products and filters of 8-bit integers, which requantise in the same pass; for CPUs.

torch made these functions for its compiler. They are fast where one factor is unsigned, so signed
integers are shifted by 128, and oneDNN subtracts that again (its zero point). The result is the
exact sum times a scale: one float32 product, rounded once. As an integer it is rounded to the
nearest, ties to even, and clamped to the range of its type. ``int8_products.py`` tries whether
these functions are right and fast on a processor before they are used.
"""

import torch
from torch import Tensor

ZERO = 128
wanted = True  # see ``without_bytes`` (precision.py)
_FLIP = -128  # of a byte's highest bit: 128 more, or less


def enabled() -> bool:
    """Whether these functions may be used now: the user of torch may have switched oneDNN off."""
    return wanted and bool(torch.backends.mkldnn.enabled)


def pack(weight: Tensor) -> Tensor:
    """A matrix ``(outputs, inputs) int8`` for ``multiply``."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return packed


def multiply(rows: Tensor, packed: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """Sums times scales ``(n, outputs)``, float32 or as an 8-bit ``kind``.

    Args:
        rows: ``(n, inputs)`` int8, or uint8.
        scale: ``(outputs,) float32``.
    """
    zero = 0
    if rows.dtype == torch.int8:
        rows, zero = rows.bitwise_xor(_FLIP).view(torch.uint8), ZERO
    none = torch.zeros(len(scale), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, zero, packed, scale, none, None, 1.0, 0, kind, "none", [], ""
    )
    return out


def pack_filters(weight: Tensor, scale: Tensor) -> Tensor:
    """Filters ``(C, 1, k, k) int8`` for ``filtered``."""
    padding = [weight.shape[-1] // 2] * 2
    packed: Tensor = torch.ops.onednn.qconv_prepack(
        weight, scale, 1.0, ZERO, [1, 1], padding, [1, 1], len(weight), None
    )
    return packed


def filtered(x: Tensor, packed: Tensor, scale: Tensor, size: int) -> Tensor:
    """``(B, H, W, C) int8`` of x likewise, each channel by a filter of its own; x is used up.

    Beyond the border lie zeros. -128 may come out as well.

    Args:
        scale: ``(C,) float32``.
        size: k, which is odd.
    """
    x = x.bitwise_xor_(_FLIP).view(torch.uint8).permute(0, 3, 1, 2)
    padding = [size // 2] * 2
    none = torch.zeros(len(scale), dtype=torch.int64)
    out: Tensor = torch.ops.onednn.qconv2d_pointwise(
        *(x, 1.0, ZERO, packed, scale, none, None, [1, 1], padding, [1, 1], len(scale)),
        *(1.0, 0, torch.int8, "none", [], ""),
    )
    return out.permute(0, 2, 3, 1).contiguous()
