"""Linear maps and filters of 8-bit integers, exactly, in the faster of two ways.

Sums below 2**24 are the same in float32, which every device has, and in instructions for 8-bit
integers, which add up in 32 bits and are several times as fast (VNNI, AMX; tensor cores of GPUs
from 2018 on). On CPUs oneDNN has them (onednn.py), on GPUs torch. On a processor without such
instructions the same functions may be slow, or may add pairs of products in 16 bits, where large
ones saturate. So the 8-bit way is first tried on each device: against the clock, and with the
largest factors there are. Either way the numbers are the same.

On GPUs torch refuses what is not a multiple of 8 numbers, or has few rows.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from . import onednn
from .precision import direct_convolutions

LARGEST = 127.0  # of what has a sign
LARGEST_RECTIFIED = 255.0
_BIAS = 127  # largest number that a bias is made of
_SHIFT = 128  # on GPUs rectified rows are multiplied as integers with a sign
_LEAST_ROWS, _LEAST, _MULTIPLE = 32, 32, 8  # on GPUs: rows; inputs and outputs
_ROUNDS = (3, 9, 27)  # of a race: more of them if the 8-bit way seems to lose
# Rows, inputs, outputs of products that must be right.
_CPU_SHAPES = ((1, 64, 64), (16, 39, 24), (23, 384, 768), (40, 1, 17), (64, 68, 1), (48, 196, 384))
_GPU_SHAPES = ((32, 40, 24), (39, 384, 768), (64, 72, 48), (1 << 10, 192, 384))
# Shapes that are timed, and how many times float32's seconds they may take. The first one is small:
# a reference implementation, a thousand times as slow, is found before it costs much time.
_CPU_RACES = (((64, 64, 64), 40.0), ((512, 192, 384), 1.0))
_GPU_RACES = (((1 << 15, 192, 384), 1.0),)


class Linear:
    """``(W x + bias) * scale``: an exact sum of integers, and one product rounded to float32.

    Args:
        weight: ``(outputs, inputs)`` integers in [-127, 127] of any type, with so few inputs that
            sums stay below 2**24, those with the bias, too.
        scale: ``(outputs,) float32``; None: ones.
        bias: ``(outputs,)`` integers of any type; None: zeros.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        device = weight.device
        self.outputs, self.inputs = weight.shape
        self._weight = weight.to(torch.int8)
        self._scale = scale
        self._bias = None if bias is None else bias.float()
        self._packed: Tensor | None = None  # for oneDNN, with the bias in columns of its own
        self._bytes: Tensor | None = None  # for GPUs, (inputs, outputs filled up)
        self._beside = torch.empty(0, dtype=torch.int8, device=device)
        fits = min(weight.shape) >= _LEAST and not self.inputs % _MULTIPLE
        if device.type == "cpu" and bytes_are_faster(device):
            columns, self._beside = _bias_columns(bias, self.outputs)
            self._packed = onednn.pack(torch.cat([self._weight, columns], 1))
            self._scales = torch.ones(self.outputs) if scale is None else scale
        elif device.type != "cpu" and fits and bytes_are_faster(device):
            self._bytes = F.pad(self._weight, (0, 0, 0, -self.outputs % _MULTIPLE)).t()

    @functools.cached_property
    def _floats(self) -> Tensor:
        return self._weight.float().t()

    def room(self, count: int) -> Tensor:
        """Rows ``(count, columns) int8`` of which the first ``inputs`` columns are to be filled."""
        width = self.inputs + len(self._beside)
        rows = torch.empty((count, width), dtype=torch.int8, device=self._weight.device)
        rows[:, self.inputs :] = self._beside
        return rows

    def __call__(self, rows: Tensor) -> Tensor:
        """``(..., outputs) float32``.

        Args:
            rows: ``(..., inputs)`` int8 in [-127, 127], or what ``rectified`` gives; of a map with
                a bias they are ``room``, filled.
        """
        flat = rows.reshape(-1, rows.shape[-1])
        # Another thread may have switched oneDNN on since ``rectified`` gave floats.
        packed = self._packed if rows.dtype != torch.float32 and onednn.enabled() else None
        if packed is not None:
            out = onednn.multiply(flat, packed, self._scales, torch.float32)
        else:
            out = self._sums(flat[:, : self.inputs])
            if self._bias is not None:
                out.add_(self._bias)
            if self._scale is not None:
                out.mul_(self._scale)
        return out.view(*rows.shape[:-1], self.outputs)

    def rectified(self, rows: Tensor) -> Tensor:
        """``(n, outputs)`` rounded and clamped to 0 .. 255: uint8, or float32 where that is faster.

        Args:
            rows: ``(n, inputs)``, as above.
        """
        if self._packed is not None and onednn.enabled():
            return onednn.multiply(rows, self._packed, self._scales, torch.uint8)
        return self(rows).round_().clamp_(0.0, LARGEST_RECTIFIED)

    def _sums(self, rows: Tensor) -> Tensor:
        if self._bytes is None or len(rows) < _LEAST_ROWS:
            return torch.mm(rows.float(), self._floats)
        signed = rows if rows.dtype == torch.int8 else (rows - _SHIFT).to(torch.int8)
        sums = torch._int_mm(signed.contiguous(), self._bytes)[:, : self.outputs].float()
        return sums if rows.dtype == torch.int8 else sums.add_(self._shift)

    @functools.cached_property
    def _shift(self) -> Tensor:
        """What the shift of rectified rows takes away."""
        return _SHIFT * self._floats.sum(0)


