"""Products of matrices of 8-bit integers, exactly, in the faster of two ways.

Sums below 2**24 are the same in float32, which every device has, and in instructions for 8-bit
integers, which add up in 32 bits and are several times as fast (VNNI, AMX, I8MM; tensor cores of
GPUs from 2018 on). On a processor without them the library behind the same function may be slow, or
may add pairs of products in 16 bits, where large ones saturate. So the 8-bit way is first tried on
each device: with the largest factors there are, and against the clock. Either way the numbers are
the same.

On CPUs torch does not ask that library whether it has refused
(https://github.com/pytorch/pytorch/issues/195066, for matrices of one row or column): then nothing
is written to the result, which is noticed here. On GPUs torch refuses by itself what is not a
multiple of 8 numbers, or has few rows.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_UNTOUCHED = -(2**31)  # no sum is
_SHIFT = 128  # what is in 0 .. 255 is multiplied as 8-bit integers with a sign
_ROUNDS = 3


@dataclass(frozen=True)
class _Limits:
    """What products of 8-bit integers need on a kind of device, and what they are tried with.

    Attributes:
        least: rows, inputs and outputs; fewer are quick in float32, too.
        multiple: of inputs and outputs. Outputs are filled up, inputs are not.
        shapes: rows, inputs, outputs of products that must be right.
        race: of the one that is timed.
    """

    least: int
    multiple: int
    shapes: tuple[tuple[int, int, int], ...]
    race: tuple[int, int, int]


_CPU = _Limits(16, 1, ((16, 39, 24), (23, 384, 768), (64, 68, 48), (48, 192, 384)), (512, 192, 384))
_GPU = _Limits(
    32, 8, ((32, 40, 24), (39, 384, 768), (64, 72, 48), (1 << 10, 192, 384)), (1 << 15, 192, 384)
)


def _limits(device: torch.device) -> _Limits:
    return _CPU if device.type == "cpu" else _GPU


class Matrix:
    """A matrix ``(outputs, inputs)`` of integers in [-127, 127], to multiply rows with.

    Args:
        weight: of any type, with so few inputs that sums stay below 2**24.
    """

    def __init__(self, weight: Tensor) -> None:
        self._floats = weight.float().t()
        self._bytes: Tensor | None = None  # (inputs, outputs filled up), the latter adjacent
        limits = self._limits = _limits(weight.device)
        outputs, inputs = weight.shape
        fits = min(outputs, inputs) >= limits.least and not inputs % limits.multiple
        if fits and bytes_are_faster(weight.device):
            filled = F.pad(weight, (0, 0, 0, -outputs % limits.multiple))
            self._bytes = filled.to(torch.int8).t()
            self._shifted = _SHIFT * self._floats.sum(0)  # what the shift takes away

    def outputs(self, chosen: Tensor) -> "Matrix":
        """The matrix of some outputs, ``(n,)``."""
        some = object.__new__(Matrix)
        some._floats, some._limits = self._floats[:, chosen], self._limits
        some._bytes = None
        if self._bytes is not None and len(chosen) >= self._limits.least:
            bytes_ = self._bytes.t()[chosen]
            some._bytes = F.pad(bytes_, (0, 0, 0, -len(chosen) % self._limits.multiple)).t()
            some._shifted = self._shifted[chosen]
        return some

    def inputs(self, chosen: Tensor) -> "Matrix":
        """The matrix of some inputs, ``(n,)``."""
        return Matrix(self._floats.t()[:, chosen])

    def __call__(self, rows: Tensor, rectified: bool = False) -> Tensor:
        """Exact sums ``(..., outputs) float32`` of rows ``(..., inputs) float32``.

        Args:
            rows: integers in [-127, 127], or in [0, 255] where they are ``rectified``; the latter
                are used up.
        """
        flat = rows.reshape(-1, rows.shape[-1])
        out = self._from_bytes(flat, rectified)
        if out is None:
            out = torch.mm(flat, self._floats)
        return out.view(*rows.shape[:-1], out.shape[-1])

    def _from_bytes(self, rows: Tensor, rectified: bool) -> Tensor | None:
        if self._bytes is None or len(rows) < self._limits.least:
            return None
        on_cpu = rows.device.type == "cpu"
        if on_cpu and not torch.backends.mkldnn.enabled:
            return None  # without oneDNN torch multiplies bytes one by one
        signed = (rows.sub_(_SHIFT) if rectified else rows).to(torch.int8).contiguous()
        if on_cpu:
            sums = self._on_cpu(signed, self._bytes)
        else:
            sums = torch._int_mm(signed, self._bytes)[:, : self._floats.shape[1]].float()
        return sums.add_(self._shifted) if rectified else sums

    def _on_cpu(self, rows: Tensor, matrix: Tensor) -> Tensor:
        out = torch.empty(len(rows), matrix.shape[1], dtype=torch.int32)
        out[-1, -1] = _UNTOUCHED
        torch._int_mm(rows, matrix, out=out)
        sums = out.float()
        if float(sums[-1, -1]) == _UNTOUCHED:
            return torch.mm(rows.float(), self._floats)
        return sums


@functools.cache
def bytes_are_faster(device: torch.device) -> bool:
    """Whether a device's products of 8-bit integers are right, and quicker than float32's.

    Takes some milliseconds, once for each device.
    """
    if device.type == "cpu" and not torch.backends.mkldnn.enabled:
        return False  # what would be tried is not what is used later
    try:
        return _bytes_are_right(device) and _seconds(_race(True, device)) < _seconds(
            _race(False, device)
        )
    except (AttributeError, RuntimeError):  # a torch, or a device, that has no such products
        return False


def _bytes_are_right(device: torch.device) -> bool:
    for a, b in _factors(_limits(device).shapes):
        found = torch._int_mm(a.to(device), b.to(device).t()).cpu()
        if not torch.equal(found.long(), (a.double() @ b.double().t()).long()):
            return False
    return True


def _factors(shapes: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and matrices whose sums, and partial sums, are as large as they can be; and others."""
    generator = torch.Generator().manual_seed(0)
    for count, inputs, outputs in shapes:
        for row in (-128, 127):
            for weight in (-127, 127):
                a = torch.full((count, inputs), row, dtype=torch.int8)
                b = torch.full((outputs, inputs), weight, dtype=torch.int8)
                yield a, b
                b = b.clone()
                b[:, inputs // 2 :] *= -1  # large sums on the way, small ones at the end
                yield a, b
        yield (
            torch.randint(-128, 128, (count, inputs), generator=generator, dtype=torch.int8),
            torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8),
        )


def _race(bytes_: bool, device: torch.device) -> Callable[[], Tensor]:
    """A product of float32 rows, with what the 8-bit way has to convert before and after it."""
    count, inputs, outputs = _limits(device).race
    rows = torch.ones(count, inputs, device=device)
    matrix = torch.ones(outputs, inputs, device=device)
    if not bytes_:
        return lambda: torch.mm(rows, matrix.t())
    matrix = matrix.to(torch.int8)
    return lambda: torch._int_mm(rows.to(torch.int8), matrix.t()).float()


def _seconds(run: Callable[[], Tensor]) -> float:
    """The fastest of some rounds, after one that warms up."""
    found = []
    for _ in range(_ROUNDS + 1):
        begun = time.perf_counter()
        float(run()[0, 0])  # a GPU has come so far
        found.append(time.perf_counter() - begun)
    return min(found[1:])
