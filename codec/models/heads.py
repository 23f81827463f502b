"""Files of reconstruction heads: other ways to show the streams of one model.

A head is a safetensors file of its own, with its card, beside the model file that it is made for:
``NAME.eyes.safetensors`` beside ``NAME.safetensors``. It names that model by its id. So heads can
get better while streams and models stay as they are.
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

DECODERS = ("eyes", "realistic")  # what heads there are; a model may have some of them
MAX_HEAD_BYTES = 64 << 20
_METADATA = "strata-head"


def head_file(model: Path, decoder: str) -> Path:
    """Where the head of a model file lies, if it has one."""
    return model.with_suffix(f".{decoder}.safetensors")


def head_files(model: Path, model_id: str) -> dict[str, Path]:
    """The heads of a model file, by decoder: those beside it, else shipped ones for its id."""
    found = {}
    for decoder in DECODERS:
        beside = head_file(model, decoder)
        shipped = sorted(zoo.WEIGHTS.glob(f"*.{decoder}.safetensors"))
        own = (file for file in shipped if _told(file).get("model") == model_id)
        path = beside if beside.is_file() else next(own, None)
        if path:
            found[decoder] = path
    return found


def read_head(path: Path, model_id: str) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Configuration and tensors of a head for the model of this id. Raises InvalidModelError."""
    from .checks import check_tensors, parse_config

    try:
        if path.stat().st_size > MAX_HEAD_BYTES:
            raise ValueError(f"it is larger than {MAX_HEAD_BYTES} bytes")
        with safe_open(path, framework="pt") as file:
            config = parse_config((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors)
        made_for = str(config.pop("model"))
        del config["decoder"]
        if config.pop("sha256") != _digest({name: one.numpy() for name, one in tensors.items()}):
            raise ValueError("its numbers are not those that were written")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InvalidModelError(f"{path} is not a reconstruction head: {error!r}") from error
    if made_for != model_id:
        raise InvalidModelError(
            f"{path} is a reconstruction head for model {made_for[:8]}..., not for "
            f"{model_id[:8]}...: remove it, or put the one for this model there"
        )
    return config, tensors


def write_head(
    path: Path,
    decoder: str,
    model_id: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, "Tensor"],
) -> None:
    """Write a head file, whole; weights in half precision."""
    from .checks import FORMAT

    halves = {n: t.detach().cpu().half().contiguous() for n, t in tensors.items()}
    told = {**config, "decoder": decoder, "model": model_id, "format": FORMAT}
    told["sha256"] = _digest({name: tensor.numpy() for name, tensor in halves.items()})
    metadata = {_METADATA: json.dumps(told, sort_keys=True, separators=(",", ":"))}
    zoo.write_tensors(path, halves, metadata)


def _digest(arrays: "Mapping[str, np.ndarray]") -> str:
    """The sha256 of all numbers, in the order of their names."""
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _told(path: Path) -> dict[str, Any]:
    """What a shipped head says of itself; nothing where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_METADATA, "{}")))
    except (SafetensorError, OSError, ValueError):
        return {}
