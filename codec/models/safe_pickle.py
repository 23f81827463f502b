"""Reads pickled checkpoints, our own and other people's, without running code in them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidModelError

# Numpy scalars in such files, which are not needed.
_INERT = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


class _Ignored:
    """Replaces a pickled numpy scalar. It accepts any arguments and ignores them."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_checkpoint(path: Path) -> Mapping[str, Any]:
    """The dictionary in a file of ``torch.save``. Raises InvalidModelError."""
    stand_ins: list[Any] = [(_Ignored, name) for name in _INERT]
    try:
        with torch.serialization.safe_globals(stand_ins):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidModelError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise InvalidModelError(
            f"{path} is not a plain checkpoint: it is damaged, or would run code, which is refused"
        ) from error
    except Exception as error:  # a damaged zip or pickle fails in torch in many ways
        raise InvalidModelError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(checkpoint, dict):
        raise InvalidModelError(f"{path} is not a checkpoint: it does not hold a dictionary")
    return checkpoint


def check_floats(tensors: Mapping[str, Any], path: Path) -> None:
    """Raises InvalidModelError unless all values of a checkpoint are finite floats."""
    for name, tensor in tensors.items():
        floats = torch.is_tensor(tensor) and tensor.is_floating_point()
        if not floats or not bool(torch.isfinite(tensor).all()):
            raise InvalidModelError(f"{path}: {name} holds values that are not finite floats")
