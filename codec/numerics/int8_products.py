"""Products of matrices of 8-bit integers, exactly, in the faster of two ways.

Sums below 2**24 are the same in float32, which every device has, and in a processor's instructions
for 8-bit integers, which add up in 32 bits and are several times as fast (VNNI, AMX, I8MM). On a
processor without them the library behind the same function may be slow, or may add pairs of
products in 16 bits, where large ones saturate. So the 8-bit way is first tried: with the largest
factors there are, and against the clock. Either way the numbers are the same.

torch does not ask that library whether it has refused (https://github.com/pytorch/pytorch/issues/195066,
for matrices of one row or column): then nothing is written to the result, which is noticed here.
"""

import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_LEAST = 16  # rows, inputs and outputs: fewer are quick in float32, too
_UNTOUCHED = -(2**31)  # no sum is
_SHIFT = 128  # what is in 0 .. 255 is multiplied as 8-bit integers with a sign
_SHAPES = ((16, 39, 24), (23, 384, 768), (64, 68, 48), (48, 192, 384))  # rows, inputs, outputs
_RACE = (512, 192, 384)
_ROUNDS = 3


class Matrix:
    """A matrix ``(outputs, inputs)`` of integers in [-127, 127], to multiply rows with.

    Args:
        weight: of any type, with so few inputs that sums stay below 2**24.
    """

    def __init__(self, weight: Tensor) -> None:
        self._floats = weight.float().t()
        self._bytes: Tensor | None = None
        if weight.device.type == "cpu" and min(weight.shape) >= _LEAST and bytes_are_faster():
            self._bytes = weight.to(torch.int8).t()
            self._shifted = _SHIFT * self._floats.sum(0)  # what the shift takes away

    def outputs(self, chosen: Tensor) -> "Matrix":
        """The matrix of some outputs, ``(n,)``."""
        some = object.__new__(Matrix)
        some._floats, some._bytes = self._floats[:, chosen], self._bytes
        if self._bytes is not None:
            some._shifted = self._shifted[chosen]
            some._bytes = self._bytes.t()[chosen].t() if len(chosen) >= _LEAST else None
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
        # Without oneDNN torch multiplies bytes one by one.
        if self._bytes is None or len(rows) < _LEAST or not torch.backends.mkldnn.enabled:
            return None
        signed = (rows.sub_(_SHIFT) if rectified else rows).to(torch.int8).contiguous()
        out = torch.empty(len(rows), self._bytes.shape[1], dtype=torch.int32)
        out[-1, -1] = _UNTOUCHED
        torch._int_mm(signed, self._bytes, out=out)
        sums = out.float()
        if float(sums[-1, -1]) == _UNTOUCHED:
            sums = torch.mm(signed.float(), self._floats)
        return sums.add_(self._shifted) if rectified else sums


@functools.cache
def bytes_are_faster() -> bool:
    """Whether this processor's products of 8-bit integers are right, and quicker than float32's.

    Takes some milliseconds, once.
    """
    if not torch.backends.mkldnn.enabled:  # what would be tried is not what is used later
        return False
    try:
        return _bytes_are_right() and _seconds(_race(torch.int8)) < _seconds(_race(torch.float32))
    except (AttributeError, RuntimeError):  # a torch that has no such products
        return False


def _bytes_are_right() -> bool:
    for a, b in _factors():
        if not torch.equal(torch._int_mm(a, b.t()).long(), (a.double() @ b.double().t()).long()):
            return False
    return True


def _factors() -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and matrices whose sums, and partial sums, are as large as they can be; and others."""
    generator = torch.Generator().manual_seed(0)
    for count, inputs, outputs in _SHAPES:
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


def _race(dtype: torch.dtype) -> Callable[[], Tensor]:
    count, inputs, outputs = _RACE
    a, b = (torch.ones(n, inputs, dtype=dtype) for n in (count, outputs))
    if dtype == torch.int8:
        return lambda: torch._int_mm(a, b.t())
    return lambda: torch.mm(a, b.t())


def _seconds(run: Callable[[], Tensor]) -> float:
    """The fastest of some rounds, after one that warms up."""
    found = []
    for _ in range(_ROUNDS + 1):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found[1:])
