"""Linear maps of channels, which are 1x1 convolutions, with what follows them in the same pass.

A CPU spends a third of such a layer's time on the pass that adds the bias and rectifies. oneDNN
does both while it multiplies; torch has that behind functions made for its compiler, which are used
here for inference in float32, on the processors where they were measured, if they give what they
should. Training, autocast and GPUs take the ordinary way. Nothing is timed, as 8-bit products are
(codec/numerics/int8_products.py): last bits differ between the two ways, and two workers must not.
"""

import functools
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MACHINES = ("x86_64", "AMD64")
_TRIAL = (512, 192, 384)  # rows, inputs, outputs
_TOLERANCE = 1e-4  # of sums of some hundred products of about one


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, rectified: bool = False
) -> Tensor:
    """``x (..., C) @ weight (D, C).T + bias``, and negative numbers made zero if ``rectified``.

    Args:
        bias: ``(D,)``, or ``(B, D)`` for an x of B pictures ``(B, H, W, C)``.
    """
    if bias is not None and bias.dim() == 2:
        # Asking a GPU whether all are the same would be to wait for it.
        if len(bias) > 1 and (bias.device.type != "cpu" or not (bias == bias[0]).all()):
            out = linear(x, weight) + bias[:, None, None]
            return F.relu(out) if rectified else out
        bias = bias[0]
    if fused(x, weight):
        return _fused(x, weight, bias, rectified)
    out = F.linear(x, weight, bias)
    return F.relu(out) if rectified else out


def plus(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, for an x that nobody else holds: in its memory unless gradients may need that."""
    if torch.is_grad_enabled() or x.dtype != y.dtype:  # autocast's products have fewer bits
        return x + y
    return x.add_(y)


def fused(x: Tensor, weight: Tensor) -> bool:
    """Whether ``linear`` of these takes oneDNN's way."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and _fused_is_right()
    )


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution; where ``linear`` is one pass, its output has channels last in memory."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        if not fused(x, self.weight):
            return super().forward(x)
        return linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


def _fused(x: Tensor, weight: Tensor, bias: Tensor | None, rectified: bool) -> Tensor:
    activation = "relu" if rectified else "none"
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return out


@functools.cache
def _fused_is_right() -> bool:
    """Whether this machine has oneDNN's way, and gets from it what torch's ordinary layers give."""
    if platform.machine() not in _MACHINES:
        return False
    rows, inputs, outputs = _TRIAL
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        x, weight, bias = (
            torch.randn(size, generator=generator)
            for size in ((rows, inputs), (outputs, inputs), (outputs,))
        )
        try:
            found = _fused(x, weight, bias, True)
        except (AttributeError, RuntimeError):  # a torch that has no such function
            return False
        return torch.allclose(found, F.linear(x, weight, bias).relu(), atol=_TOLERANCE)
