"""Finds, loads and saves models.

A model is one safetensors file, with its configuration (JSON) in the metadata. Beside it lies a
card (JSON), which says where the model comes from. The model's id is the sha256 of the file.
Shipped models lie in ``codec/weights``. There, ``NAME.training.safetensors`` has the float weights
for further training, and ``NAME.eyes.safetensors`` is a reconstruction head (``heads.py``).
``python -m codec`` is the command line.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..arguments import check_device
from ..base import Codec
from ..errors import InvalidModelError, UnknownModelError

if TYPE_CHECKING:
    # Importing torch takes seconds, and command lines and drivers only need names of models.
    from torch import Tensor

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_MODELS = {"uqdm": "uqdm", "cdc": "cdc-small"}
MODEL_FILE = "model.safetensors"
CARD_FILE = "card.json"
_METADATA = "strata"  # one key only: safetensors does not keep an order among several
_CODECS = {"uqdm": "codec.uqdm.codec", "cdc": "codec.cdc.codec"}  # imported when needed


def families() -> list[str]:
    """Names of the codecs of this release."""
    return sorted(_CODECS)


def list_models() -> list[str]:
    """Names of the shipped models."""
    files = WEIGHTS.glob("*.safetensors")
    return sorted(f.stem for f in files if "." not in f.stem)  # no training file, no head


def model_file(name_or_path: str | Path) -> Path:
    """The model file of a shipped name, a directory or a path. Raises UnknownModelError."""
    text = str(name_or_path)
    if text in list_models():
        return WEIGHTS / f"{text}.safetensors"
    path = Path(text)
    if path.is_dir() and (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if path.is_file():
        return path
    raise UnknownModelError(
        f"there is no model {text!r}: give a shipped name ({', '.join(list_models()) or 'none'}), "
        f"a folder with {MODEL_FILE}, or a .safetensors file"
    )


def shipped_model(identity: str) -> str | None:
    """The name of the shipped model whose id is ``identity`` or begins with it."""
    files = ((name, model_file(name)) for name in list_models())
    return next((name for name, path in files if model_id(path).startswith(identity)), None)


def card_file(path: Path) -> Path:
    """The path of the card of a model file, which may not exist."""
    return path.with_name(CARD_FILE) if path.name == MODEL_FILE else path.with_suffix(".json")


def read_card(path: Path) -> dict[str, Any]:
    """The card of a model file; empty if there is none. Raises InvalidModelError."""
    card = card_file(path)
    try:
        return dict(json.loads(card.read_text())) if card.is_file() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidModelError(f"{card} is not a model's card: {error}") from error


def model_id(path: Path) -> str:
    """sha256 (hex) of a model file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """Configuration and tensors of a model file. Raises InvalidModelError."""
    from .checks import MAX_MODEL_BYTES

    return read_tensors(path, _METADATA, MAX_MODEL_BYTES, "a Strata model file")


def read_tensors(
    path: Path, key: str, most: int, what: str
) -> tuple[dict[str, Any], dict[str, "Tensor"]]:
    """The configuration under ``key`` of the metadata, and the tensors of a safetensors file.

    Raises InvalidModelError for more than ``most`` bytes, and if it is not ``what``.
    """
    from .checks import check_tensors, parse_config

    try:
        if path.stat().st_size > most:
            raise ValueError(f"it is larger than {most} bytes")
        with safe_open(path, framework="pt") as file:
            config = parse_config((file.metadata() or {})[key])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InvalidModelError(f"{path} is not {what}: {error!r}") from error
    return config, tensors


def write_model(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, "Tensor"],
    card: Mapping[str, Any] | None = None,
) -> str:
    """Write a model file whole, and its card; returns the model's id.

    The same content gives the same file and so the same id. Sets the configuration's ``format`` to
    that of this release.
    """
    from .checks import FORMAT

    path.parent.mkdir(parents=True, exist_ok=True)
    full = {**config, "format": FORMAT}
    metadata = {_METADATA: json.dumps(full, sort_keys=True, separators=(",", ":"))}
    write_tensors(path, {n: t.contiguous() for n, t in tensors.items()}, metadata)
    if card is not None:
        write_card(path, card)
    return model_id(path)


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write the card of a model file, whole."""
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_whole(card_file(path), lambda partial: partial.write_text(text))


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole."""
    from safetensors.torch import save_file

    def write(partial: Path) -> None:
        save_file(tensors, partial, metadata)
        partial.chmod(0o644)  # safetensors lets only the owner read

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside ``path``, then rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    write(partial)
    os.replace(partial, path)


def load_codec(name_or_path: str | Path, device: str = "cpu") -> Codec:
    """Load a model: a shipped name, a directory with model.safetensors, or a file.

    Raises UnknownModelError, InvalidModelError for a damaged or other file, ValueError for a device
    that does not exist.
    """
    check_device(device)
    path = model_file(name_or_path)
    config, tensors = read_model(path)
    if config.get("codec") not in _CODECS:
        raise InvalidModelError(
            f"{path} is of codec {config.get('codec')!r}; this release has {', '.join(_CODECS)}"
        )
    return codec_of(path, model_id(path), config, tensors, device)


def codec_of(
    path: Path, id: str, config: dict[str, Any], tensors: dict[str, "Tensor"], device: str
) -> Codec:
    """Make a codec of a model file's content. Raises InvalidModelError."""
    name = path.parent.name if path.name == MODEL_FILE else path.stem
    module = importlib.import_module(_CODECS[config["codec"]])
    try:
        codec: Codec = module.load(name, path, id, config, tensors, device)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidModelError(f"{path} is not a {config['codec']} model: {error!r}") from error
    return codec
