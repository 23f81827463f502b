"""The cost of all steps of a picture; a training step computes only one."""

import torch
from torch import Tensor

from codec.uqdm.paper import diffusion
from codec.uqdm.paper.model import UniversalConfig, UniversalModel


def step_bits(model: UniversalModel, images: Tensor, generator: torch.Generator) -> list[float]:
    """Bits per pixel of each step of pictures ``(B, 3, 64, 64) uint8``."""
    constants = model.constants()
    chain = model._posterior_chain(constants, diffusion.from_pixels(images.float()), generator)
    steps = range(model.config.steps)
    at = [torch.full((len(images),), i) for i in steps]
    return [float(model._step_bits(constants, chain[i], chain[i + 1], at[i])) for i in steps]


def loaded(config: UniversalConfig, tensors: dict[str, Tensor]) -> UniversalModel:
    """The model that ``export`` wrote."""
    model = UniversalModel(config)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval()
