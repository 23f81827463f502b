"""Schedules, sampling and loss against the formulas, with networks whose answer is known."""

import numpy as np
import pytest
import torch

from codec.cdc.networks.diffusion import Diffusion
from codec.errors import InvalidModelError

PAPER = {"x": Diffusion("x", 8193, "cosine"), "eps": Diffusion("eps", 20_000, "linear")}


@pytest.fixture
def x_0():
    torch.manual_seed(0)
    return torch.rand(2, 3, 8, 8) * 2 - 1


def test_schedules():
    for diffusion in PAPER.values():
        alpha_bar = diffusion.alpha_bar
        assert alpha_bar.dtype == np.float64
        assert len(alpha_bar) == diffusion.num_timesteps
        assert (np.diff(alpha_bar) < 0).all()
        assert 0 < alpha_bar[-1] < 1e-4 < 1 - 1e-4 < alpha_bar[0] < 1
    # Half-way: cos^2 of half of pi / 2, nearly; and the product of 1 - beta, to the first order.
    assert PAPER["x"].alpha_bar[4096] == pytest.approx(0.4938, abs=1e-3)
    mean_beta = (1e-4 + (1e-4 + 2e-2) / 2) / 2
    assert PAPER["eps"].alpha_bar[9999] == pytest.approx(np.exp(-500 * mean_beta), rel=0.01)


def test_indices_go_from_the_last_to_the_first():
    assert PAPER["x"].indices(1).tolist() == [8192]
    assert PAPER["x"].indices(4).tolist() == [8192, 5461, 2730, 0]
    assert PAPER["eps"].indices(4).tolist() == [19999, 13332, 6666, 0]
    assert PAPER["x"].indices(8193).tolist() == list(range(8192, -1, -1))


