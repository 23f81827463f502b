"""The command line of models.

python -m codec list
python -m codec show NAME_OR_PATH
python -m codec import DIR_OR_FILE --out MODEL_DIR
python -m codec calibrate NAME_OR_PATH --data SHARD.tar ...
"""

import argparse
import json
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InvalidModelError, StrataError, UnknownModelError, printable
from .models.zoo import (
    MODEL_FILE,
    list_models,
    load_codec,
    model_file,
    model_id,
    read_card,
    read_model,
    write_card,
    write_model,
)


def _show(name: str) -> None:
    path = model_file(name)
    config, tensors = read_model(path)
    print(f"{path}\nid {model_id(path)}\n{sum(t.numel() for t in tensors.values()):,} numbers")
    shown = json.dumps({"card": read_card(path), "config": config}, indent=2, ensure_ascii=False)
    print("\n".join(map(printable, shown.split("\n"))))


def _import(source: Path, out: Path, learned_schedule: bool) -> None:
    from .cdc import authors as cdc_authors
    from .uqdm.paper import authors as uqdm_authors

    if not source.exists():
        raise UnknownModelError(f"there is no checkpoint {source}")
    card: dict[str, Any] = {"imported_from": f"the authors' checkpoint {source.name}"}
    if cdc_authors.is_authors_checkpoint(source):
        if learned_schedule:
            raise InvalidModelError(f"{source} is a checkpoint of CDC, which learns no schedule")
        config, tensors = cdc_authors.import_model(source)
    else:
        from .uqdm.paper import calibration
        from .uqdm.paper.scheme import UniversalScheme

        config, tensors = uqdm_authors.load(source, learned_schedule=learned_schedule)
        card["learned_schedule"] = learned_schedule
        calibrated = calibration.quick(UniversalScheme(config, tensors, "cpu"))
        tensors["guards"] = calibrated.guards
        card["calibration"] = calibrated.card()
    print(f"{out / MODEL_FILE}: id {write_model(out / MODEL_FILE, config, tensors, card)}")


def _calibrate(
    name: str, data: Sequence[Path], count: int, safety: float, out: Path | None, device: str
) -> None:
    """Measure a model. Writes guards to its file, or to ``out``, and figures to its card."""
    from .training.data import Pictures
    from .uqdm.paper import calibration
    from .uqdm.paper.scheme import UniversalScheme

    path = model_file(name)
    target = path if out is None else out / MODEL_FILE
    found: list[Any] = []
    for shard in data:
        try:
            pictures = Pictures(calibration.SIDE)
            with shard.open("rb") as stream:
                pictures.add_tar(shard.name, stream)
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
        written = codec.model_id  # there are no guards to store, so the file stays as it is
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        write_card(target, card)
    print(json.dumps(card["calibration"]))
    print(f"{target}: id {written}")
    if written != codec.model_id:
        print(f"streams written with the model {codec.model_id} need that one's file")


def main(arguments: list[str] | None = None) -> int:
    own = sys.argv[0].startswith("strata ")  # set by jobs/strata.py
    parser = argparse.ArgumentParser(
        prog=sys.argv[0] if own else "python -m codec", description="Models of Strata."
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="names of the shipped models (default)")
    show = commands.add_parser("show", help="a model's id, card and configuration")
    show.add_argument("model", help="shipped name, directory or file")
    load = commands.add_parser("import", help="turn an authors' checkpoint into a model")
    load.add_argument("source", type=Path, help="checkpoint directory or file")
    load.add_argument(
        "--out", type=Path, required=True, metavar="MODEL_DIR", help="the folder of the model"
    )
    load.add_argument(
        "--learned-schedule",
        action="store_true",
        help="use the learned noise schedule, if the checkpoint's averages have it: fewer bits, "
        "but the authors' published figures are for the configured schedule",
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
        "--safety",
        type=float,
        default=4.0,
        help="guards are so many times the largest difference (default: 4)",
    )
    measure.add_argument(
        "--out", type=Path, metavar="MODEL_DIR", help="the folder of the model (default: its own)"
    )
    measure.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    options = parser.parse_args(arguments)
    try:
        if options.command in (None, "list"):
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
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
