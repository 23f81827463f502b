"""``--format originals``: the files of the corpus, byte for byte, in their shards."""

import io
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codec.errors import MissingPackageError
from codec.images.files import write_image
from pipeline import DeleteOptions, delete_samples
from pipeline.decode.job import DecodeOptions, decode
from pipeline.reader.dataset import Dataset
from pipeline.running.options import OptionError
from pipeline.stores.store import StorageError
from tests.pipeline.conftest import Make
from tests.pipeline.makers import picture, png, write_tar
from tests.pipeline.reader.test_originals import jpeg

Entries = list[tuple[str, bytes]]

ONE: Entries = [
    ("dir/a.b.jpg", jpeg(0)),
    ("dir/a.json", b'{"label": 1}'),
    ("b.txt", b"before its picture"),
    ("b.JPG", jpeg(1, progressive=True)),
    ("b.cls", b""),
    ("cmyk.jpg", jpeg(2, "CMYK")),
    ("cut.jpg", jpeg(3)[:-400]),
    ("cut.txt", b"of a broken one"),
    ("broken.png", b"\x89PNG\r\n\x1a\n and no more"),
    ("twice.jpg", jpeg(4)),
    ("alone.txt", b"no picture at all"),
    ("twice.jpg", jpeg(5)),
    ("._hidden.png", b"of a Macintosh"),
    ("README", b"no extension"),
    ("small.png", png(6, 2, 2)),
    ("k\udcff.jpg", jpeg(7)),
]
NOT_OURS = r"0000\d\.tar is there, and was not written by this job: choose another output"
TWO: Entries = [("c.png", png(1)), ("c.txt", b"c")]


