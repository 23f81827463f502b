"""Models: where they are, how they are named, saved and loaded.

A model is one safetensors file with its configuration (JSON) in the file's metadata, and beside it
a card (JSON) that tells where it comes from. Its id is the sha256 of the file. Shipped models lie
in ``codec/weights``; ``NAME.training.safetensors`` there holds the float weights that training goes
on from.

    python -m codec.models.zoo list
    python -m codec.models.zoo show NAME_OR_PATH
    python -m codec.models.zoo import DIR_OR_FILE --out MODEL_DIR
    python -m codec.models.zoo calibrate NAME_OR_PATH --data SHARD.tar ...
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..base import Codec
from ..errors import InvalidModelError, StrataError, UnknownModelError

if TYPE_CHECKING:
    # At run time only what loads or saves a model imports it, which takes seconds: names and files
    # of models are also for command lines and for the drivers of jobs.
    from torch import Tensor

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_MODELS = {"uqdm": "uqdm-small", "cdc": "cdc-small"}
MODEL_FILE = "model.safetensors"
CARD_FILE = "card.json"
_METADATA = "strata"  # one key only: safetensors does not keep an order among several
_CODECS = {"uqdm": "codec.uqdm.codec", "cdc": "codec.cdc.codec"}  # imported when needed


def families() -> list[str]:
    """Names of the codecs that this release has, shipped models or not."""
    return sorted(_CODECS)


def list_models() -> list[str]:
    """Names of the shipped models."""
    files = WEIGHTS.glob("*.safetensors")
    return sorted(f.stem for f in files if not f.stem.endswith(".training"))


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
        f"a directory that holds {MODEL_FILE}, or a .safetensors file"
    )


def card_file(path: Path) -> Path:
    """Where the card of a model file lies (it may be missing)."""
    return path.with_name(CARD_FILE) if path.name == MODEL_FILE else path.with_suffix(".json")


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a model file; empty where there is none. Raises InvalidModelError."""
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
    from .checks import MAX_MODEL_BYTES, check_tensors, parse_config

    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ValueError(f"it is larger than {MAX_MODEL_BYTES} bytes")
        with safe_open(path, framework="pt") as file:
            config = parse_config((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_tensors(tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InvalidModelError(f"{path} is not a Strata model file: {error!r}") from error
    return config, tensors


def write_model(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, "Tensor"],
    card: Mapping[str, Any] | None = None,
) -> str:
    """Write a model file whole, and its card; return the model's id.

    The same content gives the same file, hence the same id.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    metadata = {_METADATA: json.dumps(config, sort_keys=True, separators=(",", ":"))}
    save_file({n: t.contiguous() for n, t in tensors.items()}, partial, metadata)
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, path)
    if card is not None:
        write_card(path, card)
    return model_id(path)


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write the card of a model file, whole."""
    partial = path.with_name(f".{CARD_FILE}.{os.getpid()}")
    partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    os.replace(partial, card_file(path))


def load_codec(name_or_path: str | Path, device: str = "cpu") -> Codec:
    """Load a model: a shipped name, a directory with model.safetensors, or a file.

    Raises UnknownModelError, or InvalidModelError for a damaged or foreign file.
    """
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
    """The codec of a model file's content. Raises InvalidModelError where it makes none."""
    name = path.parent.name if path.name == MODEL_FILE else path.stem
    module = importlib.import_module(_CODECS[config["codec"]])
    try:
        codec: Codec = module.load(name, path, id, config, tensors, device)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidModelError(f"{path} is not a {config['codec']} model: {error!r}") from error
    return codec


def _show(name: str) -> None:
    path = model_file(name)
    config, tensors = read_model(path)
    print(f"{path}\nid {model_id(path)}\n{sum(t.numel() for t in tensors.values()):,} numbers")
    print(json.dumps({"card": read_card(path), "config": config}, indent=2, ensure_ascii=False))


def _import(source: Path, out: Path, learned_schedule: bool) -> None:
    from ..cdc import authors as cdc_authors
    from ..uqdm.paper import authors as uqdm_authors

    if not source.exists():
        raise UnknownModelError(f"there is no checkpoint {source}")
    card: dict[str, Any] = {"imported_from": f"the authors' checkpoint {source.name}"}
    if cdc_authors.is_authors_checkpoint(source):
        if learned_schedule:
            raise InvalidModelError(f"{source} is a checkpoint of CDC, which learns no schedule")
        config, tensors = cdc_authors.import_model(source)
    else:
        from ..uqdm.paper import calibration
        from ..uqdm.paper.scheme import UniversalScheme

        config, tensors = uqdm_authors.load(source, learned_schedule=learned_schedule)
        card["learned_schedule"] = learned_schedule
        calibrated = calibration.quick(UniversalScheme(config, tensors, "cpu"))
        tensors["guards"] = calibrated.guards
        card["calibration"] = calibrated.card()
    print(f"{out / MODEL_FILE}: id {write_model(out / MODEL_FILE, config, tensors, card)}")


def _calibrate(
    name: str, data: Sequence[Path], count: int, safety: float, out: Path | None, device: str
) -> None:
    """Measure a model; write its guards into its file, or into ``out``, and all into the card."""
    from ..training.data import read_shards
    from ..uqdm.paper import calibration
    from ..uqdm.paper.scheme import UniversalScheme

    path = model_file(name)
    target = path if out is None else out / MODEL_FILE
    found: list[Any] = []
    for shard in data:
        try:
            with shard.open("rb") as stream:
                pictures = read_shards([(shard.name, stream)], calibration.SIDE)
        except (OSError, tarfile.TarError) as error:
            raise InvalidModelError(f"{shard} cannot be read: {error}") from error
        found += calibration.squares(pictures.take(len(pictures)), count - len(found))
    if data and not found:
        raise InvalidModelError(f"no picture of {calibration.SIDE}x{calibration.SIDE} in the data")
    found = found or calibration.made_up(count)
    codec = load_codec(path, device)
    scheme = getattr(codec, "scheme", None)
    card = read_card(path)
    if isinstance(scheme, UniversalScheme):
        calibrated = calibration.calibrate(scheme, found, safety)
        config, tensors = read_model(path)
        card["calibration"] = calibrated.card()
        written = write_model(target, config, {**tensors, "guards": calibrated.guards}, card)
    else:
        card["calibration"] = calibration.verify_exact(codec, found)
        written = codec.model_id  # nothing is to be stored, so the file stays what it is
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        write_card(target, card)
    print(json.dumps(card["calibration"]))
    print(f"{target}: id {written}")
    if written != codec.model_id:
        print(f"streams written with the model {codec.model_id} need that one's file")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m codec.models.zoo", description="Models of Strata."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the shipped models")
    show = commands.add_parser("show", help="a model's id, card and configuration")
    show.add_argument("model", help="shipped name, directory or file")
    load = commands.add_parser("import", help="turn an authors' checkpoint into a model")
    load.add_argument("source", type=Path, help="checkpoint directory or file")
    load.add_argument("--out", type=Path, required=True, metavar="MODEL_DIR")
    load.add_argument(
        "--learned-schedule",
        action="store_true",
        help="use the noise schedule that training learnt, where the checkpoint's average has it: "
        "fewer bits, but the authors' published figures are for the configured one",
    )
    measure = commands.add_parser(
        "calibrate",
        help="measure a model's float noise and store its guards, or prove that it has none",
    )
    measure.add_argument("model", help="shipped name, directory or file")
    measure.add_argument(
        "--data", type=Path, nargs="+", default=[], help="tars of pictures; default: made-up ones"
    )
    measure.add_argument("--pictures", type=int, default=16, help="how many (default: 16)")
    measure.add_argument(
        "--safety", type=float, default=4.0, help="guards in largest differences (default: 4)"
    )
    measure.add_argument("--out", type=Path, metavar="MODEL_DIR", help="default: in place")
    measure.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            print("\n".join(list_models()))
        elif options.command == "show":
            _show(options.model)
        elif options.command == "calibrate":
            if options.pictures < 1 or options.safety < 1:
                parser.error("--pictures and --safety must be at least 1")
            _calibrate(
                options.model,
                options.data,
                options.pictures,
                options.safety,
                options.out,
                options.device,
            )
        else:
            _import(options.source, options.out, options.learned_schedule)
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
