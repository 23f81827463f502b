"""Integer inference: the same numbers whatever the machine does, and close to the float network."""

import numpy as np
import pytest
import torch
from torch import nn

from codec.cdc.latents.integer_hyper_decoder import (
    FRACTION,
    IntegerHyperDecoder,
    ScaleIndex,
    export,
    scale_thresholds,
)
from codec.errors import InvalidModelError

SCALES = np.geomspace(0.1, 64, 96)
CPU = torch.device("cpu")
HIDDEN, LATENTS = 24, 40


def network(hidden=HIDDEN, latents=LATENTS, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.ConvTranspose2d(hidden, hidden, 5, stride=2, padding=2, output_padding=1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(hidden, hidden, 5, stride=2, padding=2, output_padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(hidden, 2 * latents, 3, padding=1),
    )


def hyper_latent(*shape, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.rint(random.normal(0, 5 * FRACTION, shape)))


@pytest.fixture(scope="module")
def decoder():
    return IntegerHyperDecoder(export(network(), slice(LATENTS, None)), CPU)


def rounded_reference(module, units):
    """The definition, in Python's integers: one layer, one picture, no cleverness."""
    weight = module.weight.detach().double()
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    scale = weight.flatten(1).abs().amax(1) / 32767
    w = (weight / scale[:, None, None, None]).round().long()
    bias = (module.bias.detach().double() * FRACTION / scale).round().long().tolist()
    stride, padding, kernel = module.stride[0], module.padding[0], weight.shape[-1]
    transposed = isinstance(module, nn.ConvTranspose2d)
    _, height, width = units.shape
    up = stride if transposed else 1
    out = torch.zeros(len(weight), height * up, width * up, dtype=torch.float64)
    for o, y, x in np.ndindex(*out.shape):
        total = bias[o]
        for c, r, q in np.ndindex(*units.shape):
            j = y + padding - r * stride if transposed else r - y + padding
            k = x + padding - q * stride if transposed else q - x + padding
            if 0 <= j < kernel and 0 <= k < kernel:
                total += int(w[o, c, j, k]) * int(units[c, r, q])
        out[o, y, x] = round(total * float(scale[o]))
    return out


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 2, 3, padding=1),
        nn.Conv2d(3, 2, 1),
        nn.ConvTranspose2d(3, 2, 5, stride=2, padding=2, output_padding=1),
        nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1),
        nn.ConvTranspose2d(3, 2, 5, stride=3, padding=1),
    ],
)
def test_a_layer_is_what_its_definition_says(module):
    units = hyper_latent(2, 3, 3, 4)
    out = IntegerHyperDecoder(export(nn.Sequential(module), slice(None)), CPU)(units)
    assert (out == torch.stack([rounded_reference(module, z) for z in units])).all()


def test_close_to_the_float_network(decoder):
    units = hyper_latent(2, HIDDEN, 4, 6)
    wanted = network().double()(units / FRACTION)[:, LATENTS:]
    out = decoder(units)
    assert out.shape == (2, LATENTS, 16, 24)
    assert (out == out.round()).all()
    assert (out / FRACTION - wanted).abs().max() < 3 / FRACTION


def test_the_float_network_chooses_the_same_scales_within_one_step(decoder):
    units = hyper_latent(1, HIDDEN, 8, 12)
    thresholds = torch.from_numpy(scale_thresholds(SCALES))
    index = decoder.scale_index(units, ScaleIndex(thresholds))
    scale = network()((units / FRACTION).float())[:, LATENTS:].clamp_min(0.1)
    nearest = torch.searchsorted(thresholds / FRACTION, scale.double().contiguous())
    assert (index - nearest).abs().max() <= 1
    assert (index != nearest).double().mean() < 0.02
    assert index.max() > 20  # not all at the floor


def test_the_same_whatever_is_computed_together(decoder):
    units = hyper_latent(7, HIDDEN, 5, 3)
    alone = torch.cat([decoder(z[None]) for z in units])
    assert (decoder(units) == alone).all()
    assert (decoder(units[2:4]) == alone[2:4]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (13, 11), (4, 30)])
@pytest.mark.parametrize("most", [1, 6, 40])
def test_tiles_give_what_the_whole_gives(decoder, shape, most):
    units = hyper_latent(3, HIDDEN, *shape)
    tensors = export(network(), slice(LATENTS, None))
    tiled = IntegerHyperDecoder(tensors, CPU, max_positions=most)
    assert (tiled(units) == decoder(units)).all()
    thresholds = torch.from_numpy(scale_thresholds(SCALES))
    offsets = torch.arange(3 * LATENTS, dtype=torch.float64).view(3, LATENTS) * 100
    values = decoder(units) + offsets[:, :, None, None]
    whole = np.searchsorted(thresholds.numpy(), values.numpy(), side="right")
    index = tiled.scale_index(units, ScaleIndex(thresholds), offsets)
    assert (index.numpy() == whole).all()


def test_the_same_on_any_number_of_threads_and_without_mkldnn(decoder):
    units = hyper_latent(2, HIDDEN, 8, 12)
    before = torch.get_num_threads()
    wanted = decoder(units)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert (decoder(units) == wanted).all()
            with torch.backends.mkldnn.flags(enabled=False):
                assert (decoder(units) == wanted).all()
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu(decoder):
    tensors = export(network(), slice(LATENTS, None))
    units = hyper_latent(2, HIDDEN, 8, 12)
    elsewhere = IntegerHyperDecoder(tensors, torch.device("cuda"))(units)
    assert (elsewhere.cpu() == decoder(units)).all()


