#!/usr/bin/env python
"""Encode one picture as one file of layers.

Examples:
    strata encode a.jpg a.strata
    strata encode a.png a.strata --lossless
    strata encode a.jpg a.strata --model cdc-small --quality 1

The file holds the header and the layers, one after the other, so any beginning of it is a rougher
picture. It does not hold the model, which is needed to view it. For more than a few pictures use an
archive (strata compress), which also keeps files, alpha channels and metadata.
Exit code 0: the file was written; 2: it was not, and the message says why.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec import load_codec
from codec.errors import StrataError
from codec.images.files import read_image
from codec.models.zoo import DEFAULT_MODELS, write_whole
from pipeline.running.arguments import (
    add_overwrite,
    add_single_device,
    given_options,
    new_parser,
    not_negative,
    positive,
)
from pipeline.running.command_line import exit_code
from pipeline.running.options import OptionError, check_codec_options, check_output_file


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("picture", type=Path, help="a picture file, as for strata compress")
    parser.add_argument("output", type=Path, metavar="FILE.strata", help="the file to write")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODELS["uqdm"],
        help="a shipped model's name, or a model's folder or file (default: %(default)s)",
    )
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument(
        "--layers",
        type=positive,
        metavar="K",
        help="the first K layers (default: the model's archive layers)",
    )
    layers.add_argument("--lossless", action="store_true", help="all layers: every pixel exact")
    parser.add_argument(
        "--quality", type=not_negative, metavar="N", help="cdc: one of the model's rates"
    )
    add_overwrite(parser)
    add_single_device(parser)
    given = parser.parse_args(arguments)

    def job() -> None:
        check_output_file(given.picture, given.output, given.overwrite)
        try:
            picture = read_image(given.picture.read_bytes())
        except StrataError as error:
            raise type(error)(f"{given.picture}: {error}") from error
        codec = load_codec(given.model, device=given.device)
        options = given_options(given, ["quality"])
        check_codec_options(codec, "encode", options, f"the model {codec.name}")
        if given.lossless and not codec.lossless:
            raise OptionError(f"--lossless: the model {codec.name} has no lossless layer")
        layers = codec.num_layers if given.lossless else given.layers or codec.archive_layers
        if layers > codec.num_layers:
            raise OptionError(
                f"--layers {layers}: the model {codec.name} has {codec.num_layers} layers"
            )
        (stream,) = codec.encode([picture.rgb], layers=layers, **options)
        data = stream.to_bytes()
        write_whole(given.output, lambda partial: partial.write_bytes(data))
        for note in picture.notes:
            print(f"note: {note}", file=sys.stderr)
        if picture.alpha is not None:
            print("warning: the alpha channel is not in the file", file=sys.stderr)
        bits = 8 * len(data) / (stream.width * stream.height)
        print(
            f"{given.output}: {stream.width}x{stream.height}, {stream.num_layers} layers of "
            f"{codec.name}, {len(data):,} bytes, {bits:.3f} bits per pixel"
        )

    return exit_code(job, "interrupted: nothing was written", (StrataError, OSError))


if __name__ == "__main__":
    sys.exit(main())