def _bias_columns(bias: Tensor | None, outputs: int) -> tuple[Tensor, Tensor]:
    """A bias as weights ``(outputs, n) int8`` of further inputs, and those ``(n,) int8``.

    oneDNN adds a bias after the scale, where it would be rounded.
    """
    if bias is None:
        return torch.empty((outputs, 0), dtype=torch.int8), torch.empty(0, dtype=torch.int8)
    rest = bias.to(torch.int64)
    large, rest = rest // _BIAS, rest % _BIAS
    columns = [rest]
    while large.any():
        columns.append(large.clamp(-_BIAS, _BIAS))
        large = large - columns[-1]
    inputs = torch.tensor([1] + [_BIAS] * (len(columns) - 1), dtype=torch.int8)
    return torch.stack(columns, 1).to(torch.int8), inputs


class Filters:
    """Depthwise filters with zero padding, and requantisation of their sums.

    Args:
        weight: ``(C, 1, k, k)`` integers in [-127, 127] of any type.
        scale: ``(C,) float32``.
    """

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self._floats, self._scale = weight.float(), scale
        self._size = weight.shape[-1]
        self._packed: Tensor | None = None
        if weight.device.type == "cpu" and bytes_are_faster(weight.device):
            self._packed = onednn.pack_filters(weight.to(torch.int8), scale)

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)``, contiguous, of such x, int8 and used up; for ``requantise``."""
        if self._packed is not None and onednn.enabled():
            return onednn.filtered(x, self._packed, self._scale, self._size)
        x = x.permute(0, 3, 1, 2).float()
        with direct_convolutions():
            y = F.conv2d(x, self._floats, padding=self._size // 2, groups=len(self._floats))
        return y.permute(0, 2, 3, 1).contiguous()

    def requantise(self, y: Tensor, out: Tensor) -> None:
        """What came out, ``(n, C)``, times the scales, rounded and clamped to [-127, 127]."""
        if y.dtype == torch.int8:  # all but the clamp is done
            torch.clamp(y, min=-int(LARGEST), out=out)
        else:
            out.copy_((y * self._scale).round_().clamp_(-LARGEST, LARGEST))


@functools.cache
def bytes_are_faster(device: torch.device) -> bool:
    """Whether a device's products of 8-bit integers are right, and quicker than float32's.

    Takes some hundredths of a second, once for each device.
    """
    if device.type == "cpu" and not onednn.enabled():
        return False  # what would be tried is not what is used later
    races = _CPU_RACES if device.type == "cpu" else _GPU_RACES
    try:
        with _one_thread():
            for shape, share in races:
                if not _wins(_race(True, shape, device), _race(False, shape, device), share):
                    return False
            return _bytes_are_right(device)
    except (AttributeError, RuntimeError, TypeError):  # a torch, or a device, without such products
        return False


def _bytes_are_right(device: torch.device) -> bool:
    if device.type != "cpu":
        return all(
            torch.equal(torch._int_mm(a.to(device), b.to(device).t()).cpu().long(), _exact(a, b))
            for a, b in _factors(_GPU_SHAPES)
        )
    return all(_products_are_right(a, b) for a, b in _factors(_CPU_SHAPES)) and all(
        _filters_are_right(x) for x in _pictures()
    )


def _exact(rows: Tensor, weight: Tensor) -> Tensor:
    return (rows.double() @ weight.double().t()).long()


def _products_are_right(rows: Tensor, weight: Tensor) -> bool:
    packed, scale = onednn.pack(weight), _scales(len(weight), rows.shape[1])
    for x in (rows, rows.to(torch.uint8)):  # of negative ones, large ones
        expected = _exact(x, weight).float() * scale
        found = onednn.multiply(x, packed, scale, torch.float32)
        rectified = onednn.multiply(x, packed, scale, torch.uint8)
        whole = expected.round().clamp(0.0, LARGEST_RECTIFIED)
        if not torch.equal(found, expected) or not torch.equal(rectified.float(), whole):
            return False
    return True


def _filters_are_right(x: Tensor) -> bool:
    channels, size = x.shape[-1], 5
    weight = torch.full((channels, 1, size, size), 127, dtype=torch.int8)
    weight[1::3] *= -1
    weight[2::3] = torch.arange(size * size).view(size, size).to(torch.int8) * 9 - 107
    scale = _scales(channels, size * size)
    packed = onednn.pack_filters(weight, scale)
    windows = F.unfold(x.permute(0, 3, 1, 2).double(), size, padding=size // 2)
    windows = windows.unflatten(1, (channels, size * size))
    sums = torch.einsum("bckn,ck->bnc", windows, weight.flatten(1).double()).view(x.shape)
    expected = (sums.float() * scale).round().clamp(-128.0, LARGEST)
    return torch.equal(onednn.filtered(x.clone(), packed, scale, size).float(), expected)


def _scales(count: int, inputs: int) -> Tensor:
    """Some of which give halves, to be rounded."""
    scale = torch.linspace(0.3, 1.7, count) / (inputs * 64)
    scale[::2] = 2.0 ** -(inputs.bit_length() + 6)
    return scale


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


def _pictures() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1, 1, 48), (2, 7, 9, 64), (1, 12, 20, 192)):
        for value in (-127, 127):
            yield torch.full(shape, value, dtype=torch.int8)
        yield torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)


def _race(bytes_: bool, shape: tuple[int, int, int], device: torch.device) -> Callable[[], Tensor]:
    """A product, with what either way has to convert on a device."""
    count, inputs, outputs = shape
    rows = torch.ones(count, inputs, device=device)
    matrix = torch.ones(outputs, inputs, device=device)
    if not bytes_:
        return lambda: torch.mm(rows, matrix.t())
    matrix = matrix.to(torch.int8)
    if device.type != "cpu":
        return lambda: torch._int_mm(rows.to(torch.int8), matrix.t()).float()
    packed, scale, narrow = onednn.pack(matrix), torch.ones(outputs), rows.to(torch.int8)
    return lambda: onednn.multiply(narrow, packed, scale, torch.float32)


def _wins(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], share: float) -> bool:
    """Whether ours takes at most ``share`` of their time: the fastest rounds, run in turns.

    On a busy machine a few rounds of milliseconds may all be disturbed, and a worker that chose
    wrongly would be several times too slow for as long as it lives. So a loser may try again.
    """
    _seconds(ours), _seconds(theirs)  # to warm up
    least, least_of_theirs = math.inf, math.inf
    for rounds in _ROUNDS:
        for _ in range(rounds):
            least = min(least, _seconds(ours))
            least_of_theirs = min(least_of_theirs, _seconds(theirs))
        if least <= share * least_of_theirs:
            return True
    return False


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch has one thread in this block: several wait for each other, when busy for seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(run: Callable[[], Tensor]) -> float:
    begun = time.perf_counter()
    float(run()[0, 0])  # a GPU has come so far
    return time.perf_counter() - begun