def test_the_order_of_channels_does_not_matter():
    """Another order of every sum, as another library would have it."""
    net, units = network(), hyper_latent(1, HIDDEN, 6, 6)
    order = torch.randperm(HIDDEN)
    other = network()
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[2].weight.copy_(net[2].weight[:, order])
        other[2].bias.copy_(net[2].bias[order])
        other[4].weight.copy_(net[4].weight[:, order])
    one, two = (IntegerHyperDecoder(export(n, slice(None)), CPU) for n in (net, other))
    assert (one(units) == two(units[:, order])).all()


def test_forged_hyper_latents_stay_exact(decoder):
    """Whatever a stream says, sums stay below 2**53 and nothing is NaN."""
    units = torch.full((1, HIDDEN, 3, 3), float(1 << 33), dtype=torch.float64)
    out = decoder(units)
    assert (out == out.round()).all()
    assert (out == decoder(units / 512)).all()  # beyond +-2048.0 is all the same


def test_thresholds_lie_between_their_scales():
    for logarithmic in (False, True):
        thresholds = torch.from_numpy(scale_thresholds(SCALES, logarithmic=logarithmic))
        units = FRACTION * (np.log(SCALES) if logarithmic else SCALES)
        index = ScaleIndex(thresholds)
        assert index(torch.from_numpy(np.rint(units))).tolist() == list(range(96))
        at = thresholds.double()
        assert index(at).tolist() == list(range(1, 96))
        assert index(at - 1).tolist() == list(range(95))
    with pytest.raises(ValueError, match="close together"):
        scale_thresholds(np.array([1.0, 1.00001, 1.00002]))


@pytest.mark.parametrize("thresholds", [[], [-3], [-3, 5, 6], [-3, 5, 1 << 40]])
def test_the_index_counts_the_thresholds_that_are_reached(thresholds):
    """By a table or, for the last of these, by a search."""
    values = torch.tensor(
        [-(1 << 50), -4, -3, -2, 4, 5, 6, 7, 1 << 40, 1 << 50], dtype=torch.float64
    )
    index = ScaleIndex(torch.tensor(thresholds, dtype=torch.int64))(values.view(2, 5))
    assert index.dtype == torch.int16
    expected = [sum(t <= v for t in thresholds) for v in values.tolist()]
    assert index.flatten().tolist() == expected


def test_an_untrained_last_layer_can_be_exported():
    net = network()
    nn.init.zeros_(net[4].weight)
    nn.init.constant_(net[4].bias, 1.5)
    out = IntegerHyperDecoder(export(net, slice(None)), CPU)(hyper_latent(1, HIDDEN, 2, 2))
    assert (out == 1.5 * FRACTION).all()


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.ConvTranspose2d(4, 4, 5, stride=2, padding=2),
        nn.LeakyReLU(2.0),
    ],
)
def test_what_has_no_exact_arithmetic_is_refused(module):
    with pytest.raises(InvalidModelError):
        export(nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Conv2d(4, 4, 1)), slice(None))


def test_networks_too_wide_or_not_finite_are_refused():
    wide = nn.Conv2d(4000, 1, 5, padding=2)
    nn.init.ones_(wide.weight)
    with pytest.raises(InvalidModelError, match="sums"):
        export(nn.Sequential(wide), slice(None))
    net = network()
    with torch.no_grad():
        net[2].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InvalidModelError, match="finite"):
        export(net, slice(None))
    with pytest.raises(InvalidModelError, match="no layers"):
        export(nn.Sequential(), slice(None))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("0.weight", lambda t: t.double()),
        ("0.weight", lambda t: t[:, :, :2]),
        ("0.weight", lambda t: t[:, :0]),
        ("2.weight", lambda t: t[:, 1:]),
        ("0.bias", lambda t: t + (1 << 52)),
        ("0.bias", lambda t: torch.full_like(t, -(1 << 63))),
        ("0.bias", lambda t: t[1:]),
        ("0.scale", lambda t: t * float("nan")),
        ("0.scale", lambda t: -t),
        ("0.scale", lambda t: t.float()),
        ("0.geometry", lambda t: t[:2]),
        ("0.geometry", lambda t: torch.zeros_like(t)),
        ("4.geometry", lambda t: t * 2),
        ("1.slope", lambda t: t * float("nan")),
        ("1.slope", lambda t: torch.cat([t, t])),
    ],
)
def test_foreign_tensors_are_refused(name, spoil):
    tensors = export(network(), slice(None))
    with pytest.raises(InvalidModelError):
        IntegerHyperDecoder({**tensors, name: spoil(tensors[name])}, CPU)
    with pytest.raises(InvalidModelError, match="lacks"):
        IntegerHyperDecoder({n: t for n, t in tensors.items() if n != name}, CPU)


def test_a_hyper_latent_of_other_channels_is_refused(decoder):
    with pytest.raises(ValueError, match="channels"):
        decoder(hyper_latent(1, HIDDEN + 1, 2, 2))
