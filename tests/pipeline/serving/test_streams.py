"""Layers as they are stored, over HTTP, for programs that decode them themselves."""

import re
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from codec import EncodedImage, load_codec
from pipeline.reader.dataset import Dataset
from pipeline.serving.limits import Limits
from tests.browser.preview_server import previews
from tests.conftest import ROOT
from tests.pipeline.makers import ToyCodec, picture, png, write_tar
from tests.pipeline.serving.conftest import Client
from tests.pipeline.serving.datasets import write_dataset
from tests.pipeline.serving.test_faults import damage


def stream_url(key: str, **parameters: object) -> str:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"/v1/images/{key}/stream?{query}"


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_layers_asked_for(
    client: TestClient, dataset: Dataset, toy: ToyCodec, layers: int
) -> None:
    answer = client.get(stream_url("s0003", layers=layers))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    stored = dataset.record("s0003", layers).encoded
    assert answer.content == stored.to_bytes()
    assert answer.headers["x-strata-layers"] == str(layers)
    assert answer.headers["x-strata-bytes"] == str(stored.nbytes)
    decoded = toy.decode([EncodedImage.from_bytes(answer.content)])[0]
    np.testing.assert_array_equal(decoded, toy.decode([stored])[0])


def test_all_layers_are_the_default(client: TestClient, toy: ToyCodec) -> None:
    stream = EncodedImage.from_bytes(client.get(stream_url("a%2Fb")).content)
    np.testing.assert_array_equal(toy.decode([stream])[0], picture(9))


def test_what_a_client_has_is_not_sent_again(client: TestClient) -> None:
    address = stream_url("s0001", layers=2)
    first = client.get(address)
    tag = first.headers["etag"]
    again = client.get(address, headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == "private, max-age=3600"
    others = (stream_url("s0001", layers=1), stream_url("s0002", layers=2), "/v1/images/s0001")
    assert tag not in [client.get(other).headers["etag"] for other in others]
    version = client.get("/v1/dataset").json()["version"]
    assert "immutable" in client.get(f"{address}&v={version}").headers["cache-control"]
    head = client.head(address)
    assert (head.headers["etag"], head.content) == (tag, b"")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        (stream_url("nothing"), 404),
        (stream_url("broken"), 404),
        (stream_url("..%2Fdataset.json"), 404),
        (stream_url("s0000", layers=0), 422),
        (stream_url("s0000", layers=5), 422),
        (stream_url("s0000", layers="two"), 422),
    ],
)
def test_what_there_is_not(client: TestClient, address: str, status: int) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]


def test_a_damaged_layer_ends_the_stream(dataset: Dataset, connect: Client) -> None:
    client = connect(damage(dataset, "s0002", 2))
    answer = client.get(stream_url("s0002"))
    assert answer.headers["x-strata-damaged"] == "2"
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    assert EncodedImage.from_bytes(answer.content).num_layers == 2
    assert "x-strata-damaged" not in client.get(stream_url("s0002", layers=2)).headers


def test_the_example_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 6
    write_tar(tmp_path / "a.tar", [("holiday/0001.png", png(3, 64, 96))])
    dataset = write_dataset(str(tmp_path / "archive"), [tmp_path / "a.tar"])
    codec = load_codec("uqdm")
    with previews(dataset, codec, Limits()) as url:
        found: dict[str, object] = {}
        exec(example.replace("http://127.0.0.1:8000/", url), found)
    stored = dataset.record("holiday/0001", 2).encoded
    np.testing.assert_array_equal(found["picture"], codec.decode([stored])[0])
