"""Where the golden files lie, and the models that they need."""

from pathlib import Path

from codec import Codec, EncodedImage, load_codec, zoo

GOLDEN = Path(__file__).parent / "golden"
STREAMS = sorted(GOLDEN.glob("*/*.strata"))


def title(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def models() -> dict[str, Path]:
    """Model files by id: those shipped, and those shipped once."""
    shipped = map(zoo.model_file, zoo.list_models())
    return {zoo.model_id(path): path for path in [*shipped, *GOLDEN.glob("models/*.safetensors")]}


def read_golden(file: Path) -> tuple[EncodedImage, Codec]:
    """A stream, and the codec of its model, whose id its header begins."""
    encoded = EncodedImage.from_bytes(file.read_bytes())
    (path,) = (path for id, path in models().items() if id.startswith(encoded.info.model))
    return encoded, load_codec(path)
