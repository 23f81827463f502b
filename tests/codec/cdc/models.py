"""Small CDC models to test with: untrained, but light ones start from a Karhunen-Loeve basis."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from codec import load_codec
from codec.cdc import export
from codec.cdc.codec import CDCCodec
from codec.cdc.networks.light_transform import LEVELS, LightConfig
from codec.cdc.networks.model import CDCModel, LightDenoiser, LightModel, build_model
from codec.cdc.networks.paper_transform import PaperConfig
from codec.cdc.networks.unet import UNetConfig
from codec.models import zoo
from tests.codec.small_models import noise_pictures

RATES = (0.004, 0.064)


def light_config(unet: bool = True) -> dict[str, Any]:
    compressor = LightConfig(RATES, 64, 16, 24, (1, 1), (1, 1), 16)
    config: dict[str, Any] = {"codec": "cdc", "compressor": compressor.to_dict()}
    if unet:
        network = UNetConfig(8, (1, 2, 2), (48, 8, 8), 48, 3)
        config["unet"] = network.to_dict()
        config["diffusion"] = {
            "parameterization": "x",
            "num_timesteps": 100,
            "schedule": "cosine",
        }
    return {**config, "default_quality": 1, "default_steps": 3}


def paper_config(fast_head: bool = True, parameterization: str = "x") -> dict[str, Any]:
    compressor = PaperConfig(8, context_channels=8, fast_head=fast_head)
    unet = UNetConfig(8, (1, 1, 2, 2), compressor.unet_contexts)
    schedule = {"x": "cosine", "eps": "linear"}[parameterization]
    return {
        "codec": "cdc",
        "compressor": compressor.to_dict(),
        "unet": unet.to_dict(),
        "diffusion": {
            "parameterization": parameterization,
            "num_timesteps": 100,
            "schedule": schedule,
        },
        "default_steps": 3,
    }


def model_of(config: dict[str, Any], seed: int = 0, linear: bool = False) -> CDCModel:
    """Networks that say something everywhere, or little beside a light model's linear maps."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        if isinstance(model, LightModel):
            batches = (noise_pictures(4, 64, seed=i).float() / LEVELS - 1 for i in range(4))
            model.compressor.start_from_statistics(batches)
            if linear:
                return model.eval()
            model.compressor.fast_head.weight.normal_(std=0.02)
            if isinstance(model.unet, LightDenoiser):
                model.unet.unet.conv_out.weight.normal_(std=0.02)
            model.compressor.to_latent.weight.normal_(std=0.1)
            model.hyper_decoder[-1].weight.normal_(std=0.02)
            for prior in model.compressor.priors:
                prior.median.uniform_(-0.4, 0.4)
    return model.eval()


def write_model(folder: Path, config: dict[str, Any], seed: int = 0, linear: bool = False) -> Path:
    path = folder / zoo.MODEL_FILE
    model = model_of(config, seed, linear)
    zoo.write_model(path, config, export.tensors(model), {"test": True})
    codec = load_codec(path)
    assert isinstance(codec, CDCCodec)
    scheme = codec.scheme
    shown = pictures(4, 128, seed=6)
    counts = [scheme.count_residuals(shown, q) for q in range(model.qualities)]
    zoo.write_model(path, config, export.tensors(model, np.stack(counts)), {"test": True})
    return path


def pictures(count: int = 3, side: int = 96, seed: int = 5) -> list[np.ndarray]:
    """``(side, side, 3) uint8`` each."""
    return list(noise_pictures(count, side, seed=seed).permute(0, 2, 3, 1).contiguous().numpy())
