"""The paper's networks: their sizes, what they heed, what trains."""

import json

import pytest
import torch

from codec.cdc.latents.priors import gaussian_likelihood
from codec.cdc.networks.paper_transform import PaperCompressor, PaperConfig, rounded
from codec.cdc.networks.unet import ChannelNorm, LinearAttention, UNet, UNetConfig
from codec.errors import InvalidModelError

SMALL = PaperConfig(
    dim=4, dim_mults=(1, 2), hyper_dims_mults=(2, 3), context_dim_mults=(1, 2), context_channels=5
)
SMALL_UNET = UNetConfig(dim=4, dim_mults=(1, 2, 3), context_channels=(5, 4))


def randomized(module, seed):
    """The module with random parameters: in new ones every normalisation is the identity's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def test_sizes_are_the_papers():
    with torch.device("meta"):
        compressor, unet = PaperCompressor(PaperConfig()), UNet(UNetConfig())
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(40.1e6, rel=2e-3)
        assert sum(p.numel() for p in compressor.parameters()) == pytest.approx(13.8e6, rel=2e-3)
        y = compressor.analysis(torch.empty(2, 3, 128, 192))
        assert y.shape == (2, 256, 8, 12)
        z = compressor.hyper_analysis(y)
        assert z.shape == (2, 256, 2, 3)
        mean, scale = compressor.hyper_synthesis(z)
        assert mean.shape == scale.shape == y.shape
        contexts = compressor.context(y)
        shapes = [(2, 64, 128, 192), (2, 64, 64, 96), (2, 128, 32, 48), (2, 192, 16, 24)]
        assert [c.shape for c in contexts] == shapes
        assert unet(torch.empty(2, 3, 128, 192), torch.empty(2), contexts).shape[1:] == (
            3,
            128,
            192,
        )
    assert compressor.config.multiple == 64
    assert compressor.config.latent_stride == 16
    assert compressor.config.unet_contexts == UNetConfig().context_channels
    assert UNetConfig().multiple == 32


def test_the_hyper_decoder_can_be_walked_over():
    allowed = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.LeakyReLU)
    layers = list(PaperCompressor(PaperConfig(dim=2)).hyper_decoder)
    assert [type(m) for m in layers] == [allowed[i] for i in (1, 2, 1, 2, 0)]
    assert {m.negative_slope for m in layers if isinstance(m, allowed[2])} == {0.2}


def test_only_the_last_convolution_gives_the_finest_context_its_width():
    block, convolution = PaperCompressor(PaperConfig(dim=8, context_channels=3)).decoder[-1]
    assert block.conv_out.out_channels == 8
    assert convolution.out_channels == 3


def test_scales_are_at_least_a_tenth_and_can_grow_again():
    compressor = PaperCompressor(SMALL)
    with torch.no_grad():
        compressor.hyper_decoder[-1].bias.fill_(-1.0)
    scale = compressor.hyper_synthesis(torch.zeros(1, 12, 2, 2))[1]
    assert (scale == torch.tensor(0.1)).all()
    (-scale).sum().backward()
    assert compressor.hyper_decoder[-1].bias.grad[8:].abs().min() > 0


def test_the_normalisation_is_over_channels():
    norm = randomized(ChannelNorm(6), 0)
    x = 3 * torch.randn(2, 6, 4, 5) + 1
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (variance + 1e-5).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    for form in (torch.contiguous_format, torch.channels_last):
        assert torch.allclose(norm(x.contiguous(memory_format=form)), expected, atol=1e-5)


def test_attention_is_what_its_formula_says():
    attention = randomized(LinearAttention(6), 1)
    x = torch.randn(2, 6, 3, 5)
    query, key, value = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)
    summary = torch.einsum("bdn,ben->bde", key.softmax(-1), value)
    h = torch.einsum("bde,bdn->ben", summary, query / 6**0.5).view(x.shape)
    assert torch.allclose(attention(x), x + attention.out(h), atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SMALL_UNET,
        UNetConfig(8, (2, 3, 4), (4, 5, 6), channels=48, outer_kernel=3),
        UNetConfig(8, (2, 3), (4,), channels=12, finest_skip=True),
        UNetConfig(8, (2,), ()),
    ],
)
def test_the_unet_heeds_all_it_is_given(config):
    unet = randomized(UNet(config), 2)
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    x, time = torch.randn(2, config.channels, 8, 16), torch.tensor([0.2, 0.7])
    contexts = [torch.randn(2, n, 8 >> i, 16 >> i) for i, n in enumerate(config.context_channels)]
    with torch.no_grad():
        output = unet(x, time, contexts)
        assert output.shape == x.shape
        for changed in ([x + 1, time, contexts], [x, time + 0.1, contexts]):
            assert (unet(*changed) - output).abs().min() > 0
        for i, context in enumerate(contexts):
            others = [*contexts[:i], context + torch.randn_like(context), *contexts[i + 1 :]]
            assert (unet(x, time, others) - output).abs().amax(dim=(1, 2, 3)).min() > 1e-4
        second = unet(x[1:], time[1:], [c[1:] for c in contexts])
        assert torch.allclose(second, output[1:], atol=1e-5)
    unet(x, time, contexts).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in unet.parameters())


def test_shapes_that_do_not_fit_are_refused():
    unet = UNet(SMALL_UNET)
    contexts = [torch.zeros(1, 5, 8, 8), torch.zeros(1, 4, 4, 4)]
    x, time = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    unet(x, time, contexts)
    for bad in (contexts[::-1], contexts[:1], [*contexts, contexts[0]]):
        with pytest.raises(ValueError, match="contexts"):
            unet(x, time, bad)
    for bad in (torch.zeros(1, 3, 6, 8), torch.zeros(1, 3, 8, 10), torch.zeros(1, 4, 8, 8)):
        with pytest.raises(ValueError, match="multiples of 4"):
            unet(bad, time, contexts)


def test_all_of_the_compressor_trains():
    config = PaperConfig(4, (1, 2), (2, 3), (1, 2), 5, fast_head=True)
    compressor = randomized(PaperCompressor(config), 0)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    y = compressor.analysis(x)
    z = compressor.hyper_analysis(y)
    z_hat = rounded(z, compressor.prior.medians[:, None, None])
    mean, scale = compressor.hyper_synthesis(z_hat)
    y_hat = rounded(y, mean)
    noisy = y + torch.rand_like(y) - 0.5
    picture, _ = compressor.synthesis(y_hat)
    assert picture.shape == x.shape
    rate = -gaussian_likelihood(noisy, mean, scale).log().sum()
    rate = rate - compressor.prior.likelihood(z_hat).log().sum() + compressor.prior.median_loss()
    (rate + (picture - x).square().sum()).backward()
    untrained = [n for n, p in compressor.named_parameters() if not p.grad.abs().max() > 0]
    assert untrained == []


def test_rounding_is_exact_and_passes_gradients():
    values = torch.tensor([0.4, 1.6, -7.3], requires_grad=True)
    offset = torch.tensor([0.0, 0.25, 0.5])
    assert rounded(values, offset).tolist() == [0, 1.25, -7.5]
    rounded(values, offset).sum().backward()
    assert values.grad.tolist() == [1, 1, 1]


def test_configurations_return_and_are_checked():
    assert PaperConfig.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL
    for values, message in (
        ({"widht": 3}, "widht"),
        ({"kind": "light"}, "light"),
        ({"dim": 0}, "positive"),
        ({"dim": "wide"}, "positive"),
        ({"dim_mults": 3}, "compressor"),
        ({"dim_mults": []}, "positive"),
        ({"dim_mults": [1, 2, 3]}, "stages"),
        ({"context_dim_mults": [1, 2, 3, 5]}, "agree"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            PaperConfig.from_dict(values)
    for values, message in (
        ({"depth": 3}, "depth"),
        ({"dim": -1}, "positive"),
        ({"context_channels": 3}, "unet"),
        ({"dim_mults": [1], "context_channels": [1, 2]}, "fewer"),
        ({"outer_kernel": 4}, "odd"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            UNetConfig.from_dict(values)
