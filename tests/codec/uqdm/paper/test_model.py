"""The trained likelihood is the cost of coding, and training lowers it."""

import numpy as np
import pytest
import torch

from codec.uqdm.paper import diffusion
from codec.uqdm.paper.model import (
    LOG_MASS,
    UniversalConfig,
    UniversalModel,
)
from tests.codec.uqdm.paper.whole_chain import loaded, step_bits

NETWORK = {"channels": 8, "groups": 4, "blocks": 0}


def model(**choices):
    torch.manual_seed(0)
    return UniversalModel(UniversalConfig.from_dict({"network": NETWORK} | choices))


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: on a busy machine, waiting for a second thread costs ten times more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(photo):
    # Half the width of a window: the likelihood does not mind, and attention is 16 times cheaper.
    crops = [photo[y : y + 32, x : x + 32] for y, x in ((0, 0), (90, 200), (300, 200), (400, 64))]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("prior", LOG_MASS)
@pytest.mark.parametrize("scale", [0.04, 0.5, 6.0])
def test_masses_sum_to_one_and_stay_finite_in_the_tails(prior, scale):
    k = torch.arange(-200, 201, dtype=torch.float64)
    for mean in (0.0, 0.3, 0.5):
        log_mass = LOG_MASS[prior](k - mean, torch.full_like(k, scale))
        assert abs(float(log_mass.exp().sum()) - 1) < 1e-9
    far = torch.tensor([300.0, -300.0], requires_grad=True)
    log_mass = LOG_MASS[prior](far, torch.full_like(far, scale))
    assert torch.isfinite(log_mass).all()
    assert torch.isclose(log_mass[0], log_mass[1], rtol=1e-4)
    log_mass.sum().backward()
    assert torch.isfinite(far.grad).all()
    assert far.grad[0] < 0 < far.grad[1]  # towards the mean is more likely


def test_constants_obey_the_diffusion():
    constants = model().constants(torch.float64)
    gamma = np.linspace(6.0, -12.3, 5)
    assert np.allclose(constants.alpha_t.detach() ** 2 + constants.sigma_t.detach() ** 2, 1)
    snr = constants.alpha_s.detach() ** 2 / constants.sigma_s.detach() ** 2
    assert np.allclose(snr.log(), -gamma[1:], atol=1e-5)
    # Mean and variance of z_s given x must be those of q(z_s | x): VDM eq. 1.
    c = constants
    assert np.allclose((c.keep * c.alpha_t + c.gain).detach(), c.alpha_s.detach())
    variance = (c.keep * c.sigma_t) ** 2 + c.width**2 / 12
    assert np.allclose(variance.detach(), c.sigma_s.detach() ** 2)
    assert np.allclose(diffusion.stack(c).detach()[:, 0], (gamma[:-1] + 12.3) / 18.3)


def test_one_random_step_estimates_the_whole_chain(images):
    network = model().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        whole = step_bits(network, images, generator)
        parts = [network(images.repeat(4, 1, 1, 1), generator)[1] for _ in range(4)]
    estimate = np.mean([p["steps"] for p in parts])
    error = np.std([p["steps"] for p in parts]) / 2
    assert abs(estimate - sum(whole)) < max(4 * error, 0.1 * sum(whole))


def test_pixel_cost_equals_the_softmax_over_all_values(images):
    network = model(gamma_min=-7.0)  # noise of several pixel values: a wide window
    constants = network.constants()
    x = diffusion.from_pixels(images.float())
    z = constants.alpha_s[-1] * x + constants.sigma_s[-1] * torch.randn_like(x)
    y = diffusion.to_pixels(z / constants.alpha_s[-1])
    deviation = 128 * constants.sigma_s[-1] / constants.alpha_s[-1]
    logits = -0.5 * ((y[..., None] - torch.arange(256)) / deviation) ** 2
    exact = torch.nn.functional.cross_entropy(logits.flatten(0, 3), images.flatten().long())
    bits = network._pixel_bits(constants, z, images)
    assert float(bits.detach()) == pytest.approx(3 * float(exact.detach()) / np.log(2), rel=1e-4)


def test_training_lowers_the_loss(images):
    network = model()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for step in range(18):
        generator = torch.Generator().manual_seed(step % 3)  # three fixed draws, to compare
        loss, _ = network(images, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(late < 0.98 * early for early, late in zip(losses[:3], losses[-3:], strict=True))


def test_only_a_learned_schedule_is_learned(images):
    for choices, moved in (
        ({}, [True, False]),
        ({"fix_gamma_max": False}, [True, True]),
        ({"schedule": "fixed_linear"}, [False, False]),
    ):
        network = model(**choices)
        network(images[:1], torch.Generator().manual_seed(0))[0].backward()
        ends = (network.gamma_0, network.gamma_1)
        assert [p.grad is not None and bool(p.grad != 0) for p in ends] == moved


def test_export_and_back(images):
    network = model(prior="gaussian").eval()
    with torch.no_grad():
        network.gamma_0 += 0.5
        network.network.conv_out.bias += 0.1
    copy = loaded(network.config, network.export())
    with torch.no_grad():
        a, b = (m(images[:1], torch.Generator().manual_seed(1))[1] for m in (network, copy))
    assert a == b
    assert UniversalConfig.from_dict(network.config.to_dict()) == network.config


@pytest.mark.parametrize(
    "choices",
    [
        {"prior": "cauchy"},
        {"steps": 0},
        {"gamma_min": 7.0},
        {"schedule": "cosine"},
        {"quantizer": "nested"},
        {"colour": "blue"},
        {"network": {"channels": 9}},
        {"network": {"width": 9}},
    ],
)
def test_impossible_configurations_are_refused(choices):
    with pytest.raises((ValueError, TypeError)):
        UniversalConfig.from_dict(choices)