def entries(path: Path) -> Entries:
    with tarfile.open(path) as tar:
        return [(one.name, tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]


def restore(dataset: Dataset, output: Path, **options: Any) -> Any:
    return decode(DecodeOptions(dataset.url, str(output), format="originals", **options))


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    return [
        str(write_tar(tmp_path / "00000.tar", ONE)),
        str(write_tar(tmp_path / "00001.tar", TWO)),
    ]


def test_every_file_comes_back(
    corpus: list[str], make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    dataset = make_dataset(corpus, keep_original="always", layers=1, min_side=3)
    out = tmp_path / "out"
    summary = restore(dataset, out)
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar", "00001.tar"]
    assert entries(out / "00000.tar") == ONE
    assert entries(out / "00001.tar") == TWO
    assert (summary.exit_code, summary.bad, summary.ok) == (0, 0, 12 + 1)
    assert f"{len(ONE) + len(TWO)} files" in "\n".join(summary.lines())
    again = restore(dataset, out)
    assert (again.resumed, again.ok) == (2, 13)
    (out / "00001.tar").unlink()
    assert "00001.tar was lost" in "\n".join(restore(dataset, out).lines())
    assert entries(out / "00001.tar") == TWO


def test_what_is_not_kept_is_named(
    corpus: list[str], make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    dataset = make_dataset(corpus, keep_original="bad", layers=1)
    summary = restore(dataset, tmp_path / "out")
    pictures = {"dir/a", "b", "cmyk", "small", "k\\xff", "c"}
    assert {problem.key for problem in summary.problems} == pictures
    assert (summary.exit_code, summary.bad) == (1, len(pictures))
    lines = "\n".join(summary.lines())
    assert "'b' : not kept when it was compressed: JPG" in lines
    assert "6 samples cannot be restored whole" in lines
    found = entries(tmp_path / "out" / "00000.tar")
    lost = {"dir/a.b.jpg", "b.JPG", "cmyk.jpg", "small.png", "k\udcff.jpg"}
    assert found == [one for one in ONE if one[0] not in lost]  # their labels are there
    some = restore(dataset, tmp_path / "some", filter="original is not None")
    assert (some.exit_code, some.bad) == (0, 0)
    assert [name for name, _ in entries(tmp_path / "some" / "00000.tar")] == [
        "cut.jpg",
        "cut.txt",
        "broken.png",
    ]
    assert not (tmp_path / "some" / "00001.tar").exists()


def test_shards_of_one_name_keep_apart(
    make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    tars = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        name = "same.tar" if number < 2 else "other.tar"
        tars.append(str(write_tar(tmp_path / str(number) / name, [(f"{number}.png", png(number))])))
    dataset = make_dataset(tars[1:], keep_original="always")
    out = tmp_path / "out"
    restore(dataset, out)
    assert {path.name for path in out.glob("*.tar")} == {"same.tar", "other.tar"}
    grown = make_dataset(tars, keep_original="always")  # what is there keeps its name
    assert restore(grown, out).ok == 3
    names = sorted(path.name for path in out.glob("*.tar"))
    assert names[0] == "other.tar"
    assert names[2] == "same.tar"
    assert entries(out / "same.tar")[0][0] == "1.png"
    assert entries(out / names[1]) == [("0.png", png(0))]
    restore(grown, tmp_path / "fresh")
    fresh = {path.name for path in (tmp_path / "fresh").glob("*.tar")}
    assert len(fresh) == 3
    assert "same.tar" not in fresh


@pytest.mark.parametrize("filter", [None, 'key == "c"', 'key == "none"'])
def test_the_shards_themselves_are_never_replaced(
    corpus: list[str], make_dataset: Make, tmp_path: Path, without_ray: None, filter: str | None
) -> None:
    """Restored tars have their names, and here the pictures were not kept."""
    dataset = make_dataset(corpus, keep_original="never", layers=1)
    before = {url: Path(url).read_bytes() for url in corpus}
    refused = (
        nullcontext() if filter == 'key == "none"' else pytest.raises(StorageError, match=NOT_OURS)
    )
    with refused:
        restore(dataset, tmp_path, filter=filter)
    assert {url: Path(url).read_bytes() for url in corpus} == before


def test_a_newer_generation_replaces_its_tar(
    corpus: list[str], make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    dataset = make_dataset(corpus, keep_original="always", layers=1)
    restore(dataset, tmp_path / "out")
    delete_samples(DeleteOptions(dataset=dataset.url, keys=("c", "b")))
    summary = restore(dataset, tmp_path / "out")
    assert not summary.failed_shards
    assert "b.JPG" not in [name for name, _ in entries(tmp_path / "out" / "00000.tar")]
    assert not (tmp_path / "out" / "00001.tar").exists()


def test_keys_choose(
    corpus: list[str], make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    dataset = make_dataset(corpus, keep_original="always", layers=1)
    (tmp_path / "keys").write_text("b\ncmyk\n")
    assert restore(dataset, tmp_path / "out", keys_file=str(tmp_path / "keys")).ok == 2
    names = [name for name, _ in entries(tmp_path / "out" / "00000.tar")]
    assert names == ["b.txt", "b.JPG", "b.cls", "cmyk.jpg"]


def test_what_cannot_be(
    corpus: list[str],
    make_dataset: Make,
    tmp_path: Path,
    without_ray: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make_dataset(corpus, keep_original="always", layers=1)
    with pytest.raises(OptionError, match="--layers, --max-side: --format originals decodes"):
        restore(dataset, tmp_path / "out", layers=1, max_side=9)
    monkeypatch.setitem(sys.modules, "lepton_jpeg_python", None)
    with pytest.raises((MissingPackageError, RuntimeError), match="lepton_jpeg_python"):
        restore(dataset, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_file_that_stands_in_is_handed_out_as_it_is(
    make_dataset: Make, tmp_path: Path, without_ray: None
) -> None:
    files = [("a.jpeg", jpeg(0)), ("b.webp", write_image(picture(9), None, "webp", quality=60))]
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", files))], keep_original="larger")
    assert [one.encoded.num_layers < 4 for one in dataset.read()] == [True, True]

    def handed_out(name: str, **options: Any) -> dict[str, bytes]:
        decode(DecodeOptions(dataset.url, str(tmp_path / name), **options))
        (tar,) = (tmp_path / name).glob("*.tar")
        return dict(entries(tar))

    as_jpg = handed_out("jpg", image_format="jpg")
    assert as_jpg["a.jpeg"] == files[0][1]
    assert Image.open(io.BytesIO(as_jpg["b.jpg"])).format == "JPEG"
    as_webp = handed_out("webp", image_format="webp", max_side=160)
    assert as_webp["b.webp"] == files[1][1]
    assert Image.open(io.BytesIO(as_webp["a.webp"])).size == (160, 120)
    small = handed_out("small", image_format="jpg", max_side=80)
    assert Image.open(io.BytesIO(small["a.jpg"])).size == (80, 60)


@pytest.mark.parametrize("format", ["webp", "avif", "jpg"])
def test_lossy_outputs(make_dataset: Make, tmp_path: Path, without_ray: None, format: str) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a.png", png(1, 96, 128))])
    dataset = make_dataset([str(tar)])

    def size(name: str, **options: Any) -> int:
        decode(DecodeOptions(dataset.url, str(tmp_path / name), **options))
        (out,) = (tmp_path / name).glob("*.tar")
        ((field, data),) = entries(out)
        assert field == f"a.{options['image_format']}"
        return len(data)

    plain = size("plain", image_format=format)
    low = size("low", image_format=format, image_quality=30)
    assert low < plain < size("png", image_format="png")
    if format == "webp":
        assert size("exact", image_format="webp", image_quality="lossless") > plain
    else:
        with pytest.raises(OptionError, match=f"{format} is lossy; choose png or webp"):
            size("no", image_format=format, image_quality="lossless")
    with pytest.raises(OptionError, match="png is always lossless"):
        size("no", image_format="png", image_quality=90)
