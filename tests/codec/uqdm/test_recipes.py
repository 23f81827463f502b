"""Models made of recipes learn, and go on from their files."""

import numpy as np
import torch

from codec.training.data import Pictures
from codec.uqdm import recipes
from tests.codec.small_models import noise_pictures


def test_the_likelihood_improves() -> None:
    pictures = Pictures(crop=32)
    for picture in noise_pictures(12, 64).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    trainable = recipes.build(recipes.RECIPES["tiny"], pictures)
    optimizer = torch.optim.Adam(trainable.model.parameters(), 3e-3)
    images = pictures.batch(4, 0.0, np.random.default_rng(0))

    def bits() -> float:
        with torch.no_grad():
            steps = range(trainable.model.config.num_steps)
            return sum(float(trainable.model(images, [s])[0]["bits"]) for s in steps)

    before = bits()
    for step in range(30):
        loss, _ = trainable.objective(trainable.model, images, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bits() < 0.97 * before
