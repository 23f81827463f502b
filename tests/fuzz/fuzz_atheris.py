"""Coverage-guided fuzzing of the decoders with atheris (the extra ``fuzz``), from kept seeds.

    pip install -e '.[fuzz]' && mkdir NEW_CORPUS
    python tests/fuzz/fuzz_atheris.py NEW_CORPUS tests/fuzz/seeds -max_len=4096 -runs=20000

libFuzzer's options follow the folders; what it finds interesting goes to the first of these. Half
of the inputs (by their own checksum) have the checksums of their layers repaired first, so that the
code behind them is reached; sound seeds are what they are either way.
"""

import sys
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["codec"]):
    from codec import CorruptStreamError, EncodedImage, UnknownModelError, load_codec
    from codec.models.zoo import DEFAULT_MODELS

    CODECS = {family: load_codec(name) for family, name in DEFAULT_MODELS.items()}

from tests.fuzz import mutations

mutations.MODELS.update({codec.model_id[:8]: codec.model_id for codec in CODECS.values()})


def one_input(data: bytes) -> None:
    """Anything but these two errors, or a picture, ends the run."""
    try:
        stream = EncodedImage.from_bytes(data, allow_truncated=True)
        codec = CODECS[stream.info.codec]
        if zlib.crc32(data) & 1:
            stream = mutations.repair(stream, stream.info.model)
        if stream.width * stream.height <= 1 << 14:  # larger ones are right, and slow
            codec.decode([stream])
    except (CorruptStreamError, UnknownModelError):
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
