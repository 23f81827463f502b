"""Linear maps in one pass give what torch's own layers give, and only where that is allowed."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.cdc.networks import light_transform
from codec.numerics import pointwise


@pytest.fixture
def anew() -> Iterator[None]:
    """The library is tried again."""
    pointwise._fused_is_right.cache_clear()
    yield
    pointwise._fused_is_right.cache_clear()


@pytest.fixture(params=[True, False])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass and not, if this machine's torch has the functions at all."""
    if request.param:
        try:
            torch.ops.mkldnn._linear_pointwise  # noqa: B018
        except AttributeError:
            pytest.skip("torch without oneDNN")
    monkeypatch.setattr(pointwise, "_fused_is_right", lambda: request.param)


def numbers(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("bias", ["none", "one", "the same for each", "one for each"])
@pytest.mark.parametrize("size", [(2, 3, 5), (2, 1, 1), (2, 16, 24)])
def test_it_is_a_linear_map(
    size: tuple[int, ...], bias: str, rectified: bool, either_way: None
) -> None:
    x, weight = numbers(*size, 40), numbers(24, 40, seed=1)
    given = {
        "none": None,
        "one": numbers(24, seed=2),
        "the same for each": numbers(24, seed=2).expand(2, -1),
        "one for each": numbers(2, 24, seed=2),
    }[bias]
    expected = F.linear(x, weight)
    if given is not None:
        expected = expected + (given if given.dim() == 1 else given[:, None, None])
    if rectified:
        expected = expected.relu()
    with torch.inference_mode():
        out = pointwise.linear(x, weight, given, rectified=rectified)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_pointwise_convolution_is_one(channels_last: bool, either_way: None) -> None:
    layer = pointwise.Pointwise(12, 20)
    x = numbers(2, 12, 6, 5)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    expected = nn.Conv2d.forward(layer, x)
    assert layer(x).grad_fn is not None
    with torch.inference_mode():
        out = layer(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_only_inference_in_float32_on_a_cpu_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "_fused_is_right", lambda: True)
    x, weight = numbers(4, 8), numbers(8, 8)
    assert pointwise.fused(x, weight)
    assert not pointwise.fused(x.double(), weight.double())
    assert not pointwise.fused(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pointwise.fused(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not pointwise.fused(x, weight)
    learned = nn.Parameter(weight)
    assert not pointwise.fused(x, learned)
    with torch.no_grad():
        assert pointwise.fused(x, learned)


def test_gradients_are_those_of_the_ordinary_layers() -> None:
    x, weight, bias = (numbers(*size).requires_grad_() for size in ((2, 3, 4, 8), (6, 8), (2, 6)))
    pointwise.linear(x, weight, bias, rectified=True).square().sum().backward()
    found = [tensor.grad for tensor in (x, weight, bias)]
    for tensor in (x, weight, bias):
        tensor.grad = None
    F.relu(F.linear(x, weight) + bias[:, None, None]).square().sum().backward()
    for tensor, gradient in zip((x, weight, bias), found, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)


def test_a_library_that_is_wrong_or_missing_is_not_used(
    anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right(x: Tensor, weight: Tensor, bias: Tensor, rectified: bool) -> Tensor:
        return F.linear(x, weight, bias).relu()

    monkeypatch.setattr(pointwise.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(pointwise, "_fused", right)
    assert pointwise._fused_is_right()
    pointwise._fused_is_right.cache_clear()
    monkeypatch.setattr(pointwise, "_fused", lambda x, weight, bias, _: F.linear(x, weight, bias))
    assert not pointwise._fused_is_right()  # it has not rectified

    def missing(*_: object) -> Tensor:
        raise AttributeError("no such function")

    monkeypatch.setattr(pointwise, "_fused", missing)
    pointwise._fused_is_right.cache_clear()
    assert not pointwise._fused_is_right()
    monkeypatch.setattr(pointwise, "_fused", right)
    monkeypatch.setattr(pointwise.platform, "machine", lambda: "aarch64")  # never measured
    pointwise._fused_is_right.cache_clear()
    assert not pointwise._fused_is_right()


def test_a_sum_takes_memory_only_where_nothing_needs_it() -> None:
    x, y = numbers(3, 4), numbers(3, 4, seed=1)
    expected = x + y
    kept = x.clone()
    torch.testing.assert_close(pointwise.plus(x, y), expected)
    assert torch.equal(x, kept)  # gradients might have been wanted
    with torch.no_grad():
        mixed = pointwise.plus(x.bfloat16(), y)
        assert mixed.dtype == torch.float32
        assert pointwise.plus(x, y) is x
    torch.testing.assert_close(x, expected)


def test_the_quick_asinh_is_asinh() -> None:
    y = torch.cat([numbers(1000) * 10.0**power for power in range(-6, 6)]).requires_grad_()
    out = light_transform._asinh(y)
    torch.testing.assert_close(out, torch.asinh(y), atol=1e-7, rtol=1e-6)
    out.sum().backward()
    exact = 1 / (1 + y.detach().double().square()).sqrt()
    torch.testing.assert_close(y.grad.double(), exact, atol=1e-5, rtol=1e-4)
