"""Pictures over HTTP: the right pixels, size and format, and the right headers."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from codec.images.files import read_image
from pipeline.reader.dataset import Dataset
from tests.pipeline.conftest import Make
from tests.pipeline.makers import ToyCodec, picture, png, write_tar
from tests.pipeline.reader.test_originals import jpeg
from tests.pipeline.serving.conftest import Client, alpha_plane, url


def shown(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_all_layers_are_the_default(client: TestClient) -> None:
    answer = client.get(url("s0002", format="png"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(shown(answer.content), picture(2))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_layers_are_those_that_were_asked_for(
    client: TestClient, dataset: Dataset, toy: ToyCodec, layers: int
) -> None:
    answer = client.get(url("s0003", layers=layers, format="png"))
    stream = dataset.record("s0003", layers).encoded
    np.testing.assert_array_equal(shown(answer.content), toy.decode([stream])[0])
    assert answer.headers["x-strata-layers"] == str(layers)
    assert answer.headers["x-strata-bytes"] == str(stream.nbytes)


@pytest.mark.parametrize(("format", "name"), [("webp", "WEBP"), ("jpeg", "JPEG"), ("png", "PNG")])
def test_formats(client: TestClient, format: str, name: str) -> None:
    answer = client.get(url("large", format=format))
    assert answer.headers["content-type"] == f"image/{format}"
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == (name, (300, 200))
    difference = shown(answer.content).astype(int) - picture(7, 200, 300)
    assert np.abs(difference).mean() < 4  # it is this picture, not another


@pytest.mark.parametrize(("side", "size"), [(100, (100, 67)), (16, (16, 11)), (4096, (300, 200))])
def test_pictures_are_made_smaller_and_never_larger(
    client: TestClient, side: int, size: tuple[int, int]
) -> None:
    answer = client.get(url("large", max_side=side))
    assert Image.open(io.BytesIO(answer.content)).size == size


def test_transparency_is_kept_or_shown_on_white(client: TestClient) -> None:
    for format in ("webp", "png"):
        pixels = shown(client.get(url("glass", format=format)).content)
        np.testing.assert_array_equal(pixels[..., 3], alpha_plane())
    small = shown(client.get(url("glass", format="png", max_side=30)).content)
    assert small.shape == (20, 30, 4)
    assert small[:, 0, 3].max() == 0
    assert small[:, -1, 3].min() == 255
    jpeg = shown(client.get(url("glass", format="jpeg")).content)
    assert jpeg.shape == (40, 60, 3)
    assert jpeg[:, :16].min() > 250
    assert np.abs(jpeg[:, 40:].astype(int) - picture(8, 40, 60)[:, 40:]).mean() < 4


def test_what_a_client_has_is_not_sent_again(client: TestClient) -> None:
    address = url("s0001", layers=2)
    first = client.get(address)
    etag = first.headers["etag"]
    assert etag.startswith('"')
    for header in (etag, f'"x", W/{etag}', "*"):
        again = client.get(address, headers={"If-None-Match": header})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["cache-control"] == first.headers["cache-control"]
    assert client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


def test_every_other_picture_has_another_tag(client: TestClient) -> None:
    tags = [
        client.get(url(key, **parameters)).headers["etag"]
        for key in ("s0000", "s0001")
        for parameters in (
            {"layers": 1},
            {"layers": 2},
            {"layers": 2, "max_side": 16},
            {"layers": 2, "format": "png"},
        )
    ]
    assert len(set(tags)) == 8
    # ... but the same picture has the same one, however it was asked for
    assert (
        client.get(url("s0000")).headers["etag"]
        == client.get(url("s0000", layers=4)).headers["etag"]
    )


def test_only_addresses_with_the_version_are_cached_for_good(client: TestClient) -> None:
    version = client.get("/v1/dataset").json()["version"]
    assert "immutable" in client.get(url("s0000", v=version)).headers["cache-control"]
    for other in (url("s0000"), url("s0000", v="older")):
        assert client.get(other).headers["cache-control"] == "private, max-age=3600"


def test_a_dataset_that_changes_has_another_version(
    make_dataset: Make, connect: Client, tmp_path: Path
) -> None:
    tar, other = (str(tmp_path / name) for name in ("one.tar", "two.tar"))
    write_tar(Path(tar), [("x.png", png(1))])
    write_tar(Path(other), [("y.png", png(2))])
    before = connect(make_dataset([tar])).get("/v1/dataset").json()
    after = connect(make_dataset([tar, other])).get("/v1/dataset").json()
    assert (before["pictures"], after["pictures"]) == (1, 2)
    assert before["version"] != after["version"]


def test_answers_are_remembered_but_not_without_end(client: TestClient, connect: Client) -> None:
    first, second = (client.get(url("s0000", layers=1)) for _ in range(2))
    assert first.content == second.content
    assert 'strata_preview_cache_total{result="hit"} 1.0' in client.get("/metrics").text
    small = connect(client.app.state.service.dataset, cache_bytes=16_000)
    for _ in range(2):
        for number in range(6):
            for layers in (1, 2, 3, 4):
                assert small.get(url(f"s{number:04d}", layers=layers)).status_code == 200
    figures = dict(
        line.rsplit(" ", 1) for line in small.get("/metrics").text.splitlines() if line[0] != "#"
    )
    assert 0 < float(figures["strata_preview_cache_bytes"]) <= 16_000


def test_the_original_where_layers_are_not_stored(
    make_dataset: Make, connect: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = np.zeros((64, 96, 3), np.uint8)  # its file is smaller than its stream
    flat[8:40, 8:40] = (10, 200, 30)
    out = io.BytesIO()
    Image.fromarray(flat).save(out, "PNG", optimize=True)
    write_tar(tmp_path / "a.tar", [("flat.png", out.getvalue()), ("noise.png", png(1))])
    dataset = make_dataset(
        [str(tmp_path / "a.tar")], keep_original="always", layers=4, store_layers="fit"
    )
    stored = next(dataset.read(keys=["flat"], columns=["layers"])).extra["layers"]
    assert stored < 4, "the test needs a picture that stores fewer layers"
    client = connect(dataset)
    full = client.get(url("flat", format="png"))
    np.testing.assert_array_equal(shown(full.content), flat)
    assert full.content == out.getvalue()  # not an encoding of it
    assert full.headers["x-strata-original"] == "true"
    assert full.headers["x-strata-bytes"] == str(len(out.getvalue()))
    few = client.get(url("flat", layers=stored, format="png"))
    assert "x-strata-original" not in few.headers
    assert few.headers["x-strata-layers"] == str(stored)
    small = client.get(url("flat", max_side=48, format="jpeg"))
    assert Image.open(io.BytesIO(small.content)).size == (48, 32)

    kept = client.get("/v1/originals/flat")
    assert kept.content == out.getvalue()
    assert kept.headers["content-type"] == "image/png"
    told = client.get("/v1/images/flat/info").json()
    assert (told["has_original"], told["original_from"]) == (True, stored + 1)
    at = client.get(url("flat", layers=told["original_from"]))
    assert at.headers["x-strata-original"] == "true"
    monkeypatch.setattr(dataset, "original", None)  # whoever has it already makes nobody read it
    again = client.get("/v1/originals/flat", headers={"If-None-Match": kept.headers["etag"]})
    assert (again.status_code, again.headers["etag"]) == (304, kept.headers["etag"])


@pytest.mark.parametrize(
    "settings", [{"keep_original": "larger"}, {"keep_original": "always", "store_layers": 2}]
)
def test_originals_that_are_packed(
    make_dataset: Make,
    connect: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
) -> None:
    file = jpeg(0)
    write_tar(tmp_path / "a.tar", [("a.jpg", file)])
    client = connect(make_dataset([str(tmp_path / "a.tar")], **settings))
    assert client.get("/v1/originals/a").content == file
    assert client.get(url("a", format="jpeg")).content == file
    assert client.get(url("a", format="jpeg", max_side=160)).content == file
    assert Image.open(io.BytesIO(client.get(url("a", max_side=80)).content)).size == (80, 60)
    monkeypatch.setitem(sys.modules, "lepton_jpeg_python", None)
    refused = client.get("/v1/originals/a")
    assert refused.status_code == 503
    assert client.get(url("a", layers=1)).status_code == 200


def test_no_original_was_kept(client: TestClient) -> None:
    answer = client.get("/v1/originals/s0000")
    assert answer.status_code == 404
    assert "was not kept" in answer.json()["detail"]
    assert read_image(client.get(url("s0000", format="png")).content).format == "png"
