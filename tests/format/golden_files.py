"""The paths of the golden files and of the models that they need."""

import lzma
import shutil
import tempfile
from functools import cache
from pathlib import Path

from codec import Codec, EncodedImage, load_codec
from codec.models import zoo

GOLDEN = Path(__file__).parent / "golden"
STREAMS = sorted(GOLDEN.glob("*.strata"))

_TEMPORARY = tempfile.TemporaryDirectory()  # goes with the process
_UNPACKED = Path(_TEMPORARY.name)


@cache
def models() -> dict[str, Path]:
    """Model files by id: those shipped, and those that lie here, packed."""
    paths = [zoo.model_file(name) for name in zoo.list_models()]
    for packed in GOLDEN.glob("*.safetensors.xz"):
        paths.append(_UNPACKED / packed.stem)
        with lzma.open(packed) as source, paths[-1].open("wb") as target:
            shutil.copyfileobj(source, target)
    return {zoo.model_id(path): path for path in paths}


def read_golden(file: Path) -> tuple[EncodedImage, Codec]:
    """A stream, and the codec of its model, whose id its header begins."""
    encoded = EncodedImage.from_bytes(file.read_bytes())
    (path,) = (path for id, path in models().items() if id.startswith(encoded.info.model))
    return encoded, load_codec(path)


def without_head(codec: Codec) -> dict[str, str]:
    """Options of decoding by the format alone: heads may be others some day."""
    return {"decoder": "mean"} if codec.codec == "uqdm" else {}
