"""Products of 8-bit integers: the same numbers in both ways, and only where they are right."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from codec.numerics import int8_products
from codec.numerics.int8_products import Matrix
from codec.numerics.precision import without_mkldnn
from tests.codec import elsewhere

CPU = torch.device("cpu")


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bytes are right, also on a processor whose own are not: these here then."""
    if not int8_products._bytes_are_right(CPU):
        monkeypatch.setattr(torch, "_int_mm", exact)


def exact(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    sums = (a.double() @ b.double()).int()
    return sums if out is None else out.copy_(sums)


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
    matrix = Matrix(weight)
    expected = rows @ weight.T
    assert torch.equal(matrix(rows.float(), rectified).long(), expected)
    for chosen in (torch.tensor([20, 3, 4]), torch.arange(1, 20)):
        found = matrix.outputs(chosen)(rows.float(), rectified)
        assert torch.equal(found.long(), expected[..., chosen])
    with without_mkldnn():
        assert torch.equal(matrix(rows.float(), rectified).long(), expected)


def test_sums_over_some_inputs(way: bool) -> None:
    rows, weight = integers(-127, 127, 40, 30), integers(-127, 127, 21, 30)
    chosen = torch.tensor([29, 3, 4, *range(10, 27)])
    found = Matrix(weight).inputs(chosen)(rows[:, chosen].float())
    assert torch.equal(found.long(), rows[:, chosen] @ weight[:, chosen].T)


def test_the_largest_sums_are_exact(way: bool) -> None:
    weight = torch.full((17, 512), 127)
    for value, rectified in ((-127, False), (127, False), (255, True)):
        rows = torch.full((30, 512), float(value))
        assert (Matrix(weight)(rows, rectified) == value * 127 * 512).all()


@pytest.mark.parametrize("signed", [True, False])
def test_the_way_is_the_one_asked_for(
    way: bool, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    product = torch._int_mm

    def counted(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        calls.append((a.dtype, b.dtype))
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "_int_mm", counted)
    matrix = Matrix(torch.ones(16, 30))
    assert (matrix(torch.ones(16, 30), rectified=not signed) == 30).all()
    assert calls == ([(torch.int8, torch.int8)] if way else [])
    matrix(torch.ones(15, 30))
    matrix.outputs(torch.arange(15))(torch.ones(16, 30))
    with without_mkldnn():
        matrix(torch.ones(16, 30))
    assert len(calls) == way


def test_a_product_that_is_refused(way: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's library may, without an error: nothing is written."""
    monkeypatch.setattr(torch, "_int_mm", lambda a, b, out: out)
    for rectified in (False, True):
        assert (Matrix(torch.ones(16, 30))(torch.ones(16, 30), rectified) == 30).all()


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
            matrix = Matrix(weight.to(name))
            expected = rows @ weight.T
            found = matrix(rows.float().to(name), rectified)
            assert found.device.type == name
            assert torch.equal(found.cpu().long(), expected)
            for chosen in (torch.tensor([44, 3, 4]), torch.arange(1, 42)):
                found = matrix.outputs(chosen.to(name))(rows.float().to(name), rectified)
                assert torch.equal(found.cpu().long(), expected[:, chosen])
    assert len(calls) == (2 if way and inputs == 192 else 0)


@pytest.mark.skipif(not elsewhere.AVAILABLE, reason="this torch takes no other device")
def test_another_device_is_tried_by_itself(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_products, "_race", lambda bytes_, device: bytes_)
    monkeypatch.setattr(int8_products, "_seconds", lambda bytes_: float(not bytes_))
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


@pytest.fixture
def anew() -> Iterator[None]:
    """The machine is tried again."""
    int8_products.bytes_are_faster.cache_clear()
    yield
    int8_products.bytes_are_faster.cache_clear()


@pytest.mark.parametrize("wrong", [saturating, wrapping])
def test_wrong_products_are_not_used(
    wrong: Callable[[Tensor, Tensor], Tensor], anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_int_mm", wrong)
    monkeypatch.setattr(int8_products, "_race", lambda bytes_, device: bytes_)
    monkeypatch.setattr(int8_products, "_seconds", lambda bytes_: float(not bytes_))
    assert not int8_products.bytes_are_faster(CPU)


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_way_is_used(
    faster: bool, right: None, anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_products, "_race", lambda bytes_, device: bytes_)
    monkeypatch.setattr(int8_products, "_seconds", lambda bytes_: float(bytes_ != faster))
    assert int8_products.bytes_are_faster(CPU) == faster
    int8_products.bytes_are_faster.cache_clear()
    with without_mkldnn():  # torch has other products then, which say nothing of the library's
        assert not int8_products.bytes_are_faster(CPU)


def test_a_torch_without_them(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_int_mm")
    assert not int8_products.bytes_are_faster(CPU)
    assert Matrix(torch.ones(2, 3))(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]
