#!/usr/bin/env python
"""Decode one file of layers into a picture, or show what is in it.

Examples:
    strata view a.strata out.png
    strata view a.strata --layers 2 out.jpg
    strata view a.strata

Without an output it shows size, model, and the bytes of the file up to each layer. From a file that
was cut, the whole layers are used, with a warning. A shipped model is found by the id in the file.
Exit code 0: done; 2: not done, and the message says why.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec import EncodedImage, load_codec
from codec.errors import CorruptStreamError, StrataError, UnknownModelError
from codec.images.files import write_image
from codec.models.zoo import shipped_model, write_whole
from pipeline.running.arguments import (
    add_decoder,
    add_overwrite,
    add_single_device,
    new_parser,
    positive,
)
from pipeline.running.command_line import exit_code
from pipeline.running.options import OptionError, check_codec_options, check_output_file

FORMATS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp", ".avif": "avif"}


def read_stream(path: Path) -> EncodedImage:
    """The whole layers of a file. Raises CorruptStreamError, UnknownModelError."""
    data = path.read_bytes()
    try:
        stream = EncodedImage.from_bytes(data, allow_truncated=True)
    except (CorruptStreamError, UnknownModelError) as error:
        raise type(error)(f"{path}: {error}") from error
    try:
        EncodedImage.from_bytes(data)
    except CorruptStreamError as error:
        print(f"warning: {path}: {error}: only the layers before it are used", file=sys.stderr)
    return stream


def describe(path: Path, stream: EncodedImage) -> None:
    info = stream.info
    name = shipped_model(info.model) or "not a shipped model"
    print(f"{path}: {info.width}x{info.height}, {info.codec}, model {info.model} ({name})")
    print(f"  {'layers':>6} {'bytes':>12} {'bits per pixel':>15}")
    for number in range(1, stream.num_layers + 1):
        size = len(stream.truncate(number).to_bytes())
        print(f"  {number:>6} {size:>12,} {8 * size / (info.width * info.height):>15.3f}")


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("stream", type=Path, metavar="FILE.strata", help="the file of layers")
    parser.add_argument(
        "output",
        type=Path,
        nargs="?",
        help=f"the picture to write; its extension chooses the format ({', '.join(FORMATS)})",
    )
    parser.add_argument(
        "--layers", type=positive, metavar="K", help="the first K layers (default: all)"
    )
    parser.add_argument("--model", help="the model that wrote it, if it is not a shipped one")
    add_decoder(parser)
    add_overwrite(parser)
    add_single_device(parser)
    given = parser.parse_intermixed_args(arguments)

    def job() -> None:
        format = FORMATS.get(given.output.suffix.lower()) if given.output else ""
        if format is None:
            raise OptionError(f"{given.output}: the extension must be one of {', '.join(FORMATS)}")
        if given.output:
            check_output_file(given.stream, given.output, given.overwrite)
        stream = read_stream(given.stream)
        if given.layers is not None and given.layers > stream.num_layers:
            raise OptionError(
                f"--layers {given.layers}: {given.stream} has {stream.num_layers} layers"
            )
        if not format:
            describe(given.stream, stream)
            return
        model = given.model or shipped_model(stream.info.model)
        if model is None:
            raise UnknownModelError(
                f"{given.stream} was written with the model {stream.info.model}..., which is not a "
                "shipped one: give its file with --model"
            )
        codec = load_codec(model, device=given.device)
        options = {} if given.decoder is None else {"decoder": given.decoder}
        check_codec_options(codec, "decode", options, str(given.stream))
        (picture,) = codec.decode([stream], layers=given.layers, **options)
        data = write_image(picture, None, format)
        write_whole(given.output, lambda partial: partial.write_bytes(data))
        count = given.layers or stream.num_layers
        size = f"{stream.width}x{stream.height}"
        print(f"{given.output}: {size} from {count} of {stream.num_layers} layers")

    return exit_code(job, "interrupted: nothing was written", (StrataError, OSError))


if __name__ == "__main__":
    sys.exit(main())
