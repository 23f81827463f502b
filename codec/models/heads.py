"""Files of reconstruction heads: other ways to show the streams of one model.

A head is a safetensors file with a card of its own, beside the file of the model for which it is
made: ``NAME.eyes.safetensors`` beside ``NAME.safetensors``. It holds that model's id. So heads can
be improved without changing models or streams.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import InvalidModelError
from . import zoo

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DECODERS = ("eyes", "realistic")  # all kinds of heads; a model may have some of them
MAX_HEAD_BYTES = 64 << 20
_METADATA = "strata-head"


def head_file(model: Path, decoder: str) -> Path:
    """The path of the head of a model file, which may not exist."""
    return model.with_suffix(f".{decoder}.safetensors")


def head_files(model: Path, model_id: str) -> dict[str, Path]:
    """The heads of a model file, by decoder: those beside it, or else the shipped ones."""
    found = {}
    for decoder in DECODERS:
        beside = head_file(model, decoder)
        shipped = sorted(zoo.WEIGHTS.glob(f"*.{decoder}.safetensors"))
        own = (file for file in shipped if _metadata(file).get("model") == model_id)
        path = beside if beside.is_file() else next(own, None)
        if path:
            found[decoder] = path
    return found


def read_head(path: Path, model_id: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Configuration and tensors of a head for the model of this id. Raises InvalidModelError."""
    what = "a reconstruction head"
    config, tensors = zoo.read_tensors(path, _METADATA, MAX_HEAD_BYTES, what)
    try:
        made_for = str(config.pop("model"))
        del config["decoder"]
        if config.pop("sha256") != _digest({name: one.numpy() for name, one in tensors.items()}):
            raise ValueError("its numbers are not those that were written")
    except (KeyError, ValueError, TypeError) as error:  # TypeError: not of a type of numpy's
        raise InvalidModelError(f"{path} is not {what}: {error!r}") from error
    if made_for != model_id:
        raise InvalidModelError(
            f"{path} is a reconstruction head for model {made_for[:8]}..., not for "
            f"{model_id[:8]}...: remove it, or replace it with a head for this model"
        )
    return config, tensors


def write_head(
    path: Path,
    decoder: str,
    model_id: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, "Tensor"],
) -> None:
    """Write a head file whole, with weights in half precision."""
    from .checks import FORMAT

    halves = {n: t.detach().cpu().half().contiguous() for n, t in tensors.items()}
    full = {**config, "decoder": decoder, "model": model_id, "format": FORMAT}
    full["sha256"] = _digest({name: tensor.numpy() for name, tensor in halves.items()})
    metadata = {_METADATA: json.dumps(full, sort_keys=True, separators=(",", ":"))}
    zoo.write_tensors(path, halves, metadata)


def _digest(arrays: "Mapping[str, np.ndarray]") -> str:
    """The sha256 of all values, in the order of the arrays' names."""
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    """The configuration of a shipped head; empty if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_METADATA, "{}")))
    except (SafetensorError, OSError, ValueError):
        return {}