def test_times_are_what_the_authors_tell_their_networks():
    assert PAPER["x"].times(3) == pytest.approx([8192 / 8193, 4096 / 8193, 0])
    assert PAPER["eps"].times(4) == [0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("steps", [0, -1, 8194])
def test_impossible_numbers_of_steps_are_refused(steps, x_0):
    with pytest.raises(ValueError, match="8193"):
        PAPER["x"].sample(lambda x, time: x, x_0, steps)


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_a_network_that_knows_the_picture_gives_it(x_0, steps):
    times = []

    def network(x, time):
        times.append(time.tolist())
        return x_0

    assert (PAPER["x"].sample(network, torch.randn_like(x_0), steps) == x_0).all()
    assert times == [[t, t] for t in PAPER["x"].times(steps)]


@pytest.mark.parametrize("name", ["x", "eps"])
@pytest.mark.parametrize("steps", [2, 5, 40])
def test_sampling_keeps_to_the_line_between_picture_and_noise(x_0, name, steps):
    """With a perfect network every x is the forward process at that index, of the same noise."""
    diffusion = PAPER[name]
    noise = torch.randn_like(x_0)
    indices = diffusion.indices(steps)
    start = diffusion.q_sample(x_0, noise, indices[:1].expand(2))
    states = []

    def perfect(x, time):
        states.append(x)
        return {"x": x_0, "eps": noise}[name]

    sampled = diffusion.sample(perfect, start, steps)
    for state, index in zip(states, indices, strict=True):
        expected = diffusion.q_sample(x_0, noise, index.expand(2))
        assert (state - expected).abs().max() < 1e-3
    assert (sampled - x_0).abs().max() < 1e-3


def test_the_forward_process_has_unit_variance_for_unit_signals():
    x_0, noise = torch.randn(2, 200_000).view(2, 2, 1, -1, 10)
    for diffusion in PAPER.values():
        index = torch.tensor([5, diffusion.num_timesteps // 3])
        x_n = diffusion.q_sample(x_0, noise, index)
        assert x_n.var(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=0.02)
        assert (x_n - x_0)[0].abs().max() < (x_n - x_0)[1].abs().max()


def test_only_a_predicted_picture_is_clipped(x_0):
    sampled = PAPER["x"].sample(lambda x, time: 3 * x_0, x_0, 3)
    assert (sampled == (3 * x_0).clamp(-1, 1)).all()
    assert PAPER["eps"].sample(lambda x, time: 0 * x, x_0, 3).abs().max() > 1


def test_a_start_gives_one_reconstruction(x_0):
    network = lambda x, time: 0.5 * x.sin() + time.view(-1, 1, 1, 1)  # noqa: E731
    first, second = (PAPER["x"].sample(network, x_0, 6) for _ in range(2))
    assert (first == second).all()
    assert (first != PAPER["x"].sample(network, x_0 + 0.1, 6)).any()


def test_loss_weights():
    index = torch.tensor([0, 4096, 8192])
    alpha_bar = PAPER["x"].alpha_bar[index.numpy()]
    expected = np.minimum(alpha_bar / (1 - alpha_bar), 5)
    assert expected[0] == 5
    assert PAPER["x"].loss_weight(index).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert PAPER["eps"].loss_weight(index).tolist() == [1, 1, 1]


def test_the_loss_is_the_weighted_error(x_0):
    noise, index = torch.randn_like(x_0), torch.tensor([10, 5000])
    times = []

    def off(target):
        def network(x, time):
            times.append(time)
            return target + 0.5

        return network

    loss, predicted = PAPER["x"].training_loss(off(x_0), x_0, noise, index)
    assert (loss / PAPER["x"].loss_weight(index)).tolist() == pytest.approx([0.25, 0.25])
    assert (predicted == x_0 + 0.5).all()
    loss, predicted = PAPER["eps"].training_loss(off(noise), x_0, noise, index)
    assert loss.tolist() == pytest.approx([0.5, 0.5])
    assert predicted.abs().max() <= 1
    exact = PAPER["eps"].training_loss(lambda x, time: noise, x_0, noise, index)[1]
    assert (exact - x_0).abs().max() < 1e-3
    for time, diffusion in zip(times, PAPER.values(), strict=True):
        assert time.tolist() == pytest.approx([i / diffusion.num_timesteps for i in (10, 5000)])


def test_a_least_weight_lifts_the_noisiest_alone(x_0):
    noise, index = torch.randn_like(x_0), torch.tensor([10, 8192])
    network = lambda x, time: x_0 + 0.5  # noqa: E731
    plain, lifted = (
        PAPER["x"].training_loss(network, x_0, noise, index, least)[0] for least in (0.0, 0.3)
    )
    assert lifted[0] == plain[0]
    assert plain[1] < 1e-3
    assert float(lifted[1]) == pytest.approx(0.3 * 0.25)


@pytest.mark.parametrize("index", [0, 2000, 6000, 8192])
def test_shrinkage_is_the_best_linear_estimate(index):
    generator = torch.Generator().manual_seed(0)
    guess = torch.rand(20_000, 1, 1, 1, generator=generator)
    picture = guess + 0.05 * torch.randn(guess.shape, generator=generator)
    noise = torch.randn(guess.shape, generator=generator)
    at = torch.full((len(guess),), index)
    noisy = PAPER["x"].q_sample(picture, noise, at)
    of_x, of_guess = PAPER["x"].shrinkage(torch.tensor([index / 8193]), 0.05)
    design = torch.cat([noisy.flatten(1), guess.flatten(1)], 1).double()
    best = torch.linalg.lstsq(design, picture.flatten(1).double()).solution.flatten()
    for weights in (best, torch.stack([of_x[0], of_guess[0]]).double()):
        error = float((design @ weights - picture.flatten()).square().mean())
        if weights is best:
            least = error
    assert error == pytest.approx(least, rel=1e-2, abs=1e-9)


def test_the_loss_trains(x_0):
    weight = torch.zeros((), requires_grad=True)
    index = torch.tensor([100, 6000])
    for diffusion in PAPER.values():
        loss, _ = diffusion.training_loss(
            lambda x, time: weight * x, x_0, torch.randn_like(x_0), index
        )
        assert torch.autograd.grad(loss.sum(), weight)[0] != 0


def test_configurations_return_and_are_checked():
    for diffusion in PAPER.values():
        assert Diffusion.from_dict(diffusion.to_dict()) == diffusion
    for values, message in (
        ({"eta": 1}, "eta"),
        ({"parameterization": "v"}, "'v'"),
        ({"schedule": "sigmoid"}, "sigmoid"),
        ({"schedule": ["linear"]}, "linear"),
        ({"num_timesteps": 20}, "20"),
        ({"num_timesteps": "many"}, "many"),
    ):
        with pytest.raises(InvalidModelError, match=message):
            Diffusion.from_dict(values)
