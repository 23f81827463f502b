"""One picture to one file of layers, and back."""

from pathlib import Path

import numpy as np
import pytest

from codec import EncodedImage, load_codec
from codec.images.files import read_image, write_image
from codec.models.zoo import list_models, model_file, model_id, shipped_model
from jobs import encode_picture, view_picture
from tests.codec.small_models import write_nested_model
from tests.pipeline.makers import picture

Printed = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nested_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(write_image(picture(1), None, "png"))
    return path


def encode(*arguments: object) -> int:
    return encode_picture.main([str(one) for one in arguments])


def view(*arguments: object) -> int:
    return view_picture.main([str(one) for one in arguments])


def test_every_pixel_comes_back(model: Path, source: Path, tmp_path: Path, capsys: Printed) -> None:
    stream, out = tmp_path / "a.strata", tmp_path / "out.png"
    assert encode(source, stream, "--model", model, "--lossless") == 0
    codec = load_codec(model)
    encoded = EncodedImage.from_bytes(stream.read_bytes())
    assert encoded.num_layers == codec.num_layers
    size = stream.stat().st_size
    assert f" {size:,} bytes, {8 * size / (32 * 24):.3f} bits per pixel" in capsys.readouterr().out
    assert view(stream, out, "--model", model) == 0
    assert (read_image(out.read_bytes()).rgb == picture(1)).all()
    capsys.readouterr()
    assert view(stream) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith(f"32x24, uqdm, model {codec.model_id[:8]} (not a shipped model)")
    assert [int(line.split()[1].replace(",", "")) for line in told[2:]] == [
        len(encoded.truncate(count).to_bytes()) for count in range(1, codec.num_layers + 1)
    ]


def test_the_first_layers(model: Path, source: Path, tmp_path: Path) -> None:
    stream, out = tmp_path / "a.strata", tmp_path / "out.webp"
    assert encode(source, stream, "--model", model) == 0
    codec = load_codec(model)
    encoded = EncodedImage.from_bytes(stream.read_bytes())
    assert encoded.num_layers == codec.archive_layers
    assert view(stream, "--layers", 2, out, "--model", model) == 0
    shown = read_image(out.read_bytes()).rgb
    assert (shown == codec.decode([encoded], layers=2)[0]).all()
    assert encode(source, stream, "--model", model, "--layers", 1, "--overwrite") == 0
    assert EncodedImage.from_bytes(stream.read_bytes()).layers == encoded.layers[:1]


def test_a_file_that_was_cut(model: Path, source: Path, tmp_path: Path, capsys: Printed) -> None:
    stream, out = tmp_path / "a.strata", tmp_path / "out.png"
    encode(source, stream, "--model", model, "--lossless")
    data = stream.read_bytes()
    encoded = EncodedImage.from_bytes(data)
    stream.write_bytes(data[:-3])
    capsys.readouterr()
    assert view(stream, out, "--model", model) == 0
    assert "is cut short: only the layers before it are used" in capsys.readouterr().err
    codec = load_codec(model)
    expected = codec.decode([encoded], layers=encoded.num_layers - 1)[0]
    assert (read_image(out.read_bytes()).rgb == expected).all()


def test_what_is_not_in_the_file_is_told(model: Path, tmp_path: Path, capsys: Printed) -> None:
    source = tmp_path / "a.png"
    alpha = np.full((24, 32), 9, np.uint8)
    source.write_bytes(write_image(picture(1), alpha, "png"))
    assert encode(source, tmp_path / "a.strata", "--model", model) == 0
    assert "warning: the alpha channel is not in the file" in capsys.readouterr().err


def test_what_is_wrong(model: Path, source: Path, tmp_path: Path, capsys: Printed) -> None:
    stream, out = tmp_path / "a.strata", tmp_path / "out.png"
    encode(source, stream, "--model", model)
    wrong = {
        "--layers 9: the model": lambda: encode(source, out, "--model", model, "--layers", 9),
        "nothing.png": lambda: encode(tmp_path / "nothing.png", out),
        f"{stream}: not an image": lambda: encode(stream, out, "--model", model),
        "there is no model": lambda: encode(source, out, "--model", "nobody"),
        f"{source}: this is not a Strata file": lambda: view(source, out),
        "which is not a shipped one: give its file": lambda: view(stream, out),
        "the extension must be one of .png": lambda: view(stream, tmp_path / "out.gif"),
        "--layers 9: /": lambda: view(stream, out, "--layers", 9),
    }
    for words, call in wrong.items():
        capsys.readouterr()
        assert call() == 2
        assert words in capsys.readouterr().err
        assert not out.exists()


def test_no_file_is_lost(model: Path, source: Path, tmp_path: Path, capsys: Printed) -> None:
    stream, out, link = tmp_path / "a.strata", tmp_path / "out.png", tmp_path / "link.png"
    assert encode(source, stream, "--model", model) == 0
    out.write_bytes(b"precious")
    link.symlink_to(source)
    before = {path: path.read_bytes() for path in (source, stream, out)}
    refused = {
        f"{source}: is the input itself": lambda: encode(source, source, "--overwrite"),
        f"{link}: is the input itself": lambda: encode(source, link, "--overwrite"),
        "a.png: is the input itself": lambda: encode(link, source, "--overwrite"),
        f"{stream}: exists already: give another output, or --overwrite": lambda: encode(
            source, stream
        ),
        f"{out}: exists already": lambda: view(stream, out),
        f"{tmp_path / 'no'}/x.png: the folder {tmp_path / 'no'} does not exist": lambda: view(
            stream, tmp_path / "no" / "x.png"
        ),
        f"{tmp_path}: is a folder": lambda: encode(source, tmp_path),
    }
    for words, call in refused.items():
        capsys.readouterr()
        assert call() == 2
        assert words in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert link.is_symlink()
    assert view(stream, out, "--model", model, "--overwrite") == 0
    assert read_image(out.read_bytes()).rgb.shape == (24, 32, 3)


def test_shipped_models_are_found_by_the_beginning_of_their_id() -> None:
    for name in list_models():
        assert shipped_model(model_id(model_file(name))[:8]) == name
    assert shipped_model("00000000") is None
