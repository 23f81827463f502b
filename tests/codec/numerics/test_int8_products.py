"""8-bit integers multiplied and requantised: the same numbers in both ways, if they are right."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.numerics import int8_products, onednn
from codec.numerics.int8_products import Filters, Linear
from codec.numerics.precision import without_bytes, without_mkldnn
from tests.codec import elsewhere

CPU = torch.device("cpu")


def exact(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() @ b.double()).int()


def multiply(rows: Tensor, packed: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    out = exact(rows, packed.t()).float() * scale
    return out if kind == torch.float32 else out.round().clamp(0, 255).to(kind)


def filtered(x: Tensor, packed: Tensor, scale: Tensor, size: int) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2).double(), packed, padding=size // 2, groups=len(scale))
    return (y.permute(0, 2, 3, 1).float() * scale).round().clamp(-128, 127).to(torch.int8)


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bytes are right, also on a processor whose own are not: these here then."""
    if not int8_products._bytes_are_right(CPU):
        monkeypatch.setattr(onednn, "pack", lambda weight: weight)
        monkeypatch.setattr(onednn, "pack_filters", lambda weight, scale: weight.double())
        monkeypatch.setattr(onednn, "multiply", multiply)
        monkeypatch.setattr(onednn, "filtered", filtered)


@pytest.fixture(params=[True, False], ids=["bytes", "floats"])
def way(request: pytest.FixtureRequest, right: None, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether bytes are multiplied."""
    bytes_: bool = request.param
    monkeypatch.setattr(int8_products, "bytes_are_faster", lambda device: bytes_)
    return bytes_


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("shape", [(50, 39), (2, 3, 40, 192), (20, 1), (1, 64), (0, 48)])
@pytest.mark.parametrize("rectified", [False, True])
def test_sums_are_exact(way: bool, shape: tuple[int, ...], rectified: bool) -> None:
    low, high = (0, 255) if rectified else (-127, 127)
    rows, weight = integers(low, high, *shape), integers(-127, 127, 21, shape[-1])
    seen = rows.to(torch.uint8 if rectified else torch.int8)
    linear = Linear(weight)
    expected = rows @ weight.T
    assert torch.equal(linear(seen).long(), expected)
    # Rectified as floats, because another thread had switched bytes off.
    assert torch.equal(linear(seen.float()).long(), expected)
    for others in (without_mkldnn, without_bytes):
        with others():
            assert torch.equal(linear(seen).long(), expected)


def test_the_largest_sums_are_exact(way: bool) -> None:
    linear = Linear(torch.full((17, 512), 127))
    for value in (-127, 127):
        rows = torch.full((30, 512), value, dtype=torch.int8)
        assert (linear(rows) == value * 127 * 512).all()
    rows = torch.full((30, 512), 255, dtype=torch.uint8)
    assert (linear(rows) == 255 * 127 * 512).all()


@pytest.mark.parametrize("largest", [3, 1 << 14, 1 << 20])
def test_a_bias_is_added_before_the_scale(way: bool, largest: int) -> None:
    """And what is requantised is rounded once: ties go to even numbers."""
    rows, weight = integers(-127, 127, 300, 192), integers(-127, 127, 40, 192)
    bias, scale = integers(-largest, largest, 40), torch.linspace(0.001, 0.002, 40)
    scale[::2] = 2.0**-9
    linear = Linear(weight, scale, bias)
    sums = (rows @ weight.T + bias).float() * scale
    assert (sums.frac().abs() == 0.5).sum() > 10
    expected = sums.round().clamp(0, 255)
    for others in (without_mkldnn, without_bytes):
        seen = linear.room(len(rows))
        seen[:, : linear.inputs] = rows
        assert torch.equal(linear(seen), sums)
        assert torch.equal(linear.rectified(seen).float(), expected)
        with others():
            assert torch.equal(linear.rectified(seen).float(), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 48), (2, 9, 12, 96), (1, 3, 2, 5)])
def test_filters(way: bool, shape: tuple[int, ...]) -> None:
    x, weight = integers(-127, 127, *shape), integers(-127, 127, shape[-1], 1, 5, 5)
    scale = torch.linspace(0.0005, 0.003, shape[-1])
    sums = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), padding=2, groups=shape[-1])
    expected = (sums.permute(0, 2, 3, 1).float() * scale).round().clamp(-127, 127)
    assert shape[1] < 9 or (expected.abs() == 127).sum() > 2
    filters = Filters(weight, scale)

    def found() -> Tensor:
        y = filters(x.to(torch.int8)).reshape(-1, shape[-1])
        out = torch.empty(len(y), shape[-1] + 3, dtype=torch.int8)[:, : shape[-1]]
        filters.requantise(y, out)
        return out.float().view(shape)

    assert torch.equal(found(), expected)
    for others in (without_mkldnn, without_bytes):
        with others():
            assert torch.equal(found(), expected)


def test_the_way_is_the_one_asked_for(way: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []
    own = onednn.multiply
    monkeypatch.setattr(onednn, "multiply", lambda *a: calls.append(a[-1]) or own(*a))
    linear, rows = Linear(torch.ones(16, 30)), torch.ones(16, 30, dtype=torch.int8)
    assert (linear(rows) == 30).all()
    assert (linear.rectified(rows) == 30).all()
    assert calls == ([torch.float32, torch.uint8] if way else [])
    for others in (without_mkldnn, without_bytes):
        with others():
            linear(rows)
    assert len(calls) == (2 if way else 0)


def as_gpus(a: Tensor, b: Tensor) -> Tensor:
    """What CUDA's product refuses, refused."""
    (rows, inputs), outputs = a.shape, b.shape[1]
    if rows <= 16 or inputs % 8 or outputs % 8 or a.stride(1) != 1 or b.stride(0) != 1:
        raise RuntimeError(f"{tuple(a.shape)} by {tuple(b.shape)}")
    return exact(a, b)


@pytest.mark.skipif(not elsewhere.AVAILABLE, reason="this torch takes no other device")
@pytest.mark.parametrize("inputs", [192, 39, 8])
@pytest.mark.parametrize("rectified", [False, True])
def test_on_another_device(
    inputs: int, rectified: bool, way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limits of GPUs: whatever the shapes are, sums are exact."""
    calls = []
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: calls.append(1) or as_gpus(a, b))
    low, high = (0, 255) if rectified else (-127, 127)
    with elsewhere.elsewhere() as name:
        for count in (5, 31, 40):
            rows, weight = integers(low, high, count, inputs), integers(-127, 127, 45, inputs)
            seen = rows.float() if rectified else rows.to(torch.int8)
            for chosen in (torch.arange(45), torch.tensor([44, 3, 4]), torch.arange(1, 42)):
                found = Linear(weight.to(name)[chosen.to(name)])(seen.to(name))
                assert found.device.type == name
                assert torch.equal(found.cpu().long(), rows @ weight[chosen].T)
    assert len(calls) == (2 if way and inputs == 192 else 0)


@pytest.mark.skipif(not elsewhere.AVAILABLE, reason="this torch takes no other device")
def test_another_device_requantises_alike(way: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", as_gpus)
    rows, weight = integers(-127, 127, 40, 64), integers(-127, 127, 48, 64)
    bias, scale = integers(-5000, 5000, 48), torch.linspace(0.001, 0.002, 48)
    expected = ((rows @ weight.T + bias).float() * scale).round().clamp(0, 255)
    with elsewhere.elsewhere() as name:
        linear = Linear(*(x.to(name) for x in (weight, scale, bias)))
        seen = linear.room(40)
        seen[:, :64] = rows.to(name)
        assert torch.equal(linear.rectified(seen).cpu().float(), expected)


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine is tried again, and its products of bytes are quick."""
    monkeypatch.setattr(int8_products, "_race", lambda bytes_, shape, device: bytes_)
    monkeypatch.setattr(int8_products, "_seconds", lambda bytes_: float(not bytes_))
    int8_products.bytes_are_faster.cache_clear()
    yield
    int8_products.bytes_are_faster.cache_clear()


@pytest.mark.skipif(not elsewhere.AVAILABLE, reason="this torch takes no other device")
def test_another_device_is_tried_by_itself(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere.elsewhere() as name:
        device = torch.device(name)
        monkeypatch.setattr(torch, "_int_mm", as_gpus)
        assert int8_products.bytes_are_faster(device)
        int8_products.bytes_are_faster.cache_clear()
        monkeypatch.setattr(torch, "_int_mm", wrapping)
        assert not int8_products.bytes_are_faster(device)


def saturating(a: Tensor, b: Tensor) -> Tensor:
    """Products as processors before VNNI have them: pairs are added up in 16 bits.

    One factor is unsigned there: rows are shifted by 128, and the shift is taken off again.
    """
    a, b = a.long() + 128, b.long()
    if a.shape[1] % 2:
        a, b = torch.cat([a, a[:, :1] * 0], 1), torch.cat([b, b[:1] * 0])
    terms = a[:, :, None] * b
    pairs = (terms[:, ::2] + terms[:, 1::2]).clamp(-(1 << 15), (1 << 15) - 1)
    return (pairs.sum(1) - 128 * b.sum(0)).int()


def wrapping(a: Tensor, b: Tensor) -> Tensor:
    return (a.long() @ b.long() + (1 << 20)).remainder(1 << 21).sub(1 << 20).int()


@pytest.mark.parametrize("wrong", [saturating, wrapping])
def test_wrong_products_are_not_used(
    wrong: Callable[[Tensor, Tensor], Tensor],
    right: None,
    anew: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(rows: Tensor, packed: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
        out = wrong(rows, packed.t()).float() * scale
        return out if kind == torch.float32 else out.round().clamp(0, 255).to(kind)

    monkeypatch.setattr(onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(onednn, "multiply", product)
    assert not int8_products.bytes_are_faster(CPU)


@pytest.mark.parametrize("rounding", [torch.floor, lambda x: torch.floor(x + 0.5)])
def test_wrong_rounding_is_not_used(
    rounding: Callable[[Tensor], Tensor],
    right: None,
    anew: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(rows: Tensor, packed: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
        out = exact(rows, packed.t()).float() * scale
        return out if kind == torch.float32 else rounding(out).clamp(0, 255).to(kind)

    monkeypatch.setattr(onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(onednn, "multiply", product)
    assert not int8_products.bytes_are_faster(CPU)


@pytest.mark.parametrize("edge", ["repeated", "saturated"])
def test_wrong_filters_are_not_used(
    edge: str, right: None, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x: Tensor, packed: Tensor, scale: Tensor, size: int) -> Tensor:
        x = x.permute(0, 3, 1, 2).double()
        x = F.pad(x, [size // 2] * 4, mode="replicate" if edge == "repeated" else "constant")
        y = F.conv2d(x, packed.double(), groups=len(scale))
        y = y if edge == "repeated" else y.clamp(-(1 << 15), 1 << 15)
        return (y.permute(0, 2, 3, 1).float() * scale).round().clamp(-128, 127).to(torch.int8)

    monkeypatch.setattr(onednn, "pack_filters", lambda weight, scale: weight)
    monkeypatch.setattr(onednn, "filtered", wrong)
    assert not int8_products.bytes_are_faster(CPU)


def test_right_and_quick_is_used(right: None, anew: None) -> None:
    assert int8_products.bytes_are_faster(CPU)
    int8_products.bytes_are_faster.cache_clear()
    with without_mkldnn():  # what would be tried is not what is used later
        assert not int8_products.bytes_are_faster(CPU)


@pytest.mark.parametrize(("slow", "runs"), [(1.1, 2 * (1 + 3) + 2 * 40), (100.0, 2 * 40)])
def test_slow_products_are_not_used(
    slow: float, runs: int, right: None, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is hopeless costs only the smallest of the races."""
    asked: list[bool] = []
    monkeypatch.setattr(
        int8_products, "_seconds", lambda bytes_: asked.append(bytes_) or (slow if bytes_ else 1.0)
    )
    assert not int8_products.bytes_are_faster(CPU)
    assert len(asked) == runs


def test_a_torch_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qlinear_prepack'")

    int8_products.bytes_are_faster.cache_clear()
    monkeypatch.setattr(onednn, "pack", missing)
    try:
        assert not int8_products.bytes_are_faster(CPU)
        rows = torch.ones(1, 3, dtype=torch.int8)
        assert Linear(torch.ones(2, 3))(rows).tolist() == [[3.0, 3.0]]
    finally:
        int8_products.bytes_are_faster.cache_clear()


@pytest.mark.parametrize("disturbed", [0, 5, 39])
def test_a_race_on_a_busy_machine_is_run_again(
    disturbed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is four times as quick, but other processes are in the way of its first rounds."""
    seconds = {"ours": [2.0] + [2.0] * disturbed + [0.1] * 39, "theirs": [0.4] * 40}
    monkeypatch.setattr(int8_products, "_seconds", lambda run: seconds[run].pop(0))
    won = int8_products._wins("ours", "theirs", 1.0)  # type: ignore[arg-type]
    assert won == (disturbed < 39)
    assert len(seconds["theirs"]) == {0: 36, 5: 27, 39: 0}[disturbed]


def test_threads_are_as_before(right: None, anew: None) -> None:
    threads = torch.get_num_threads()
    assert int8_products.bytes_are_faster(CPU)
    assert torch.get_num_threads() == threads
