"""Captions, labels and other side fields over HTTP; searches; the neighbours of a picture."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from pipeline.serving.side_fields import MAX_FIELDS, MAX_TEXT, MAX_TEXTS, shown_fields
from tests.pipeline.conftest import Make
from tests.pipeline.makers import png, write_tar
from tests.pipeline.serving.conftest import Client

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def captioned(make_dataset: Make, connect: Client, tmp_path: Path) -> TestClient:
    write_tar(
        tmp_path / "a.tar",
        [
            ("cat.png", png(1)),
            ("cat.txt", b"a cat\non a mat"),
            ("cat.cls", b"3"),
            ("dog.png", png(2)),
            ("dog.json", json.dumps({"caption": SCRIPT, "url": "x"}).encode()),
            ("plain.png", png(3)),
            ("plain.seg.png", png(4)),
            ("plain.bin", b"\x00\x01"),
            ("long.png", png(5)),
            ("long.text", "é".encode() * 3000),
        ],
    )
    return connect(make_dataset([str(tmp_path / "a.tar")]))


def test_a_picture_comes_with_its_side_fields(captioned: TestClient) -> None:
    told = captioned.get("/v1/images/cat/info").json()
    assert (told["caption"], told["label"]) == ("a cat on a mat", "3")
    assert told["fields"] == {
        "items": [
            {"name": "txt", "bytes": 14, "text": "a cat\non a mat"},
            {"name": "cls", "bytes": 1, "text": "3"},
        ],
        "more": 0,
    }
    dog = captioned.get("/v1/images/dog/info")
    assert dog.headers["content-type"] == "application/json"
    assert dog.headers["x-content-type-options"] == "nosniff"
    assert dog.json()["caption"] == SCRIPT
    plain = captioned.get("/v1/images/plain/info").json()
    assert (plain["caption"], plain["label"]) == (None, None)
    assert [(one["name"], one["text"]) for one in plain["fields"]["items"]] == [
        ("seg.png", None),
        ("bin", None),
    ]
    long = captioned.get("/v1/images/long/info").json()
    assert long["caption"].startswith("é")
    assert [(one["bytes"], one["text"]) for one in long["fields"]["items"]] == [(6000, None)]


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", ["cat", "dog", "plain", "long"]),
        ("search=MAT", ["cat"]),
        ("search=script", ["dog"]),
        ("search=dog", ["dog"]),
        ("search=é", ["long"]),
        ("search=url", []),  # of JSON only the caption is looked at
        ("search=mat&min_width=1000", []),
    ],
)
def test_a_search_finds_captions(captioned: TestClient, query: str, keys: list[str]) -> None:
    page = captioned.get(f"/v1/images?captions=true&{query}").json()
    assert [item["key"] for item in page["items"]] == keys
    assert page["next"] is None
    assert page["unread"] == 0
    assert all({"caption", "label"} <= item.keys() for item in page["items"])


def test_without_captions_only_keys_are_looked_at(captioned: TestClient) -> None:
    page = captioned.get("/v1/images?search=mat").json()
    assert page["items"] == []
    (item,) = captioned.get("/v1/images?search=cat").json()["items"]
    assert "caption" not in item


def test_what_the_dataset_has(captioned: TestClient) -> None:
    told = captioned.get("/v1/dataset").json()
    assert told["captions"] == 3
    assert told["formats"] == ["png"]


def field(name: str, data: bytes | None) -> dict[str, Any]:
    return {"name": name, "data": data}


def test_what_is_shown_is_bounded() -> None:
    many = [field(f"f{number}", b"x" * MAX_TEXT) for number in range(1000)]
    told = shown_fields([field("png", None), *many], "png")
    assert told is not None
    assert len(told["items"]) == MAX_FIELDS
    assert told["more"] == 1000 - MAX_FIELDS
    shown = [one["text"] for one in told["items"] if one["text"] is not None]
    assert len(shown) == MAX_TEXTS // MAX_TEXT
    (one,) = shown_fields([field("n" * 5000, b"y" * (MAX_TEXT + 1))], None)["items"]  # type: ignore[index]
    assert (len(one["name"]), one["bytes"], one["text"]) == (200, MAX_TEXT + 1, None)
    assert shown_fields(None, "png") is None


@pytest.mark.parametrize("backwards", [False, True])
def test_pictures_beside_one(client: TestClient, backwards: bool) -> None:
    keys = [item["key"] for item in client.get("/v1/images").json()["items"]]
    order = keys[::-1] if backwards else keys
    for place, key in enumerate(order):
        address = f"/v1/images?limit=1&next_to={quote(key, safe='')}&backwards={backwards}"
        page = client.get(address).json()
        assert [item["key"] for item in page["items"]] == order[place + 1 : place + 2]
    few = client.get(
        f"/v1/images?next_to={quote(order[0], safe='')}&search=s000&backwards={backwards}"
    ).json()
    assert [item["key"] for item in few["items"]] == [one for one in order[1:] if "s000" in one]


def test_a_picture_beside_none(client: TestClient) -> None:
    answer = client.get("/v1/images?next_to=nothing")
    assert answer.status_code == 404
    assert "nothing" in answer.json()["detail"]
