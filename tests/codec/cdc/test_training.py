"""Training CDC: the loss falls, stages train what they say, files go on from where they were."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.cdc import export, objective, recipes
from codec.cdc.codec import CDCCodec
from codec.cdc.latents import residual_choice
from codec.cdc.networks.model import CDCModel
from codec.cdc.objective import CDCObjective, ObjectiveConfig
from codec.models import zoo
from codec.training.data import Pictures
from codec.training.loop import TrainingConfig, train
from codec.training.recipe import Recipe, saver
from codec.training.run_folder import RunFolder
from tests.codec.cdc.models import light_config, model_of, paper_config, pictures
from tests.codec.ideal import ideal_bits

FAST = TrainingConfig(
    steps=30, learning_rate=2e-3, warmup=5, ema=0.9, batch=4, crop=64, small_share=0.0
)
LIGHT = Recipe(light_config(unet=False), FAST)
PAPER = Recipe(paper_config(), FAST, objective={"stage": "joint"})


@pytest.fixture
def some_pictures() -> Pictures:
    out = Pictures(64)
    for picture in pictures(12, 96):
        out.add(picture)
    return out


def loss_of(trainable: Any, images: torch.Tensor) -> float:
    with torch.no_grad():
        values = [
            trainable.objective(trainable.model, images, np.random.default_rng(i))[0]
            for i in range(4)
        ]
    return float(torch.stack(values).mean())


def run(trainable: Any, data: Pictures, out: Path, steps: int) -> None:
    config = dataclasses.replace(FAST, steps=steps)
    card: dict[str, Any] = {}
    save = saver(trainable, out, pictures(2, 64), "cpu", card, pictures(4, 64))
    train(
        trainable.model,
        trainable.objective,
        data,
        config,
        RunFolder(out),
        save,
        log=lambda line: None,
    )


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        (LIGHT, {}),
        (LIGHT, {"rho": 0.5}),
        (LIGHT, {"stage": "joint", "unet_dim": 8}),
        (LIGHT, {"stage": "joint", "unet_dim": 8, "parameterization": "eps", "truncate": 0.5}),
        (LIGHT, {"rho": 0.5, "perceptual": "features"}),
        (PAPER, {}),
        (PAPER, {"stage": "transform"}),
        (PAPER, {"rho": 0.5}),
        (PAPER, {"parameterization": "eps"}),
    ],
)
def test_the_loss_falls(
    some_pictures: Pictures, tmp_path: Path, recipe: Recipe, overrides: dict[str, Any]
) -> None:
    trainable = recipes.build(recipe, some_pictures, 0, overrides)
    images = some_pictures.batch(4, 0.0, np.random.default_rng(1))
    before = loss_of(trainable, images)
    # Every step of the paper's networks is dear, and the first ones bring most.
    run(trainable, some_pictures, tmp_path, 15 if recipe is PAPER else 30)
    assert loss_of(trainable, images) < 0.97 * before
    assert isinstance(load_codec(tmp_path), CDCCodec)


def changed(trainable: Any, before: dict[str, torch.Tensor]) -> set[str]:
    now = trainable.model.state_dict()
    return {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}


def test_two_stages_give_one_model(some_pictures: Pictures, tmp_path: Path) -> None:
    first = recipes.build(LIGHT, some_pictures)
    run(first, some_pictures, tmp_path / "transform", 10)
    second = recipes.restore(tmp_path / "transform", {"stage": "diffusion", "unet_dim": 8})
    assert second.model.diffusion is not None
    with torch.no_grad():  # a new U-Net adds nothing to the fast picture, where all else is noise
        seen = second.model.synthesis(torch.zeros(1, 64, 4, 4), torch.tensor([0]))
        new = second.model.denoise(torch.randn(1, 3, 64, 64), torch.ones(1), seen)
        torch.testing.assert_close(new, seen.picture, atol=1e-3, rtol=0)
    weights = {n: v.clone() for n, v in second.model.state_dict().items()}
    run(second, some_pictures, tmp_path / "diffusion", 10)
    # The file's rounding to half precision changes nothing that was rounded before.
    assert changed(second, weights) == {"unet"}
    fast, both = (load_codec(tmp_path / name) for name in ("transform", "diffusion"))
    picture = pictures(1)[0]
    for quality in (0, 1):
        a, b = (codec.encode([picture], quality=quality)[0] for codec in (fast, both))
        assert [len(layer) for layer in a.layers[:1]] == [len(layer) for layer in b.layers[:1]]
        np.testing.assert_array_equal(fast.decode([a])[0], both.decode([b])[0])
    assert both.decode([b], decoder="diffusion", steps=2)[0].shape == picture.shape
    third = recipes.restore(tmp_path / "diffusion", {"stage": "transform"})
    weights = {n: v.clone() for n, v in third.model.state_dict().items()}
    run(third, some_pictures, tmp_path / "again", 3)
    assert changed(third, weights) == {"compressor"}


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    some_pictures: Pictures, tmp_path: Path
) -> None:
    whole = recipes.build(LIGHT, some_pictures)
    run(whole, some_pictures, tmp_path / "whole", 6)
    # The learning rate depends on the number of steps, so the first half stops by time.
    half = recipes.build(LIGHT, some_pictures)
    steps = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return half.objective(*arguments)

    out = tmp_path / "half"
    config = dataclasses.replace(FAST, steps=6, checkpoint_minutes=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(half.model, stopping, some_pictures, config, RunFolder(out), lambda w, c: {}, log=str)
    again = recipes.build(LIGHT, some_pictures)
    train(
        again.model,
        again.objective,
        some_pictures,
        config,
        RunFolder(out),
        lambda w, c: {},
        log=str,
    )
    for name, value in whole.model.state_dict().items():
        # the finished run's weights were rounded to half precision when its file was written
        torch.testing.assert_close(again.model.state_dict()[name], value, atol=2e-2, rtol=2e-3)


def test_the_loss_is_the_coded_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the noise of training, estimated bits are those of the tables."""
    config = light_config(unet=False)
    model = model_of(config, linear=True)
    with torch.no_grad():
        for prior in model.compressor.priors:
            prior.median.zero_()  # so that rounding needs no offset
    zoo.write_model(tmp_path / zoo.MODEL_FILE, config, export.tensors(model))
    codec = load_codec(tmp_path)
    assert isinstance(codec, CDCCodec)
    exact = model.hyper_synthesis

    def rounding(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x.round()

    def centred(z: torch.Tensor, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, scale = exact(z, q)
        return mean.round(), scale  # likewise

    monkeypatch.setattr(objective, "_noisy", rounding)
    monkeypatch.setattr(residual_choice, "TRADE", 0.0)  # the nearest residuals
    monkeypatch.setattr(model, "hyper_synthesis", centred)
    coded = codec.scheme.model.hyper_mean
    monkeypatch.setattr(codec.scheme.model, "hyper_mean", lambda z, q: coded(z, q).round())
    shown = pictures(2, 128)
    images = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)
    with torch.no_grad():  # one picture at each quality, in either order
        figures = [
            CDCObjective(ObjectiveConfig())(model, images, np.random.default_rng(i))[1]
            for i in range(8)
        ]
    found = {round(f["bpp"], 6) for f in figures}
    bits = [[sum(ideal_bits(codec, x, quality=q)) / 128**2 for q in (0, 1)] for x in shown]
    expected = [(bits[0][0] + bits[1][1]) / 2, (bits[0][1] + bits[1][0]) / 2]
    assert sorted(found) == pytest.approx(sorted(expected), rel=0.01)


def test_a_cut_latent_is_a_coarser_one() -> None:
    generator = torch.Generator().manual_seed(0)
    r = 6 * torch.randn(64, 8, 8, 8, generator=generator)
    cut, step = objective._truncated(r, torch.full_like(r, 6.0), generator)
    errors = (cut - r).square().mean((1, 2, 3))
    assert set(step.tolist()) == {1.0, 3.0, 9.0, 27.0}
    assert errors[step > 1].min() > errors[step == 1].min()
    assert torch.equal(cut, cut.round())
    assert float(errors.min()) == pytest.approx(1 / 12, rel=0.2)  # nothing but the rounding is cut
    assert float(errors.max()) > 20


def test_what_is_cut_does_not_teach_the_encoder() -> None:
    model = model_of(light_config(unet=False))
    images = torch.from_numpy(np.stack(pictures(2, 64))).permute(0, 3, 1, 2)
    for truncate in (0.0, 1.0):
        model.zero_grad()
        config = ObjectiveConfig(truncate=truncate)
        CDCObjective(config)(model, images, np.random.default_rng(0))[0].backward()
        gradient = model.compressor.stem.weight.grad
        taught = gradient is not None and bool(gradient.abs().max() > 0)
        assert taught == (truncate == 0)
        assert model.compressor.fast_head.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 1.5, "stage": "joint"}, "--rho must be"),
        ({"rate_weight": 0.0}, "--rate-weight must be positive"),
        ({"truncate": 2.0}, "--truncate must be"),
        ({"rho": 0.5, "stage": "joint", "perceptual": "lpips"}, "needs --lpips-weights"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**settings)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_makes_a_model(name: str) -> None:
    from codec.cdc.networks.model import build_model

    with torch.device("meta"):
        model = build_model(json.loads(json.dumps(dict(recipes.RECIPES[name].model))))
    assert isinstance(model, CDCModel)
    assert model.has_fast_head
    ObjectiveConfig(**recipes.RECIPES[name].objective)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    config = {**light_config(), "compressor": {"kind": "heavy"}}
    zoo.write_model(tmp_path / zoo.MODEL_FILE, config, {"x": torch.zeros(1)})
    with pytest.raises(InvalidModelError, match="neither light nor paper"):
        load_codec(tmp_path)


def test_a_model_file_is_enough_to_go_on_from(tmp_path: Path) -> None:
    config = {**light_config(), "weights": "float"}
    model = model_of(config)
    zoo.write_model(tmp_path / "alone.safetensors", config, export.tensors(model))
    again = recipes.restore(tmp_path / "alone.safetensors", {"stage": "diffusion"})
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value)


def test_a_fast_head_cannot_be_trained_where_there_is_none(some_pictures: Pictures) -> None:
    recipe = Recipe(paper_config(fast_head=False), FAST)
    with pytest.raises(ValueError, match="the model has none: try joint"):
        recipes.build(recipe, some_pictures)
